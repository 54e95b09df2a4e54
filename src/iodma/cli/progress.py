# SPDX-License-Identifier: Apache-2.0
"""A progress bar, for those who watch a terminal.

Invariants
 - Nothing is written unless standard error is a terminal, nor in the first half second.
 - What was written is wiped when it is over, so that errors and results stand on lines of their
   own.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Self

__all__ = ["Bar"]

QUIET_S = 0.5
EVERY_S = 0.1
CELLS = 30


class Bar:
    """Shows how far something is: ``with Bar() as progress: progress("moving", done, total)``."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._next = monotonic() + QUIET_S
        self._shown = False

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._watched or monotonic() < self._next:
            return
        self._next = monotonic() + EVERY_S
        full = CELLS * done // max(total, 1)
        bar = "#" * full + "." * (CELLS - full)
        print(f"\r\x1b[K{what:<20} [{bar}] {done / max(total, 1):4.0%}", end="", file=sys.stderr)
        sys.stderr.flush()
        self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
