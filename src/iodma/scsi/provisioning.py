# SPDX-License-Identifier: Apache-2.0
"""UNMAP and WRITE SAME (SBC-3 5.28, 5.43, 5.44; logical block provisioning management, 4.7).

Invariants
 - All of a parameter list is checked before any of it is done.
 - What is unmapped reads as zeroes (LBPRZ): a block that the host cannot give back is left as it is
   by UNMAP, which may do so, and written by WRITE SAME.
"""

from __future__ import annotations

import struct
from errno import EOPNOTSUPP

from iodma.scsi import sense as senses
from iodma.scsi.block import BlockUnit
from iodma.scsi.cdb import Cdb
from iodma.scsi.movers import medium_error
from iodma.scsi.request import DataDirection, Request
from iodma.scsi.scratch import SLOT
from iodma.scsi.sense import CheckCondition

__all__ = ["MAX_UNMAP_BLOCKS", "MAX_UNMAP_DESCRIPTORS", "Provisioning"]

#: MAXIMUM UNMAP LBA COUNT and MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT (SBC-3 6.6).
MAX_UNMAP_BLOCKS = 1 << 20
MAX_UNMAP_DESCRIPTORS = 256
#: Most bytes that one call of the host's gives back or clears, so that a cancel acts in between.
STRETCH = 1 << 28

#: The UNMAP parameter list (SBC-3 5.28.2): its header, and a block descriptor.
_HEADER, _DESCRIPTOR = struct.Struct(">HH4x"), struct.Struct(">QI4x")


class Provisioning(BlockUnit):
    """Handlers of UNMAP and WRITE SAME."""

    async def unmap(self, request: Request, cdb: Cdb) -> None:
        """UNMAP (SBC-3 5.28)."""
        if cdb["ANCHOR"]:
            raise cdb.invalid("ANCHOR")
        length = cdb["PARAMETER LIST LENGTH"]
        if not length:
            return
        if length < _HEADER.size:
            raise CheckCondition(cdb.point(senses.PARAMETER_LIST_LENGTH, "PARAMETER LIST LENGTH"))
        # What cannot be a descriptor that counts is neither read nor looked at.
        data = await self.take(request, length)
        if len(data) < _HEADER.size:
            raise CheckCondition(senses.PARAMETER_LIST_LENGTH)
        for offset, some in self._descriptors(data):
            await self._discard(request, offset, some)
        await self.settle(cdb)

    def _descriptors(self, data: bytes) -> list[tuple[int, int]]:
        """The extents of a parameter list, as (offset, length) in bytes."""
        _, size = _HEADER.unpack_from(data)
        body = data[_HEADER.size : _HEADER.size + size]
        ends = len(body) - len(body) % _DESCRIPTOR.size
        found = list(_DESCRIPTOR.iter_unpack(body[:ends]))
        wrong = senses.INVALID_FIELD_IN_PARAMETERS
        if len(found) > MAX_UNMAP_DESCRIPTORS:
            raise CheckCondition(wrong.at(2, in_cdb=False))
        if sum(count for _, count in found) > MAX_UNMAP_BLOCKS:
            raise CheckCondition(wrong.at(_HEADER.size + 8, in_cdb=False))
        extents = []
        for index, (lba, count) in enumerate(found):
            extent = self.within(lba, count)
            if extent is None:
                at = _HEADER.size + index * _DESCRIPTOR.size
                raise CheckCondition(senses.LBA_OUT_OF_RANGE.at(at, in_cdb=False))
            extents.append(extent)
        return extents

    async def write_same(self, request: Request, cdb: Cdb) -> None:
        """WRITE SAME (SBC-3 5.43, 5.44)."""
        offset, length = self.extent(cdb, "NUMBER OF LOGICAL BLOCKS")
        if cdb["ANCHOR"]:
            raise cdb.invalid("ANCHOR")
        if cdb.get("NDOB"):
            data = bytes(self.block)
        elif request.offered not in (None, self.block):
            raise cdb.invalid("NUMBER OF LOGICAL BLOCKS")
        else:
            data = await self.take(request, self.block)
            if len(data) < self.block:
                raise cdb.invalid("NUMBER OF LOGICAL BLOCKS")
        if not length:  # to the end of the medium: WSNZ is 0
            length = self.blocks * self.block - offset
        if any(data):
            await self._pattern(request, data, offset, length)
        else:
            await self._zero(request, offset, length, unmap=bool(cdb["UNMAP"]))
        await self.settle(cdb)

    async def _pattern(self, request: Request, data: bytes, offset: int, length: int) -> None:
        slot = await self.target.scratch.take(request)
        step = SLOT // self.block * self.block
        with self.target.scratch.view(slot, step) as view:
            view[:] = data * (step // self.block)
        for at in range(offset, offset + length, step):
            some = [(slot, min(step, offset + length - at))]
            await self.passage(request)
            transfer = self.port.from_memory(some, to=self.disk, offset=at)
            await self.moved(request, transfer, DataDirection.OUT, at // self.block)

    async def _zero(self, request: Request, offset: int, length: int, unmap: bool) -> None:
        for at in range(offset, offset + length, STRETCH):
            some = min(STRETCH, offset + length - at)
            if unmap and await self._discard(request, at, some):
                continue
            await self.passage(request)
            transfer = self.port.write_zeroes(self.disk, at, some)
            await self.moved(request, transfer, DataDirection.OUT, at // self.block)

    async def _discard(self, request: Request, offset: int, length: int) -> bool:
        """Whether the host has taken it back. Raises CheckCondition: it failed."""
        if not length:
            return True
        await self.passage(request)
        done = await request.flight(self.port.discard(self.disk, offset, length))
        if done.ok:
            return True
        if done.error == EOPNOTSUPP:
            return False
        raise CheckCondition(medium_error(done, DataDirection.OUT, offset // self.block))
