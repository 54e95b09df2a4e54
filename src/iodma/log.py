# SPDX-License-Identifier: Apache-2.0
"""Loggers for what a guest can cause: every line in the source has a rate of its own.

    log = GuestLog("iodma.virtio")
    log.warning("%s: descriptor %d loops", queue.name, index)      # however often the guest does it

Invariants
 - A call site writes at most `burst` lines in any `seconds`; one that is noisy silences no other.
 - Nothing is lost silently: `suppressed` counts all lines left out, and `report` tells of those
   that no later line has told of.
 - There are as many counters as there are call sites: a guest cannot make the table grow.
 - A handler that keeps records keeps words: no exception, whose traceback would hold guest memory.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb

from iodma.ratelimit import RateLimit

__all__ = ["GuestLog", "place"]

_PACKAGE = Path(__file__).parent

#: A source file and a line in it.
Site = tuple[str, int]


@dataclass(slots=True)
class _Line:
    limit: RateLimit
    level: int
    text: str


class _Words:
    """An exception, without what it holds on to."""

    __slots__ = ("_repr", "_str")

    def __init__(self, error: BaseException) -> None:
        self._str, self._repr = str(error), repr(error)

    def __str__(self) -> str:
        return self._str

    def __repr__(self) -> str:
        return self._repr


class GuestLog:
    """A logger that a guest cannot flood.

    Args:
        name: the logger's name, under "iodma".
        burst: lines of one call site, at least 1.
        seconds: the length of the interval that they are counted in.
        clock: monotonic seconds; tests pass their own.

    Attributes:
        suppressed: lines left out, of all call sites, since it was made.
    """

    def __init__(
        self,
        name: str,
        burst: int = 10,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logging.getLogger(name)
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._lines: dict[Site, _Line] = {}
        self.suppressed = 0

    def debug(self, text: str, *args: object) -> bool:
        """Writes the line, or counts it. True if it was written."""
        return self._write(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> bool:
        """Writes the line, or counts it. True if it was written."""
        return self._write(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> bool:
        """Writes the line, or counts it. True if it was written."""
        return self._write(logging.WARNING, text, args)

    def error(self, text: str, *args: object) -> bool:
        """Writes the line, or counts it. True if it was written."""
        return self._write(logging.ERROR, text, args)

    def report(self) -> None:
        """Tells of the lines that were left out and that no later line has told of."""
        for line in self._lines.values():
            if line.limit.suppressed:
                count, line.limit.suppressed = line.limit.suppressed, 0
                self._logger.log(line.level, "%d more lines like %r", count, line.text)

    def _write(self, level: int, text: str, args: tuple[object, ...]) -> bool:
        if not self._logger.isEnabledFor(level):
            return False
        caller = sys._getframe(2)
        site = (caller.f_code.co_filename, caller.f_lineno)
        line = self._lines.get(site)
        if line is None:
            limit = RateLimit(self._logger, self._burst, self._seconds, self._clock)
            line = self._lines[site] = _Line(limit, level, text)
        words = [_Words(each) if isinstance(each, BaseException) else each for each in args]
        written = line.limit.log(level, text, *words)
        self.suppressed += not written
        return written


def place(error: BaseException) -> str:
    """Where an exception came from, for a line in a log: " (file.py:12)". That is the innermost
    line that is not iodma's, if there is one; nothing, if it was never raised."""
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if not found or not path.is_relative_to(_PACKAGE):
            found = f" ({path.name}:{line})"
    return found
