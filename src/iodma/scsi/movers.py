# SPDX-License-Identifier: Apache-2.0
"""What is at the medium's end of a data phase: an endpoint, or a few bytes of the device server.

Invariants
 - Between an endpoint and the initiator's memory nothing is copied here: `OnMedium` is one
   transfer of the port.
 - Bytes of the device server (INQUIRY data, parameter lists) are bounded by who makes the mover.
"""

from __future__ import annotations

from errno import EDQUOT, ENOSPC
from typing import TYPE_CHECKING

from iodma._core import Completion, completion
from iodma.errors import DmaFault
from iodma.port import Port
from iodma.scsi.request import DataDirection, Request
from iodma.scsi.sense import INTERNAL_FAILURE, NO_SPACE, READ_ERROR, WRITE_ERROR, Sense
from iodma.sg import ScatterList
from iodma.types import Status

if TYPE_CHECKING:
    from iodma.scsi.block import BlockUnit

__all__ = ["FromBytes", "OnMedium", "ToBytes", "medium_error", "refused"]


def medium_error(done: Completion, direction: DataDirection, lba: int) -> Sense:
    """Sense data for what an endpoint refused, at a logical block (SBC-3 4.18)."""
    if direction is DataDirection.IN:
        return READ_ERROR.told(lba)
    if done.error in (ENOSPC, EDQUOT):
        return NO_SPACE.told(lba)
    return WRITE_ERROR.told(lba)


class OnMedium:
    """Bytes of a unit's endpoint, from `offset` on: read for IN, written for OUT."""

    __slots__ = ("direction", "offset", "unit")

    def __init__(self, unit: BlockUnit, offset: int, direction: DataDirection) -> None:
        self.unit = unit
        self.offset = offset
        self.direction = direction

    async def move(
        self, request: Request, port: Port, segments: ScatterList, at: int
    ) -> Completion:
        unit, offset = self.unit, self.offset + at
        if unit.alone is not None:
            await unit.passage(request)
        if self.direction is DataDirection.IN:
            transfer = port.to_memory(segments, source=unit.disk, offset=offset)
        else:
            transfer = port.from_memory(segments, to=unit.disk, offset=offset)
        return await request.flight(transfer)

    def failed(self, at: int, done: Completion) -> Sense:
        if self.direction is DataDirection.OUT:
            self.unit.note(done)
        return medium_error(done, self.direction, (self.offset + at) // self.unit.block)


class OfServer:
    """Bytes of the device server, segment by segment."""

    __slots__ = ()

    async def move(
        self, request: Request, port: Port, segments: ScatterList, at: int
    ) -> Completion:
        moved = 0
        try:
            for index in range(len(segments)):
                address, length = segments[index]
                if length:
                    await self.piece(request, port, address, length, at + moved)
                    moved += length
        except DmaFault as fault:
            return refused(moved, moved, fault.completion)
        return completion(Status.OK, moved, 0)

    async def piece(self, request: Request, port: Port, address: int, length: int, at: int) -> None:
        """Moves `length` bytes, `at` bytes into the data.

        Raises:
            DmaFault: the initiator's memory refuses.
        """
        raise NotImplementedError

    def failed(self, at: int, done: Completion) -> Sense:
        return INTERNAL_FAILURE


class FromBytes(OfServer):
    """Data that the device server made, for IN."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def piece(self, request: Request, port: Port, address: int, length: int, at: int) -> None:
        await request.flight(port.store_bytes(address, self.data[at : at + length]))


class ToBytes(OfServer):
    """Parameter data of an initiator, for OUT: gathered in `data`."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    async def piece(self, request: Request, port: Port, address: int, length: int, at: int) -> None:
        part = await request.flight(port.load_bytes(address, length))
        del self.data[at:]
        self.data += part


def refused(moved: int, at: int, done: Completion) -> Completion:
    """`done`, of a part that begins `at` bytes into a list of which `moved` bytes have moved."""
    fault = done.fault
    if fault is None:
        return completion(done.status, moved, done.error)
    return completion(
        done.status,
        moved,
        done.error,
        fault.stage,
        at + fault.offset,
        fault.address,
        fault.access,
    )
