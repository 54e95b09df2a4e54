# SPDX-License-Identifier: Apache-2.0
"""The receiver (sections "Receive Descriptor Ring", "Buffer Management", "Receive Errors").

A frame is looked at, where it waits in the host, before a byte of it is in memory. If the address
filter takes it, it goes into the buffers of the descriptors that the chip owns, from the current
one on, as one vector straight from the network. If it owns none, the frame is lost
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
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING

from iodma.devices.lance.address_filter import ADDRESS_BYTES
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
from iodma.devices.lance.wire import readable
from iodma.errors import DmaFault
from iodma.types import Status

if TYPE_CHECKING:
    from iodma._core import Transfer
    from iodma.devices.lance.device import Lance
    from iodma.port import Peek

__all__ = ["Receiver", "Room"]

#: Bytes of the shortest frame, without its FCS.
SHORTEST = 60
FCS = 4
#: Bytes that the chip itself can hold of a frame.
FIFO = 48
_MCNT = 0xFFF
_ERR, _BUFF, _OFLO = int(RMD1.ERR), int(RMD1.BUFF), int(RMD1.OFLO)
#: Between two tries where the other end is gone.
PAUSE_SECONDS = 0.1

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
        self._looks: Transfer[Peek] | None = None
        self._pauses = False
        self._moves = False

    async def run(self) -> None:
        """Takes the frames that come, or lets them pass by, until the chip is stopped.

        The next frame is asked for while the one before is on its way into memory.
        """
        chip = self._chip
        self._look()
        while chip.started and self._looks is not None:
            seen = await self._looks
            if not seen.ok:
                self._looks = None
                if seen.done.status is Status.CANCELLED or seen.done.error == EOPNOTSUPP:
                    return  # it was closed, or gives nothing
                await self._pause()
                self._look()
            elif not (self._listens() and chip.filter.accepts(seen.head)) or not seen.length:
                self._drop()
            else:
                try:
                    await self._receive(seen.length)
                except DmaFault as fault:
                    chip.memory_error(fault)  # which has another task go on, with the same frame
                    return

    def _listens(self) -> bool:
        return bool(self._chip.flags & RXON) and not self._chip.loopback.deaf

    def _look(self) -> None:
        """Asks for the next frame."""
        chip, network = self._chip, self._chip.link
        self._looks = None if network is None else chip.straight.peek(network, ADDRESS_BYTES)

    def _drop(self) -> None:
        """Forgets the frame that was looked at, and asks for the next one."""
        network = self._chip.link
        if network is not None:
            self._chip.straight.drop(network)
        self._look()

    async def _pause(self) -> None:
        """The other end is gone, perhaps for now only."""
        self._pauses = True
        await self._chip.engine.sleep(PAUSE_SECONDS)
        self._pauses = False

    def blocked(self) -> bool:
        """Whether it can go on only when a frame comes."""
        if self._looks is None or self._looks.done or self._moves:
            return self._pauses
        return not readable(self._chip.network)

    def forget(self) -> None:
        """What it waited for is cancelled."""
        self._looks, self._pauses, self._moves = None, False, False

    async def _receive(self, length: int) -> None:
        """The frame that was looked at."""
        chip, network = self._chip, self._chip.link
        padded = max(length, SHORTEST) + FCS
        room = await self.room(padded)
        if room is None or network is None:
            self._drop()
            return
        moved = min(length, room.size)
        moving = chip.payload.to_memory(cut(room.pieces, 0, moved), source=network)
        self._look()
        self._moves = True
        done = await moving
        if done.fault is not None:
            raise DmaFault(done)
        if done.moved == moved:
            await self.fill(room, moved, bytes(padded - length))
            await self.give_back(room, padded)
        self._moves = False

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
        pieces = cut(room.pieces, start, len(data))
        if chip.swaps and start and pieces and pieces[0][0] & 1:
            longer = cut(room.pieces, start - 1, len(data) + 1)
            if longer[0][1] > 1:  # the byte before is in the same buffer
                data = await chip.payload.load_bytes(longer[0][0], 1) + data
                pieces = longer
        at = 0
        for address, length in pieces:
            await chip.payload.store_bytes(address, data[at : at + length])
            at += length

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
