# SPDX-License-Identifier: Apache-2.0
"""A flag that coroutines of one engine can wait for.

Invariants
 - `set` wakes everybody who waits, in a later turn; it never runs anybody.
"""

from __future__ import annotations

from iodma import _core
from iodma._core import Wait

__all__ = ["Event"]


class Event:
    """Set or not; `wait` returns when it is.

    ready = iodma.Event(engine)
    await ready.wait()
    """

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._waits: list[Wait[None]] = []
        self._set = False

    @property
    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._set = True
        waits, self._waits = self._waits, []
        for wait in waits:
            wait._resolve(None)

    def clear(self) -> None:
        """Clear it: who waits from now on waits."""
        self._set = False

    def wait(self) -> Wait[None]:
        """Await it to go on when the event is set."""
        wait: Wait[None] = Wait(self._engine)
        if self._set:
            wait._resolve(None)
        else:
            self._waits.append(wait)
        return wait
