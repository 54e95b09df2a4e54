# SPDX-License-Identifier: Apache-2.0
"""The SPARCstation 5 as data: physical addresses, interrupt sources, names.

Sources: "Sun-4M System Architecture" and the manuals of the parts (NCR89C100, NCR89C105); the
addresses are those that OpenBoot gives an SS-5's drivers, and QEMU's SS-5 has.

Invariant: nothing here knows of a device's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iodma.devices.slavio_intctl import Line

__all__ = ["MOST_RAM", "PLACES", "QOM", "WIRES", "Place"]

#: Bytes of RAM, from address 0, that the machine can have.
MOST_RAM: Final = 256 << 20


@dataclass(frozen=True)
class Place:
    """A window of a device's registers.

    Attributes:
        device: whose, by its name on the board.
        base: physical address.
        size: bytes.
        least, most: bytes of the narrowest and widest access that the bus makes of others.
        offset: of the device's registers that the window begins with.
    """

    device: str
    base: int
    size: int
    least: int = 4
    most: int = 4
    offset: int = 0


#: The windows.
PLACES: Final = (
    Place("iommu", 0x1000_0000, 0x4000),
    Place("intctl", 0x71E0_0000, 0x10),
    Place("intctl", 0x71E1_0000, 0x14, offset=0x1_0000),
    # Its halves count accesses that are narrower as errors of theirs.
    Place("espdma", 0x7840_0000, 0x10, least=1),
    Place("ledma", 0x7840_0010, 0x10, least=1),
    Place("esp", 0x7880_0000, 0x40, least=1, most=1),
    Place("lance", 0x78C0_0000, 4, least=2, most=2),
)

#: Interrupt lines: who drives which source of the interrupt controller.
WIRES: Final = {
    "iommu": Line.MODULE_ERROR,
    "ledma": Line.ETHERNET,
    "espdma": Line.SCSI,
}

#: What QEMU 11's SS-5 calls each device, for programs that intercept interrupts by QOM path.
QOM: Final = {
    "intctl": "/machine/unattached/device[4]",
    "iommu": "/machine/unattached/device[7]",
    "espdma": "/machine/unattached/device[9]/espdma",
    "ledma": "/machine/unattached/device[9]/ledma",
    "esp": "/machine/unattached/device[9]/espdma/esp",
    "lance": "/machine/unattached/device[9]/ledma/lance",
}
