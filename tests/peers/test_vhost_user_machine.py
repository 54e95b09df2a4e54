# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine monitor does to its machine while the guest writes to the disk.

Invariant: the load (`begin_load`) verifies all that it reads, and whatever is done to the machine,
it is asked at the end what it found - unless the machine or the disk went away under it.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, begin_load, end_load
from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.servers import Disk, Iodma, Server

#: MiB; the load is before that, and data of the host's choice behind it.
KEPT = 32


@pytest.fixture
def image(work: Path) -> Path:
    return make_image(work / "disk.img", 64 * MIB)


@pytest.fixture
def data(image: Path, rng: random.Random) -> bytes:
    """What is on the image from `KEPT` on."""
    data = rng.randbytes(16 * MIB)
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), data, KEPT * MIB)
    return data


def qemu(work: Path, boot: Boot, server: Server, machine: Machine) -> Qemu:
    return Qemu(work, boot, server.socket, machine, logs=[server.log])


def add_memory(guest: Qemu, data: bytes) -> None:
    """128 MiB more, and the disk's bytes arrive in them.

    The guest keeps that memory apart, for what can be moved out of it again, and takes what its
    programs ask for from there first.
    """
    total = "awk '/MemTotal/ {print $2}' /proc/meminfo"
    taken = "awk '/zone +Movable/ {here=1} here && /numa_hit/ {print $2; exit}' /proc/zoneinfo"
    before = int(guest.run(total).output)
    backend: dict[str, Any] = {"qom_type": "memory-backend-memfd", "share": True}
    guest.qmp.execute("object-add", id="more", size=128 * MIB, **backend)
    guest.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    guest.run(f"while [ $({total}) -le {before} ]; do sleep 0.1; done")
    length = len(data) // MIB
    read = f"dd if=/dev/vda bs={length}M skip={KEPT // length} count=1 iflag=direct 2>/dev/null"
    first, digest, _, last = guest.run(f"{taken}; {read} | md5sum; {taken}").output.split()
    assert digest == hashlib.md5(data).hexdigest()
    assert int(last) - int(first) >= len(data) // 4096


def remove_memory(guest: Qemu) -> None:
    """... again: the guest moves what is in it elsewhere, and QEMU takes it from the server."""
    guest.qmp.execute("device_del", id="dimm")
    guest.wait_deleted("dimm")
    guest.qmp.execute("object-del", id="more")


@pytest.mark.limit(180)
def test_stop_and_memory_and_device_del(
    work: Path, qemu_boot: Boot, image: Path, data: bytes
) -> None:
    machine = Machine(max_memory=1024, kernel="memhp_default_state=online_movable")
    with (
        Iodma(work, Disk(image)) as server,
        qemu(work, qemu_boot, server, machine) as guest,
    ):
        guest.start()
        begin_load(guest)
        guest.stop_and_go(20)
        add_memory(guest, data)
        assert end_load(guest)
        begin_load(guest)  # a new process, whose memory is of the new
        remove_memory(guest)
        guest.stop_and_go(3)
        assert end_load(guest)
        begin_load(guest)
        guest.qmp.execute("device_del", id="disk")
        guest.wait_deleted("disk")
        guest.run("while [ -e /sys/block/vda ]; do sleep 0.1; done")
        guest.power_off()
        server.stop()


@pytest.mark.limit(180)
def test_reboot_and_reset(work: Path, qemu_boot: Boot, image: Path, data: bytes) -> None:
    """A guest that reboots, and one that is reset, find a disk that works, and what was there."""
    length = len(data) // MIB
    read = f"dd if=/dev/vda bs={length}M skip={KEPT // length} count=1 2>/dev/null | md5sum"
    with (
        Iodma(work, Disk(image)) as server,
        qemu(work, qemu_boot, server, Machine(reboots=True)) as guest,
    ):
        guest.start()
        begin_load(guest)
        guest.submit("reboot -f")
        guest.wait_up()
        begin_load(guest)
        guest.qmp.execute("system_reset")
        guest.wait_up()
        assert guest.run(read).output.split()[0] == hashlib.md5(data).hexdigest()
        begin_load(guest)
        assert end_load(guest)
        guest.power_off()
        server.stop()
