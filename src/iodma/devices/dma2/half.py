# SPDX-License-Identifier: Apache-2.0
"""What both halves of the DMA2 have: a control and status register, a chip, an interrupt.

    ledma.on_reset = lance_reset                       # the chip's reset line
    lance.interrupt.connect(ledma.chip_interrupt)      # the chip's interrupt line, an input here
    ledma.interrupt.connect(interrupt_controller_input)

Invariants
 - `interrupt` is raised exactly while INT_EN and one of INT_PEND and ERR_PEND are set.
 - Nothing stays in the cache: what a transfer that is complete has moved is in memory, so DRAINING
   reads as 0, and draining and invalidating move no byte.
 - Registers are 32 bits wide: a narrower access changes nothing but SLAVE_ERR, and a wider one is
   one of each register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iodma.devices import Device, Register
from iodma.devices.dma2.csr import DEV_ID, ERR_PEND, INT_EN, INT_PEND, INVALIDATE, RESET, SLAVE_ERR

__all__ = ["Half"]


class Half(Device):
    """A half of the DMA2.

    Attributes:
        on_reset: called when software sets RESET: it resets the chip; None: there is none. It is
            called inside the register access.
        held: whether the chip is held in reset now: RESET is set.
        busy: False: what a half does is done when it has been asked to.
    """

    #: The bits that software reads as it has written them.
    KEPT = INT_EN | RESET

    busy = False
    on_reset: Callable[[], object] | None = None

    csr = Register(0x0, reset=0, read="read_csr", write="write_csr", doc="control and status")

    def __init__(self, port: Any = None, *, name: str | None = None) -> None:
        self._line = False
        self._sticky = 0
        super().__init__(port, name=name)

    def reset(self) -> None:
        """Power-on and SBus reset: the chip is not reset by it, nor does its line change."""
        self._sticky = 0
        self._update()

    @property
    def held(self) -> bool:
        return bool(self.csr & RESET)

    # --- for the chip -----------------------------------------------------------------------------

    def chip_interrupt(self, level: bool) -> None:
        """The chip's interrupt line: connect it to that."""
        self._line = level
        self._update()

    def memory_error(self) -> None:
        """A DMA of the chip met an error in memory: sets ERR_PEND."""
        self._sticky |= ERR_PEND
        self._update()

    # --- registers --------------------------------------------------------------------------------

    def pending(self) -> bool:
        """Whether INT_PEND reads as 1."""
        return self._line

    def state_bits(self) -> int:
        """What more CSR says: bits that follow from the half's state."""
        return 0

    def read_csr(self) -> int:
        pending = INT_PEND if self.pending() else 0
        return DEV_ID | self._values["csr"] | self._sticky | pending | self.state_bits()

    def write_csr(self, value: int) -> None:
        self.csr = value & self.KEPT
        if value & (INVALIDATE | RESET):
            self.invalidate()
        elif value & SLAVE_ERR:
            self._sticky &= ~SLAVE_ERR
        if value & RESET and self.on_reset is not None:
            self.on_reset()
        self._update()

    def invalidate(self) -> None:
        """INVALIDATE, and RESET: what was in the cache, and the errors, are forgotten."""
        self._sticky = 0

    def _update(self) -> None:
        raised = self.pending() or self._sticky & ERR_PEND
        level = bool(raised and self._values["csr"] & INT_EN)
        if level is not self.interrupt.level:
            self.interrupt.set(level)

    # --- accesses of another width ----------------------------------------------------------------

    def _refused_read(self, offset: int, width: int) -> int:
        self._slave_error(offset, width)
        return super()._refused_read(offset, width)

    def _refused_write(self, offset: int, width: int, value: int) -> None:
        self._slave_error(offset, width)
        super()._refused_write(offset, width, value)

    def _slave_error(self, offset: int, width: int) -> None:
        if width < 4 and self._open and not self._busy and 0 <= offset < self.registers.size:
            self._sticky |= SLAVE_ERR
