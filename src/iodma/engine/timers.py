# SPDX-License-Identifier: Apache-2.0
"""Calls that come later, in the order of their times.

Invariants
 - Timers of one time come in the order in which they were made.
 - A timer that is made while timers are called comes in a later turn, however soon it is due.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count

__all__ = ["Timer", "Timers"]


class Timer:
    """A call that comes later; see `Engine.call_later`."""

    __slots__ = ("callback", "when_ns")

    def __init__(self, when_ns: int, callback: Callable[[], object]) -> None:
        self.when_ns = when_ns
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None


class Timers:
    """Those of one engine."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._numbers = count()

    def add(self, timer: Timer) -> bool:
        """Whether it is the next one now."""
        heapq.heappush(self._heap, (timer.when_ns, next(self._numbers), timer))
        return self._heap[0][2] is timer

    def next_ns(self) -> int:
        """When the next one is due; -1: there is none."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else -1

    def due(self, now_ns: int) -> Iterator[Callable[[], object]]:
        """What is to be called now; each is taken out as it is given."""
        if not self._heap or self._heap[0][0] > now_ns:
            return
        newer = next(self._numbers)
        while self._heap and self._heap[0][0] <= now_ns and self._heap[0][1] < newer:
            callback = heapq.heappop(self._heap)[2].callback
            if callback is not None:
                yield callback

    def __bool__(self) -> bool:
        return bool(self._heap)

    def clear(self) -> None:
        """Forget them all."""
        self._heap.clear()
