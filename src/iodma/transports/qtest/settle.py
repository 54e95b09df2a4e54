# SPDX-License-Identifier: Apache-2.0
"""Waiting until a machine has come to rest.

It is looked at after each turn of the engine. The first few do not sleep: most of what is begun
ends in them. Then the engine sleeps until something comes, or for a while that gets longer: that
nothing can be done now, as where the host takes no frame, is also something that only turns show.

Invariants
 - `done` is called once for each `wait`, in a later turn, unless `cancel` comes before.
 - It ends: `DEADLINE_S` of real time after it began, whatever the machine does. The engine's own
   clock may stand meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from iodma._core import clock_ns
from iodma.engine import Engine
from iodma.transports.alarm import Alarm

__all__ = ["DEADLINE_S", "Settling"]

#: Seconds that a machine may take to come to rest.
DEADLINE_S = 5.0
#: Turns that pass in any case when timers have become due: they are called in the first, tasks that
#: they wake run in the second.
_AT_LEAST = 3
#: Turns that do not sleep: a ring of frames takes seven, and a sleep costs more than all of them.
#: Then ns of the shortest and longest sleep.
_AWAKE, _FIRST, _LONGEST = 12, 250_000, 5_000_000


class Settling:
    """Calls back when ``busy`` says that nothing goes on any more.

    Args:
        busy: whether anything does.
        deadline_s: seconds that it may take.
        slow: called when it takes longer than it mostly does; perhaps more than once.
    """

    def __init__(
        self,
        engine: Engine,
        busy: Callable[[], bool],
        deadline_s: float = DEADLINE_S,
        slow: Callable[[], object] | None = None,
    ) -> None:
        self._slow = slow
        self._engine = engine
        self._busy = busy
        self._most = int(deadline_s * 1e9)
        self._began = 0
        self._looks = self._least = 0
        self._done: Callable[[bool], None] | None = None
        self._alarm = Alarm(engine, _slept)

    @property
    def waits(self) -> bool:
        """Somebody waits."""
        return self._done is not None

    def wait(self, done: Callable[[bool], None], looks: int = 0) -> None:
        """Has ``done`` called: True: it rests; False: the deadline has passed.

        Args:
            looks: turns to let pass at least.
        """
        assert self._done is None
        self._done = done
        self._began = clock_ns()
        self._looks, self._least = 0, looks
        self._engine._watch_turns(self._look)

    def wait_for_timers(self, done: Callable[[bool], None]) -> None:
        """`wait`, when timers have become due."""
        self.wait(done, _AT_LEAST)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._done is not None:
            self._done = None
            self._engine._forget_turns(self._look)  # the timer goes on: it may serve the next

    def close(self) -> None:
        """`cancel`, for good."""
        self.cancel()
        self._alarm.close()

    def _look(self) -> None:
        done = self._done
        if done is None:
            return
        self._looks += 1
        if self._looks > self._least and not self._busy():
            self.cancel()
            done(True)
        elif self._looks <= _AWAKE:
            self._engine._return_soon()
        else:
            now = clock_ns()
            since = now - self._began
            if since >= self._most:
                self.cancel()
                done(False)
            else:
                if self._slow is not None:
                    self._slow()  # which may find that nobody waits any more
                if not self._alarm.armed:
                    self._alarm.set(min(max(since // 4, _FIRST), _LONGEST))


def _slept() -> None:
    """A sleep of the engine has ended, and `_look` follows, as after each turn."""
