# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine monitor does to its machine while a function works, and servers that go.

Invariant: whatever is done, all that is copied before and after it is compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.jobs import MIB
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.vfio_user.load import DEVICE, begin, end, is_over
from tests.peers.vfio_user.machine import Served, VfioQemu

SECOND = "/sys/bus/pci/devices/0000:02:00.0"
LOAD = "insmod /drivers/copy_engine.ko irq=msi"
ADDED = 0x1_0000_0000  # where memory that is added begins


def add_memory(guest: VfioQemu, name: str, how: str) -> None:
    """128 MiB more; `how` is the kernel's word for what they are used for."""
    guest.run(f"echo {how} >/sys/devices/system/memory/auto_online_blocks")
    total = "awk '/MemTotal/ {print $2}' /proc/meminfo"
    before = int(guest.run(total).output)
    guest.qmp.execute(
        "object-add", id=name, size=128 * MIB, qom_type="memory-backend-memfd", share=True
    )
    guest.qmp.execute("device_add", driver="pc-dimm", id=f"{name}-dimm", memdev=name)
    guest.run(f"while [ $({total}) -le {before} ]; do sleep 0.1; done", seconds=60)


@pytest.mark.limit(400)
def test_hot_plug_reboot_and_servers_that_go(work: Path, qemu11: Foreign, vfio_boot: Boot) -> None:
    machine = Machine(memory=256, max_memory=1024, reboots=True)
    with (
        Served(work, "Removable", id="first") as first,
        Served(work, "Removable", id="second") as second,
        VfioQemu(work, vfio_boot, qemu11, [first, second], machine) as guest,
    ):
        guest.start()
        guest.run(LOAD)

        # Memory comes and goes under load; what came to stay is what the device copies then.
        begin(guest)
        add_memory(guest, "going", "online_movable")
        end(guest)
        begin(guest)
        guest.qmp.execute("device_del", id="going-dimm")
        guest.wait_deleted("going-dimm", 60)
        guest.qmp.execute("object-del", id="going")
        end(guest)
        add_memory(guest, "staying", "online_kernel")
        at = guest.run(f"cat {DEVICE}/unmapped_source").output.split()[2]
        assert int(at, 16) >= ADDED
        begin(guest)
        end(guest)

        # A function goes under load, and comes again.
        begin(guest)
        begin(guest, SECOND, "other")
        guest.qmp.execute("device_del", id="first")
        guest.wait_deleted("first", 60)
        is_over(guest)
        guest.qmp.execute("device_add", **json.loads(first.function.option(bus="port1")))
        guest.run(f"while [ ! -e {DEVICE}/state ]; do sleep 0.1; done", seconds=60)
        begin(guest)
        end(guest)
        end(guest, "other")

        # The machine starts again, under load.
        begin(guest)
        guest.submit("reboot -f")
        guest.wait_up()
        guest.run(LOAD)
        begin(guest)
        begin(guest, SECOND, "other")

        # A server is killed, the other one is ended. No message is under way: QEMU 11.1 aborts by
        # itself when what it has sent was not read.
        guest.qmp.execute("stop")
        first.kill()
        second.stop()
        guest.qmp.execute("cont")
        for name in ("load", "other"):
            assert "No such device" in is_over(guest, name)
        guest.run("rmmod copy_engine", seconds=60)
        guest.power_off()
