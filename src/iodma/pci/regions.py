# SPDX-License-Identifier: Apache-2.0
"""What is behind a BAR: registers, a `Ram`, MSI-X's structures, the expansion ROM.

Invariants
 - Who calls has checked that offset and length lie inside the BAR; nothing here looks again.
 - Registers see naturally aligned accesses of 1, 2, 4 or 8 bytes only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from iodma.devices import Device
from iodma.memory import Ram
from iodma.pci.interrupts import Interrupts
from iodma.pci.placement import ROM, BarPlace, MsixPlace, pba_size

if TYPE_CHECKING:
    from iodma.pci.function import Function

__all__ = ["BarRegion", "region"]

Data = bytes | bytearray | memoryview

_WIDTHS = frozenset((1, 2, 4, 8))


class BarRegion(Protocol):
    """Bytes behind a BAR."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: Data) -> None: ...


def region(device: Device, place: BarPlace, ram: Ram | None, function: Function) -> BarRegion:
    """What the description puts behind a BAR."""
    if place.index == ROM:
        return RomRegion(function.description.rom or b"", place.size)
    if ram is not None:
        return RamRegion(ram, place.size)
    registers = RegisterRegion(device, place.at, place.size)
    msix = function.description.placement.msix
    if msix is None or msix.bar != place.index:
        return registers
    return MsixRegion(function.interrupts, msix, None if place.msix else registers, place.size)


class RegisterRegion:
    """A device's registers from `at` on."""

    __slots__ = ("_at", "_bus_read", "_bus_write", "size")

    def __init__(self, device: Device, at: int, size: int) -> None:
        self._bus_read = device.bus_read
        self._bus_write = device.bus_write
        self._at = at
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        if length in _WIDTHS and not offset & (length - 1):
            return self._bus_read(self._at + offset, length).to_bytes(length, "little")
        data = b""
        for begin, width in aligned(offset, length):
            data += self._bus_read(self._at + begin, width).to_bytes(width, "little")
        return data

    def write(self, offset: int, data: Data) -> None:
        length = len(data)
        if length in _WIDTHS and not offset & (length - 1):
            self._bus_write(self._at + offset, length, int.from_bytes(data, "little"))
            return
        for begin, width in aligned(offset, length):
            piece = data[begin - offset : begin - offset + width]
            self._bus_write(self._at + begin, width, int.from_bytes(piece, "little"))


def aligned(offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, width) of the naturally aligned accesses that make up one."""
    pieces = []
    end = offset + length
    while offset < end:
        width = 8
        while offset & (width - 1) or offset + width > end:
            width >>= 1
        pieces.append((offset, width))
        offset += width
    return pieces


class RamRegion:
    """Memory that the device, the guest and the VMM share: what of it is gone reads as ones."""

    __slots__ = ("_ram", "size")

    def __init__(self, ram: Ram, size: int) -> None:
        self._ram = ram
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        data = self._ram._peek(offset, length)
        return b"\xff" * length if data is None else data

    def write(self, offset: int, data: Data) -> None:
        self._ram._poke(offset, data)


class RomRegion:
    """What is in the ROM, and ones behind it; writes are dropped."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data.ljust(size, b"\xff")
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def write(self, offset: int, data: Data) -> None:
        pass


class MsixRegion:
    """The MSI-X table and the pending bits, and registers or nothing (zeros) around them."""

    __slots__ = ("_ends", "_interrupts", "_pba", "_rest", "_table", "size")

    def __init__(
        self, interrupts: Interrupts, place: MsixPlace, rest: RegisterRegion | None, size: int
    ) -> None:
        self._interrupts = interrupts
        self._rest = rest
        self.size = size
        vectors = interrupts.counts["msix"]
        self._table = range(place.table, place.table + interrupts.table.size)
        self._pba = range(place.pba, place.pba + pba_size(vectors))
        self._ends = (self._table.start, self._table.stop, self._pba.start, self._pba.stop, size)

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length), cut where something else begins."""
        pieces = []
        stop = offset + length
        for end in self._ends:
            if offset < end and offset < stop:
                pieces.append((offset, min(end, stop) - offset))
                offset = min(end, stop)
        return pieces

    def read(self, offset: int, length: int) -> bytes:
        data = b""
        for begin, size in self._pieces(offset, length):
            if begin in self._table:
                data += self._interrupts.table.read(begin - self._table.start, size)
            elif begin in self._pba:
                data += self._interrupts.read_pending(begin - self._pba.start, size)
            else:
                data += bytes(size) if self._rest is None else self._rest.read(begin, size)
        return data

    def write(self, offset: int, data: Data) -> None:
        for begin, size in self._pieces(offset, len(data)):
            piece = data[begin - offset : begin - offset + size]
            if begin in self._table:
                self._interrupts.table.write(begin - self._table.start, piece)
                self._interrupts.retry()
            elif begin not in self._pba and self._rest is not None:
                self._rest.write(begin, piece)
