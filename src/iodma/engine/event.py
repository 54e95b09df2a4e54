# SPDX-License-Identifier: Apache-2.0
"""A flag that coroutines of one engine can wait for.

Invariants
 - `set` wakes everybody who waits, in a later turn; it never runs anybody.
 - Who waits keeps nothing here: a coroutine that is cancelled leaves nothing behind.
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
        self._wait: Wait[None] = Wait(engine)

    @property
    def is_set(self) -> bool:
        """Whether it is set."""
        return self._wait.done

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._wait._resolve(None)

    def clear(self) -> None:
        """Clear it: who waits from now on waits."""
        if self._wait.done:
            self._wait = Wait(self._engine)

    def wait(self) -> Wait[None]:
        """Await it to go on when the event is set."""
        return self._wait
