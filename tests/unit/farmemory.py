"""Memory that the test has, and moves the bytes of when asked: later, and in any order.

Invariants:

- An engine's turn answers some of what was asked before it, so that whoever waits for the engine
  waits for the answers, too.
- What was asked for and not answered is in `waiting`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Self

import iodma
from iodma.memory import RemoteRequest


@dataclass(eq=False)
class Asked:
    """A message; ``data`` is None for a read."""

    request: RemoteRequest
    offset: int
    length: int
    data: bytes | None

    @property
    def writes(self) -> bool:
        return self.data is not None


class FarMemory(iodma.RemoteMemory):
    """``size`` bytes.

    Attributes:
        data: they.
        log: (offset, length, whether it is a write) of all that was asked.
        waiting: what was not answered.
        engine: whose turns answer; None: the test does.
        at_once: how much of what is asked is answered in the call itself, 0 to 1.
    """

    data: bytearray
    log: list[tuple[int, int, bool]]
    waiting: list[Asked]
    engine: iodma.Engine | None
    at_once: float
    rng: random.Random
    _soon: bool

    def __new__(cls, size: int, *, most: int = 1 << 20, seed: int = 1) -> Self:
        target = _Target()
        self = super().__new__(cls, target, size, most=most)
        target.memory = self
        self.data = bytearray(size)
        self.log = []
        self.waiting = []
        self.engine = None
        self.at_once = 0.0
        self.rng = random.Random(seed)
        self._soon = False
        return self

    def view(self) -> memoryview:
        return memoryview(self.data)

    def asked(self, what: Asked) -> None:
        assert what.offset >= 0 and what.offset + what.length <= self.size and what.length > 0
        self.log.append((what.offset, what.length, what.writes))
        self.waiting.append(what)
        if self.rng.random() < self.at_once:
            self.answer(what)
        else:
            self._will_answer()

    def by_turns_of(self, engine: iodma.Engine) -> None:
        """Its turns answer from now on."""
        self.engine = engine
        self._will_answer()

    def _will_answer(self) -> None:
        if self.engine is not None and self.waiting and not self._soon:
            self._soon = True
            self.engine.call_soon(self._turn)

    def _turn(self) -> None:
        self._soon = False
        assert self.engine is not None
        for each in self.rng.sample(self.waiting, self.rng.randint(0, len(self.waiting))):
            self.answer(each)
        self._will_answer()

    def answer(self, what: Asked | None = None) -> None:
        """What was asked is done: ``what``, or the oldest."""
        what = self.waiting[0] if what is None else what
        self.waiting.remove(what)
        end = what.offset + what.length
        if what.data is None:
            what.request.done(bytes(self.data[what.offset : end]))
        else:
            self.data[what.offset : end] = what.data
            what.request.done()

    def fail(self, what: Asked | None = None) -> None:
        what = self.waiting[0] if what is None else what
        self.waiting.remove(what)
        what.request.fail()

    def answer_all(self) -> None:
        for each in [*self.waiting]:
            self.answer(each)


class _Target:
    memory: FarMemory

    def read(self, offset: int, length: int, request: RemoteRequest) -> None:
        assert request.length == length and not request.answered
        self.memory.asked(Asked(request, offset, length, None))

    def write(self, offset: int, data: bytes, request: RemoteRequest) -> None:
        assert request.length == len(data)
        self.memory.asked(Asked(request, offset, len(data), data))
