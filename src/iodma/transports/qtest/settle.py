# SPDX-License-Identifier: Apache-2.0
"""Waiting until a machine has come to rest.

What is begun ends within microseconds or, at a disk, milliseconds: so it is looked at in every turn
of the engine for a while, and then ever more seldom.

Invariants
 - `done` is called once for each `wait`, in a later turn, unless `cancel` comes before.
 - It ends: `DEADLINE_S` of real time after it began, whatever the machine does. The engine's own
   clock may stand meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from iodma._core import clock_ns, timer, timer_set
from iodma.engine import Engine

__all__ = ["DEADLINE_S", "Settling"]

#: Seconds that a machine may take to come to rest.
DEADLINE_S = 5.0
#: Turns that are looked at in any case: timers that are due are called in the first, tasks that
#: they wake run in the second.
_AT_LEAST = 3
#: ns for which every turn is looked at; then the longest between two looks.
_CLOSELY, _SELDOM = 300_000, 5_000_000


class Settling:
    """Calls back when ``busy`` says that nothing goes on any more.

    Args:
        busy: whether anything does.
        deadline_s: seconds that it may take.
    """

    def __init__(
        self, engine: Engine, busy: Callable[[], bool], deadline_s: float = DEADLINE_S
    ) -> None:
        self._engine = engine
        self._busy = busy
        self._most = int(deadline_s * 1e9)
        self._began = 0
        self._looks = 0
        self._done: Callable[[bool], None] | None = None
        self._fd = timer()
        engine.add_reader(self._fd, self._rang)

    @property
    def waits(self) -> bool:
        """Somebody waits."""
        return self._done is not None

    def wait(self, done: Callable[[bool], None], looks: int = 1) -> None:
        """Has ``done`` called: True: it rests; False: the deadline has passed.

        Args:
            looks: turns to let pass at least.
        """
        assert self._done is None
        self._done = done
        self._began = clock_ns()
        self._looks = looks
        self._engine.call_soon(self._look)

    def wait_for_timers(self, done: Callable[[bool], None]) -> None:
        """`wait`, when timers have become due."""
        self.wait(done, _AT_LEAST)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._done = None
        if self._fd >= 0:
            timer_set(self._fd, 0)

    def close(self) -> None:
        """`cancel`, for good."""
        self.cancel()
        if self._fd >= 0:
            self._engine.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _rang(self) -> None:
        timer_set(self._fd, 0)
        self._look()

    def _look(self) -> None:
        done = self._done
        if done is None:
            return
        self._looks -= 1
        if self._looks > 0:
            self._engine.call_soon(self._look)
            return
        if not self._busy():
            self._done = None
            done(True)
            return
        now = clock_ns()
        since = now - self._began
        if since >= self._most:
            self._done = None
            done(False)
        elif since < _CLOSELY:
            self._engine.call_soon(self._look)
        else:
            timer_set(self._fd, now + min(since // 4, _SELDOM))
