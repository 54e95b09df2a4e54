# SPDX-License-Identifier: Apache-2.0
"""The DMA regions of a session: bus addresses that the client maps and unmaps.

A region that comes with a descriptor is a part of a file, which is mapped as a whole; one that
comes without, or is not to be mapped, is memory that the client moves the bytes of, asked by
messages.

Where the specification and libvfio-user differ: a region over another one is refused with EEXIST,
as the one says, but for the very same region again, which is nothing, as the other does. An unmap
must name a region exactly, says the specification; one that holds several regions, and cuts none,
takes them all, as QEMU unmaps a guest IOMMU's whole address space when that goes away.

Invariants
 - Every number of the client's is checked here, before anything is mapped.
 - A region leaves the map first. Its unmap is acknowledged when the last transfer that has a lease
   there has let go: by itself, or as it was cancelled after `PATIENCE_S`.
 - An unmap that is not done after `DEADLINE_S`, which is less than clients wait, is refused, and as
   long as a transfer holds on nothing new is mapped onto the same bytes of the file.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

from iodma._core import Region, Revocation, Wait, file_of
from iodma.engine import Engine
from iodma.errors import AddressRangeError
from iodma.memory import Memory, RemoteMemory, RemoteRequest
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user.dirty import Area, bitmap_bytes, move, pages_of
from iodma.transports.vfio_user.mappings import MOST_BYTES, PAGE, File, Mapping, Mappings
from iodma.transports.vfio_user.messages import MOST_REGIONS, MOST_TRANSFER, Refusal
from iodma.transports.vfio_user.remote import Remote

__all__ = ["DmaTable"]

log = logging.getLogger("iodma.transports.vfio_user")

#: Seconds until what is in flight in a region that was unmapped is cancelled, and until the unmap
#: fails: clients wait for five.
PATIENCE_S, DEADLINE_S = 2.0, 4.0
READ, WRITE, MMAP, FILE_IO = 1, 2, 4, 8
_FLAGS = READ | WRITE | MMAP | FILE_IO
_TOP = 1 << 64


class _Part:
    """A region of the client's.

    Attributes:
        region: what is mapped at its address.
        mapping: that this is; None: the client moves the bytes.
        offset: where it is in the file.
        file: that it came with, or None. Where the client moves its bytes all the same, nobody here
            writes to it.
        dirty: pages of the file that were written to and not reported; bit 0 is the region's first.
    """

    __slots__ = ("access", "address", "dirty", "file", "mapping", "offset", "region", "size")

    def __init__(
        self,
        address: int,
        size: int,
        access: int,
        region: Region,
        mapping: Mapping | None,
        offset: int,
        file: File | None,
    ) -> None:
        self.address = address
        self.size = size
        self.access = access
        self.region = region
        self.mapping = mapping
        self.offset = offset
        self.file = file
        self.dirty = 0

    def __str__(self) -> str:
        return f"the region of {self.size:#x} bytes at {self.address:#x}"


class DmaTable:
    """The regions of one session, in a memory of their own.

    Args:
        memory: where they are put; nothing else may be where they come.
        remote: who asks the client for bytes that it does not share.
        name: what the log calls it.
        most: regions at once.
        private: whether what the client writes to a file is its own, asked with (device, inode)
            and a descriptor of it. Regions of such a file are as those without a descriptor.
        mapped: whether a region is mapped, asked with its address and size; None: each that can be.

    Attributes:
        memory: it.
    """

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        remote: Remote,
        name: str = "dma",
        *,
        most: int = MOST_REGIONS,
        private: Callable[[File, int], bool] | None = None,
        mapped: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.memory = memory
        self.name = name
        self._engine = engine
        self._remote = remote
        self._most = most
        self._parts: dict[int, _Part] = {}
        self._mappings = Mappings(engine, private)
        self._mapped = mapped
        #: Where transfers held on beyond the deadline.
        self._stuck: list[tuple[_Part, Revocation]] = []
        self._log_page = 0

    @property
    def regions(self) -> int:
        """How many there are."""
        return len(self._parts)

    @property
    def mappings(self) -> int:
        """Mappings that the process holds for them."""
        return len(self._mappings)

    # --- changes ----------------------------------------------------------------------------------

    def map(
        self, address: int, size: int, flags: int, descriptor: Descriptor | None, offset: int
    ) -> None:
        """Makes a region (DMA_MAP).

        Args:
            address: bus address.
            flags: as in the message: bit 0, devices may read; bit 1, write; bits 2 and 3 demand a
                descriptor.
            descriptor: of its file, which stays the caller's to close; None: the client moves the
                bytes.
            offset: where it is in the file.

        Raises:
            Refusal: EINVAL, ENOSPC (its size), EEXIST (it is over another), EBUSY (a transfer that
                should have ended still has these bytes), or why the file cannot be mapped.
        """
        if flags & ~_FLAGS:
            raise Refusal(errno.EINVAL, f"flags {flags:#x}; {_FLAGS:#x} are known")
        if not 0 < size <= _TOP - address:
            raise Refusal(errno.EINVAL, f"{size:#x} bytes at {address:#x} are none, or pass 2^64")
        if size > MOST_BYTES:
            raise Refusal(errno.ENOSPC, f"{size:#x} bytes; {MOST_BYTES:#x} are the most")
        found = self._parts.get(address)
        if found is not None and self._is_same(found, size, flags, descriptor, offset):
            return
        if len(self._parts) >= self._most:
            raise Refusal(errno.EINVAL, f"one more than {self._most} regions")
        if descriptor is None:
            if flags & (MMAP | FILE_IO):
                raise Refusal(errno.EINVAL, f"flags {flags:#x} without a descriptor")
            self._map_remote(address, size, flags & 3)
            return
        if offset + size >= 1 << 63:
            raise Refusal(errno.EINVAL, f"{size:#x} bytes at {offset:#x} of a file")
        mapping = None
        if self._mapped is None or self._mapped(address, size):
            mapping = self._mappings.take(descriptor.fileno(), offset, size, bool(flags & WRITE))
        if mapping is None:
            file = file_of(descriptor.fileno())
            self._map_remote(address, size, flags & 3, offset, file)
            return
        try:
            if self._stuck:
                self._check_stuck(mapping, offset, size)
            self._map(address, size, offset - mapping.start, mapping.region, flags & 3)
        except Refusal:
            self._mappings.give(mapping)
            raise
        self._parts[address] = _Part(
            address, size, flags & 3, mapping.region, mapping, offset, mapping.file
        )

    def _map_remote(
        self, address: int, size: int, access: int, offset: int = 0, file: File | None = None
    ) -> None:
        theirs = RemoteMemory(_Theirs(self._remote, address), size, most=self._remote.most)
        self._map(address, size, 0, theirs, access)
        self._parts[address] = _Part(address, size, access, theirs, None, offset, file)

    def _map(self, address: int, size: int, base: int, region: Region, access: int) -> None:
        try:
            self.memory._map(address, size, base, region, access)
        except AddressRangeError as error:
            raise Refusal(errno.EEXIST, str(error)) from None

    def _is_same(
        self, part: _Part, size: int, flags: int, descriptor: Descriptor | None, offset: int
    ) -> bool:
        if (part.size, part.access) != (size, flags & 3):
            return False
        if descriptor is None:
            return part.file is None
        return part.offset == offset and part.file == file_of(descriptor.fileno())

    def _check_stuck(self, mapping: Mapping, offset: int, size: int) -> None:
        self._stuck = [each for each in self._stuck if not each[1].done]
        for part, _ in self._stuck:
            if (
                part.mapping is not None
                and part.mapping.file == mapping.file
                and offset < part.offset + part.size
                and part.offset < offset + size
            ):
                raise Refusal(errno.EBUSY, f"a transfer still has bytes of {part}")

    def unmap(
        self, address: int, size: int, *, all: bool = False, dirty: tuple[int, int] | None = None
    ) -> Awaitable[bytes | None] | bytes | None:
        """Takes regions away (DMA_UNMAP): nothing new reaches them when this returns.

        Args:
            all: all that there are; the address and the size must be 0.
            dirty: of one region, (bytes of a page, bytes of a bitmap) of those of its pages that
                were written to.

        Returns:
            None, or the bitmap: nothing is in flight there. Else what is to be awaited before the
            client is answered, which gives the same; it raises Refusal (EBUSY) when transfers hold
            on beyond the deadline.

        Raises:
            Refusal: ENOENT: there is no such region, or one would be cut; EINVAL; those of
                `report`.
        """
        if all:
            if address or size:
                raise Refusal(errno.EINVAL, f"all regions, and {size:#x} bytes at {address:#x}")
            return self._take_away([*self._parts.values()])
        part = self._parts.get(address)
        if dirty is not None:
            if part is None or part.size != size:
                raise Refusal(errno.ENOENT, f"there is no region of {size:#x} at {address:#x}")
            return self._take_away_dirty(part, *dirty)
        if part is not None and part.size == size:
            return self._take_away([part])
        return self._take_away(self._within(address, size))

    def _within(self, address: int, size: int) -> list[_Part]:
        found = self._touched(address, size)
        for part in found:
            if part.address < address or part.address + part.size > address + size:
                raise Refusal(errno.ENOENT, f"{size:#x} bytes at {address:#x} would cut {part}")
        if not found:
            raise Refusal(errno.ENOENT, f"there is no region of {size:#x} bytes at {address:#x}")
        return found

    def _take_away(
        self, parts: list[_Part], patience: float = PATIENCE_S, deadline: float = DEADLINE_S
    ) -> Wait[None] | None:
        held = []
        for part in parts:
            del self._parts[part.address]
            self.memory._unmap(part.address, part.size)
            if part.region.leases:
                revocation = Revocation(self.memory, part.address, part.size)
                if not revocation.done:
                    held.append((part, revocation))
            if part.mapping is not None:
                self._mappings.give(part.mapping)
        return _Leaving(self, held, patience, deadline).wait if held else None

    async def close(self, deadline: float = DEADLINE_S) -> bool:
        """Takes all away; what is in flight there is cancelled.

        Args:
            deadline: seconds.

        Returns:
            Whether all let go before it. What did not stays mapped.
        """
        wait = self._take_away([*self._parts.values()], 0, deadline)
        self._mappings.close()
        if wait is None:
            return True
        try:
            await wait
        except Refusal as why:
            why.__traceback__ = None  # the wait keeps it, and it would keep the wait
            return False
        return True

    # --- dirty pages ------------------------------------------------------------------------------

    def start_logging(self, page: int, ranges: Sequence[tuple[int, int]] = ()) -> int:
        """Logs which pages are written to (DMA_LOGGING_START); again, nothing happens.

        Args:
            page: bytes; what is logged is as fine as `PAGE`.
            ranges: addresses and lengths that the client wants to know of; all are logged.

        Returns:
            The size of a page.

        Raises:
            Refusal: ``page`` is no power of two, or another one than that it was started with.
        """
        if page <= 0 or page & (page - 1):
            raise Refusal(errno.EINVAL, f"a page of {page} bytes; a power of two would be right")
        if self._log_page not in (0, page):
            raise Refusal(errno.EINVAL, f"a page of {page} bytes; it is {self._log_page} already")
        if not self._log_page:
            self._log_page = page
            self._mappings.start_log(PAGE)
        return page

    def stop_logging(self) -> None:
        """Logs no more, and forgets what was not reported."""
        self._log_page = 0
        self._mappings.stop_log()
        for part in self._parts.values():
            part.dirty = 0

    def report(self, address: int, length: int, page: int) -> bytes:
        """The pages of ``page`` bytes that were written to since they were last reported.

        Returns:
            A bit a page, in whole 64-bit words, from ``address`` on.

        Raises:
            Refusal: ENOENT: no region is there; EINVAL: nothing is logged, only the client moves
            the bytes there, the page is no power of two or more than the length, or the bitmap too
            long.
        """
        self._check_report(address, length, page)
        there = self._touched(address, length)
        if not there:
            raise Refusal(errno.ENOENT, f"there is no region in {length:#x} bytes at {address:#x}")
        return self._report(there, address, length, page)

    def _take_away_dirty(
        self, part: _Part, page: int, room: int
    ) -> Awaitable[bytes | None] | bytes:
        self._check_report(part.address, part.size, page)
        if room < bitmap_bytes(part.size, page):
            raise Refusal(errno.EINVAL, f"{room} bytes for the bitmap of {part}")
        mapping = part.mapping
        if mapping is None and part.file is None:
            raise Refusal(errno.EINVAL, f"the client itself moves the bytes of {part}")

        def report() -> bytes:
            try:
                return self._report([part], part.address, part.size, page).ljust(room, b"\0")
            finally:
                if mapping is not None:
                    self._mappings.give(mapping)

        async def wait_for(wait: Wait[None]) -> bytes:
            await wait
            return report()

        if mapping is not None:
            mapping.users += 1  # its log is still to be read
        wait = self._take_away([part])
        return report() if wait is None else wait_for(wait)

    def _touched(self, address: int, length: int) -> list[_Part]:
        end = address + length
        return [
            part
            for part in self._parts.values()
            if part.address < end and address < part.address + part.size
        ]

    def _check_report(self, address: int, length: int, page: int) -> None:
        if not self._log_page:
            raise Refusal(errno.EINVAL, "dirty pages are not logged")
        if page <= 0 or page & (page - 1) or page > length:
            raise Refusal(errno.EINVAL, f"pages of {page} bytes in {length:#x} bytes")
        if address + length > _TOP or bitmap_bytes(length, page) > MOST_TRANSFER:
            raise Refusal(errno.EINVAL, f"{length:#x} bytes at {address:#x} are too many")

    def _report(self, there: list[_Part], address: int, length: int, page: int) -> bytes:
        mappings = {part.mapping for part in there if part.mapping is not None}
        if not mappings and all(part.file is None for part in there):
            raise Refusal(errno.EINVAL, f"the client itself moves the bytes at {address:#x}")
        for mapping in mappings:
            self._harvest(mapping, there)
        report = 0
        for part in there:
            if part.dirty:
                area = Area(part.address, part.offset, part.size)
                pages, part.dirty = move(part.dirty, area, PAGE, address, length, page)
                report |= pages
        return report.to_bytes(bitmap_bytes(length, page), "little")

    def _harvest(self, mapping: Mapping, more: list[_Part]) -> None:
        """What a file's log has, for all regions that are made of it."""
        if not mapping.writable:
            return
        pages = mapping.region._take_dirty()
        if pages.count(0) == len(pages):
            return
        for part in {*self._parts.values(), *more}:
            if part.mapping is mapping:
                first, last = part.offset - mapping.start, part.offset + part.size - 1
                part.dirty |= pages_of(pages, first // PAGE, (last - mapping.start) // PAGE)


class _Theirs:
    """A region that the client moves the bytes of, at a bus address."""

    __slots__ = ("_address", "_remote")

    def __init__(self, remote: Remote, address: int) -> None:
        self._remote = remote
        self._address = address

    def read(self, offset: int, length: int, request: RemoteRequest) -> None:
        self._remote.read(self._address + offset, length, request)

    def write(self, offset: int, data: bytes, request: RemoteRequest) -> None:
        self._remote.write(self._address + offset, data, request)


class _Leaving:
    """Regions that were unmapped while transfers have them."""

    def __init__(
        self,
        table: DmaTable,
        held: list[tuple[_Part, Revocation]],
        patience: float,
        deadline: float,
    ) -> None:
        engine = table._engine
        self.wait: Wait[None] = Wait(engine)
        self._table = table
        self._held = held
        self._left = len(held)
        self._deadline = deadline
        self._timers = [
            engine.call_later(patience, self._hasten),
            engine.call_later(deadline, self._expire),
        ]
        for _, revocation in held:
            revocation._when_done(self._ended)

    def _ended(self, _: object) -> None:
        self._left -= 1
        if self._left == 0 and not self.wait.done:
            for timer in self._timers:
                timer.cancel()
            self.wait._resolve(None)

    def _hasten(self) -> None:
        for _, revocation in self._held:
            revocation._hasten()

    def _expire(self) -> None:
        stuck = [(part, each) for part, each in self._held if not each.done]
        self._table._stuck += stuck
        for part, each in stuck:
            log.error(
                "%s: %s is still held %.1f s after it was unmapped, by %s",
                self._table.name,
                str(part),  # whoever keeps the line keeps no mapping
                self._deadline,
                ", ".join(f"transfer {ticket:#x}" for ticket in each.held_by),
            )
        self.wait._fail(Refusal(errno.EBUSY, f"{stuck[0][0]} is still in use by transfers"))
