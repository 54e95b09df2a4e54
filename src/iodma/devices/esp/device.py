# SPDX-License-Identifier: Apache-2.0
"""ESP: an NCR 53C9x / FAS100A SCSI controller: its registers, FIFO, counter, interrupts, resets.

Registers are a byte each, 4 bytes apart:

    0x00  TC LOW       transfer counter; written: its start        read: what is left
    0x04  TC MID
    0x08  FIFO
    0x0c  COMMAND
    0x10  STATUS       read                                        written: DESTINATION ID
    0x14  INTERRUPT    read: clears it, SEQUENCE STEP and errors   written: SELECT TIMEOUT
    0x18  SEQ STEP     read                                        written: SYNC PERIOD
    0x1c  FIFO FLAGS   read: bytes in it, sequence step            written: SYNC OFFSET
    0x20  CONFIG 1     own ID, reset reports
    0x24  CLOCK FACTOR written
    0x28  TEST         written
    0x2c  CONFIG 2     features enable
    0x30  CONFIG 3
    0x38  TC HIGH      written, it is the counter's; read before: the chip's ID
    0x3c  FIFO BOTTOM  only stored

What the commands do is in `sequences`; which are legal when, in `registers`. A command that is
written while one runs is stacked, and runs when that is over; one more overwrites it: a gross
error. The two resets run at once.

Invariants
 - `interrupt` is raised exactly while STATUS has its INT bit: from the first bit of INTERRUPT until
   that is read.
 - One command runs at a time. A reset of chip or bus ends it within the register write; what it had
   in flight is cancelled, and the next command begins when that has drained.
 - `busy` is True exactly while something goes on that will end without software's help.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from iodma._core import Wait
from iodma.devices import Device, Register
from iodma.devices.esp.channel import Channel
from iodma.devices.esp.connection import Connection
from iodma.devices.esp.registers import (
    BUS_FREE,
    CFG1_ID,
    CFG1_SRD,
    CFG2_FE,
    CHIP_ID,
    CMD_DMA,
    CMD_RESET_BUS,
    CMD_RESET_CHIP,
    COMMANDS,
    FIFO_BYTES,
    INTR_DIS,
    INTR_FC,
    INTR_ICMD,
    INTR_RESEL,
    INTR_RST,
    MESSAGE_IN,
    STAT_GE,
    STAT_INT,
    STAT_TC,
    Mode,
)
from iodma.devices.esp.sequences import Sequences
from iodma.engine import Event
from iodma.scsi import State, Target

if TYPE_CHECKING:
    from iodma._core import Transfer

__all__ = ["Esp"]

T = TypeVar("T")


class Esp(Device):
    """The controller, as the only initiator of its bus.

    Args:
        dma: the channel that answers its requests for DMA.
        targets: SCSI ID, 0 to 7 -> `Target`.
        name: for messages.

    Attributes:
        bus: the target that it is connected to, or None.
        fifo: the bytes in the FIFO, the first to come out first.
        count: bytes left in the transfer counter.
        atn: ATN is asserted.
        step: the sequence step.
        acknowledging: ACK is asserted, at the last byte of a message.
    """

    tc_low = Register(0x00, 1, read="read_tc_low", write="write_tc")
    tc_mid = Register(0x04, 1, read="read_tc_mid", write="write_tc")
    fifo_data = Register(0x08, 1, read="read_fifo", write="write_fifo")
    command = Register(0x0C, 1, write="write_command")
    destination = Register(0x10, 1, read="read_status", doc="STATUS, DESTINATION ID")
    select_timeout = Register(0x14, 1, read="read_interrupt", doc="INTERRUPT, SELECT TIMEOUT")
    sync_period = Register(0x18, 1, read="read_step", doc="SEQ STEP, SYNC PERIOD")
    sync_offset = Register(0x1C, 1, read="read_flags", doc="FIFO FLAGS, SYNC OFFSET")
    config1 = Register(0x20, 1, reset=7)
    clock_factor = Register(0x24, 1, read="read_nothing")
    test = Register(0x28, 1, read="read_nothing")
    config2 = Register(0x2C, 1)
    config3 = Register(0x30, 1)
    reserved = Register(0x34, 1)
    tc_high = Register(0x38, 1, read="read_tc_high", write="write_tc_high")
    fifo_bottom = Register(0x3C, 1)

    def __init__(
        self, dma: Channel, targets: Mapping[int, Target], *, name: str | None = None
    ) -> None:
        self.dma = dma
        self.targets = dict(targets)
        self.fifo = bytearray()
        self.bus: Connection | None = None
        #: Targets that have disconnected and will come back.
        self.away: list[Connection] = []
        self._task: Any = None
        self._drains: list[Wait[Any]] = []
        self._answered: Event | None = None
        self._idle = False  # the command waits for what only software can do
        self._worker: Connection | None = None  # the command waits for this target
        self._flight: Any = None  # the last transfer of the chip's own, and its end
        self._landed: Any = None
        self._power_on()
        self._sequences = Sequences(self)
        super().__init__(dma.port, name=name)
        dma.on_ready = self._channel_ready

    def reset(self) -> None:
        """Power-on, and the reset of the whole machine: nothing is in flight."""
        self._leave()
        self._power_on()

    def _power_on(self) -> None:
        self.fifo.clear()
        self.count = 0
        self.step = 0
        self.atn = self.acknowledging = False
        self._intr = 0
        self._stat = 0  # STAT_GE, STAT_TC
        self._stacked: int | None = None
        self._selectable = False
        self._tc_high_written = False

    # --- settling ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something goes on that will end without software's help."""
        # Looked at all the time: what there is not costs nothing.
        if self._reset is not None:
            return True
        if self._task is not None and not self._idle:
            worker = self._worker
            if worker is None or worker.working is not None or not _dormant(worker):
                return True
        if self.bus is not None and _works(self.bus):
            return True
        if self._drains and any(not each.done for each in self._drains):
            return True
        return bool(self.away) and (
            any(_works(each) for each in self.away) or self._next_away() is not None
        )

    # --- registers --------------------------------------------------------------------------------

    def read_tc_low(self) -> int:
        return self.count & 0xFF

    def read_tc_mid(self) -> int:
        return self.count >> 8 & 0xFF

    def read_tc_high(self) -> int:
        return self.count >> 16 & 0xFF if self._tc_high_written else CHIP_ID

    def write_tc(self, _: int) -> None:
        self._stat &= ~STAT_TC

    def write_tc_high(self, value: int) -> None:
        self._tc_high_written = True
        self.write_tc(value)

    def read_fifo(self) -> int:
        return self.fifo.pop(0) if self.fifo else 0

    def write_fifo(self, value: int) -> None:
        self.push(value)

    def push(self, *values: int) -> None:
        """Bytes into the FIFO; its top is overwritten when it is full."""
        for value in values:
            if len(self.fifo) < FIFO_BYTES:
                self.fifo.append(value)
            else:
                self.fifo[-1] = value
                self._stat |= STAT_GE

    def take(self, most: int) -> bytes:
        """At most so many bytes out of the FIFO."""
        data = bytes(self.fifo[:most])
        del self.fifo[:most]
        return data

    def read_status(self) -> int:
        value = self._stat | (STAT_INT if self._intr else 0)
        bus = self.bus
        if bus is None:
            return value
        phase = MESSAGE_IN if self.acknowledging else bus.phase(self.atn)
        return value if phase is None or phase == BUS_FREE else value | phase

    def read_interrupt(self) -> int:
        value = self._intr
        if value:
            self._intr = self.step = 0
            self._stat &= ~STAT_GE
            self.interrupt.set(False)
            self._offer()
        return value

    def read_step(self) -> int:
        return self.step

    def read_flags(self) -> int:
        return self.step << 5 | len(self.fifo)

    def read_nothing(self) -> int:
        return 0

    # --- commands ---------------------------------------------------------------------------------

    def write_command(self, value: int) -> None:
        code = value & ~CMD_DMA
        if self._task is None or code in (CMD_RESET_CHIP, CMD_RESET_BUS):
            self._execute(value)
        else:
            if self._stacked is not None:
                self._stat |= STAT_GE
            self._stacked = value

    def _execute(self, value: int) -> None:
        command = COMMANDS.get(value & ~CMD_DMA)
        connected = Mode.DISCONNECTED if self.bus is None else Mode.INITIATOR
        if command is None or command.mode not in (Mode.ANY, connected):
            self.raise_interrupt(INTR_ICMD)
            return
        dma = bool(value & CMD_DMA)
        if dma:
            self._load_counter()
        if command.at_once:
            getattr(self, command.at_once)()
            return
        sequences, argument = self._sequences, command.argument
        shortcut = command.shortcut
        if shortcut and not self._drains and getattr(sequences, shortcut)(dma, argument):
            return
        self.work(getattr(sequences, command.sequence), dma, argument)

    def work(self, sequence: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """The command goes on in a coroutine, when what a reset has ended has drained."""
        self._task = self.start(self._run(sequence, arguments))

    async def _run(self, sequence: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        while self._drains:
            await self._drains[-1]
            self._drains.pop()
        await sequence(*arguments)
        self._task = None
        stacked, self._stacked = self._stacked, None
        if stacked is not None:
            self._execute(stacked)
        self._offer()

    def _load_counter(self) -> None:
        values = self._values
        count = values["tc_low"] | values["tc_mid"] << 8
        if values["config2"] & CFG2_FE:
            self.count = count | values["tc_high"] << 16 or 1 << 24
        else:
            self.count = count or 1 << 16
        self._stat &= ~STAT_TC

    def nop(self) -> None:
        """NOP."""

    def flush_fifo(self) -> None:
        """Flush FIFO."""
        self.fifo.clear()

    def reset_chip(self) -> None:
        """Reset Chip, and the chip's reset line: as at power-on, and off the bus."""
        self._leave(away=False)
        self._power_on()
        self._values.update(self.registers.reset_values)
        self.interrupt.set(False)

    def reset_bus(self) -> None:
        """Reset SCSI Bus: every target is reset; the chip hears of it as of any reset."""
        self._leave()
        self._drains += [target.reset(bus=True) for target in self.targets.values()]
        self._stacked = None
        if not self.config1 & CFG1_SRD:
            self.raise_interrupt(INTR_RST)

    def set_atn(self) -> None:
        """Set ATN."""
        self.atn = True

    def reset_atn(self) -> None:
        """Reset ATN."""
        self.atn = False

    def enable_selection(self) -> None:
        """Enable Selection/Reselection: a target that has disconnected may come back."""
        self._selectable = True
        self._offer()

    def disable_selection(self) -> None:
        """Disable Selection/Reselection."""
        self._selectable = False
        self.raise_interrupt(INTR_FC)

    # --- for the sequences ------------------------------------------------------------------------

    @property
    def own_id(self) -> int:
        """The chip's SCSI ID."""
        return self.config1 & CFG1_ID

    def arbitrate(self) -> Target | None:
        """Who answers a selection now: a chip does not answer its own. One that would come back
        has to wait for another Enable Selection."""
        self._selectable = False
        chosen = self.destination & 7
        return None if chosen == self.own_id else self.targets.get(chosen)

    def raise_interrupt(self, bits: int) -> None:
        """Sets bits of INTERRUPT."""
        self._intr |= bits
        self.interrupt.set(True)

    def counted(self, moved: int) -> None:
        """So many bytes were counted by the transfer counter."""
        self.count -= moved
        if moved and not self.count:
            self._stat |= STAT_TC

    async def answered(self, to_memory: bool) -> None:
        """Waits until the channel answers a request."""
        while not self.dma.answers(to_memory):
            self._answered = Event(self.engine)
            self._idle = True
            await self._answered.wait()

    def _channel_ready(self) -> None:
        if self._answered is not None:
            self._idle = False
            self._answered.set()

    async def flight(self, transfer: Transfer[T]) -> T:
        """Awaits a transfer of the chip's own, which a reset cancels and waits for."""
        if not transfer.done:
            self._flight = transfer
            landed: Wait[None] = Wait(self.engine)
            self._landed = landed
            transfer._when_done(lambda _: landed._resolve(None))
        return await transfer

    async def worked(self, bus: Connection) -> None:
        """Waits for what a target does."""
        self._worker = bus
        await bus.wait()
        self._worker = None

    def bus_free(self) -> None:
        """The target has left the bus, for good or to come back."""
        bus, self.bus = self.bus, None
        self.atn = self.acknowledging = False
        self.raise_interrupt(INTR_DIS)
        if bus is not None and bus.disconnecting and bus.request is not None:
            self.away = [each for each in self.away if not _gone(each)]
            self.away.append(bus)
            self.start(self._watch(bus))

    # --- reselection, and the end of all ----------------------------------------------------------

    async def _watch(self, bus: Connection) -> None:
        """Until a target that has disconnected wants to come back, or was aborted."""
        while not _ready(bus) and not _gone(bus):
            await bus.wait()
        self._offer()

    def _next_away(self) -> Connection | None:
        """The target that may come back now, if there is one."""
        if not self._selectable or self.bus is not None or self._task is not None or self._intr:
            return None
        return next((each for each in self.away if _ready(each)), None)

    def _offer(self) -> None:
        """A target that has gone on comes back, if the chip lets it now."""
        bus = self._next_away()
        if bus is None:
            return
        self.away.remove(bus)
        target_id = next(n for n, each in self.targets.items() if each is bus.target)
        self.bus = bus
        self._selectable = False
        self.acknowledging = True
        self.fifo[:] = (1 << self.own_id | 1 << target_id, bus.reselect())
        self.raise_interrupt(INTR_RESEL | INTR_FC)

    def _leave(self, away: bool = True) -> None:
        """Ends the command that runs, and what its target does; with `away`, others' too."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._idle = False
        self._answered = self._worker = None
        # A guest may reset as often as it likes, and no command come in between.
        self._drains = [each for each in self._drains if not each.done]
        if self._landed is not None and not self._landed.done:
            self._flight.cancel()
            self._drains.append(self._landed)
        gone = [] if self.bus is None else [self.bus]
        self.bus = None
        self.atn = self.acknowledging = False
        if away:
            gone += self.away
            self.away.clear()
        for bus in gone:
            if bus.request is not None and bus.request.cancel():
                self._drains.append(bus.request.finished)
            if bus.working is not None:
                self._drains.append(bus.working)


def _gone(bus: Connection) -> bool:
    """Whether a target that has disconnected has nothing to come back for: it was aborted."""
    return bus.request is None or (bus.request.over and bus.request.status is None)


def _ready(bus: Connection) -> bool:
    """Whether a target that has disconnected has something to do on the bus."""
    request = bus.request
    if request is None or _gone(bus):
        return False
    return request.over or request.state is State.DATA


def _works(bus: Connection) -> bool:
    """Whether a target's command goes on by itself."""
    return bus.request is not None and bus.request.working


def _dormant(bus: Connection) -> bool:
    """Whether a target's command waits for its turn, which others' initiators may hold up."""
    return bus.request is not None and bus.request.state is State.DORMANT
