# SPDX-License-Identifier: Apache-2.0
"""What a processor sees: physical addresses, with RAM and devices' windows behind them.

An access of any length is cut at the ends of regions. In RAM it is a copy. In a window it is cut
into the widest accesses that the window takes and that are aligned; one that is narrower than the
window takes is a bus error, as is one where nothing is: a write is dropped, a read is zeros.

Invariants
 - A value lies in memory in the machine's byte order; a device sees the value.
 - Regions do not overlap. An access touches each byte once, in ascending order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Literal, Protocol

from iodma.errors import AddressRangeError, ArgumentError, integer

__all__ = ["PhysicalSpace", "Target"]

_SPACE = 1 << 64
#: Bytes that `fill` writes at once.
_PIECE = 1 << 20


class Target(Protocol):
    """A device's window: `Bus.attach` gives one."""

    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, width: int, value: int) -> None: ...


class _Region:
    """RAM, if it has a view; else a window."""

    __slots__ = ("base", "end", "least", "most", "target", "view", "writable")

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.end = base + size
        self.view: memoryview | None = None
        self.writable = True
        self.target: Target | None = None
        self.least = self.most = 1


class PhysicalSpace:
    """An address space of 64 bits, as processors of a machine see it.

    Args:
        order: the machine's byte order, "big" or "little".

    Attributes:
        errors: accesses that met nothing, or what does not take them.
    """

    def __init__(self, order: Literal["big", "little"] = "little") -> None:
        if order not in ("big", "little"):
            raise ArgumentError(f'order is {order!r}; "big" or "little" would be right')
        self.order: Literal["big", "little"] = order
        self.errors = 0
        self._regions: list[_Region] = []  # by base
        self._bases: list[int] = []

    def add_memory(self, base: int, view: memoryview, *, writable: bool = True) -> None:
        """Puts memory there: `Ram.view()`, which is the caller's to release, later.

        Args:
            writable: False: writes are dropped, as of a PROM.

        Raises:
            AddressRangeError: it overlaps another region, or ends above 2^64.
        """
        region = self._place(base, view.nbytes)
        region.view = view
        region.writable = writable and not view.readonly

    def add_window(
        self, base: int, size: int, target: Target, *, least: int = 1, most: int = 8
    ) -> None:
        """Puts a device's window there.

        Args:
            size: bytes.
            target: is given offsets from ``base``, and values.
            least, most: bytes of the narrowest and the widest access it takes: 1, 2, 4 or 8.

        Raises:
            AddressRangeError: it overlaps another region, or ends above 2^64.
            ArgumentError: widths that cannot be.
        """
        if not (least in (1, 2, 4, 8) and most in (1, 2, 4, 8) and least <= most):
            raise ArgumentError(f"widths {least} to {most}: 1, 2, 4 or 8 bytes would be right")
        region = self._place(base, size)
        region.target, region.least, region.most = target, least, most

    def _place(self, base: int, size: int) -> _Region:
        base, size = integer(base, "base"), integer(size, "size")
        if not (base >= 0 and 0 < size <= _SPACE - base):
            raise AddressRangeError(f"{size:#x} bytes at {base:#x} do not lie in 0 to 2^64")
        region = _Region(base, size)
        place = bisect_right(self._bases, base)
        for other in self._regions[max(place - 1, 0) : place + 1]:
            if base < other.end and other.base < region.end:
                raise AddressRangeError(
                    f"{base:#x}..{region.end:#x} overlaps {other.base:#x}..{other.end:#x}"
                )
        self._regions.insert(place, region)
        self._bases.insert(place, base)
        return region

    # --- one value --------------------------------------------------------------------------------

    def load(self, address: int, width: int) -> int:
        """The value of ``width`` bytes there: 1, 2, 4 or 8."""
        place = bisect_right(self._bases, address)
        if place:
            region = self._regions[place - 1]
            offset = address - region.base
            if address + width <= region.end:
                if region.view is not None:
                    return int.from_bytes(region.view[offset : offset + width], self.order)
                if region.least <= width <= region.most and not offset % width:
                    return region.target.read(offset, width)  # type: ignore[union-attr]
        return int.from_bytes(self.read(address, width), self.order)

    def store(self, address: int, width: int, value: int) -> None:
        """Writes the value, which fits in ``width`` bytes, there: 1, 2, 4 or 8."""
        place = bisect_right(self._bases, address)
        if place:
            region = self._regions[place - 1]
            offset = address - region.base
            if (
                address + width <= region.end
                and region.least <= width <= region.most
                and not offset % width
                and region.target is not None
            ):
                region.target.write(offset, width, value)
                return
        self.write(address, value.to_bytes(width, self.order))

    def loader(self, address: int, width: int) -> tuple[Callable[..., int], int, int]:
        """`load` of one address, for who does it again and again: a function, its arguments."""
        found = self._window(address, width)
        if found is None:
            return self.load, address, width
        return found[0].read, found[1], width

    def storer(
        self, address: int, width: int, value: int
    ) -> tuple[Callable[..., None], int, int, int]:
        """`store` of one value at one address, for who does it again and again."""
        found = self._window(address, width)
        if found is None:
            return self.store, address, width, value
        return found[0].write, found[1], width, value

    def _window(self, address: int, width: int) -> tuple[Target, int] | None:
        """The window that takes the access whole, and the offset in it; None: that is not so."""
        place = bisect_right(self._bases, address)
        region = self._regions[place - 1] if place else None
        if region is None or region.target is None or address + width > region.end:
            return None
        offset = address - region.base
        if region.least <= width <= region.most and not offset % width:
            return region.target, offset
        return None

    # --- bytes ------------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """So many bytes; zeros where nothing answers. What comes behind 2^64 - 1 is 0."""
        if address + length > _SPACE:
            first = _SPACE - address
            return self.read(address, first) + self.read(0, length - first)
        data = bytearray(length)
        at, end = address, address + length
        while at < end:
            region, stop = self._at(at, end)
            start = at - address
            if region is None:
                self.errors += 1
            elif region.view is not None:
                offset = at - region.base
                data[start : start + stop - at] = region.view[offset : offset + stop - at]
            else:
                self._read_window(region, at, memoryview(data)[start : start + stop - at])
            at = stop
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes; what meets nothing is dropped. What comes behind 2^64 - 1 is 0."""
        if address + len(data) > _SPACE:
            first = _SPACE - address
            self.write(address, data[:first])
            self.write(0, data[first:])
            return
        at, end = address, address + len(data)
        source = memoryview(data)
        while at < end:
            region, stop = self._at(at, end)
            piece = source[at - address : stop - address]
            if region is None:
                self.errors += 1
            elif region.view is None:
                self._write_window(region, at, piece)
            elif region.writable:
                offset = at - region.base
                region.view[offset : offset + len(piece)] = piece
            at = stop

    def fill(self, address: int, length: int, byte: int) -> None:
        """Writes ``length`` bytes that are all the same. What comes behind 2^64 - 1 is 0."""
        if address + length > _SPACE:
            first = _SPACE - address
            self.fill(address, first, byte)
            self.fill(0, length - first, byte)
            return
        at, end = address, address + length
        pattern = bytes((byte,)) * min(length, _PIECE)
        while at < end:
            region, stop = self._at(at, end)
            if region is None:
                self.errors += 1
            else:
                stop = min(stop, at + len(pattern))
                self.write(at, pattern[: stop - at])
            at = stop

    def _at(self, address: int, end: int) -> tuple[_Region | None, int]:
        """The region there, or None, and where it or the hole ends, at most at ``end``."""
        place = bisect_right(self._bases, address)
        if place and address < self._regions[place - 1].end:
            region = self._regions[place - 1]
            return region, min(region.end, end)
        return None, min(self._bases[place], end) if place < len(self._bases) else end

    def _width(self, region: _Region, at: int, left: int) -> int:
        """Of the next access: the widest that is aligned and not more than is left."""
        offset = at - region.base
        width = region.most
        while width > left or offset % width:
            width //= 2
        return width

    def _read_window(self, region: _Region, at: int, piece: memoryview) -> None:
        assert region.target is not None
        done = 0
        while done < len(piece):
            width = self._width(region, at + done, len(piece) - done)
            if width >= region.least:
                value = region.target.read(at + done - region.base, width)
                piece[done : done + width] = value.to_bytes(width, self.order)
            else:
                self.errors += 1
            done += width

    def _write_window(self, region: _Region, at: int, piece: memoryview) -> None:
        assert region.target is not None
        done = 0
        while done < len(piece):
            width = self._width(region, at + done, len(piece) - done)
            if width >= region.least:
                value = int.from_bytes(piece[done : done + width], self.order)
                region.target.write(at + done - region.base, width, value)
            else:
                self.errors += 1
            done += width

    def __repr__(self) -> str:
        return f"<PhysicalSpace, {self.order}-endian, {len(self._regions)} regions>"
