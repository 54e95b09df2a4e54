# SPDX-License-Identifier: Apache-2.0
"""What the chip's commands do on the bus: one coroutine a command.

    select          message bytes, command bytes, then the phase that the target asks for
    transfer        bytes in the phase that there is, until the counter, the FIFO or the phase ends
    complete        the status byte and a message byte
    message accepted, pad

Each ends with the interrupt that the datasheet names: FUNCTION COMPLETE when it is over by itself,
BUS SERVICE when the target asks for a phase, DISCONNECTED when the bus is free.

Invariants
 - A command waits for nothing but the channel, a transfer, or the target; a reset ends it there.
 - No payload byte passes through here: a data phase with DMA is `Request.transfer` on the channel's
   own segments. Messages, CDBs, status and data without DMA go through the FIFO.
 - The transfer counter falls by what memory or the target has really taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iodma.devices.esp.connection import Connection
from iodma.devices.esp.fifospace import FifoSpace
from iodma.devices.esp.registers import (
    BUS_FREE,
    COMMAND,
    DATA_IN,
    DATA_OUT,
    FIFO_BYTES,
    INTR_BS,
    INTR_DIS,
    INTR_FC,
    MESSAGE_IN,
    MESSAGE_OUT,
    STATUS,
)
from iodma.errors import DmaFault
from iodma.sg import ScatterList
from iodma.types import Status

if TYPE_CHECKING:
    from iodma._core import Transfer
    from iodma.devices.esp.device import Esp
    from iodma.port import Port

__all__ = ["Sequences"]

#: Turns that a target which may disconnect takes before it does.
PATIENCE = 3


class Sequences:
    """The commands of one chip."""

    def __init__(self, chip: Esp) -> None:
        self.chip = chip
        self.space = FifoSpace(chip.fifo)

    # --- selection --------------------------------------------------------------------------------

    async def nobody(self, dma: bool, _: int) -> None:
        """A reselection: there is no initiator but this one."""
        self.chip.raise_interrupt(INTR_DIS)

    async def select_and_stop(self, dma: bool, _: int) -> None:
        bus = self._selected()
        if bus is None:
            return
        self.chip.atn = True
        data = await self._fetch(dma, 1)
        bus.message_out(data)
        self.chip.step = len(data)
        self._ended(INTR_FC, await self._settle(bus))

    async def select(self, dma: bool, messages: int) -> None:
        """Arbitration, selection, message out, command (53C94: "Select ... Sequence")."""
        bus = self._selected()
        if bus is not None:
            self.chip.atn = bool(messages)
            self._said(bus, messages, await self._fetch(dma, messages + FIFO_BYTES))
            self._ended(INTR_FC, await self._settle(bus))

    def select_now(self, dma: bool, messages: int) -> bool:
        """`select`, up to where the target works, if the channel and memory answer at once."""
        chip, channel = self.chip, self.chip.dma
        most = messages + FIFO_BYTES
        if dma:
            if not channel.answers(False):
                return False
            pieces = channel.segments(min(most, chip.count))
            if len(pieces) != 1:
                return False
        bus = self._selected()
        if bus is None:
            return True
        chip.atn = bool(messages)
        if not dma:
            self._said(bus, messages, chip.take(most))
        else:
            fetched = channel.port.load_bytes(*pieces[0])
            if not fetched.done or fetched.exception is not None:
                chip.work(self._select_slowly, bus, messages, fetched, pieces[0][1])
                return True
            self._fetched(pieces[0][1])
            self._said(bus, messages, fetched.result)
        phase = bus.phase(chip.atn)
        if phase is None:
            chip.work(self._settle_select, bus)
        else:
            self._ended(INTR_FC, phase)
        return True

    async def _select_slowly(
        self, bus: Connection, messages: int, begun: Transfer[bytes], length: int
    ) -> None:
        try:
            data = await self.chip.flight(begun)
            self._fetched(length)
        except DmaFault:
            self.chip.dma.memory_error()
            data = await self._fetch(True, messages + FIFO_BYTES)
        self._said(bus, messages, data)
        await self._settle_select(bus)

    async def _settle_select(self, bus: Connection) -> None:
        self._ended(INTR_FC, await self._settle(bus))

    def _said(self, bus: Connection, messages: int, data: bytes) -> None:
        """Message and command bytes go to the target."""
        chip = self.chip
        bus.message_out(data[:messages])
        rest = data[messages:]
        if messages and len(data) >= messages:
            chip.atn = False  # negated before the last message byte
        phase = bus.phase(chip.atn)
        if phase == COMMAND and rest:
            taken = bus.command(rest)
            rest = rest[taken:]
            chip.step = 3 if rest else 4
        elif messages:
            chip.step = 0 if phase == MESSAGE_OUT else 2
        chip.push(*rest)

    def _selected(self) -> Connection | None:
        """Arbitrates and selects; None: nobody is there, and the time is over."""
        chip = self.chip
        chip.step = 0
        target = chip.arbitrate()
        if target is None:
            chip.raise_interrupt(INTR_DIS)
            return None
        bus = Connection(target, chip.own_id)
        chip.bus = bus
        return bus

    # --- information transfer ---------------------------------------------------------------------

    async def transfer(self, dma: bool, _: int) -> None:
        """Transfer Information: in the phase that there is."""
        chip, bus = self.chip, self._accept()
        phase = bus.phase(chip.atn)
        if phase in (DATA_IN, DATA_OUT):
            await self._data(bus, dma, phase)
        elif phase == MESSAGE_OUT:
            await self._message_out(bus, dma)
        elif phase == COMMAND:
            data = await self._fetch(dma, FIFO_BYTES)
            chip.push(*data[bus.command(data) :])
        elif phase == STATUS:
            await self._give(dma, bytes((bus.status(),)))
        elif phase == MESSAGE_IN:
            await self._message_in(bus, dma)
            return
        self._ended(0, await self._settle(bus))

    async def _message_out(self, bus: Connection, dma: bool) -> None:
        """Message bytes; ATN is negated before the last: none left in the counter, or the FIFO."""
        chip = self.chip
        while True:
            data = await self._fetch(dma, FIFO_BYTES)
            chip.atn = bool(dma and chip.count)
            bus.message_out(data)
            if not chip.atn or bus.phase(True) != MESSAGE_OUT:
                return

    async def _message_in(self, bus: Connection, dma: bool) -> None:
        """Message bytes; ACK stays asserted at the last one until Message Accepted."""
        chip = self.chip
        count = min(len(bus.messages), chip.count) if dma else 1
        data = bytes(bus.messages[:count])
        await self._give(dma, data)
        del bus.messages[:count]
        chip.acknowledging = True
        chip.raise_interrupt(INTR_FC)

    async def complete(self, dma: bool, _: int) -> None:
        """Initiator Command Complete: a status byte, and a message byte that is not accepted."""
        chip, bus = self.chip, self._accept()
        phase = bus.phase(chip.atn)
        if phase == STATUS:
            await self._give(dma, bytes((bus.status(),)))
            phase = bus.phase(chip.atn)
        if phase != MESSAGE_IN:
            self._ended(0, await self._settle(bus))
            return
        await self._give(dma, bytes(bus.messages[:1]))
        del bus.messages[:1]
        chip.acknowledging = True
        chip.raise_interrupt(INTR_FC)

    def complete_now(self, dma: bool, _: int) -> bool:
        """`complete`, into the FIFO."""
        chip, bus = self.chip, self._accept()
        if dma or bus.phase(chip.atn) != STATUS:
            return False
        chip.push(bus.status())
        if bus.phase(chip.atn) != MESSAGE_IN:
            return False
        chip.push(bus.messages.pop(0))
        chip.acknowledging = True
        chip.raise_interrupt(INTR_FC)
        return True

    def accept_now(self, dma: bool, _: int) -> bool:
        """`message_accepted`, where the target knows what comes next."""
        bus = self._accept()
        phase = bus.phase(self.chip.atn)
        if phase is not None:
            self._ended(0, phase)
        return phase is not None

    async def message_accepted(self, dma: bool, _: int) -> None:
        """Negates ACK: the target goes on, or leaves the bus."""
        self._ended(0, await self._settle(self._accept()))

    # --- data -------------------------------------------------------------------------------------

    async def _data(self, bus: Connection, dma: bool, phase: int) -> None:
        request = bus.request
        assert request is not None
        bus.data_moved()
        if dma:
            await self._data_by_dma(bus, phase == DATA_IN)
        elif phase == DATA_OUT:
            if count := min(len(self.chip.fifo), request.left):
                await request.transfer(self._port(), (0, count))
        elif len(self.chip.fifo) < FIFO_BYTES:
            await request.transfer(self._port(), (0, 1))

    async def _data_by_dma(self, bus: Connection, to_memory: bool) -> None:
        """Until the counter or the data ends. Where memory refuses, the bytes in front of that are
        moved, the channel is told, and the request for DMA stays until it is answered again."""
        chip, channel, request = self.chip, self.chip.dma, bus.request
        assert request is not None
        while chip.count and request.left and request.moves_data:
            if not channel.answers(to_memory):
                await chip.answered(to_memory)
            pieces = ScatterList(channel.segments(min(chip.count, request.left)))
            done = await request.transfer(channel.port, pieces)
            if done.status is Status.FAULT and done.fault and done.fault.offset > done.moved:
                channel.advance(done.moved)
                chip.counted(done.moved)
                good = pieces.slice(done.moved, done.fault.offset - done.moved)
                done = await request.transfer(channel.port, good)
                faulted = True
            else:
                faulted = done.status is Status.FAULT
            channel.advance(done.moved)
            chip.counted(done.moved)
            if faulted:
                channel.memory_error()
            elif not done.ok:
                break

    async def pad(self, dma: bool, _: int) -> None:
        """Transfer Pad: zeroes to the target, or what it gives for nobody; no request for DMA."""
        chip, bus = self.chip, self._accept()
        request = bus.request
        phase = bus.phase(chip.atn)
        if request is not None and phase in (DATA_IN, DATA_OUT):
            bus.data_moved()
            while chip.count and request.left:
                count = min(chip.count, request.left)
                with self.space.padding():
                    done = await request.transfer(self._port(), (0, count))
                chip.counted(done.moved)
                if not done.ok:
                    break
        self._ended(0, await self._settle(bus))

    # --- bytes for and from the chip itself -------------------------------------------------------

    async def _fetch(self, dma: bool, most: int) -> bytes:
        """At most so many bytes: with DMA as many as the counter has, else what is in the FIFO."""
        chip, channel = self.chip, self.chip.dma
        if not dma:
            return chip.take(most)
        got = b""
        most = min(most, chip.count)
        while len(got) < most:
            if not channel.answers(False):
                await chip.answered(False)
            address, length = channel.segments(most - len(got))[0]
            try:
                part = await chip.flight(channel.port.load_bytes(address, length))
            except DmaFault:
                channel.memory_error()
                continue
            self._fetched(length)
            got += part
        return got

    def _fetched(self, length: int) -> None:
        self.chip.dma.advance(length)
        self.chip.counted(length)

    async def _give(self, dma: bool, data: bytes) -> None:
        """Bytes from the bus: with DMA as many as the counter has, else into the FIFO."""
        chip, channel = self.chip, self.chip.dma
        if not dma:
            chip.push(*data)
            return
        data = data[: chip.count]
        while data:
            if not channel.answers(True):
                await chip.answered(True)
            address, length = channel.segments(len(data))[0]
            try:
                await chip.flight(channel.port.store_bytes(address, data[:length]))
            except DmaFault:
                channel.memory_error()
                continue
            channel.advance(length)
            chip.counted(length)
            data = data[length:]

    # --- the target -------------------------------------------------------------------------------

    def _accept(self) -> Connection:
        """The target, with ACK negated: every command of an initiator does that first."""
        chip, bus = self.chip, self.chip.bus
        assert bus is not None, "the command table lets no command of an initiator pass"
        if chip.acknowledging:
            chip.acknowledging = False
            bus.accepted()
        return bus

    def _port(self) -> Port:
        return self.space.port(self.chip.engine)

    async def _settle(self, bus: Connection) -> int:
        """The phase that the target asks for next; one that may disconnect does if that takes
        more than a few turns."""
        chip = self.chip
        turns = 0
        while (phase := bus.phase(chip.atn)) is None:
            if not bus.may_disconnect:
                await chip.worked(bus)
            elif turns < PATIENCE:
                turns += 1
                await chip.engine.sleep(0)
            else:
                bus.disconnect()
        return phase

    def _ended(self, function: int, phase: int) -> None:
        """The interrupt at the end of a command, with the target in a phase."""
        if phase == BUS_FREE:
            self.chip.bus_free()
        else:
            self.chip.raise_interrupt(function | INTR_BS)
