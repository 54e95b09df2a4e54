# SPDX-License-Identifier: Apache-2.0
"""SLAVIO's interrupt controller, for one processor (NCR89C105, "Interrupt Control").

    0x0      processor interrupt pending     hard levels in bits 15:1, software's in 31:17
    0x4      clear pending                   written: those of software, and level 15
    0x8      set soft interrupt              written
    0x10000  system interrupt pending        a bit a source, masked or not
    0x10004  system interrupt mask           read
    0x10008  mask clear                      written
    0x1000c  mask set                        written
    0x10010  target                          the processor that hard interrupts go to

A source is a level: it is pending as long as its line is raised. Level 15, errors, is masked by
nothing but the bit for all; it goes to each processor whichever is the target, and stays pending
there until it is cleared, which at the target takes the line's fall. A processor's pending
register shows hard levels also while they are masked; what can only be written reads as 0.

Invariants
 - A line of `levels` is raised exactly while an interrupt of that level is pending and not masked.
 - Registers are 32 bits wide; accesses of another width change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from iodma.devices import Device, Interrupt, Register
from iodma.devices.slavio_intctl.layout import (
    CLEARED,
    HARD_15,
    IMPLEMENTED,
    LEVELS,
    MASK_ALL,
    PROCESSOR_TIMER,
    SOFT,
    TARGET,
)

__all__ = ["SlavioIntctl"]


class SlavioIntctl(Device):
    """The controller.

    Args:
        name: for messages.

    Attributes:
        inputs: lines that lead to it: the sources by their bit numbers (`Line`), then the timer of
            the processor. None: the chip has no such source.
        levels: lines to the processor, by level: 1 to 15; None at 0.
        busy: False: what a register or line changes is changed at once.
    """

    busy = False

    pending = Register(0x0, access="ro", read="read_pending", doc="processor interrupt pending")
    clear = Register(0x4, read="zero", write="clear_pending", doc="clear pending")
    soft = Register(0x8, read="zero", write="set_soft", doc="set soft interrupt")
    reserved = Register(0xC, access="ro")
    system = Register(0x1_0000, access="ro", read="read_system", doc="system interrupt pending")
    mask = Register(0x1_0004, access="ro", doc="system interrupt mask")
    mask_clear = Register(0x1_0008, read="zero", write="clear_mask", doc="mask clear")
    mask_set = Register(0x1_000C, read="zero", write="set_mask", doc="mask set")
    target = Register(0x1_0010, mask=TARGET, write="target_written", doc="target")

    def __init__(self, *, name: str | None = None) -> None:
        self._raised = 0  # sources whose lines are
        self._own = 0  # the processor's: SOFT, HARD_15, PROCESSOR_TIMER
        self._told = 0  # levels whose lines are raised
        super().__init__(None, name=name)
        self.levels = [self.interrupt_line(f"level{n}") if n else None for n in range(16)]
        self.inputs: list[Interrupt | None] = [
            self._input(f"input{bit}", partial(self._source, bit)) if level else None
            for bit, level in enumerate(LEVELS)
        ]
        self.inputs.append(self._input("timer", self._timer))

    def _input(self, name: str, changed: Callable[[bool], None]) -> Interrupt:
        line = Interrupt(f"{self.name}.{name}")
        line.connect(changed)
        return line

    def reset(self) -> None:
        """Nothing is masked, and nothing pending but what is raised."""
        self._told = 0
        self._own &= PROCESSOR_TIMER
        self._update()

    # --- lines ------------------------------------------------------------------------------------

    def _source(self, bit: int, level: bool) -> None:
        errors = HARD_15 if LEVELS[bit] == 15 else 0
        if level:
            self._raised |= 1 << bit
            self._own |= errors
        else:
            self._raised &= ~(1 << bit)
            self._own &= ~errors
        self._update()

    def _timer(self, level: bool) -> None:
        self._own = self._own & ~PROCESSOR_TIMER | (PROCESSOR_TIMER if level else 0)
        self._update()

    def _update(self) -> None:
        """Tells the processor of what has changed."""
        if not self._open:
            return
        mask = self._values["mask"]
        if not self._values["target"]:
            self._own |= _levels(self._raised) & HARD_15
        levels = self._own >> 16 & ~1
        if not mask & MASK_ALL:
            levels |= self._own & (HARD_15 | PROCESSOR_TIMER)
            if not self._values["target"]:
                levels |= _levels(self._raised & IMPLEMENTED & ~mask)
        changed = levels ^ self._told
        self._told = levels
        while changed:  # the highest first
            number = changed.bit_length() - 1
            changed ^= 1 << number
            line = self.levels[number]
            assert line is not None
            line.set(bool(levels >> number & 1))

    # --- registers --------------------------------------------------------------------------------

    def zero(self) -> int:
        return 0

    def read_pending(self) -> int:
        levels = 0 if self._values["target"] else _levels(self._raised)
        return self._own | levels

    def clear_pending(self, value: int) -> None:
        self._own &= ~(value & CLEARED)
        self._update()

    def set_soft(self, value: int) -> None:
        self._own |= value & SOFT
        self._update()

    def read_system(self) -> int:
        return self._raised

    def clear_mask(self, value: int) -> None:
        self.mask &= ~(value & IMPLEMENTED)
        self._update()

    def set_mask(self, value: int) -> None:
        self.mask |= value & IMPLEMENTED
        self._update()

    def target_written(self, value: int) -> None:
        self._update()


def _levels(sources: int) -> int:
    """The levels of sources, a bit each."""
    levels = 0
    while sources:
        lowest = sources & -sources
        levels |= 1 << LEVELS[lowest.bit_length() - 1]
        sources ^= lowest
    return levels
