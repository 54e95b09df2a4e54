# SPDX-License-Identifier: Apache-2.0
"""A big-endian guest, whose addresses go through the IOMMU that its processor has.

What is needed comes as test_vfio_user_qtest.py says; the module is made by Debian's cross compiler.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.vfio_user.machine import S390x, Served


@pytest.mark.limit(300)
def test_a_big_endian_guest(work: Path, qemu11: Foreign, s390x_boot: Boot) -> None:
    """The ladder's copy engine on s390x: registers, DMA, both interrupts, its IOMMU's faults."""
    device = "$(echo /sys/bus/pci/devices/*)"
    machine = Machine(memory=256, kernel="s390_iommu=strict")
    with (
        Served(work, "rung3_copy_engine.py") as server,
        S390x(work, s390x_boot, qemu11, [server], machine) as guest,
    ):
        guest.start()
        assert "s390x" in guest.run("uname -m").output
        guest.run("insmod /drivers/copy_engine.ko")
        guest.run(f"echo 50 4096 1 >{device}/copy; echo 20 65536 16 >{device}/copy", seconds=60)
        state = f"cat {device}/state"
        assert guest.run(state).output.split() == ["msix", "2", "70", "0"]

        # Its IOMMU takes a function that faults away until that is recovered.
        guest.run(f"cat {device}/unmapped_target", status=None)
        guest.run("until dmesg | grep 'reports an error for PCI function'; do sleep 0.1; done")
        guest.run(f"rmmod copy_engine; echo 1 >{device}/recover; insmod /drivers/copy_engine.ko")
        guest.run(f"echo 50 4096 1 >{device}/copy", seconds=60)
        assert guest.run(state).output.split() == ["msix", "2", "50", "0"]
        guest.run("rmmod copy_engine")
        guest.power_off()
        server.stop()
