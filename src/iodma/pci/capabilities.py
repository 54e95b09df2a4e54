# SPDX-License-Identifier: Apache-2.0
"""The capabilities of a function, as fields of its configuration space.

What they do is done by who watches their fields: `function.py` (power, function level reset) and
`interrupts.py` (MSI, MSI-X).

Invariants
 - Capabilities are aligned to 4 bytes, do not overlap, and are linked in ascending order; the last
   one's next pointer is 0. Without any, so are the pointer in the header and the status bit.
 - Extended ones begin at 0x100. Without any, the header there is 0 (PCI Express Base, 7.9.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iodma.errors import ArgumentError
from iodma.pci.config import ConfigSpace, Field, header

if TYPE_CHECKING:
    from iodma.pci.description import Capability, Pci

__all__ = ["EXPRESS", "MSI", "MSIX", "POWER", "VENDOR", "config_space", "layout"]

POWER, MSI, VENDOR, EXPRESS, MSIX = 0x01, 0x05, 0x09, 0x10, 0x11

#: Where the list may begin, and the spaces end.
_FIRST, _END, _EXTENDED_END = 0x40, 0x100, 0x1000

#: Power management 1.2: PMC version 3; PMCSR (3.2).
PM_VERSION = 3
PM_STATE = 0x3
PM_NO_SOFT_RESET = 1 << 3

#: MSI: message control (PCI Local Bus 3.0, 6.8.1.3).
MSI_ENABLE = 1 << 0
MSI_ALLOCATED = 0x7 << 4
MSI_64BIT = 1 << 7
MSI_MASKS = 1 << 8

#: MSI-X: message control (6.8.2.3).
MSIX_MASK_ALL = 1 << 14
MSIX_ENABLE = 1 << 15

#: PCI Express: device control and status (PCI Express Base, 7.8.4, 7.8.5).
FUNCTION_LEVEL_RESET = 1 << 15
TRANSACTIONS_PENDING = 1 << 5


#: What of a description makes which.
_MADE = {POWER: "power_management", MSI: "msi", EXPRESS: "express", MSIX: "msix"}


@dataclass(frozen=True, slots=True)
class Placed:
    """A capability in its place; the offsets of its fields are from its first byte."""

    id: int
    size: int
    fields: tuple[Field, ...]


def config_space(pci: Pci) -> ConfigSpace:
    """The configuration space of a function, as it is at power-on.

    Raises:
        ArgumentError: its capabilities do not all fit.
    """
    plain, extended = layout(pci)
    found = header(pci, min(plain, default=0))
    for offset, each in plain.items():
        after = min((other for other in plain if other > offset), default=0)
        found.append(Field(f"capability_{offset:02x}", offset, 2, each.id | after << 8))
        found += (replace(one, offset=one.offset + offset) for one in each.fields)
    for offset, each in extended.items():
        after = min((other for other in extended if other > offset), default=0)
        found.append(Field(f"capability_{offset:02x}", offset, 4, each.id | after << 20))
        found += (replace(one, offset=one.offset + offset) for one in each.fields)
    return ConfigSpace(found, _EXTENDED_END if pci.express else _END)


def layout(pci: Pci) -> tuple[dict[int, Placed], dict[int, Placed]]:
    """Offset -> capability, for the first 256 bytes and for the extended space."""
    plain = []
    if pci.power_management:
        plain.append(power_management(not pci.soft_reset))
    if pci.msi:
        plain.append(msi(pci.msi))
    if pci.express:
        plain.append(express())
    where = pci.placement.msix
    if where is not None:
        plain.append(msix(pci.msix, where.bar, where.table, where.pba))
    made = {each.id for each in plain}
    counted = list(enumerate(pci.capabilities))
    for _, each in counted:
        if not each.extended and each.id in made:
            raise ArgumentError(
                f"capability {each.id:#x} is made by what the description says of "
                f"{_MADE[each.id]} already: one of them would be right"
            )
    plain += (own(each, number) for number, each in counted if not each.extended)
    extended = [own(each, number) for number, each in counted if each.extended]
    if extended and not pci.express:
        raise ArgumentError(
            f"capability {extended[0].id & 0xFFFF:#x} is an extended one, and conventional PCI has "
            "no room for it: express=True would be right"
        )
    return _put(plain, _FIRST, _END), _put(extended, _END, _EXTENDED_END)


def _put(each: list[Placed], offset: int, end: int) -> dict[int, Placed]:
    placed = {}
    for one in each:
        placed[offset] = one
        offset += -(-one.size // 4) * 4
        if offset > end:
            sizes = ", ".join(f"{one.id & 0xFFFF:#x}: {one.size}" for one in each)
            raise ArgumentError(
                f"the capabilities do not fit: they may end at {end:#x}, and would at {offset:#x} "
                f"or behind (id: bytes: {sizes})"
            )
    return placed


def power_management(no_soft_reset: bool) -> Placed:
    """D0 and D3hot, no PME (PCI Power Management 1.2, 3.2)."""
    control = PM_NO_SOFT_RESET if no_soft_reset else 0
    return Placed(
        POWER,
        8,
        (
            Field("pm_capabilities", 2, 2, PM_VERSION),
            Field("pm_control", 4, 2, control, writable=PM_STATE),
        ),
    )


def msi(vectors: int) -> Placed:
    """64-bit addresses and a mask for each vector (PCI Local Bus 3.0, 6.8.1)."""
    capable = vectors.bit_length() - 1
    control = capable << 1 | MSI_64BIT | MSI_MASKS
    return Placed(
        MSI,
        24,
        (
            Field("msi_control", 2, 2, control, writable=MSI_ENABLE | MSI_ALLOCATED),
            Field("msi_address", 4, 8, writable=0xFFFF_FFFF_FFFF_FFFC),
            Field("msi_data", 12, 2, writable=0xFFFF),
            Field("msi_mask", 16, 4, writable=(1 << vectors) - 1),
            Field("msi_pending", 20, 4),
        ),
    )


def msix(vectors: int, bar: int, table: int, pba: int) -> Placed:
    """(6.8.2)"""
    return Placed(
        MSIX,
        12,
        (
            Field("msix_control", 2, 2, vectors - 1, writable=MSIX_MASK_ALL | MSIX_ENABLE),
            Field("msix_table", 4, 4, table | bar),
            Field("msix_pba", 8, 4, pba | bar),
        ),
    )


def express() -> Placed:
    """An endpoint, version 2, on a link of 2.5 GT/s and one lane (PCI Express Base, 7.8).

    Function level reset, role-based error reporting, 256-byte payloads; no ASPM.
    """
    return Placed(
        EXPRESS,
        0x3C,
        (
            Field("express_capabilities", 0x02, 2, 0x0002),
            Field("device_capabilities", 0x04, 4, 1 << 28 | 1 << 15 | 0x1),
            # Relaxed ordering, no snoop, read requests of 512 bytes: as they are at power-on.
            Field("device_control", 0x08, 2, 0x2810, writable=0x78FF),
            Field("device_status", 0x0A, 2, clears=0x000F),
            Field("link_capabilities", 0x0C, 4, 1 << 22 | 1 << 4 | 0x1),
            Field("link_control", 0x10, 2, writable=0x00CB),
            Field("link_status", 0x12, 2, 1 << 4 | 0x1),
            Field("device_capabilities_2", 0x24, 4, 1 << 4),
            Field("device_control_2", 0x28, 2, writable=1 << 4),
            Field("link_capabilities_2", 0x2C, 4, 1 << 1),
            Field("link_control_2", 0x30, 2, 0x1),
        ),
    )


def own(capability: Capability, number: int) -> Placed:
    """One of the device's own; its data is the field ``capability_data_NUMBER``."""
    start = 4 if capability.extended else 2
    data = capability.data
    mask = capability.writable.ljust(len(data), b"\0")
    held = Field(
        f"capability_data_{number}",
        start,
        len(data),
        int.from_bytes(data, "little"),
        int.from_bytes(mask, "little"),
    )
    identity = capability.id | (capability.version << 16 if capability.extended else 0)
    return Placed(identity, start + len(data), (held,) if data else ())
