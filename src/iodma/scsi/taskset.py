# SPDX-License-Identifier: Apache-2.0
"""The task set of a logical unit: which command may begin (SAM-5 chapter 8).

Invariants
 - HEAD OF QUEUE begins at once, before what waits; ORDERED when all older ones are over; SIMPLE
   when no HEAD OF QUEUE and no older ORDERED one is left (SAM-5 8.7).
 - There are at most `depth` commands in it.
 - One task set serves all initiators (TST 000b), and commands reorder freely but for the above
   (QUEUE ALGORITHM MODIFIER 1h).
"""

from __future__ import annotations

from collections.abc import Iterator

from iodma.scsi.request import Request, State, TaskAttribute

__all__ = ["TaskSet"]


class TaskSet:
    """Commands in the order in which they came."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._order: dict[Request, None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._order))

    @property
    def full(self) -> bool:
        """Whether there is no room for another."""
        return len(self._order) >= self.depth

    def add(self, request: Request) -> None:
        """One more, behind the others."""
        self._order[request] = None

    def remove(self, request: Request) -> None:
        """It is over."""
        self._order.pop(request, None)

    def runnable(self) -> list[Request]:
        """The dormant commands that may begin now, in order."""
        if len(self._order) == 1:
            return [each for each in self._order if each.state is State.DORMANT]
        heads = any(each.attribute is TaskAttribute.HEAD_OF_QUEUE for each in self._order)
        begin = []
        first, barrier = True, False
        for each in self._order:
            if each.attribute is TaskAttribute.HEAD_OF_QUEUE:
                may = True
            elif each.attribute is TaskAttribute.ORDERED:
                may = first and not heads
                barrier = True
            else:
                may = not heads and not barrier
            if may and each.state is State.DORMANT:
                begin.append(each)
            first = False
        return begin
