"""What a chain of address spaces and an endpoint do to bytes, one byte at a time.

This is the model that the property tests compare the package with. It is written from the contract
(the docstrings of `iodma.memory`, `iodma.stages` and `iodma.endpoints`), shares no code with the
package, and is meant to be obviously right and not to be fast.

Invariants:

- Addresses are Python integers: nothing wraps. A stage answers for one address; `run` says for how
  many bytes from there on the same answer holds, so that lists of 2^63 bytes have an end.
- The first byte of a list that a stage refuses is the fault; a list that faults moves nothing.
- Byte lanes: the device's byte at bus address `a` is the memory's at `a ^ mask`, within the units
  that lie whole in a piece, which is what is contiguous in one region's host memory. A unit that an
  end of the piece cuts is moved as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

TOP = 1 << 64
READ, WRITE = 1, 2

Segments = list[tuple[int, int]]


@dataclass(eq=False)
class Region:
    """Bytes of host memory: RAM, or ROM when not writable."""

    data: bytearray
    writable: bool = True
    name: str = "ram"


class Place(NamedTuple):
    """Where one byte is: in a region, read through lanes with this mask."""

    region: Region
    offset: int
    mask: int
    bus: int  # its address at the byte lanes


class Fault(NamedTuple):
    offset: int
    address: int
    access: int
    stage: str


class Refused(NamedTuple):
    address: int
    stage: str


class Look(NamedTuple):
    """What a stage says of an address, and for how many bytes it would say the same."""

    found: Place | Refused
    run: int


class Stage:
    name: str

    def look(self, address: int, access: int) -> Look:
        raise NotImplementedError

    def edges(self) -> set[int]:
        """Addresses at which the answer may change."""
        raise NotImplementedError


@dataclass
class Range:
    first: int
    length: int
    target: int
    access: int
    region: Region | None = None


def find(ranges: Iterable[Range], address: int) -> tuple[Range | None, int]:
    """The range that holds the address, and how far it or the hole goes on."""
    hole = TOP - address
    for each in ranges:
        if each.first <= address < each.first + each.length:
            return each, each.first + each.length - address
        if each.first > address:
            hole = min(hole, each.first - address)
    return None, hole


@dataclass
class Memory(Stage):
    name: str = "memory"
    ranges: list[Range] = field(default_factory=list)

    def add(
        self, base: int, region: Region, offset: int, length: int, read_only: bool = False
    ) -> None:
        access = READ if read_only or not region.writable else READ | WRITE
        self.ranges.append(Range(base, length, offset, access, region))

    def remove(self, base: int) -> None:
        self.ranges = [each for each in self.ranges if each.first != base]

    def look(self, address: int, access: int) -> Look:
        found, run = find(self.ranges, address)
        if found is None or access & ~found.access or found.region is None:
            return Look(Refused(address, self.name), run)
        return Look(Place(found.region, found.target + address - found.first, 0, 0), run)

    def edges(self) -> set[int]:
        return {0, TOP} | {e for r in self.ranges for e in (r.first, r.first + r.length)}


@dataclass
class Window(Stage):
    next: Stage
    offset: int
    limit: int
    name: str = "window"

    def look(self, address: int, access: int) -> Look:
        if address >= self.limit:
            return Look(Refused(address, self.name), TOP - address)
        below = self.next.look(address + self.offset, access)
        return Look(below.found, min(below.run, self.limit - address))

    def edges(self) -> set[int]:
        below = {e - self.offset for e in self.next.edges()}
        return {0, self.limit} | {e for e in below if 0 <= e <= self.limit}


@dataclass
class Gate(Stage):
    next: Stage
    name: str = "gate"
    shut: bool = False

    def look(self, address: int, access: int) -> Look:
        if self.shut:
            return Look(Refused(address, self.name), TOP - address)
        return self.next.look(address, access)

    def edges(self) -> set[int]:
        return self.next.edges()


@dataclass
class Iommu(Stage):
    next: Stage
    name: str = "iommu"
    ranges: list[Range] = field(default_factory=list)

    def map(self, address: int, target: int, length: int, access: int) -> None:
        self.ranges.append(Range(address, length, target, access))

    def unmap(self, address: int, length: int) -> None:
        """What lies in the range goes; a mapping that reaches beyond keeps the rest."""
        left = []
        end = address + length
        for r in self.ranges:
            if r.first < address:
                left.append(
                    Range(r.first, min(r.length, address - r.first), r.target, r.access),
                )
            if r.first + r.length > end:
                cut = max(0, end - r.first)
                left.append(Range(r.first + cut, r.length - cut, r.target + cut, r.access))
        self.ranges = [r for r in left if r.length > 0]

    def look(self, address: int, access: int) -> Look:
        found, run = find(self.ranges, address)
        if found is None or access & ~found.access:
            return Look(Refused(address, self.name), run)
        below = self.next.look(found.target + address - found.first, access)
        return Look(below.found, min(run, below.run))

    def edges(self) -> set[int]:
        out = {0, TOP}
        below = sorted(self.next.edges())
        for r in self.ranges:
            out |= {r.first, r.first + r.length}
            inside = below[bisect_left(below, r.target) : bisect_left(below, r.target + r.length)]
            out |= {r.first + e - r.target for e in inside}
        return out


@dataclass
class PageTable(Stage):
    """A one-level table: entry `n`, read by `entry`, is of the n-th page from `first` on.

    An entry is None where the table is not in memory, else (target, access) if it is valid, or ().
    Outside the range addresses pass, or fault.
    """

    next: Stage
    page: int
    first: int
    pages: int
    entry: Callable[[int], tuple[()] | tuple[int, int] | None]
    outside: bool = False
    name: str = "page table"

    def look(self, address: int, access: int) -> Look:
        end = self.first + self.pages * self.page
        if not self.first <= address < end:
            run = self.first - address if address < self.first else TOP - address
            if not self.outside:
                return Look(Refused(address, self.name), run)
            below = self.next.look(address, access)
            return Look(below.found, min(run, below.run))
        number, offset = divmod(address - self.first, self.page)
        entry = self.entry(number)
        if not entry or access & ~entry[1]:
            return Look(Refused(address, self.name), self.page - offset)
        below = self.next.look(entry[0] + offset, access)
        return Look(below.found, min(self.page - offset, below.run))

    def edges(self) -> set[int]:
        out = {0, TOP, *range(self.first, self.first + self.pages * self.page + 1, self.page)}
        below = sorted(self.next.edges())
        for number in range(self.pages):
            if entry := self.entry(number):
                at = self.first + number * self.page
                last = entry[0] + self.page
                inside = below[bisect_left(below, entry[0]) : bisect_left(below, last)]
                out |= {at + e - entry[0] for e in inside}
        if self.outside:
            end = self.first + self.pages * self.page
            out |= {e for e in below if not self.first <= e < end}
        return out


@dataclass
class ByteLanes(Stage):
    next: Stage
    width: int
    name: str = "lanes"

    def look(self, address: int, access: int) -> Look:
        below = self.next.look(address, access)
        if isinstance(below.found, Place):
            place = below.found
            mask = place.mask ^ (self.width - 1)
            return Look(Place(place.region, place.offset, mask, address), below.run)
        return below

    def edges(self) -> set[int]:
        return self.next.edges()


@dataclass
class Piece:
    """Bytes that lie side by side in one region."""

    region: Region
    offset: int
    length: int
    mask: int
    bus: int

    def index(self, k: int) -> int:
        """Which byte of the region the device's byte `k` of this piece is."""
        unit = 1 << self.mask.bit_length()
        begin = (self.bus + k) // unit * unit - self.bus
        if begin < 0 or begin + unit > self.length:
            return self.offset + k
        return self.offset + ((self.bus + k) ^ self.mask) - self.bus


def total(segments: Segments) -> int:
    return sum(length for _, length in segments)


def translate(top: Stage, segments: Segments, access: int) -> list[Piece] | Fault:
    pieces: list[Piece] = []
    done = 0
    for first, length in segments:
        address, left = first, length
        while left:
            if address == TOP:
                # There is no such address: the last one is named.
                return Fault(done, TOP - 1, access, top.name)
            found, run = top.look(address, access)
            if isinstance(found, Refused):
                return Fault(done, found.address, access, found.stage)
            n = min(run, left, TOP - address)
            join(pieces, Piece(found.region, found.offset, n, found.mask, found.bus))
            address, left, done = address + n, left - n, done + n
    return pieces


def join(pieces: list[Piece], new: Piece) -> None:
    last = pieces[-1] if pieces else None
    if (
        last is not None
        and last.region is new.region
        and last.offset + last.length == new.offset
        and last.mask == new.mask
        and (not new.mask or (last.bus + last.length - new.bus) % 8 == 0)
    ):
        last.length += new.length
    else:
        pieces.append(new)


def places(pieces: list[Piece], limit: int | None = None) -> Iterator[tuple[Region, int]]:
    """Where the device's bytes are, in the order of the list; the first `limit` of them."""
    left = sum(piece.length for piece in pieces) if limit is None else limit
    for piece in pieces:
        for k in range(min(left, piece.length)):
            yield piece.region, piece.index(k)
        left -= min(left, piece.length)


def device_reads(pieces: list[Piece], n: int | None = None) -> bytes:
    """What the device sees of these pieces."""
    return bytes(region.data[at] for region, at in places(pieces, n))


def device_writes(pieces: list[Piece], data: bytes) -> list[tuple[Region, int]]:
    """Write; what is returned was written more than once, so its value is one of several."""
    seen: set[tuple[int, int]] = set()
    twice = []
    for (region, at), value in zip(places(pieces, len(data)), data, strict=True):
        key = (id(region), at)
        if key in seen:
            twice.append((region, at))
        seen.add(key)
        region.data[at] = value
    return twice


# -- endpoints ---------------------------------------------------------------------------------


@dataclass
class File:
    """A file: reads end at its end, writes make it longer, a gap reads as zeroes."""

    data: bytearray = field(default_factory=bytearray)

    def read(self, position: int, n: int) -> bytes:
        return bytes(self.data[position : position + n])

    def write(self, position: int, data: bytes) -> int:
        if data and len(self.data) < position + len(data):
            self.data.extend(bytes(position + len(data) - len(self.data)))
        self.data[position : position + len(data)] = data
        return len(data)

    def write_zeroes(self, position: int, n: int) -> None:
        self.write(position, bytes(n))


@dataclass
class Buffer(File):
    """Host memory: as a file, but it never grows."""

    def write(self, position: int, data: bytes) -> int:
        n = max(0, min(len(data), len(self.data) - position))
        if n:
            self.data[position : position + n] = data[:n]
        return n


class Null(File):
    def read(self, position: int, n: int) -> bytes:
        return bytes(n)

    def write(self, position: int, data: bytes) -> int:
        return len(data)
