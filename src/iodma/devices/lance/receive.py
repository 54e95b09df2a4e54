# SPDX-License-Identifier: Apache-2.0
"""The receiver (sections "Receive Descriptor Ring", "Buffer Management", "Receive Errors").

A frame that the address filter takes goes into the buffers of the descriptors that the chip owns,
from the current one on, as one vector straight from the network. If it owns none, the frame is lost
and MISS says so; if it owns too few, what fits is there and the last of them has BUFF.

- **Padding and FCS.** The host's endpoints carry frames without a frame check sequence, and shorter
  ones than Ethernet does. A frame is filled up with zeroes to 60 bytes, and its FCS is stored as
  four zero bytes, which MCNT counts. The chip would store the CRC that came over the wire; there is
  none, and to make one would be to read every byte of the payload for what no driver looks at. In
  loopback, where drivers do look, it is the real one.
- CRC and FRAM say what noise did to a frame, which a host's endpoint has checked already: only
  loopback can set CRC. OFLO is set with BUFF when the rest of a frame would not have fitted into
  the chip's FIFO either.
- While the chip is stopped nothing is taken, and frames wait in the host. While it runs with its
  receiver off they pass it by.

Invariants
 - No byte is written outside the buffers of descriptors that the chip owns, nor behind the frame.
 - A descriptor is given back when its bytes are there, and all those of a frame together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iodma.devices.lance.csr import MISS, RINT, RXON
from iodma.devices.lance.descriptors import (
    ENP,
    ENTRY,
    RMD1,
    STATUS,
    STP,
    Ring,
    buffer,
    released,
    segments,
)
from iodma.devices.lance.wire import Frame, make_wire
from iodma.errors import DmaFault

if TYPE_CHECKING:
    from iodma.devices.lance.device import Lance

__all__ = ["Receiver", "Room"]

#: Bytes of the shortest frame, without its FCS.
SHORTEST = 60
FCS = 4
#: Bytes that the chip itself can hold of a frame.
FIFO = 48
_MCNT = 0xFFF
_ERR, _BUFF, _OFLO = int(RMD1.ERR), int(RMD1.BUFF), int(RMD1.OFLO)
#: Frames after which others have their turn.
_FAIR = 64

Pieces = list[tuple[int, int]]


def cut(pieces: Sequence[tuple[int, int]], start: int, length: int) -> Pieces:
    """The segments of `length` bytes, `start` bytes into others, as far as they reach."""
    found: Pieces = []
    for address, size in pieces:
        if start >= size:
            start -= size
            continue
        part = min(size - start, length)
        if part:
            found.append((address + start, part))
        length -= part
        start = 0
    return found


class Room:
    """The owned descriptors that a frame goes into.

    Attributes:
        entries: their bytes, as read.
        pieces: their buffers.
        size: bytes of all buffers.
    """

    __slots__ = ("entries", "pieces", "size")

    def __init__(self, run: bytes, wanted: int) -> None:
        self.pieces: Pieces = []
        self.size = 0
        count = 0
        while self.size < wanted and count * ENTRY < len(run):
            address, length = buffer(run, count)
            self.pieces += segments(address, length)
            self.size += length
            count += 1
        self.entries = run[: count * ENTRY]


class Receiver:
    """The receive half of a chip.

    Attributes:
        ring: the receive descriptor ring.
    """

    def __init__(self, chip: Lance) -> None:
        self._chip = chip
        self.ring = Ring()
        self.wire = make_wire(chip, chip.network)

    async def run(self) -> None:
        """Takes the frames that wait, and listens again."""
        chip, wire = self._chip, self.wire
        if wire is None:
            return
        fair = _FAIR
        while chip.started:
            frame = wire.look()
            if frame is None:
                wire.listen(chip.frame_waits)
                return
            listens = chip.flags & RXON and not chip.loopback.deaf
            if not (listens and chip.filter.accepts(frame.head)):
                wire.drop()
            else:
                try:
                    await self._receive(frame)
                except DmaFault as fault:
                    wire.drop()
                    chip.memory_error(fault)  # which has another task go on
                    return
            fair -= 1
            if not fair:
                fair = _FAIR
                await chip.engine.sleep(0)

    async def _receive(self, frame: Frame) -> None:
        """One frame from the network."""
        chip, wire = self._chip, self.wire
        assert wire is not None
        padded = max(frame.length, SHORTEST) + FCS
        room = await self.room(padded)
        if room is None:
            wire.drop()
            return
        moved = min(frame.length, room.size)
        done = await wire.take(chip.payload, cut(room.pieces, 0, moved))
        if done.fault is not None:
            raise DmaFault(done)
        if done.moved < moved:
            return  # it was gone
        await self.fill(room, moved, bytes(padded - frame.length))
        await self.give_back(room, padded)

    async def room(self, wanted: int) -> Room | None:
        """The descriptors for a frame of `wanted` bytes; None: the chip owns none, and has said so.

        Raises:
            DmaFault: one that would be needed cannot be read.
        """
        chip = self._chip
        run, fault = await self.ring.owned(chip.port)
        room = Room(run, wanted)
        if fault is not None and room.size < wanted:
            raise fault
        if not room.entries:
            chip.raise_flags(MISS)
            return None
        return room

    async def fill(self, room: Room, start: int, data: bytes) -> None:
        """Stores bytes of a frame, `start` bytes into it, as far as there is room.

        With byte lanes in between, a unit that the frame so far has ended in was moved as it is;
        now that more of it comes it is stored again, as a whole.
        """
        chip = self._chip
        at = 0
        for address, length in cut(room.pieces, start, len(data)):
            part = data[at : at + length]
            at += length
            if chip.swaps and address & 1 and start:
                before = cut(room.pieces, start - 1, 1)[0][0]
                if before == address - 1:
                    part = await chip.payload.load_bytes(before, 1) + part
                    address = before
            start += length
            await chip.payload.store_bytes(address, part)

    async def give_back(self, room: Room, length: int, status: int = 0) -> None:
        """Gives the descriptors of a frame back, and tells the host.

        Args:
            length: bytes of the frame, with its FCS.
            status: bits of RMD1 to be set in the last one.
        """
        chip = self._chip
        data = released(room.entries)
        data[STATUS] |= STP
        if length <= room.size:
            data[-5] |= ENP
            data[-2:] = (length & _MCNT).to_bytes(2, "little")
        else:
            status |= _ERR | _BUFF | (_OFLO if length - room.size > FIFO else 0)
        data[-5] |= status >> 8
        await self.ring.store(chip.port, data)
        self.ring.advance(len(data) // ENTRY)
        chip.raise_flags(RINT)

    def busy(self) -> bool:
        """Whether a frame waits that will be taken."""
        return self.wire is not None and self.wire.waits()
