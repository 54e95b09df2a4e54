# SPDX-License-Identifier: Apache-2.0
"""The time of a machine that is driven from outside: it stands until it is moved.

Invariants
 - It never goes backwards, and never further than `MOST_NS`.
 - No work moves it: what waits for a later time waits until somebody goes there.
"""

from __future__ import annotations

from iodma.errors import ArgumentError

__all__ = ["MOST_NS", "SteppedClock"]

#: The last nanosecond that it can reach: of 63 bits, as QEMU's virtual clock.
MOST_NS = (1 << 63) - 1


class SteppedClock:
    """A clock for ``Engine(clock=...)`` that `clock_step` and `clock_set` move.

    >>> import iodma
    >>> from iodma.transports.qtest import SteppedClock
    >>> clock = SteppedClock()
    >>> with iodma.Engine(clock=clock) as engine:
    ...     rang = []
    ...     timer = engine.call_later(1.0, lambda: rang.append(clock.now_ns()))
    ...     clock.go_to(1_000_000_000)
    ...     _ = engine.pump()
    >>> rang
    [1000000000]
    """

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        """The time, ns; 0 to begin with."""
        return self._now_ns

    def idle_until(self, when_ns: int) -> None:
        """Nothing happens: the engine sleeps until something comes."""

    def go_to(self, when_ns: int) -> None:
        """It is ``when_ns`` now; timers that are due are called when the engine runs. A time that
        has passed changes nothing.

        Raises:
            ArgumentError: beyond `MOST_NS`.
        """
        if when_ns > MOST_NS:
            raise ArgumentError(f"{when_ns} ns is beyond what the clock can reach, {MOST_NS} ns")
        self._now_ns = max(self._now_ns, when_ns)

    def __repr__(self) -> str:
        return f"<SteppedClock at {self._now_ns} ns>"
