# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel drives functions, without an IOMMU: its tools, user space, and a module of it.

Bus addresses are physical ones. What is needed comes as test_vfio_user_qtest.py says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.jobs import no_trouble
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.vfio_user.machine import Served, VfioQemu

DEVICE = "/sys/bus/pci/devices/0000:01:00.0"

#: What `lspci -vv` says of AllKinds (tests/peers/vfio_user/devices.py); each a regular expression.
DECLARED = (
    r"^01:00\.0 Class 0880: Device f1da:0003 \(rev 5a\)$",
    r"Subsystem: Device f1da:0103$",
    r"Interrupt: pin A routed to IRQ \d+$",
    r"Region 0: Memory at \w+ \(32-bit, non-prefetchable\) \[size=4K\]$",
    r"Region 1: I/O ports at \w+ \[size=256\]$",
    r"Region 2: Memory at \w+ \(64-bit, prefetchable\) \[size=64K\]$",
    r"Region 4: Memory at \w+ \(32-bit, non-prefetchable\) \[size=4K\]$",
    r"Capabilities: \[..\] Power Management version 3$",
    r"Status: D0 NoSoftRst\+",
    r"Capabilities: \[..\] MSI: Enable- Count=1/2 Maskable\+ 64bit\+$",
    r"Capabilities: \[..\] Express \(v2\) Endpoint, MSI 00$",
    r"FLReset\+",
    r"Capabilities: \[..\] MSI-X: Enable- Count=2 Masked-$",
    r"Vector table: BAR=4 offset=00000000$",
    r"PBA: BAR=4 offset=0000\w+$",
    r"Capabilities: \[..\] Vendor Specific Information: Len=0c <\?>$",
)


def use(kind: str, size: int = 65536, depth: int = 16) -> str:
    """A job: the module drives the device, first a copy at a time, then many."""
    return f"""
    insmod /drivers/copy_engine.ko irq={kind}
    echo 50 4096 1 >{DEVICE}/copy
    echo 20 {size} {depth} >{DEVICE}/copy
    cat {DEVICE}/state
    rmmod copy_engine
    """


def used(answer: str, kind: str, vectors: int) -> None:
    """What the job said: the kind of interrupt, and that each round was told of by one."""
    told, count, done, failed = answer.split()
    assert (told, int(count), int(done), int(failed)) == (kind, vectors, 70, 0)


@pytest.mark.limit(300)
def test_without_an_iommu(work: Path, qemu11: Foreign, vfio_boot: Boot) -> None:
    names = ("AllKinds", "rung1_registers.py", "rung3_copy_engine.py")
    devices = [Served(work, name).start() for name in names]
    try:
        with VfioQemu(work, vfio_boot, qemu11, devices, Machine(memory=256)) as guest:
            guest.start()
            said = guest.run("lspci -vv -s 01:00.0 2>/dev/null", seconds=60).output
            for pattern in DECLARED:
                assert re.search(pattern, said, re.MULTILINE), f"{pattern} is not in\n{said}"
            listed = guest.run("lspci 2>/dev/null", seconds=60).output
            assert "02:00.0 Class 0880: Device f1da:0001" in listed
            assert "03:00.0 Class 0880: Device f1da:0003" in listed

            # Of a vendor's own capability the one byte and four bits can be written that may.
            setpci = "setpci -s 01:00.0 CAP09+4.L=ffffffff CAP09+8.L=ffffffff; setpci -s 01:00.0"
            told = guest.run(f"{setpci} CAP09+4.L CAP09+8.L", seconds=60).output.split()
            assert told == ["616d646f", "00000fff"], told  # "odma"

            guest.run(f"echo uio_pci_generic >{DEVICE}/driver_override")
            guest.run("echo 0000:01:00.0 >/sys/bus/pci/drivers_probe")
            said = guest.run("uio_copy 0000:01:00.0 /dev/uio0 50", seconds=60).output
            assert said.split("\n")[:3] == ["not a bus master", "copied", "refused"]
            guest.run(f"echo 0000:01:00.0 >{DEVICE}/driver/unbind; echo >{DEVICE}/driver_override")

            used(guest.run(use("intx"), seconds=60).output, "intx", 1)
            used(guest.run(use("msi"), seconds=60).output, "msi", 1)  # more need an IOMMU
            used(guest.run(use("msix"), seconds=60).output, "msix", 2)
            no_trouble(guest)
            guest.power_off()
        for device in devices:
            device.stop()
    finally:
        for device in devices:
            device.kill()
