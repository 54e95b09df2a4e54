# SPDX-License-Identifier: Apache-2.0
"""A disk with a write cache that really loses what was not flushed.

Invariants
 - `content` is what reads see; `medium` is what outlives a power failure.
 - A flush makes durable what had completed when it was asked for, not what completed meanwhile: it
   promises no more than that, so this does no more.
 - In write-through mode a write is on the medium when it completes.
"""

from __future__ import annotations

import random
from typing import Self

from iodma.testing.endpoint import Answer, Request, Script, ScriptedEndpoint

__all__ = ["LossyDisk"]


class LossyDisk(ScriptedEndpoint):
    """A scripted endpoint of a fixed size, whose power can fail.

    >>> from iodma.testing import FakeMemory, LossyDisk, strict_engine
    >>> disk = LossyDisk(1024)
    >>> with strict_engine() as engine, FakeMemory(4096) as memory, disk:
    ...     port = engine.port(memory)
    ...     memory.write(0, b"kept" + b"lost")
    ...     async def main():
    ...         await port.from_memory((0, 4), to=disk, offset=0)
    ...         await port.flush(disk)
    ...         await port.from_memory((4, 4), to=disk, offset=512)
    ...     engine.run(main())
    ...     bytes(disk.content[512:516])
    ...     disk.fail()
    ...     bytes(disk.content[:4]), bytes(disk.content[512:516])
    b'lost'
    (b'kept', b'\\x00\\x00\\x00\\x00')

    Args:
        size: bytes.
        script: as a `ScriptedEndpoint` has it.

    Attributes:
        medium: what is durable.
        write_through: whether a write is durable when it completes.
        failures: how often the power has failed.
    """

    medium: bytearray
    write_through: bool
    failures: int

    _cache: list[tuple[int, int, bytes]]
    _number: int
    _before: dict[int, int]

    def __new__(cls, size: int, *, script: Script = (), name: str = "lossy") -> Self:
        self = super().__new__(cls, size, script=script, limit=size, name=name)
        self.medium = bytearray(size)
        self.write_through = False
        self.failures = 0
        self._cache = []  # (number, offset, bytes), in the order in which they completed
        self._number = 0
        self._before = {}  # of each flush that waits for an answer: the first number not covered
        return self

    def fail(self, rng: random.Random | None = None) -> None:
        """The power fails: what was not durable is gone. Reads see the medium from now on.

        Args:
            rng: chooses what of the cache had reached the medium by itself; None: nothing of it.
        """
        for _, offset, data in self._cache:
            if rng is not None and rng.random() < 0.5:
                self.medium[offset : offset + len(data)] = data
        self._cache.clear()
        self.content[:] = self.medium
        self.failures += 1

    def _ask(self, request: Request) -> None:
        if request.kind == "flush":
            self._before[request.ticket] = self._number
        super()._ask(request)

    def _give(self, request: Request, answer: Answer) -> None:
        waits = not request.over
        super()._give(request, answer)
        if not waits or not request.over:
            return
        covers = self._before.pop(request.ticket, 0)
        if answer.error:
            return
        if request.kind == "flush":
            self._make_durable(covers)
        elif request.direction is request.direction.FROM_MEMORY:
            self._written(request, answer)

    def _written(self, request: Request, answer: Answer) -> None:
        length = request.length if answer.moved is None else min(request.length, answer.moved)
        data = bytes(self.content[request.offset : request.offset + length])
        self._cache.append((self._number, request.offset, data))
        self._number += 1
        if self.write_through:
            self._make_durable(self._number)

    def _make_durable(self, before: int) -> None:
        while self._cache and self._cache[0][0] < before:
            _, offset, data = self._cache.pop(0)
            self.medium[offset : offset + len(data)] = data
