# SPDX-License-Identifier: Apache-2.0
"""The slot of a PCI function: what it masters, through the gate that Bus Master Enable is.

Invariants
 - With Bus Master Enable clear nothing that is not in flight already gets past the slot, message
   interrupts included.
 - Shutting the gate is a revocation: acknowledged when the last transfer that came through has
   ended, and not before.
"""

from __future__ import annotations

from typing import Self

from iodma._core import Space
from iodma.errors import ArgumentTypeError
from iodma.lease import DEADLINE_S, Revocation, check_deadline, revoke
from iodma.memory import Memory

__all__ = ["PciSlot"]

_GATE = 5


class PciSlot(Space):
    """What a PCI function's DMA goes through: everything passes, or nothing.

        slot = iodma.PciSlot()
        port = engine.port(slot)

    It begins with Bus Master Enable clear, as a function after power-on does (PCI Local Bus 3.0,
    6.2.2): DMA ends with FAULT, at its first byte.

    Args:
        next: the space that the function masters; None: a memory with nothing in it yet.
        name: what faults call it.

    Attributes:
        memory: the memory at the end of the chain.
    """

    memory: Memory

    def __new__(cls, next: Space | None = None, *, name: str = "bus master enable") -> Self:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name is {name!r}; a string would be right")
        self = super().__new__(cls, _GATE, Memory() if next is None else next, name)
        self._set_shut(True)
        end: Space = self
        while end.next is not None:
            end = end.next
        assert isinstance(end, Memory)
        self.memory = end
        return self

    @property
    def bus_master(self) -> bool:
        """Bus Master Enable."""
        return not self._shut

    def set_bus_master(
        self, on: bool, *, cancel: bool = False, deadline: float | None = DEADLINE_S
    ) -> Revocation | None:
        """Open the gate (None: there is nothing to wait for), or shut it: await the result, which
        is True when nothing is in flight any more that came through.

        Args:
            cancel: ask what is in flight to end.
            deadline: seconds until the revocation fails, and what is left holds on; None: never.

        Raises:
            ArgumentError: the deadline is no number of seconds.
        """
        check_deadline(deadline)
        self._set_shut(not on)
        if on:
            return None
        return revoke(self, 0, 0, cancel=cancel, deadline=deadline)

    def __repr__(self) -> str:
        return f"<PciSlot {self.name} {'on' if self.bus_master else 'off'} of {self.next!r}>"
