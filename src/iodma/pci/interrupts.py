# SPDX-License-Identifier: Apache-2.0
"""From a device's lines to interrupts: INTx, MSI or MSI-X, and what is pending while they are held.

Line 0 is `Device.interrupt`, lines 1, 2, ... those of `interrupt_line` in their order. Line n is
vector n, or the last vector where there are fewer.

- **INTx** is raised while any line is. A `pulse` is one assertion; one that nobody could be told of
  is told when it can be.
- **MSI and MSI-X** send a message at each rising edge. While it may not be sent - vector or
  function masked, Bus Master Enable clear, not in D0 - its pending bit is set, and the one message
  is sent when it may. A line that is raised already is as good as an edge in two cases, in which a
  driver that has served what it saw would wait for ever: a register handler that says ``set(True)``
  (what the guest acknowledged was not all), and the moment that MSI or MSI-X is chosen.

Invariants
 - An edge ends in a message or in a pending bit, and a pending bit in one message; only a reset, or
   leaving MSI or MSI-X, forgets it.
 - At most one of the three is in use. The sink hears of changes of INTx only, in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from iodma.devices import Interrupt
from iodma.errors import ArgumentError, BusyError
from iodma.pci.capabilities import MSI_ALLOCATED, MSI_ENABLE, MSIX_ENABLE, MSIX_MASK_ALL
from iodma.pci.config import Command, ConfigSpace, Status
from iodma.pci.msix import MsixTable

if TYPE_CHECKING:
    from iodma.pci.description import Pci

__all__ = ["InterruptKind", "Interrupts", "Sink"]

InterruptKind = Literal["intx", "msi", "msix"]


class Sink(Protocol):
    """Who delivers a function's interrupts: a transport, or a test."""

    def intx(self, level: bool) -> object:
        """INTx was raised, or has fallen."""

    def message(self, vector: int) -> bool | None:
        """An MSI or MSI-X message. False: it cannot be taken now, and stays pending until `retry`
        or an unmask."""


class Interrupts:
    """The interrupts of one function.

    Args:
        pci: what it has.
        config: its configuration space; what software does there comes in by `changed`.
        send: writes a message to memory, when no sink is connected: address, data.
        answering: whether the device is in a register handler.

    Attributes:
        counts: kind -> vectors.
        level: whether INTx is asserted.
        mode: what is in use.
        table: of MSI-X.
    """

    def __init__(
        self,
        pci: Pci,
        config: ConfigSpace,
        send: Callable[[int, int], object],
        answering: Callable[[], bool] = lambda: False,
    ) -> None:
        self.counts: dict[InterruptKind, int] = {
            "intx": int(pci.intx),
            "msi": pci.msi,
            "msix": pci.msix,
        }
        self.level = False
        self.mode: InterruptKind = "intx"
        self.table = MsixTable(pci.msix)
        self._config = config
        self._send = send
        self._answering = answering
        self._sink: Sink | None = None
        self._routed: InterruptKind | None = None
        self._masked = dict.fromkeys(self.counts, 0)  # by the VMM
        self._pending = dict.fromkeys(self.counts, 0)
        self._may_send = False  # Bus Master Enable is set, and the function in D0
        self._awake = True
        self._lines = 0
        self._disconnects: list[Callable[[], None]] = []
        self._raised = 0  # bit n: line n
        self._pulsed = False  # one came that nobody was told of
        # Of the mode, known at each edge: the last vector, and which may not be sent now.
        self._last = 0
        self._hold = -1
        if pci.msi:
            config.supply("msi_pending", 0xFFFF_FFFF, lambda: self._pending["msi"])

    def __repr__(self) -> str:
        return f"<Interrupts by {self.mode}, pending {self.pending()}>"

    # --- for who delivers them --------------------------------------------------------------------

    def connect(self, sink: Sink) -> Callable[[], None]:
        """Has a sink told from now on, of INTx that is asserted at once.

        Returns:
            A function that disconnects it; calling it twice does no harm. With the sink goes what
            it has routed and masked, and what is pending.

        Raises:
            BusyError: another one is connected.
        """
        if self._sink is not None:
            raise BusyError(f"{self._sink!r} is connected to these interrupts already")
        self._sink = sink

        def disconnect() -> None:
            if self._sink is sink:
                self._sink = self._routed = None
                self._forget()
                self._masked = dict.fromkeys(self.counts, 0)
                self._choose()
                self._drive()

        if self.level:
            sink.intx(True)
        return disconnect

    def route(self, kind: InterruptKind | None) -> None:
        """What a VMM has chosen; None: what software says in the configuration space.

        A VMM that chooses MSI-X has the table: the masks in this one are not looked at.

        Raises:
            ArgumentError: the function has none of that kind.
        """
        if kind is not None and not self.counts.get(kind):
            raise ArgumentError(f"the function has no {kind!r}, it has {self.counts}")
        self._routed = kind
        self.changed()

    def mask(self, kind: InterruptKind, vector: int) -> None:
        """A VMM's mask, beside those of the guest. Raises ArgumentError: no such vector."""
        bit = self._bit(kind, vector)
        self._masked[kind] |= bit
        self._update()
        if kind == "intx":
            self._drive()

    def unmask(self, kind: InterruptKind, vector: int) -> None:
        """What was held comes now. Raises ArgumentError: no such vector."""
        bit = self._bit(kind, vector)
        self._masked[kind] &= ~bit
        self.retry()

    def retry(self) -> None:
        """Tells of everything that is pending and may be told."""
        self._update()
        kind = self.mode
        if kind == "intx":
            self._drive()
            return
        ready = self._pending[kind] & ~self._hold
        while ready:
            bit = ready & -ready
            ready ^= bit
            # Each sink's call may have changed all of it.
            if self.mode == kind and self._pending[kind] & bit & ~self._hold:
                self._message(kind, bit.bit_length() - 1)

    def pending(self, kind: InterruptKind | None = None) -> tuple[int, ...]:
        """The vectors that are pending, of the kind in use if none is named."""
        bits = self._pending[kind or self.mode]
        return tuple(vector for vector in range(bits.bit_length()) if bits >> vector & 1)

    def read_pending(self, offset: int, length: int) -> bytes:
        """Of MSI-X's pending bit array."""
        size = (offset + length) * 8
        bits = self._pending["msix"] & (1 << size) - 1
        return bits.to_bytes(offset + length, "little")[offset:]

    # --- for the function -------------------------------------------------------------------------

    def add_line(self, line: Interrupt) -> None:
        """The device's next line."""
        index = self._lines

        def again() -> None:
            if self.mode != "intx" and self._answering():
                self._fire(index)

        self._disconnects.append(line.connect(self._listener(line)))
        self._disconnects.append(line._on_repeat(again))

    def close(self) -> None:
        """Hears of no line any more."""
        for disconnect in self._disconnects:
            disconnect()

    def _listener(self, line: Interrupt) -> Callable[[bool], None]:
        bit, index = 1 << self._lines, self._lines
        self._lines += 1

        def changed(level: bool) -> None:
            if not level:
                self._raised &= ~bit
                if self.mode == "intx":
                    self._drive()
                return
            # Of a pulse the line has fallen again by the time that its edge is told.
            if line.level:
                self._raised |= bit
            if self.mode == "intx":
                self._pulsed |= not line.level
                self._drive()
            else:
                self._fire(index)

        return changed

    def changed(self) -> None:
        """Software has written the command register, a message control, a mask; or the route did
        change."""
        self._choose()
        self.retry()

    def _choose(self) -> None:
        """The mode, as route and configuration space say, and what follows from it."""
        before = self.mode
        config = self._config
        if self._routed is not None:
            self.mode = self._routed
        elif self.counts["msix"] and config["msix_control"] & MSIX_ENABLE:
            self.mode = "msix"
        elif self.counts["msi"] and config["msi_control"] & MSI_ENABLE:
            self.mode = "msi"
        else:
            self.mode = "intx"
        self._update()
        if before == self.mode:
            return
        self._forget()
        self._drive()
        if self.mode != "intx":
            for line in range(self._lines):
                if self._raised >> line & 1:
                    self._fire(line)

    def _forget(self) -> None:
        """Nothing is pending any more."""
        self._pending = dict.fromkeys(self.counts, 0)
        self._pulsed = False

    def set_gate(self, may_send: bool, awake: bool) -> None:
        """Whether messages may be sent (Bus Master Enable, in D0), and INTx driven (in D0)."""
        self._may_send = may_send
        self._awake = awake
        self.retry()

    def reset(self) -> None:
        """The function is reset: nothing is pending, the table is masked. What a VMM has routed and
        masked stays."""
        self.table.reset()
        self._forget()
        self.changed()

    # --- inside -----------------------------------------------------------------------------------

    def _bit(self, kind: InterruptKind, vector: int) -> int:
        if kind not in get_args(InterruptKind) or not 0 <= vector < self.counts[kind]:
            raise ArgumentError(f"there is no vector {vector} of {kind!r}; there are {self.counts}")
        return 1 << vector

    def _drive(self) -> None:
        """INTx, as it must be now."""
        in_use = self.mode == "intx" and self.counts["intx"] != 0
        wanted = in_use and (self._raised != 0 or self._pulsed)
        status = self._config["status"] & ~Status.INTERRUPT
        self._config["status"] = status | Status.INTERRUPT * wanted
        level = (
            wanted
            and self._awake
            and not self._masked["intx"]
            and not self._config["command"] & Command.INTERRUPT_DISABLE
        )
        if level is self.level:
            if level and self._pulsed:  # it is asserted already: the driver looks at all causes
                self._pulsed = False
            return
        self.level = level
        pulse = level and self._pulsed
        self._pulsed = False
        if self._sink is not None:
            self._sink.intx(level)
        if pulse:
            self._drive()  # it falls again, unless a line is held

    def _update(self) -> None:
        """What each edge has to know. Called whenever something of it may have changed."""
        kind = self.mode
        self._hold = self._masked[kind]
        if kind == "msi":
            self._last = self._allocated() - 1
            self._hold |= self._config["msi_mask"]
        elif kind == "msix":
            self._last = self.counts["msix"] - 1
            control = self._config["msix_control"]
            if control & MSIX_ENABLE and control & MSIX_MASK_ALL:
                self._hold = -1
            elif self._routed is None:
                self._hold |= self.table.masks
        if not self._may_send:
            self._hold = -1

    def _allocated(self) -> int:
        """How many vectors of MSI software has given the function."""
        control = self._config["msi_control"]
        if not control & MSI_ENABLE:
            return self.counts["msi"]
        return 1 << ((control & MSI_ALLOCATED) >> 4)

    def _fire(self, line: int) -> None:
        vector = line if line < self._last else self._last
        if self._hold >> vector & 1:
            self._pending[self.mode] |= 1 << vector
        else:
            self._message(self.mode, vector)

    def _message(self, kind: InterruptKind, vector: int) -> None:
        """Sends it; what the sink does not take is pending."""
        if self._pending[kind]:
            self._pending[kind] &= ~(1 << vector)
        if self._sink is not None:
            if self._sink.message(vector) is False:
                self._pending[kind] |= 1 << vector
        elif self._routed is not None:  # where to, nobody here knows
            self._pending[kind] |= 1 << vector
        elif kind == "msix":
            self._send(*self.table.message(vector))
        else:
            data = self._config["msi_data"] & ~(self._allocated() - 1) | vector
            self._send(self._config["msi_address"], data)
