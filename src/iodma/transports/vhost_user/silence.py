# SPDX-License-Identifier: Apache-2.0
"""Rings that are kicked, and in which nothing is seen: is it that the memory is not shared?

A front-end whose memory is private (QEMU without `share=on`) gives a file all the same, and what
its guest writes never gets there. Nothing in the file tells: a private write makes it a page of
zeros, and a ring that was just made is one, too. But a driver that kicks a new ring has put
something there. One kick proves nothing, as QEMU has one in each eventfd to begin with.

Invariants
 - Of each ring that is watched a descriptor of its kick's and a timer are here, or neither.
 - A kick is not consumed: the queue gets it, too.
 - What is watched no more is held no more: what a queue has does not wait for a garbage collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from iodma.engine import Engine
from iodma.engine.timers import Timer

__all__ = ["Silence"]

#: Seconds until the first look at a ring; each is followed by one after twice that time, up to:
PATIENCE_S, LAST_S = 1.0, 64.0


@dataclass(slots=True)
class _Watched:
    """A ring: where it was at first, how to know where it is, and its kick's descriptor."""

    start: int | None
    position: Callable[[], int | None]
    kick: int
    timer: Timer


class Silence:
    """The rings of a session that are watched.

    Args:
        tell: called with a ring's index, at most once: it was kicked, and nothing is there.
    """

    def __init__(self, engine: Engine, tell: Callable[[int], None]) -> None:
        self._engine = engine
        self._tell = tell
        self._told = False
        self._watched: dict[int, _Watched] = {}

    def watch(self, index: int, kick: int, position: Callable[[], int | None]) -> None:
        """Watches a ring that was just started, for the first time.

        Args:
            kick: its eventfd; duplicated. Others are not watched.
            position: the next available entry; None: it does not run.
        """
        self.forget(index)
        if self._told or kicks_of(kick) is None:
            return
        start, own = position(), os.dup(kick)
        self._watched[index] = _Watched(start, position, own, self._later(index, PATIENCE_S))

    def _later(self, index: int, seconds: float) -> Timer:
        return self._engine.call_later(seconds, partial(self._look, index, seconds))

    def _look(self, index: int, seconds: float) -> None:
        ring = self._watched[index]
        kicks = kicks_of(ring.kick)
        if ring.position() != ring.start or kicks is None:
            self.forget(index)
        elif kicks >= 2:
            self._told = True
            self.close()
            self._tell(index)
        elif seconds < LAST_S:
            ring.timer = self._later(index, 2 * seconds)
        else:
            self.forget(index)

    def forget(self, index: int) -> None:
        """Watches it no more."""
        if watched := self._watched.pop(index, None):
            watched.timer.cancel()
            os.close(watched.kick)

    def close(self) -> None:
        """Watches none."""
        for index in list(self._watched):
            self.forget(index)


def kicks_of(kick: int) -> int | None:
    """The count of an eventfd, which stays; None: it is something else (proc(5), fdinfo)."""
    try:
        with open(f"/proc/self/fdinfo/{kick}") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "eventfd-count":
                    return int(value, 16)
    except OSError:  # no /proc, or no descriptor left to read it with
        pass
    return None
