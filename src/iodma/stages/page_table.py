# SPDX-License-Identifier: Apache-2.0
"""An IOMMU whose translations stand in a one-level page table in guest memory.

The core walks the table, in the same step that translates everything else, through a cache that is
like the IOTLB of hardware: it holds what it has read until it is flushed, or until another page
needs the place. A guest that changes an entry flushes it, or may see either.

Invariants
 - What is in flight through a page when it is flushed, or when the table, range or mode change, has
   ended when that revocation is acknowledged; what comes later walks again.
 - Only valid entries are cached, and as addresses of the space below.
 - A table that is not host memory, or not there, is a fault of the walk, at the address that was to
   be translated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Self

from iodma._core import Space
from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError, integer
from iodma.lease import DEADLINE_S, Revocation, check_deadline, revoke
from iodma.types import Access

__all__ = ["PageEntry", "PageTable", "TableFault", "TableMode", "TableCounts", "Translation"]

_TABLE = 6
_MEMORY, _GATE = 0, 5
_MOST_CACHED_BITS = 20
_LAST = (1 << 64) - 1


class TableMode(IntEnum):
    """What becomes of an address."""

    #: It faults.
    REFUSE = 0
    #: It is the same address of the space below.
    PASS = 1
    #: Its page's entry says.
    TRANSLATE = 2


@dataclass(frozen=True, slots=True)
class PageEntry:
    """The format of a table's entries, as data.

    The address of an entry's page is ``(entry & frame) << shift``.

    Attributes:
        width: bytes, 4 or 8.
        byteorder: of the entry in memory.
        valid: bits that are all set in an entry that maps a page.
        write: bits that are all set where the page may be written, too; 0: always.
        frame: the bits that say where the page is.
        shift: how far they are shifted.
        cacheable: bits that are all set where the page may be cached; nothing here depends on it.
    """

    width: int = 4
    byteorder: Literal["big", "little"] = "big"
    valid: int = 1
    write: int = 2
    frame: int = 0xFFFF_F000
    shift: int = 0
    cacheable: int = 0


class Translation(NamedTuple):
    """What an entry says: where its page is, and what may be done with it."""

    target: int
    access: Access
    cacheable: bool
    entry: int


class TableFault(NamedTuple):
    """What the table refused: the bus address, what was wanted, and why."""

    address: int
    access: Access
    reason: str


class TableCounts(NamedTuple):
    """Entries that were read, pages that the cache answered, and transfers that were refused."""

    reads: int
    hits: int
    faults: int


class PageTable(Space):
    """Translates by a one-level table of entries in the memory below.

        table = PageTable(memory, PageEntry(), table=0x1000, first=0, length=16 << 20)

    Args:
        next: the memory below, which also holds the table; gates (a `PciSlot`) may be between.
        entry: the format of an entry.
        page: bytes; a power of two.
        table: where the table begins, in the space below.
        first: the first bus address that has an entry, page 0 of the table.
        length: bytes that have entries; whole pages.
        mode: what becomes of addresses in general: `TableMode.TRANSLATE`, or it is switched off.
        outside: the same for those that the range does not hold, while it translates.
        cached: how many pages its cache can hold; a power of two.
        on_fault: called with a `TableFault` when a transfer, a load or a store ends with a fault
            that is this stage's: once, and before it is told. A plain function that takes notes and
            sets lines, as for registers that latch a fault.

    Raises:
        AddressRangeError: the range is not made of pages, or the table runs past 2^64 - 1.
        ArgumentError: a format that cannot be, or a space below that is no memory.
    """

    entry: PageEntry
    page: int
    _now: tuple[int, int, int, TableMode, TableMode]

    def __new__(
        cls,
        next: Space,
        entry: PageEntry | None = None,
        *,
        page: int = 4096,
        table: int = 0,
        first: int = 0,
        length: int = 16 << 20,
        mode: TableMode = TableMode.TRANSLATE,
        outside: TableMode = TableMode.REFUSE,
        cached: int = 4096,
        on_fault: Callable[[TableFault], object] | None = None,
        name: str = "page table",
    ) -> Self:
        entry = PageEntry() if entry is None else entry
        page, cached = integer(page, "page", "bytes"), integer(cached, "cached", "pages")
        if page < 8 or page & (page - 1):
            raise ArgumentError(f"page is {page} bytes; a power of two from 8 would be right")
        if not 1 <= cached <= 1 << _MOST_CACHED_BITS or cached & (cached - 1):
            raise ArgumentError(
                f"cached is {cached} pages; a power of two to 2^{_MOST_CACHED_BITS} would be right"
            )
        if on_fault is not None and not callable(on_fault):
            raise ArgumentTypeError(f"on_fault is {on_fault!r}, which cannot be called")
        _check_entry(entry)
        _check_below(next)
        self = super().__new__(cls, _TABLE, next, name, lanes=cached.bit_length() - 1)
        self.entry = entry
        self.page = page
        self._set(table, first, length, mode, outside)
        if on_fault is not None:
            self._set_hook(_hook(self, on_fault), False)
        return self

    def _set(
        self, table: int, first: int, length: int, mode: TableMode, outside: TableMode
    ) -> None:
        table, first = integer(table, "table"), integer(first, "first")
        length = integer(length, "length", "bytes")
        mode, outside = TableMode(mode), TableMode(outside)
        if outside is TableMode.TRANSLATE:
            raise ArgumentError("outside is TRANSLATE; nothing there has an entry: REFUSE or PASS")
        if min(table, first) < 0 or length <= 0 or max(table + 1, first + length) > 1 << 64:
            raise AddressRangeError(
                f"{self.name}: a table at {table:#x} for {length:#x} bytes at {first:#x} does not"
                " fit 64 bits"
            )
        one = self.entry
        self._table_set(
            (
                one.valid,
                one.write,
                one.frame,
                one.shift,
                one.width,
                self.page.bit_length() - 1,
                one.byteorder == "big",
            ),
            table,
            first,
            first + length - 1,
            mode,
            outside,
        )
        self._now = (table, first, length, mode, outside)

    @property
    def table(self) -> int:
        """Where the table begins, in the space below."""
        return self._now[0]

    @property
    def first(self) -> int:
        """The first bus address that has an entry."""
        return self._now[1]

    @property
    def length(self) -> int:
        """How many bytes have entries."""
        return self._now[2]

    @property
    def mode(self) -> TableMode:
        """What becomes of addresses."""
        return self._now[3]

    @property
    def outside(self) -> TableMode:
        """What becomes of those outside the range, while it translates."""
        return self._now[4]

    @property
    def counts(self) -> TableCounts:
        """What the walks have come to so far."""
        return TableCounts(*self._table_counts()[:3])

    def set(
        self,
        *,
        table: int | None = None,
        first: int | None = None,
        length: int | None = None,
        mode: TableMode | None = None,
        outside: TableMode | None = None,
        cancel: bool = False,
        deadline: float | None = DEADLINE_S,
    ) -> Revocation:
        """Change what is given, with immediate effect on what comes; the cache is empty then.

        Returns:
            The revocation of all that was in flight: await it, and none of it is any more.

        Raises:
            AddressRangeError: as when it was made; nothing has changed then.
        """
        check_deadline(deadline)
        was = self._now
        self._set(
            was[0] if table is None else table,
            was[1] if first is None else first,
            was[2] if length is None else length,
            was[3] if mode is None else mode,
            was[4] if outside is None else outside,
        )
        return revoke(self, 0, 0, cancel=cancel, deadline=deadline)

    def flush(
        self,
        address: int | None = None,
        length: int = 1,
        *,
        cancel: bool = False,
        deadline: float | None = DEADLINE_S,
    ) -> Revocation:
        """Forget what is cached, and revoke what is in flight through it.

        Args:
            address: a page, or where a range of ``length`` bytes begins; None: everything.
            length: bytes; its pages are those that it touches.

        Returns:
            Await it: what the entries said before is then in use nowhere.
        """
        check_deadline(deadline)
        start, size = self._forget(address, length)
        return revoke(self, start, size, cancel=cancel, deadline=deadline)

    def _forget(self, address: int | None = None, length: int = 1) -> tuple[int, int]:
        """Of the cache alone: what is to be revoked, start and bytes; 0: to the end."""
        if address is None:
            self._table_flush(0, _LAST)
            return 0, 0
        address, length = integer(address, "address"), integer(length, "length", "bytes")
        if length <= 0 or not 0 <= address <= _LAST:
            raise AddressRangeError(
                f"{self.name}: {length} bytes at {address:#x}; at least one of 64 bits' would be"
                " right"
            )
        start = address - address % self.page
        end = min(address + length - 1 | self.page - 1, _LAST)
        self._table_flush(start, end)
        return start, 0 if end == _LAST else end - start + 1

    def lookup(self, address: int) -> Translation | None:
        """What the entry of an address says now, past the cache.

        None: it has no valid one.
        """
        entry = self._table_entry(address)
        one = self.entry
        if entry is None or entry & one.valid != one.valid:
            return None
        return Translation(
            ((entry & one.frame) << one.shift) + (address - self.first) % self.page,
            Access.RW if entry & one.write == one.write else Access.READ,
            bool(one.cacheable) and entry & one.cacheable == one.cacheable,
            entry,
        )

    def __repr__(self) -> str:
        return (
            f"<PageTable {self.name} at {self.table:#x} for {self.length:#x} bytes at"
            f" {self.first:#x}: {self.mode.name.lower()}>"
        )


def _check_entry(entry: PageEntry) -> None:
    if not isinstance(entry, PageEntry):
        raise ArgumentTypeError(f"entry is {entry!r}; a PageEntry would be right")
    if entry.width not in (4, 8) or entry.byteorder not in ("big", "little"):
        raise ArgumentError(
            f"entries of {entry.width} bytes, {entry.byteorder}-endian; 4 or 8, big or little"
            " would be right"
        )
    for what in ("valid", "write", "frame", "cacheable"):
        bits = integer(getattr(entry, what), what)
        if not 0 <= bits < 1 << 8 * entry.width:
            raise ArgumentError(f"{what} is {bits:#x}, which an entry of that width does not hold")
    if not 0 <= integer(entry.shift, "shift", "bits") < 64:
        raise ArgumentError(f"shift is {entry.shift} bits; 0 to 63 would be right")


def _check_below(below: object) -> None:
    while isinstance(below, Space) and below._kind == _GATE:
        below = below.next
    if not isinstance(below, Space):
        raise ArgumentTypeError(f"{below!r} is not an address space; a Memory would be right")
    if below._kind != _MEMORY:
        raise ArgumentError(f"{below!r} is below; tables are read from a Memory")


def _hook(stage: PageTable, told: Callable[[TableFault], Any]) -> Callable[[int, int, int], int]:
    # The core holds the hook for the stage: a strong reference back would never go.
    owner = weakref.ref(stage)

    def hook(address: int, length: int, access: int) -> int:
        table = owner()
        if table is not None:
            told(TableFault(address, Access(access), table._table_counts()[3]))
        return 1

    return hook
