# SPDX-License-Identifier: Apache-2.0
"""The time that timers go by.

Invariants
 - A clock never goes backwards.
 - With any clock but the system's, the engine sleeps for completions only; when nothing is in
   flight it tells the clock what it waits for, and the clock says whether that time has come. If
   it has not, the engine sleeps until something comes: whoever moves the clock is its business.
"""

from __future__ import annotations

from typing import Protocol

from iodma._core import clock_ns

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What `Engine(clock=...)` takes."""

    def now_ns(self) -> int:
        """The time, ns."""

    def idle_until(self, when_ns: int) -> None:
        """Nothing is to be done before ``when_ns``: a virtual clock may go there."""


class SystemClock:
    """CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """The time, ns."""
        return clock_ns()

    def idle_until(self, when_ns: int) -> None:
        """The engine sleeps by itself."""
