# SPDX-License-Identifier: Apache-2.0
"""Functions behind the guest's IOMMU, in strict mode: each mapping is taken away at once.

Each page that the guest maps and unmaps is a message each. What is needed comes as
test_vfio_user_qtest.py says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.guest import Guest
from tests.peers.guests.jobs import no_trouble
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.test_vfio_user_guest import DEVICE, use, used
from tests.peers.vfio_user.load import begin, end, refused
from tests.peers.vfio_user.machine import IOMMU, STRICT, Served, VfioQemu

VFIO = """
echo vfio-pci >{0}/driver_override
echo 0000:01:00.0 >/sys/bus/pci/drivers_probe
group=$(readlink {0}/iommu_group)
for kind in intx msi msix; do
    vfio_copy 0000:01:00.0 ${{group##*/}} $kind 3
done
echo 0000:01:00.0 >{0}/driver/unbind
echo >{0}/driver_override
"""
SAID = ["copied", "refused", "unmapped under way", "reset"]


#: What the guest's IOMMU has logged: device and address.
DMAR = re.compile(r"DMAR: \[DMA Read .*Request device \[(\S+)\] fault addr (\S+) .*reason 0x06")


def faults(guest: Guest) -> None:
    """DMA from and to what is not mapped fails in its descriptor, and the IOMMU tells the guest of
    it. There is one record for the function, so it is waited for each time."""
    for which in ("source", "target"):
        guest.run("dmesg -c >/dev/null")
        address = refused(guest, end=which)
        assert address is not None
        told = guest.run("until dmesg | grep fault.addr; do sleep 0.1; done", seconds=30).output
        found = {(device, int(where, 16)) for device, where in DMAR.findall(told)}
        assert found == {("01:00.0", address)}, told


@pytest.mark.limit(300)
def test_strict_mode(work: Path, qemu11: Foreign, vfio_boot: Boot) -> None:
    """Through VFIO and by the module; resets while it works, of the function and of the machine."""
    machine = Machine(memory=256, arguments=("-device", IOMMU), kernel=STRICT, reboots=True)
    with (
        Served(work, "AllKinds") as server,
        VfioQemu(work, vfio_boot, qemu11, [server], machine) as guest,
    ):
        guest.start()
        assert "strict mode" in guest.console.read_text()
        said = guest.run(VFIO.format(DEVICE), seconds=90).output.splitlines()
        assert said == [
            *("1 vectors", "not a bus master", *SAID),
            *("2 vectors", *SAID),
            *("2 vectors", *SAID),
        ]
        for kind, vectors in (("intx", 1), ("msi", 2), ("msix", 2)):
            used(guest.run(use(kind, 8192), seconds=60).output, kind, vectors)

        guest.run("insmod /drivers/copy_engine.ko")
        begin(guest)
        faults(guest)
        end(guest)
        begin(guest)
        guest.run(f"for i in 1 2 3 4 5; do echo 1 >{DEVICE}/reset; done", seconds=60)
        end(guest)
        begin(guest)
        guest.qmp.execute("system_reset")
        guest.wait_up()
        guest.run("insmod /drivers/copy_engine.ko")
        begin(guest)
        end(guest)
        faults(guest)
        no_trouble(guest)
        guest.power_off()
        server.stop()
    assert "is not done after" not in server.said(), server.said()
