# SPDX-License-Identifier: Apache-2.0
"""Debian's generic kernel mounts the disk: QEMU is the vhost-user front-end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests import jobs
from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB
from tests.peers.guests.qemu import Boot, Machine, Qemu, printed_options
from tests.peers.guests.servers import Disk, Iodma


@pytest.mark.limit(120)
def test_ext4_on_four_queues(work: Path, qemu_boot: Boot) -> None:
    """With the options that `iodma qemu-args` prints, and nothing else that is about the disk."""
    image = make_image(work / "disk.img", 64 * MIB)
    with Iodma(work, Disk(image, queues=4)) as server:
        told = printed_options(
            "--socket-path", str(server.socket), "--memory", "448M", "--num-queues", "4"
        )
        machine = Machine(processors=4, options=told)
        with Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest:
            files = jobs.filesystem(guest.start(), image, 4)
            queues = guest.run("ls /sys/block/vda/mq").output.split()
            guest.power_off()
            server.stop()
    assert queues == ["0", "1", "2", "3"]
    jobs.after_filesystem(image, files, 4, work)


@pytest.mark.limit(120)
def test_packed_rings(work: Path, qemu_boot: Boot) -> None:
    image = make_image(work / "disk.img", 64 * MIB)
    with Iodma(work, Disk(image, queues=2)) as server:
        machine = Machine(processors=2, queues=2, device="packed=on")
        with Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest:
            files = jobs.filesystem(guest.start(), image, 2)
            features = guest.run("cat /sys/block/vda/device/features").output.strip()
            guest.power_off()
            server.stop()
    assert features[34] == "1"  # VIRTIO_F_RING_PACKED, the driver's own answer
    jobs.after_filesystem(image, files, 2, work)


@pytest.mark.limit(120)
def test_memory_that_is_not_shared(work: Path, qemu_boot: Boot) -> None:
    """The guest waits for a disk that cannot see it, and the server says why."""
    image = make_image(work / "disk.img", 64 * MIB)
    machine = Machine(shared=False)
    with (
        Iodma(work, Disk(image)) as server,
        Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest,
    ):
        guest.start(wait=False)
        server.wait_said("share=on")
