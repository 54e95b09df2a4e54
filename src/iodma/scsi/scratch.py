# SPDX-License-Identifier: Apache-2.0
"""Memory of the device server's own, for commands that must look at data: verify, write same.

Invariants
 - A slot is one request's until nothing of that request is in flight any more, so that a transfer
   that is cancelled never lands in another command's data.
 - There are `SLOTS` of them, of `SLOT` bytes; who finds none waits, first in, first out.
"""

from __future__ import annotations

from collections import deque

from iodma._core import Wait
from iodma.engine import Engine
from iodma.memory import Memory, Ram
from iodma.scsi.request import Request

__all__ = ["SLOT", "Scratch"]

#: Bytes of a slot: two of the largest logical blocks.
SLOT = 1 << 17
SLOTS = 4


class Scratch:
    """Slots in a memory of their own, which is made when the first one is taken.

    Attributes:
        memory: where they are.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.memory = Memory(name=name)
        self._engine = engine
        self._ram: Ram | None = None
        self._free = [SLOT * index for index in range(SLOTS)]
        self._waiting: deque[tuple[Request, Wait[int]]] = deque()

    async def take(self, request: Request) -> int:
        """The address of a slot, which is the request's until it has ended."""
        if self._ram is None:
            self._ram = Ram(SLOT * SLOTS)
            self.memory.add(0, self._ram)
        if self._free and not self._waiting:
            return self._give(request, self._free.pop())
        # Who holds the slots may do so for as long as its initiator likes; others come and go.
        self._waiting = deque(each for each in self._waiting if not each[0].cancelled)
        turn: Wait[int] = Wait(self._engine)
        self._waiting.append((request, turn))
        return await turn

    def view(self, address: int, length: int) -> memoryview:
        """Bytes of a slot; to be released."""
        if self._ram is None:
            raise AssertionError("no slot was taken")
        return self._ram.view(address, length)

    def _give(self, request: Request, slot: int) -> int:
        request.when_over(lambda: self._back(slot))
        return slot

    def _back(self, slot: int) -> None:
        while self._waiting:
            request, turn = self._waiting.popleft()
            if not request.cancelled and not request.over:
                turn._resolve(self._give(request, slot))
                return
        self._free.append(slot)

    def close(self) -> None:
        """Lets go of the memory."""
        if self._ram is not None:
            self._ram.close()
