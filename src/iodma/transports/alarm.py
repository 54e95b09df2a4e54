# SPDX-License-Identifier: Apache-2.0
"""A timer of real time, for an engine whose own clock may stand.

Invariants
 - It needs no descriptor but the one that it has from the beginning.
 - It rings once for each time it is set, in a turn of the engine; setting it again moves it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from iodma._core import clock_ns, timer, timer_set
from iodma.engine import Engine

__all__ = ["Alarm"]


class Alarm:
    """Calls back when some real time has passed.

    Args:
        rang: called in a turn.

    Attributes:
        armed: it was set, and has not rung.

    Raises:
        OSError: there is no descriptor for it.
    """

    def __init__(self, engine: Engine, rang: Callable[[], object]) -> None:
        self.armed = False
        self._engine = engine
        self._told = rang
        self._fd = timer()
        engine.add_reader(self._fd, self._rang)

    def set(self, ns: int) -> None:
        """Has it ring in so many nanoseconds; at least 1."""
        if self._fd >= 0:
            self.armed = True
            timer_set(self._fd, clock_ns() + ns)

    def _rang(self) -> None:
        timer_set(self._fd, 0)
        self.armed = False
        self._told()

    def close(self) -> None:
        """It does not ring any more."""
        if self._fd >= 0:
            self._engine.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self.armed = False
