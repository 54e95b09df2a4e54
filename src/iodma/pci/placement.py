# SPDX-License-Identifier: Apache-2.0
"""Where the BARs of a function are, and where MSI-X has its table and its pending bits.

Invariants
 - No two BARs share an index; a 64-bit one has the index above its own, too.
 - MSI-X's structures overlap each other nowhere, and are aligned to 8 bytes at least. In a BAR of
   their own they lie in different halves of it; in one with registers, at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iodma.errors import ArgumentError, integer

if TYPE_CHECKING:
    from iodma.pci.description import Bar, Pci

__all__ = ["ENTRY", "ROM", "BarPlace", "MsixPlace", "Placement", "pba_size", "place"]

#: The index that VMMs give the expansion ROM.
ROM = 6
BARS = 6
#: Bytes of an entry of the MSI-X table.
ENTRY = 16
PAGE = 4096
_ROM_LEAST = 2048


@dataclass(frozen=True, slots=True)
class BarPlace:
    """One BAR, resolved.

    Attributes:
        index: 0 to 5, or `ROM`.
        size: bytes.
        at: where in the device's registers it begins.
        io, wide, prefetchable: its flag bits; wide: 64 bits.
        ram: the device's attribute that is behind it, or None.
        msix: nothing but MSI-X's structures is in it.
        table: where in it the MSI-X table begins, or None.
    """

    index: int
    size: int
    at: int = 0
    io: bool = False
    wide: bool = False
    prefetchable: bool = False
    ram: str | None = None
    msix: bool = False
    table: int | None = None

    @property
    def end(self) -> int:
        """Where in the device's registers it ends."""
        return self.at + self.size


@dataclass(frozen=True, slots=True)
class MsixPlace:
    """Where MSI-X has what: the index of the BAR, offsets of table and pending bits in it."""

    bar: int
    table: int
    pba: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Of a whole function; the ROM is among the BARs."""

    bars: dict[int, BarPlace]
    msix: MsixPlace | None


def pba_size(vectors: int) -> int:
    """Bytes of the pending bit array: whole quadwords."""
    return -(-vectors // 64) * 8


def place(pci: Pci) -> Placement:
    """Raises ArgumentError for what cannot be placed."""
    bars = {index: _resolved(index, bar) for index, bar in pci.bars.items()}  # type: ignore[arg-type]
    used = dict.fromkeys(bars)
    for index, bar in bars.items():
        if not 0 <= index + bar.wide < BARS:
            what = "a 64-bit BAR, which takes two," if bar.wide else "a BAR"
            raise ArgumentError(f"{what} has index {index}; 0 to {5 - bar.wide} would be right")
        if bar.wide and index + 1 in bars:
            raise ArgumentError(f"BAR {index} is a 64-bit one: it takes BAR {index + 1}, too")
        if bar.wide:
            used[index + 1] = None
    msix = None
    if pci.msix:
        msix, bar = _place_msix(pci, bars, set(used))
        bars[bar.index] = bar
    elif pci.msix_bar is not None:
        raise ArgumentError(f"msix_bar is {pci.msix_bar}, and msix= says no vectors")
    if pci.rom is not None:
        size = max(_ROM_LEAST, 1 << (len(pci.rom) - 1).bit_length())
        bars[ROM] = BarPlace(ROM, size)
    return Placement(dict(sorted(bars.items())), msix)


def _resolved(index: int, bar: Bar) -> BarPlace:
    return BarPlace(
        index,
        bar.size,
        bar.at,
        io=bar.kind == "io",
        wide=bar.kind == "memory64",
        prefetchable=bar.prefetchable,
        ram=bar.ram,
    )


def _place_msix(pci: Pci, bars: dict[int, BarPlace], used: set[int]) -> tuple[MsixPlace, BarPlace]:
    """MSI-X's place, and the BAR that has it."""
    table, pba = ENTRY * pci.msix, pba_size(pci.msix)
    index = pci.msix_bar
    if index is None:
        above = range(max(used, default=-1) + 1, BARS)
        free = [*above, *(each for each in range(BARS) if each not in used)]
        if not free:
            raise ArgumentError(
                "no BAR is left for the MSI-X table: msix_bar= names one with"
                f" {table + pba} bytes behind its registers"
            )
        index = free[0]
    elif not 0 <= integer(index, "msix_bar") < BARS:
        raise ArgumentError(f"msix_bar is {index}; 0 to 5 would be right")
    if index not in used:  # a half each, so that a page of one is no page of the other
        half = max(PAGE // 2, 1 << (table - 1).bit_length())
        own = BarPlace(index, 2 * half, msix=True, table=0)
        return MsixPlace(index, 0, half), own
    bar = bars.get(index)
    if bar is None or bar.io or bar.ram is not None:
        why = "is the upper half of another" if bar is None else "is io" if bar.io else "is ram"
        raise ArgumentError(f"msix_bar is {index}, which {why}: a memory BAR would be right")
    behind = bar.size - table - pba
    begin = behind & -PAGE or behind & -ENTRY
    if begin <= 0:
        raise ArgumentError(
            f"msix_bar is {index}: {pci.msix} vectors take {table + pba} bytes, and BAR {index} "
            f"has {bar.size} in all; {1 << (table + pba + bar.size - 1).bit_length()} would do"
        )
    return MsixPlace(index, begin, begin + table), replace(bar, table=begin)
