# SPDX-License-Identifier: Apache-2.0
"""Guest memory that a test reads, writes and watches.

Invariants
 - The test reads and writes physical addresses without a transfer, so it sees what a guest's
   processor would.
 - Around every region lie bytes that no address leads to; they hold canaries from the beginning,
   and every check looks at them.
 - A canary is a number that depends on its address and is never 0: bytes that were moved, cleared
   or swapped show.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iodma.errors import AddressRangeError, ArgumentError
from iodma.memory import Memory, Ram
from iodma.sg import SegmentsLike

__all__ = ["FakeMemory"]

#: Bytes of canaries on each side of a region; whole pages, so that a region is as aligned as a
#: `Ram` is.
MARGIN = 4096
_PRIME = 251
_SHOWN = 8


def _canary(address: int, length: int) -> npt.NDArray[np.uint8]:
    """What stands at ``address`` and after it: 1 to 251, over and over."""
    first = address % _PRIME
    many = np.tile(np.arange(1, _PRIME + 1, dtype=np.uint8), (first + length) // _PRIME + 1)
    return many[first : first + length]


class FakeMemory(Memory):
    """A `Memory` with RAM of its own, for tests.

    >>> from iodma.testing import FakeMemory, strict_engine
    >>> with strict_engine() as engine, FakeMemory({0x1000: 4096, 0x8000: 4096}) as memory:
    ...     memory.write(0x8000, b"descriptor")
    ...     memory.place_canaries(except_for=(0x1000, 10))
    ...     port = engine.port(memory)
    ...     async def main():
    ...         return await port.copy((0x8000, 10), (0x1000, 10))
    ...     engine.run(main()).ok
    ...     memory.check_canaries()
    True

    Args:
        regions: bytes of RAM at ``base``, or physical address -> bytes of RAM there.
        base: where the RAM is, if ``regions`` is a number.
        name: what faults call it.

    Raises:
        AddressRangeError: regions overlap, or reach past 2^64 - 1.
    """

    _bases: list[int]
    _parts: dict[int, tuple[Ram, int]]
    _except: list[tuple[int, int]] | None

    def __new__(
        cls,
        regions: int | Mapping[int, int] = 1 << 20,
        *,
        base: int = 0,
        name: str = "memory",
    ) -> Self:
        if isinstance(regions, int):
            regions = {base: regions}
        self = super().__new__(cls, name=name)
        self._bases = []
        self._parts = {}
        self._except = None
        try:
            for address, size in sorted(regions.items()):
                if size < 1:
                    raise ArgumentError(
                        f"a region of {size} bytes at {address:#x}; 1 or more would be right"
                    )
                ram = Ram(size + 2 * MARGIN)
                self._parts[address] = ram, size
                self.add(address, ram, MARGIN, size)
                self._bases.append(address)
                for offset in (0, MARGIN + size):
                    with ram.view(offset, MARGIN) as view:
                        view[:] = _canary(offset, MARGIN).tobytes()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def regions(self) -> dict[int, int]:
        """Physical address -> bytes, of its own RAM."""
        return {base: size for base, (_, size) in self._parts.items()}

    def ram(self, address: int) -> Ram:
        """The `Ram` that holds ``address``: its first `MARGIN` bytes are canaries.

        Raises:
            AddressRangeError: there is none.
        """
        return self._part(address)[1]

    def _part(self, address: int) -> tuple[int, Ram, int]:
        at = bisect_right(self._bases, address) - 1
        if at >= 0:
            base = self._bases[at]
            ram, size = self._parts[base]
            if address < base + size:
                return base, ram, size
        raise AddressRangeError(f"{self.name}: no RAM at {address:#x}; it is at {self._where()}")

    def _where(self) -> str:
        return ", ".join(f"{b:#x} to {b + n - 1:#x}" for b, n in self.regions.items()) or "no place"

    def _views(self, address: int, length: int) -> Iterator[memoryview]:
        """Views of the parts of a range; each is released when the next one is asked for."""
        if length < 0:
            raise AddressRangeError(f"{self.name}: length is {length}; 0 or more would be right")
        while length:
            base, ram, size = self._part(address)
            n = min(length, base + size - address)
            with ram.view(MARGIN + address - base, n) as view:
                yield view
            address += n
            length -= n

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at physical ``address``.

        Raises:
            AddressRangeError: not all of them are RAM.
        """
        return b"".join(bytes(view) for view in self._views(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at physical ``address``.  Raises as `read` does."""
        rest = memoryview(data).cast("B")
        self.read(address, len(rest))  # all of it is there, or nothing is written
        for view in self._views(address, len(rest)):
            view[:] = rest[: len(view)]
            rest = rest[len(view) :]

    def read_list(self, segments: SegmentsLike) -> bytes:
        """The bytes of a scatter list of physical addresses, in its order."""
        return b"".join(self.read(address, length) for address, length in _pairs(segments))

    def write_list(self, segments: SegmentsLike, data: bytes) -> None:
        """Write ``data`` over a scatter list of physical addresses, in its order."""
        at = 0
        for address, length in _pairs(segments):
            self.write(address, data[at : at + length])
            at += length

    def fill(
        self, value: int | bytes = 0, address: int | None = None, length: int | None = None
    ) -> None:
        """Fill a range with a byte, or with some bytes over and over; without an address, all RAM.

        Raises:
            ArgumentError: a byte that is none, or no bytes.
            AddressRangeError: not all of the range is RAM.
        """
        if isinstance(value, int) and not 0 <= value <= 255:
            raise ArgumentError(f"value is {value}; 0 to 255, or bytes, would be right")
        pattern = bytes([value]) if isinstance(value, int) else bytes(value)
        if not pattern:
            raise ArgumentError("value is no bytes; at least one is needed")
        if address is None:
            for base, size in self.regions.items():
                self.fill(pattern, base, size)
            return
        base, _, size = self._part(address)
        length = base + size - address if length is None else length
        self.write(address, (pattern * (length // len(pattern) + 1))[:length])

    # -- canaries -------------------------------------------------------------

    def place_canaries(self, except_for: SegmentsLike = ()) -> None:
        """Put canaries into all RAM but ``except_for``, the bytes that the device may write
        (physical addresses).
        """
        self._except = [(address, length) for address, length in _pairs(except_for) if length]
        for base, (ram, size) in self._parts.items():
            mask = self._watched(base, size)
            with ram.view(MARGIN, size) as view:
                array = np.frombuffer(view, np.uint8)
                np.copyto(array, _canary(base, size), where=mask)
                del array

    def _watched(self, base: int, size: int) -> npt.NDArray[np.bool_]:
        mask = np.ones(size, np.bool_)
        for address, length in self._except or ():
            mask[max(0, address - base) : max(0, address + length - base)] = False
        return mask

    def damage(self) -> list[int]:
        """Physical addresses of canaries that were changed; those around a region lie outside of
        it, and may be negative.
        """
        found: list[int] = []
        for base, (ram, size) in self._parts.items():
            with ram.view() as view:
                array: Any = np.frombuffer(view, np.uint8)
                for offset in (0, MARGIN + size):
                    bad = np.flatnonzero(array[offset : offset + MARGIN] != _canary(offset, MARGIN))
                    found += [base + offset - MARGIN + int(each) for each in bad]
                if self._except is not None:
                    inside = array[MARGIN : MARGIN + size] != _canary(base, size)
                    bad = np.flatnonzero(inside & self._watched(base, size))
                    found += [base + int(each) for each in bad]
                del array
        return sorted(found)

    def check_canaries(self) -> None:
        """Raise AssertionError, and say where, if a canary was changed."""
        bad = self.damage()
        if bad:
            shown = ", ".join(f"{address:#x}" for address in bad[:_SHOWN])
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise AssertionError(
                f"{self.name}: {len(bad)} canaries were changed: at {shown}{more};"
                f" its RAM is at {self._where()}"
            )

    # -- the end --------------------------------------------------------------

    def close(self) -> None:
        """Take its RAM out of the map and let go of it; may be called again."""
        for base, (ram, size) in self._parts.items():
            ram.close()
            if self._regions.get(base) is ram:
                self._unmap(base, size)
                del self._regions[base]
        self._parts.clear()
        self._bases.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _pairs(segments: SegmentsLike) -> Iterable[tuple[int, int]]:
    if isinstance(segments, tuple) and len(segments) == 2 and isinstance(segments[0], int):
        return [(segments[0], int(segments[1]))]
    return [(int(address), int(length)) for address, length in segments]  # type: ignore[union-attr]
