# SPDX-License-Identifier: Apache-2.0
"""A device out of a file as a PCI function: what a guest's `lspci` would say of it.

Invariants
 - What is listed is read from a function that was made of the device: its configuration space, as
   software finds it after power-on.
"""

from __future__ import annotations

from dataclasses import dataclass

import iodma
from iodma.pci import Function
from iodma.tools.load import Loaded, LoadError

__all__ = [
    "BarLine",
    "CapabilityLine",
    "PciLines",
    "described",
    "described_by",
    "function_of",
    "render",
]

#: PCI Code and ID Assignment, 1.11: capability ids, and those of the extended space.
NAMES = {
    0x01: "power management",
    0x05: "MSI",
    0x09: "vendor-specific",
    0x10: "PCI Express",
    0x11: "MSI-X",
}
EXTENDED_NAMES = {0x0003: "device serial number", 0x000B: "vendor-specific"}

CAPABILITIES_POINTER = 0x34
EXTENDED = 0x100
ROM = 6


@dataclass(frozen=True, slots=True)
class BarLine:
    """A base address register. `what`: what is behind it, in words."""

    index: int
    size: int
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class CapabilityLine:
    """A capability: where it is in the configuration space, its id, and what it is called."""

    offset: int
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class PciLines:
    """A function, as software finds it.

    Attributes:
        lines: interrupt lines of the device, in their order: line n is vector n, or the last one.
    """

    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem: int
    bars: tuple[BarLine, ...]
    intx: bool
    msi: int
    msix: int
    lines: tuple[str, ...]
    capabilities: tuple[CapabilityLine, ...]


def described_by(loaded: Loaded) -> iodma.Pci:
    """What a file's device says that it is on a PCI bus.

    Raises:
        LoadError: nothing, or what cannot be; says what would be right.
    """
    kind = loaded.device
    pci = getattr(kind, "pci", None)
    if not isinstance(pci, iodma.Pci):
        size = max(4096, 1 << (max(kind.registers.size, 1) - 1).bit_length())
        raise LoadError(
            f"{loaded.path}: {kind.__name__} does not say what it is on a PCI bus; a line in it"
            f" would: pci = iodma.Pci(vendor=0xF1DA, device=0x0001, bars={{0: {size}}})"
        )
    try:
        pci.check(kind)
    except iodma.Error as error:
        raise LoadError(f"{loaded.path}: {error}") from error
    return pci


def function_of(loaded: Loaded, device: iodma.Device) -> Function:
    """The device of a file as a function.

    Raises:
        LoadError: it cannot be one; says why.
    """
    try:
        return Function(device)
    except iodma.Error as error:
        raise LoadError(f"{loaded.path}: {error}") from error


def described(function: Function) -> PciLines:
    """The function as data."""

    def number(offset: int, length: int) -> int:
        return int.from_bytes(function.config_read(offset, length), "little")

    pci = function.description
    return PciLines(
        vendor=number(0x00, 2),
        device=number(0x02, 2),
        class_code=number(0x09, 3),
        revision=number(0x08, 1),
        subsystem_vendor=number(0x2C, 2),
        subsystem=number(0x2E, 2),
        bars=tuple(bars(function)),
        intx=number(0x3D, 1) != 0,
        msi=pci.msi,
        msix=pci.msix,
        lines=tuple(line.name.rpartition(".")[2] for line in function.device._lines),
        capabilities=tuple(capabilities(function)),
    )


def bars(function: Function) -> list[BarLine]:
    msix = function.description.placement.msix
    found = []
    for index, bar in function.bars.items():
        place = function.description.placement.bars[index]
        kind = "ROM" if index == ROM else "I/O" if bar.io else "memory, 32 bit"
        if bar.wide:
            kind = "memory, 64 bit"
        if bar.prefetchable:
            kind += ", prefetchable"
        what = []
        if index == ROM:
            what.append("expansion ROM")
        elif bar.ram is not None:
            what.append(f"ram: {place.ram}")
        elif not place.msix:
            end = place.end if place.table is None else place.at + place.table
            what.append(f"registers {place.at:#x} to {end - 1:#x}")
        if msix is not None and msix.bar == index:
            what.append(f"MSI-X table at {msix.table:#x}, pending bits at {msix.pba:#x}")
        found.append(BarLine(index, bar.size, kind, "; ".join(what)))
    return found


def capabilities(function: Function) -> list[CapabilityLine]:
    """Both lists, as software follows them."""
    found = []
    at = function.config_read(CAPABILITIES_POINTER, 1)[0]
    while at:
        id, following = function.config_read(at, 2)
        found.append(CapabilityLine(at, id, NAMES.get(id, f"{id:#04x}")))
        at = following
    at = EXTENDED if function.description.express else 0
    while at:
        header = int.from_bytes(function.config_read(at, 4), "little")
        id, at, here = header & 0xFFFF, header >> 20, at
        if id:
            found.append(CapabilityLine(here, id, EXTENDED_NAMES.get(id, f"{id:#06x}")))
    return found


def render(pci: PciLines) -> list[str]:
    """As lines for a terminal."""
    lines = [
        f"pci: {pci.vendor:04x}:{pci.device:04x}, class {pci.class_code:06x},"
        f" revision {pci.revision:02x}, subsystem {pci.subsystem_vendor:04x}:{pci.subsystem:04x}"
    ]
    width = max((len(bar.kind) for bar in pci.bars), default=0)
    for bar in pci.bars:
        title = "ROM  " if bar.index == ROM else f"BAR {bar.index}"
        lines.append(f"  {title}  {bar.kind:<{width}}  {size(bar.size):>9}  {bar.what}")
    lines.append(f"  interrupts: {interrupts(pci)}")
    listed = ", ".join(f"{each.offset:#x} {each.name}" for each in pci.capabilities)
    lines.append(f"  capabilities: {listed or 'none'}")
    return lines


def interrupts(pci: PciLines) -> str:
    kinds = ["INTx"] if pci.intx else []
    for kind, vectors in (("MSI", pci.msi), ("MSI-X", pci.msix)):
        if vectors:
            kinds.append(f"{kind} with {vectors} vector{'s' if vectors > 1 else ''}")
    lines = ", ".join(f"{number} {name}" for number, name in enumerate(pci.lines))
    return f"{', '.join(kinds) or 'none'}; lines: {lines}"


def size(count: int) -> str:
    """Bytes, in the largest unit that leaves a whole number."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count % 1024 or unit == "GiB":
            break
        count //= 1024
    return f"{count} {unit}"
