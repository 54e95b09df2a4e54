# SPDX-License-Identifier: Apache-2.0
"""Log lines that a guest can cause, kept to a rate.

Invariants
 - Nothing a guest does makes more than `burst` lines in any `seconds`.
 - Nothing is lost silently: the first line after a silence tells how many were left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["RateLimit"]


class RateLimit:
    """At most `burst` lines every `seconds`, then silence, then a count of what it covered.

    Args:
        logger: where the lines go.
        burst: lines, at least 1.
        seconds: the length of the interval that they are counted in.
        clock: monotonic seconds; tests pass their own.

    Attributes:
        suppressed: lines left out since the last one that was written.
    """

    __slots__ = ("_begin", "_burst", "_clock", "_logger", "_seconds", "_used", "suppressed")

    def __init__(
        self,
        logger: logging.Logger,
        burst: int = 5,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._begin = float("-inf")
        self._used = 0
        self.suppressed = 0

    def log(
        self, level: int, text: str, *args: object, exc_info: BaseException | None = None
    ) -> bool:
        """Writes the line, as `logging.Logger.log` would, or counts it. True if it was written."""
        if not self._logger.isEnabledFor(level):
            return False
        now = self._clock()
        if now - self._begin >= self._seconds:
            self._begin = now
            self._used = 0
        if self._used >= self._burst:
            self.suppressed += 1
            return False
        self._used += 1
        if self.suppressed:
            text += " (%d lines like it were left out)"
            args = (*args, self.suppressed)
            self.suppressed = 0
        self._logger.log(level, text, *args, exc_info=exc_info)
        return True
