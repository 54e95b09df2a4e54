# SPDX-License-Identifier: Apache-2.0
"""The transmitter (sections "Transmit Descriptor Ring", "Buffer Management", "Transmit Errors").

It looks at the ring when the chip starts, when the host sets TDMD, and each time its poll interval
has passed; then it sends what it owns until it comes to a descriptor that it does not own. All that
it finds at a time is one batch: one load of descriptors, one submit, and descriptors are given back
in runs, as the host takes the frames. A buffer goes to the network from where it is.

- A packet is what stands from a descriptor with STP to one with ENP. Buffers that belong to none
  are given back unsent.
- The frame check sequence is the network's: the host's endpoints carry frames without one, so none
  is made. With MODE.DTCR the last four bytes are whatever the driver made of them, and are sent.
- LCAR and CERR say that the host's end of the cable is gone: a frame that it refuses was sent to
  nobody. One that is longer than the host can take has babbled, and nobody has understood it.
  A retry, a deferral or a late collision cannot happen there.

Invariants
 - A descriptor is given back when the network has taken its frame, and not before.
 - Packets leave in the order of the ring, and none behind one whose memory could not be read.
 - When TXON is cleared, nothing more is sent and no descriptor is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from errno import EMSGSIZE
from typing import TYPE_CHECKING

import numpy as np

from iodma.devices.lance.csr import BABL, CERR, TDMD, TINT, TXON
from iodma.devices.lance.descriptors import (
    ADDRESS_MASK,
    ADDRESS_SPACE,
    ENP,
    ENTRY,
    STATUS,
    STP,
    TMD1,
    TMD3,
    Ring,
    buffer,
    released,
    segments,
)
from iodma.devices.lance.initblock import Mode
from iodma.devices.lance.wire import writable
from iodma.errors import DmaFault
from iodma.port import Port
from iodma.sg import Batch, Completions, ScatterList
from iodma.types import Access, Fault, Status

if TYPE_CHECKING:
    from iodma._core import Stream
    from iodma.devices.lance.device import Lance

__all__ = ["Ending", "Transmitter"]

#: Bytes of a frame with its FCS above which the transmitter has babbled.
LONGEST = 1518
FCS = 4
_DTCR = int(Mode.DTCR)
#: One packet in one buffer, and nothing else set.
_PLAIN = bytes([0x80 | STP | ENP])
_MOST = 128
_READ = int(Access.READ)
#: Of the engine, after which what the network takes at once has been taken.
_TURNS = 3


@dataclass(frozen=True, slots=True)
class Ending:
    """How a packet's transmission ended, as the host sees it.

    Attributes:
        tmd1, tmd3: bits set in its last descriptor.
        csr0: flags raised.
        off: the transmitter is turned off.
    """

    tmd1: int = 0
    tmd3: int = 0
    csr0: int = TINT
    off: bool = False


SENT = Ending()
#: Buffers that were no packet: nobody asked to be told.
SKIPPED = Ending(csr0=0)
LOST_CARRIER = Ending(int(TMD1.ERR), int(TMD3.LCAR), TINT | CERR)
#: 16 attempts, or one with MODE.DRTY, all with a collision.
RETRY = Ending(int(TMD1.ERR), int(TMD3.RTRY))
#: No ENP, and the next descriptor is not owned; the FIFO ran empty over it.
BUFFER = Ending(int(TMD1.ERR), int(TMD3.BUFF | TMD3.UFLO), off=True)
UNDERFLOW = Ending(int(TMD1.ERR), int(TMD3.UFLO), off=True)

#: What the endpoint said of a frame -> what the chip says. FAULT is a memory error.
ENDINGS: dict[int, Ending] = {
    Status.OK: SENT,
    Status.IO_ERROR: LOST_CARRIER,
    Status.PEER_GONE: LOST_CARRIER,
    Status.CANCELLED: LOST_CARRIER,  # the endpoint was closed; a stop never comes here
}


@dataclass(slots=True)
class Packet:
    """A packet in the ring, or what is none.

    Attributes:
        entries: how many descriptors it takes.
        list: its buffers; empty if it is not to be sent.
        length: bytes.
        ending: of what is not sent; None: the network says.
    """

    entries: int
    list: Sequence[tuple[int, int]]
    length: int
    ending: Ending | None = None


def packets(run: bytes, may_end: bool) -> list[Packet]:
    """Takes a run of owned descriptors apart.

    Args:
        run: the entries.
        may_end: whether the descriptor after it could be read: then a packet without an end is a
            buffer error; otherwise it is left for the memory error.
    """
    found: list[Packet] = []
    begun, pieces, length = -1, list[tuple[int, int]](), 0
    count = len(run) // ENTRY
    orphans = 0

    def skip() -> None:
        nonlocal orphans
        if orphans:
            found.append(Packet(orphans, (), 0, SKIPPED))
            orphans = 0

    for entry in range(count):
        status = run[entry * ENTRY + STATUS]
        if status & STP:
            if begun >= 0:  # the one before never ended
                orphans += entry - begun
            begun, pieces, length = entry, [], 0
        elif begun < 0:
            orphans += 1
            continue
        address, size = buffer(run, entry)
        pieces += segments(address, size)
        length += size
        if status & ENP:
            skip()
            found.append(Packet(entry + 1 - begun, pieces, length))
            begun = -1
    skip()
    if begun >= 0 and may_end:
        found.append(Packet(count - begun, (), 0, BUFFER))
    return found


class Transmitter:
    """The transmit half of a chip.

    Attributes:
        ring: the transmit descriptor ring.
        waiting: whether it waits for the network to take frames.
    """

    def __init__(self, chip: Lance) -> None:
        self._chip = chip
        self.ring = Ring()
        self.waiting = False
        self._progress = 0
        self._batch = batch = Batch(_MOST, 2 * _MOST)
        batch.id[:] = np.arange(_MOST, dtype=np.uint64)
        batch.position[:] = 0
        batch.direction[:] = 0
        #: What is in the batch now, if it was made by `_fill_plain`: drivers use the same buffers
        #: over and over. With its list, and where it is read from.
        self._filled = b""
        self._list: ScatterList | None = None
        self._streams: dict[Port, Stream[Completions]] = {}

    async def run(self) -> None:
        """Sends what the chip owns, until it comes to what it does not own."""
        chip, ring = self._chip, self.ring
        while chip.flags & TXON:
            chip.flags &= ~TDMD
            run, fault = await ring.owned(chip.port)
            if not run:
                if fault is not None:
                    chip.memory_error(fault)
                elif chip.flags & TDMD:
                    continue
                return
            try:
                await self._send(run, fault)
            except DmaFault as refused:
                chip.memory_error(refused)

    async def _send(self, run: bytes, fault: DmaFault | None) -> None:
        """A run of owned descriptors: all of it, or as far as an error lets it."""
        chip = self._chip
        status = run[STATUS::ENTRY]
        plain = len(status) - len(status.lstrip(_PLAIN))
        if plain > 1 and not chip.loopback.on and self._fill_plain(run[: plain * ENTRY], plain):
            await self._send_batch(run[: plain * ENTRY], None, plain, plain)
            return
        found = packets(run, fault is None)
        if not found and fault is not None:
            raise fault
        if chip.loopback.on:
            await chip.loopback.send(found, run)
        else:
            await self._send_packets(found, run)

    async def _send_packets(self, found: list[Packet], run: bytes) -> None:
        """Packets of any shape: as many as are one batch; the rest is looked at again."""
        sent = next((i for i, each in enumerate(found) if each.ending is not None), len(found))
        if sent > 1:
            await self._send_batch(run, found[:sent], sent, self._fill(found[:sent]))
        elif sent:
            await self._send_one(run, found[0])
        else:
            await self.give_back(run[: found[0].entries * ENTRY], found[0].ending or SKIPPED)

    def _fill_plain(self, run: bytes, count: int) -> bool:
        """Packets of one buffer each, into the batch. False: one of them wraps, or babbles."""
        if run == self._filled:
            return True
        batch = self._batch
        words = np.frombuffer(run, "<u4")
        address = words[::2] & ADDRESS_MASK
        length = 4096 - (words[1::2] & 0xFFF)
        if length.max() > LONGEST - FCS or int(address.max()) + 4096 > ADDRESS_SPACE:
            return False
        batch.address[:count] = address
        batch.length[:count] = length
        batch.first[:count] = batch.id[:count]
        batch.count[:count] = 1
        self._filled = run
        self._list = ScatterList._from_arrays(batch.address[:count], batch.length[:count])
        return True

    def _fill(self, found: list[Packet]) -> int:
        """Packets, into the batch. How many segments they have."""
        self._filled, self._list = b"", None
        addresses: list[int] = []
        lengths: list[int] = []
        firsts: list[int] = []
        for packet in found:
            firsts.append(len(addresses))
            for address, length in packet.list:
                addresses.append(address)
                lengths.append(length)
        batch, count, pieces = self._batch, len(firsts), len(addresses)
        batch.address[:pieces] = addresses
        batch.length[:pieces] = lengths
        batch.first[:count] = firsts
        batch.count[:count] = np.diff([*firsts, pieces])
        return pieces

    async def _send_one(self, run: bytes, packet: Packet) -> None:
        """One packet."""
        network = self._chip.link
        if network is None:
            ending = LOST_CARRIER
        else:
            self._waits()
            done = await self._chip.payload.from_memory(packet.list, to=network)
            self.waiting = False
            if done.fault is not None:
                raise DmaFault(done)
            ending = SENT if done.error == EMSGSIZE else ENDINGS[done.status]
        await self.give_back(run[: packet.entries * ENTRY], ending, packet.length)

    async def _send_batch(
        self, run: bytes, found: list[Packet] | None, count: int, pieces: int
    ) -> None:
        """The packets in the batch.

        Args:
            run: their descriptors, and perhaps more.
            found: the packets; None: each is one buffer, and none is too long.
            count, pieces: how many packets, and buffers.
        """
        chip, batch = self._chip, self._batch
        network, payload = chip.link, chip.payload
        good = 0 if network is None else self._readable(payload, count, pieces)
        if good == 0 or network is None:
            # The first of them is refused: by itself, so that nothing behind it goes out.
            packet = found[0] if found else Packet(1, segments(*buffer(run, 0)), 0)
            await self._send_one(run, packet)
            return
        batch.n = good
        payload.submit(batch, network, linked=True)  # its pages may go while it waits
        self._waits()
        given = 0
        late: dict[int, int] = {}
        async for done in self._completions(payload):
            self._waits()
            if done.all_ok and not late and done.id[0] == given:
                upto = given + len(done)
                entries = len(done) if found is None else sum(p.entries for p in found[given:upto])
                longest = 0 if found is None else max(p.length for p in found[given:upto])
                self.waiting = False
                await self.give_back(run[: entries * ENTRY], SENT, longest)
                run = run[entries * ENTRY :]
                given = upto
            else:
                for i, status, error in zip(
                    done.id.tolist(), done.status.tolist(), done.error.tolist(), strict=False
                ):
                    late[i] = int(Status.OK) if error == EMSGSIZE else status
                while given in late:
                    status = late.pop(given)
                    packet = found[given] if found else Packet(1, (), 0)
                    self.waiting = False
                    if status not in ENDINGS:  # memory went away under the batch
                        chip.memory_error(None)
                        return
                    await self.give_back(
                        run[: packet.entries * ENTRY], ENDINGS[status], packet.length
                    )
                    run = run[packet.entries * ENTRY :]
                    given += 1
                    if not chip.flags & TXON:
                        break
            if given == good or not chip.flags & TXON:
                break
            self._waits()
        self.waiting = False

    def _completions(self, payload: Port) -> Stream[Completions]:
        """What has finished, of the port's batches: one stream, whose arrays are used again."""
        stream = self._streams.get(payload)
        if stream is None:
            stream = payload.completions(limit=_MOST, forever=True)
            self._streams[payload] = stream
        return stream

    def _readable(self, payload: Port, count: int, pieces: int) -> int:
        """How many of the batch's packets can be read, from the first one on."""
        batch = self._batch
        wanted = self._list
        if wanted is None:
            wanted = ScatterList._from_arrays(batch.address[:pieces], batch.length[:pieces])
        fault = payload.space.walk(wanted, _READ)
        if not isinstance(fault, Fault):
            return count
        ends = np.add.accumulate(batch.length[:pieces])
        last = batch.first[:count] + batch.count[:count] - 1
        return int(np.searchsorted(ends[last], fault.offset, side="right"))

    async def give_back(self, entries: bytes, ending: Ending, length: int = 0) -> None:
        """Gives descriptors back, from the current one on, and tells the host.

        Args:
            entries: as they were read; the last one is told how it ended.
            ending: how.
            length: bytes of the longest packet among them.
        """
        chip = self._chip
        data = released(entries)
        if ending.tmd1 or ending.tmd3:
            data[-5] |= ending.tmd1 >> 8
            data[-1] |= ending.tmd3 >> 8
        await self.ring.store(chip.port, data)
        self.ring.advance(len(data) // ENTRY)
        flags = ending.csr0
        if length + (0 if chip.mode & _DTCR else FCS) > LONGEST:
            flags |= BABL
        if ending.off:
            chip.flags &= ~TXON
        chip.raise_flags(flags)

    # --- whether it waits for something outside ---------------------------------------------------

    def _waits(self) -> None:
        self.waiting = True
        self._progress = self._chip.engine._turns

    def blocked(self) -> bool:
        """Whether it can go on only when somebody takes frames off the network."""
        if not self.waiting or self._chip.engine._turns - self._progress < _TURNS:
            return False
        return not writable(self._chip.network)
