# SPDX-License-Identifier: Apache-2.0
"""A clock that goes as fast as the work is done.

Invariants
 - It never goes backwards.
 - It goes to the next timer as soon as nothing else is left to do, so a test with timers takes no
   real time, and the order of timers and work is the same in every run.
"""

from __future__ import annotations

from iodma.errors import ArgumentError

__all__ = ["Clock"]


class Clock:
    """A virtual clock, for ``Engine(clock=...)``.

    >>> import iodma
    >>> from iodma.testing import Clock
    >>> clock = Clock()
    >>> async def main(engine):
    ...     await engine.sleep(3600)
    ...     return clock.now
    >>> with iodma.Engine(clock=clock) as engine:
    ...     engine.run(main(engine))
    3600.0

    Args:
        now: where it begins, seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        if not now >= 0:
            raise ArgumentError(f"now is {now}; seconds from 0 would be right")
        self._now_ns = int(now * 1e9)

    @property
    def now(self) -> float:
        """The time, seconds."""
        return self._now_ns / 1e9

    def now_ns(self) -> int:
        """The time, ns."""
        return self._now_ns

    def idle_until(self, when_ns: int) -> None:
        """The engine has nothing to do before ``when_ns``: go there."""
        self._now_ns = max(self._now_ns, when_ns)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; timers that are due by then are called when the engine runs.

        Raises:
            ArgumentError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ArgumentError(f"seconds is {seconds}; 0 or more would be right")
        self._now_ns += int(seconds * 1e9)

    def __repr__(self) -> str:
        return f"<Clock at {self.now} s>"
