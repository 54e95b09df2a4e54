# SPDX-License-Identifier: Apache-2.0
"""VERIFY, WRITE AND VERIFY, COMPARE AND WRITE (SBC-3 5.29 to 5.31, 5.37 to 5.39, 5.2).

Invariants
 - What is compared was read from the endpoint into a slot of the device server's own memory; the
   initiator's side of it is copied once, before, so that it cannot change meanwhile.
 - A comparison names the first logical block that differs, COMPARE AND WRITE the first byte.
 - Between the comparison and the write of COMPARE AND WRITE nothing else reaches the medium.
"""

from __future__ import annotations

from iodma._core import Completion, completion
from iodma.errors import DmaFault
from iodma.port import Port
from iodma.scsi import sense as senses
from iodma.scsi.block import BlockUnit
from iodma.scsi.cdb import Cdb
from iodma.scsi.movers import medium_error, refused
from iodma.scsi.request import DataDirection, Request
from iodma.scsi.scratch import SLOT
from iodma.scsi.sense import CheckCondition, Sense
from iodma.sg import ScatterList
from iodma.types import Status

__all__ = ["Verify"]

#: BYTCHK (SBC-3 5.29): no comparison; with the data-out buffer; with one block of it.
NO, ALL, ONE = 0, 1, 3


class Comparison:
    """The medium's end of a data phase that is compared with it, and perhaps written first.

    Attributes:
        differs: the sense data of the first difference; None: there is none so far.
    """

    def __init__(self, unit: BlockUnit, offset: int, slot: int, write: bool) -> None:
        self.unit = unit
        self.offset = offset
        self.slot = slot
        self.write = write
        self.differs: Sense | None = None
        self._failed: Sense = senses.READ_ERROR

    async def move(
        self, request: Request, port: Port, segments: ScatterList, at: int
    ) -> Completion:
        moved = 0
        total = segments.total_bytes
        while moved < total:
            length = min(SLOT, total - moved)
            data = b""
            try:
                for address, some in _each(segments.slice(moved, length)):
                    part = await request.flight(port.load_bytes(address, some))
                    data += part
            except DmaFault as fault:
                return refused(moved, moved + len(data), fault.completion)
            try:
                await self._compare(request, data, self.offset + at + moved)
            except CheckCondition as failed:
                self._failed = failed.sense
                return completion(Status.IO_ERROR, moved, 0)
            moved += length
        return completion(Status.OK, moved, 0)

    async def _compare(self, request: Request, data: bytes, offset: int) -> None:
        unit, slot = self.unit, self.slot
        here, scratch = [(slot, len(data))], unit.target.scratch
        if self.write:
            with scratch.view(slot, len(data)) as view:
                view[:] = data
            await unit.passage(request)
            transfer = unit.port.from_memory(here, to=unit.disk, offset=offset)
            await unit.moved(request, transfer, DataDirection.OUT, offset // unit.block)
        await read_into(unit, request, slot, offset, len(data))
        if self.differs is None:
            with scratch.view(slot, len(data)) as view:
                self.differs = difference(unit, view, data, offset)

    def failed(self, at: int, done: Completion) -> Sense:
        return self._failed


class Verify(BlockUnit):
    """Handlers of what compares."""

    async def verify(self, request: Request, cdb: Cdb) -> None:
        """VERIFY (SBC-3 5.29 to 5.31)."""
        offset, length = self.extent(cdb, "VERIFICATION LENGTH")
        check = cdb["BYTCHK"]
        if check not in (NO, ALL, ONE):
            raise cdb.invalid("BYTCHK")
        if not length:
            return
        slot = await self.target.scratch.take(request)
        if check == ALL:
            comparison = Comparison(self, offset, slot, write=False)
            await request.data_phase(DataDirection.OUT, length, comparison)
            if comparison.differs is not None:
                raise CheckCondition(comparison.differs)
            return
        data = b""
        if check == ONE:
            data = await self.take(request, self.block)
            if len(data) < self.block:
                raise cdb.invalid("BYTCHK")
        step = SLOT
        for at in range(offset, offset + length, step):
            some = min(step, offset + length - at)
            await read_into(self, request, slot, at, some)
            if check == ONE:
                with self.target.scratch.view(slot, some) as view:
                    differs = difference(self, view, data * (some // self.block), at)
                if differs is not None:
                    raise CheckCondition(differs)

    async def write_and_verify(self, request: Request, cdb: Cdb) -> None:
        """WRITE AND VERIFY (SBC-3 5.37 to 5.39)."""
        offset, length = self.extent(cdb)
        check = cdb["BYTCHK"]
        if check not in (NO, ALL):
            raise cdb.invalid("BYTCHK")
        if length:
            slot = await self.target.scratch.take(request)
            comparison = Comparison(self, offset, slot, write=True)
            await request.data_phase(DataDirection.OUT, length, comparison)
            if check == ALL and comparison.differs is not None:
                raise CheckCondition(comparison.differs)
        await self.flush()  # it is the medium that is verified

    @property
    def most_compared(self) -> int:
        """MAXIMUM COMPARE AND WRITE LENGTH, blocks."""
        return min(255, (1 << 20) // self.block)

    async def compare_and_write(self, request: Request, cdb: Cdb) -> None:
        """COMPARE AND WRITE (SBC-3 5.2)."""
        if cdb["NUMBER OF LOGICAL BLOCKS"] > self.most_compared:
            raise cdb.invalid("NUMBER OF LOGICAL BLOCKS")
        offset, length = self.extent(cdb, "NUMBER OF LOGICAL BLOCKS")
        if request.offered not in (None, 2 * length):
            raise cdb.invalid("NUMBER OF LOGICAL BLOCKS")
        if not length:
            return
        data = await self.take(request, 2 * length)
        if len(data) < 2 * length:
            raise cdb.invalid("NUMBER OF LOGICAL BLOCKS")
        slot = await self.target.scratch.take(request)
        scratch = self.target.scratch
        await self.isolate(request)
        pieces = [(at, min(SLOT, length - at)) for at in range(0, length, SLOT)]
        for at, some in pieces:
            await read_into(self, request, slot, offset + at, some)
            with scratch.view(slot, some) as view:
                differs = first_difference(bytes(view), data[at : at + some])
            if differs is not None:
                raise CheckCondition(senses.MISCOMPARE.told(at + differs))
        with self.written_through(cdb) as through:
            for at, some in pieces:
                with scratch.view(slot, some) as view:
                    view[:] = data[length + at : length + at + some]
                transfer = self.port.from_memory([(slot, some)], to=self.disk, offset=offset + at)
                lba = (offset + at) // self.block
                await self.moved(request, transfer, DataDirection.OUT, lba)
        if through:
            await self.flush()


async def read_into(unit: BlockUnit, request: Request, slot: int, offset: int, length: int) -> None:
    """Reads the medium into a slot. Raises CheckCondition: it could not be read."""
    await unit.passage(request)
    done = await request.flight(
        unit.port.to_memory([(slot, length)], source=unit.disk, offset=offset)
    )
    if not done.ok or done.moved < length:
        lba = (offset + done.moved) // unit.block
        raise CheckCondition(medium_error(done, DataDirection.IN, lba))


def difference(unit: BlockUnit, view: memoryview, data: bytes, offset: int) -> Sense | None:
    """MISCOMPARE for the first block that differs; None: none does."""
    if view == data:
        return None
    block, first = unit.block, offset // unit.block
    for at in range(first * block - offset, len(data), block):  # pieces may begin within a block
        here = slice(max(at, 0), at + block)
        if view[here] != data[here]:
            return senses.MISCOMPARE.told((offset + here.start) // block)
    return None


def first_difference(one: bytes, other: bytes) -> int | None:
    """The index of the first byte that differs of two of the same length; None: none does."""
    if one == other:
        return None
    low, high = 0, len(one)  # the first difference is in between
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _each(segments: ScatterList) -> list[tuple[int, int]]:
    """The segments that have bytes."""
    return [each for each in map(segments.__getitem__, range(len(segments))) if each[1]]
