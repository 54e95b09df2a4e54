# SPDX-License-Identifier: Apache-2.0
"""A direct access block device: extents, reads, writes, flushes.

Invariants
 - No command reaches past the capacity: `within` is the one place where LBAs and lengths are
   checked, and everything else has byte offsets from it.
 - A write is on the medium when its status is given if FUA or a write-through cache asks for that;
   a failed flush fails all later ones (see `Flushes`).
 - While one command has the medium for itself no other has a transfer on it in flight; it waits
   for no initiator meanwhile.
 - `write_through` of the endpoint is on while a command that asks for it is in its data phase; what
   others write meanwhile is written through, too.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from iodma._core import Completion, Transfer, Wait
from iodma.endpoints import Buffer, Endpoint, File, Nbd
from iodma.endpoints.flushes import Flushes
from iodma.errors import ArgumentError, ArgumentTypeError
from iodma.scsi import sense as senses
from iodma.scsi.cdb import Cdb
from iodma.scsi.movers import OnMedium, medium_error
from iodma.scsi.request import DataDirection, Request
from iodma.scsi.sense import CheckCondition, ScsiStatus, Sense
from iodma.scsi.unit import LogicalUnit

__all__ = ["BlockUnit"]


class BlockUnit(LogicalUnit):
    """What reads and writes blocks of an endpoint. `Disk` says what the arguments are."""

    def __init__(self, disk: Endpoint, block: int, read_only: bool | None, depth: int) -> None:
        if not isinstance(disk, Endpoint) or not hasattr(disk, "size"):
            raise ArgumentTypeError(f"{disk!r} has no size: a File or a Buffer would be right")
        if not 512 <= block <= 1 << 16 or block & (block - 1):
            raise ArgumentError(f"block is {block}; a power of two, 512 to 65536, would be right")
        super().__init__(depth=depth)
        self.disk: File | Nbd | Buffer = disk  # type: ignore[assignment]
        self.block = block
        opened_so = bool(getattr(disk, "read_only", False))
        self.read_only = opened_so if read_only is None else bool(read_only) or opened_so
        self.flushes = Flushes(disk)
        self.blocks = disk.size // block
        self._forced = 0
        #: Who has the medium for itself; None: nobody.
        self.alone: Request | None = None
        self._opened: Wait[None] | None = None
        self._landing: Wait[None] | None = None

    # --- what the mode pages and the medium's state say -------------------------------------------

    @property
    def write_cache(self) -> bool:
        """Hook: WCE, whether a write may be given its status before it is on the medium."""
        return True

    def protection(self) -> Sense | None:
        """Why writes are refused; None: they are not."""
        return senses.WRITE_PROTECTED if self.read_only else None

    def readiness(self) -> Sense | None:
        """Hook: why the medium cannot be reached; None: it can."""
        return None

    def check(self, cdb: Cdb) -> None:
        if cdb.command.medium:
            refused = self.readiness()
            if refused is None and cdb.command.writes:
                refused = self.protection()
            if refused is not None:
                raise CheckCondition(refused)

    # --- checks -----------------------------------------------------------------------------------

    def within(self, lba: int, count: int) -> tuple[int, int] | None:
        """The bytes of `count` blocks from `lba` on: (offset, length).

        None: they do not lie within the capacity (SBC-3 4.5).
        """
        if lba + count > self.blocks:
            return None
        return lba * self.block, count * self.block

    def extent(self, cdb: Cdb, length: str = "TRANSFER LENGTH") -> tuple[int, int]:
        """The bytes that a command is about: (offset, length).

        Raises:
            CheckCondition: LBA OUT OF RANGE; INVALID FIELD IN CDB: protection information is asked
                for, which is not there (SBC-3 4.22).
        """
        protect = cdb.command.protect
        if protect and cdb[protect]:
            raise cdb.invalid(protect)
        count = cdb[length]
        if not count and cdb.command.length == 6:
            count = 256
        found = self.within(cdb["LOGICAL BLOCK ADDRESS"], count)
        if found is None:
            raise CheckCondition(cdb.point(senses.LBA_OUT_OF_RANGE, "LOGICAL BLOCK ADDRESS"))
        return found

    # --- reading and writing ----------------------------------------------------------------------

    async def read(self, request: Request, cdb: Cdb) -> None:
        """READ (SBC-3 5.11 to 5.13)."""
        offset, length = self.extent(cdb)
        if cdb.get("FUA") and not self.read_only:
            await self.flush()
        mover = OnMedium(self, offset, DataDirection.IN)
        await request.data_phase(DataDirection.IN, length, mover)

    async def write(self, request: Request, cdb: Cdb) -> None:
        """WRITE (SBC-3 5.33 to 5.35)."""
        offset, length = self.extent(cdb)
        with self.written_through(cdb) as through:
            mover = OnMedium(self, offset, DataDirection.OUT)
            await request.data_phase(DataDirection.OUT, length, mover)
        if through and not hasattr(self.disk, "write_through"):
            await self.flush()

    async def synchronize_cache(self, request: Request, cdb: Cdb) -> None:
        """SYNCHRONIZE CACHE (SBC-3 5.26, 5.27): of the whole disk, whatever range is named."""
        self.extent(cdb, "NUMBER OF LOGICAL BLOCKS")
        await self.flush()

    async def prefetch(self, request: Request, cdb: Cdb) -> ScsiStatus:
        """PRE-FETCH (SBC-3 5.8, 5.9). GOOD: not all of it is in the cache; the host decides."""
        self.extent(cdb, "PREFETCH LENGTH")
        return ScsiStatus.GOOD

    @contextmanager
    def written_through(self, cdb: Cdb) -> Iterator[bool]:
        """While what a command writes goes to the medium at once, if it is to. Whether it is."""
        through = bool(cdb.get("FUA")) or not self.write_cache
        self._force(int(through))
        try:
            yield through
        finally:
            self._force(-int(through))

    def _force(self, more: int) -> None:
        self._forced += more
        if hasattr(self.disk, "write_through") and not self.disk.closed:
            self.disk.write_through = self._forced > 0 or not self.write_cache

    def note(self, done: Completion) -> None:
        """Of a write that failed: where a cache stands behind it, what it held may be lost too."""
        if done.error == errno.EIO:
            self.flushes.note(done)

    async def flush(self) -> None:
        """Raises CheckCondition: what was written is not on the medium."""
        if self.read_only:
            return
        if not await self.flushes.flush(self.engine, self.port):
            raise CheckCondition(senses.WRITE_ERROR)

    async def settle(self, cdb: Cdb) -> None:
        """After what was written in another way than by `write`: flushes if it is to be stable."""
        if cdb.get("FUA") or not self.write_cache:
            await self.flush()

    # --- one command alone on the medium ----------------------------------------------------------

    async def passage(self, request: Request) -> None:
        """Awaited before each transfer on the medium: nobody else has it for itself."""
        while self.alone is not None and self.alone is not request and self._opened is not None:
            await self._opened

    async def isolate(self, request: Request) -> None:
        """From now on until it is over the request is alone: nothing else is in flight."""
        await self.passage(request)
        self.alone = request
        opened: Wait[None] = Wait(self.engine)
        self._opened = opened

        def over() -> None:
            self.alone = None
            opened._resolve(None)

        request.when_over(over)
        while any(each.in_flight for each in self.tasks if each is not request):
            self._landing = Wait(self.engine)
            await self._landing

    def landed(self) -> None:
        if self._landing is not None and not self._landing.done:
            self._landing._resolve(None)

    async def moved(
        self, request: Request, transfer: Transfer[Completion], direction: DataDirection, lba: int
    ) -> None:
        """Awaits a transfer of the device server's own. Raises CheckCondition: it failed."""
        done = await request.flight(transfer)
        if not done.ok:
            raise CheckCondition(medium_error(done, direction, lba))

    # --- capacity ---------------------------------------------------------------------------------

    async def read_capacity_10(self, request: Request, cdb: Cdb) -> None:
        """READ CAPACITY (10) (SBC-3 5.15)."""
        last = min(max(self.blocks - 1, 0), 0xFFFFFFFF)
        await self.give(request, struct.pack(">II", last, self.block), 8)

    async def read_defect_data(self, request: Request, cdb: Cdb) -> None:
        """READ DEFECT DATA (SBC-3 5.17, 5.18): the host's storage has none that it tells of."""
        said = cdb["REQ_PLIST"] << 4 | cdb["REQ_GLIST"] << 3 | cdb["DEFECT LIST FORMAT"]
        header = bytes((0, said)).ljust(4 if cdb.command.length == 10 else 8, b"\0")
        await self.give(request, header, cdb["ALLOCATION LENGTH"])

    def resize(self) -> bool:
        """Looks at the endpoint's size again; initiators are told if it has changed.

        Returns:
            Whether it has.
        """
        blocks = self.disk.size // self.block
        if blocks == self.blocks:
            return False
        self.blocks = blocks
        self.attention(senses.CAPACITY_CHANGED)
        return True
