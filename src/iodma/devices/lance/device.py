# SPDX-License-Identifier: Apache-2.0
"""The chip: its two registers on a bus, its parts, its interrupt line.

    lance = Lance(engine.port(iodma.ByteLanes(bus, 2), "lance"), network=iodma.Datagram(sock))

The bus sees RAP, which names a control and status register, and RDP, which is that register
(section "Control and Status Registers"). What they say is done by tasks: one reads the
initialization block, one sends, one receives.

Its port swaps bytes if the bus wants that: the initialization block and the descriptors always go
through it. The payload goes through it, too, or, when CSR3.BSWP is set, past the swap, so that it
is not touched. A unit of two bytes that a buffer's end cuts is not swapped: an odd byte stays where
the buffer has it, and no byte outside the buffer is read or written.

Invariants
 - STOP and the reset line take effect within the write: what was begun before ends without an
   effect on the registers, and the chip begins nothing before the memory is left alone.
 - A memory error turns transmitter and receiver off, and nothing of either goes on.
 - The interrupt line is INTR and INEA, after every change of either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from iodma._core import Task, Wait
from iodma.devices.base import Device
from iodma.devices.lance.address_filter import AddressFilter
from iodma.devices.lance.csr import (
    CAUSES,
    CLEARED_BY_ONE,
    IDON,
    INEA,
    INIT,
    MERR,
    RXON,
    STATES,
    STOP,
    STRT,
    TDMD,
    TXON,
    Chip,
    command,
    summary,
)
from iodma.devices.lance.descriptors import ADDRESS_MASK, Ring, segments
from iodma.devices.lance.initblock import SIZE, InitializationBlock, Mode
from iodma.devices.lance.loopback import Loopback
from iodma.devices.lance.receive import Receiver
from iodma.devices.lance.transmit import Transmitter
from iodma.devices.registers import Register
from iodma.devices.state import DeviceState
from iodma.errors import ArgumentError, DmaFault
from iodma.log import GuestLog
from iodma.stages import ByteLanes

if TYPE_CHECKING:
    from iodma.endpoints import Endpoint
    from iodma.port import Port

__all__ = ["POLL_SECONDS", "Lance"]

log = GuestLog("iodma.devices.lance")

#: Between two looks at a transmit descriptor that was not owned.
POLL_SECONDS = 0.0016
_BSWP, _CSR3 = 4, 7
_DRX, _DTX = int(Mode.DRX), int(Mode.DTX)


class Lance(Device):
    """An Am7990.

    Args:
        port: where its DMA goes: 24-bit addresses of a bus on which words have their low byte
            first.
        network: a packet endpoint, at which frames come without an FCS, and go so; None: there is
            no cable. It stays the caller's.
        poll: seconds after which the transmitter looks at its ring by itself.
        name: for messages.

    Raises:
        ArgumentError: the network is not one of packets.

    Attributes:
        network: as given.
        payload: the port that the payload goes through, as CSR3.BSWP says; `straight`: the one
            past the byte lanes.
        mode: the MODE register.
        flags: what is stored of CSR0, without ERR and INTR.
        chip: what it is doing.
        block: the initialization block that was read last.
        on_memory_error: called with the `DmaFault`, or None where the fault is not known, when MERR
            is set: for a DMA controller in front of the chip that tells of it, too.
    """

    rdp = Register(0x0, 2, read="_read_csr", write="_write_csr", doc="Register Data Port")
    rap = Register(0x2, 2, mask=3, doc="Register Address Port: CSR 0 to 3")

    network: Endpoint | None
    straight: Port

    def __init__(
        self,
        port: Port,
        *,
        network: Endpoint | None = None,
        poll: float = POLL_SECONDS,
        name: str | None = None,
    ) -> None:
        if network is not None and network.constraints.order != "packet":
            raise ArgumentError(f"{network!r} has no packets; a Datagram or Tap would be right")
        lanes = ByteLanes(port.space, 2, name=f"{port.name} payload")
        straight = port.engine.port(lanes, f"{port.name} payload")
        super().__init__(port, name=name, network=network, straight=straight)
        self._poll = poll
        self._timer: Any = None
        self._csr1 = self._csr2 = 0
        self._tasks: dict[str, Task[None]] = {}
        self._drains: tuple[Wait[None], ...] = ()
        self.on_memory_error: Callable[[DmaFault | None], object] | None = None
        self.flags = STOP
        self.chip = Chip.STOPPED
        self.transmitter = Transmitter(self)
        self.receiver = Receiver(self)
        self._power_on()

    # --- the parts' view --------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether it was started and not stopped since."""
        return self.chip is Chip.STARTED

    @property
    def link(self) -> Endpoint | None:
        """The network; None: there is no cable, or no more."""
        return None if self.network is None or self.network.closed else self.network

    @property
    def mode(self) -> int:
        """The MODE register."""
        return self.block.mode

    def raise_flags(self, flags: int) -> None:
        """Sets flags of CSR0, and the interrupt line as they ask."""
        self.flags |= flags
        self._update()

    def memory_error(self, fault: DmaFault | None) -> None:
        """The bus did not answer: MERR, and transmitter and receiver are off."""
        log.debug("%s: memory error: %s", self.name, fault)
        self.flags &= ~(TXON | RXON | TDMD)
        self._halt()
        if self.started:
            self._run("receive", self.receiver.run)
        if self.on_memory_error is not None:
            self.on_memory_error(fault)
        self.raise_flags(MERR)

    @property
    def busy(self) -> bool:
        """Whether it does something that will end without help from outside.

        Not busy is what waits for a frame to come, for the host to take one, for a register write,
        or for time to pass.
        """
        if self._state is not DeviceState.RUNNING:
            return self._state is DeviceState.RESETTING
        if self._drains:
            if not all(drain.done for drain in self._drains):
                return True
            self._drains = ()  # it is asked often
        tasks = self.tasks
        if not tasks:
            return False
        working = tasks - self.transmitter.blocked()
        # The receiver is asked last, as that asks the kernel.
        return working > 1 or working > self.receiver.blocked()

    # --- registers --------------------------------------------------------------------------------

    def _read_csr(self) -> int:
        number = self.rap
        if number == 0:
            return summary(self.flags)
        return (self._csr1, self._csr2, self.csr3)[number - 1]

    def _write_csr(self, value: int) -> None:
        number, value = self.rap, int(value)  # not a flag's type, whose arithmetic is slow
        if number == 0:
            self._write_csr0(value)
        elif self.flags & STOP:  # otherwise it is not written
            if number == 1:
                self._csr1 = value & 0xFFFE
            elif number == 2:
                self._csr2 = value & 0x00FF
            else:
                self._set_csr3(value & _CSR3)

    def _set_csr3(self, value: int) -> None:
        self.csr3 = value
        self.swaps = not value & _BSWP
        self.payload = self.port if self.swaps else self.straight

    def _write_csr0(self, value: int) -> None:
        asked = command(value)
        if asked == "STOP":
            self._stop_chip()
            return
        self.flags &= ~(value & CLEARED_BY_ONE)
        state = STATES.get((self.chip, asked))
        if state is not None:
            self._enter(state, asked)
        if not self.flags & STOP:
            self.flags = self.flags & ~INEA | value & INEA
            if value & TDMD and self.flags & TXON:
                self.flags |= TDMD
                self._transmit()
        self._update()

    def _update(self) -> None:
        flags = self.flags
        level = bool(flags & CAUSES and flags & INEA)
        if level is not self.interrupt.level:
            self.interrupt.set(level)

    # --- states -----------------------------------------------------------------------------------

    def _enter(self, state: Chip, asked: str) -> None:
        begins = self.chip is Chip.STOPPED
        self.chip = state
        self.flags &= ~STOP
        if "INIT" in asked and begins:
            self.flags |= INIT
            self._run("initialize", self._initialize)
        if "STRT" in asked:
            self.flags |= STRT
        if state is Chip.STARTED:
            self._started()

    async def _initialize(self) -> None:
        """Reads the initialization block: IDON when that has been done."""
        address = self._csr2 << 16 | self._csr1
        data = b""
        try:
            for first, length in segments(address & ADDRESS_MASK, SIZE):
                data += await self.port.load_bytes(first, length)
        except DmaFault as fault:
            self.memory_error(fault)
            return
        self._use(InitializationBlock.from_bytes(data))
        self._initialized = True
        self.chip = STATES[self.chip, "IDON"]
        if self.started:
            self._started()
        self.raise_flags(IDON)

    def _use(self, block: InitializationBlock) -> None:
        self.block = block
        self.filter = AddressFilter(block)
        self.loopback = Loopback(self)
        self.transmitter.ring = Ring(block.tdra, block.tlen)
        self.receiver.ring = Ring(block.rdra, block.rlen)

    def _started(self) -> None:
        """STRT is set: what MODE does not disable is on, if it was ever initialized."""
        if self._initialized:
            self.flags |= (0 if self.mode & _DTX else TXON) | (0 if self.mode & _DRX else RXON)
        self._transmit()
        self._run("receive", self.receiver.run)

    def _transmit(self) -> None:
        """The transmitter looks at its ring; what it does already it goes on with."""
        if not self.flags & TXON:
            return
        running = self._tasks.get("transmit")
        if running is None or running.done:
            self._run("transmit", self._transmit_all)

    async def _transmit_all(self) -> None:
        await self.transmitter.run()
        if self.flags & TXON and self._timer is None:
            self._timer = self.engine.call_later(self._poll, self._poll_over)

    def _poll_over(self) -> None:
        self._timer = None
        self._transmit()

    def _stop_chip(self) -> None:
        """STOP: "the equivalent of asserting RESET", but for RAP and what is kept for a restart."""
        self._halt()
        self.flags = STOP
        self.chip = Chip.STOPPED
        self._set_csr3(0)
        self._update()

    def _halt(self) -> None:
        """Ends what transmitter, receiver and initialization do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.receiver.forget()
        current = self._port and self.engine.current_task
        for task in self._tasks.values():
            if task is not current and not task.done:
                task.cancel()
        self._tasks.clear()
        self.transmitter.waiting = False
        self._drains = (self.port.reset(), self.straight.reset())

    def _run(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins work when the memory is left alone by what was stopped."""
        self._tasks[what] = self.start(self._after(self._drains, work))

    async def _after(
        self, drains: tuple[Awaitable[None], ...], work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        for drain in drains:
            await drain
        await work()

    # --- reset line -------------------------------------------------------------------------------

    def _power_on(self) -> None:
        self.flags = STOP
        self.chip = Chip.STOPPED
        self._initialized = False
        self._set_csr3(0)
        self._use(InitializationBlock())

    def reset(self) -> None:
        """Hook: RESET was asserted, and all has drained."""
        self._tasks.clear()
        self._drains = ()
        self._power_on()

    def request_reset(self) -> Awaitable[None]:
        """Asserts RESET. Await what it returns for the end of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.receiver.forget()
        self.transmitter.waiting = False
        return super().request_reset()
