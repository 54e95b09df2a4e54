# SPDX-License-Identifier: Apache-2.0
"""Message-signalled interrupts: the writes that a device does to raise them.

Invariants
 - A naturally aligned write of 4 bytes is an interrupt; every other access is a bus error.
 - It comes after the data that stands before it in the same list, and after every transfer that
   had completed when it was submitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from iodma.errors import ArgumentTypeError
from iodma.memory.regions import DeviceWindow

__all__ = ["MsiWindow"]

#: 0xFEE0_0000 to 0xFEEF_FFFF, where PCs have theirs.
SIZE = 1 << 20


class MsiWindow(DeviceWindow):
    """Where message-signalled interrupts are written to.

        memory.add(0xFEE0_0000, iodma.MsiWindow(lambda offset, vector: ...))

    The function is called with the offset of the write (on a PC it names the processor) and the 32
    bits that were written (the low 8 are the vector), in the engine's thread, before the write's
    transfer completes. It is plain, as a register handler is.

    Attributes:
        count: interrupts so far.
        refused: accesses that were no interrupt and ended in a bus error.
    """

    count: int
    refused: int

    def __new__(cls, interrupt: Callable[[int, int], object], size: int = SIZE) -> Self:
        if not callable(interrupt):
            raise ArgumentTypeError(f"{interrupt!r} cannot be called with an offset and a message")
        target = _Target(interrupt)
        self = super().__new__(cls, target, size)
        target.window = self
        self.count = self.refused = 0
        return self

    def __repr__(self) -> str:
        return f"<MsiWindow: {self.count} interrupts>"


class _Target:
    """Apart from the window, which holds it."""

    window: MsiWindow

    def __init__(self, interrupt: Callable[[int, int], object]) -> None:
        self._interrupt = interrupt

    def read(self, offset: int, width: int) -> None:
        self.window.refused += 1

    def write(self, offset: int, width: int, value: int) -> bool:
        if width != 4:
            self.window.refused += 1
            return False
        self.window.count += 1
        self._interrupt(offset, value)
        return True
