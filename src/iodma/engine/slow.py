# SPDX-License-Identifier: Apache-2.0
"""Tells of steps that keep an engine from everybody else.

Invariants
 - It only looks: a thread of its own reads a time that the core notes, and the stack of the
   engine's thread.
 - While the engine sleeps it sleeps too; the engine's next turn wakes it.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import weakref

from iodma._core import Engine, clock_ns

__all__ = ["SlowStepWatch"]

log = logging.getLogger("iodma.engine.slow")


class SlowStepWatch:
    """Logs the stack of a turn that takes longer than ``limit`` seconds, once each."""

    def __init__(self, engine: Engine, limit: float) -> None:
        self._engine = weakref.ref(engine)
        self._limit_ns = int(limit * 1e9)
        self._thread_id = threading.get_ident()
        self._go = threading.Event()
        self._go.set()
        self._stop = threading.Event()
        engine._set("unpark", self._go.set)
        self._thread = threading.Thread(target=self._watch, name="iodma-slow-steps", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._go.set()
        self._thread.join()

    def _watch(self) -> None:
        told = 0
        idle = 0
        while not self._stop.wait(self._limit_ns / 2e9):
            engine = self._engine()
            if engine is None or engine.closed:
                return
            started = engine._step_started
            if not started:
                idle += 1
                if idle > 1:
                    self._go.clear()
                    engine._set("watcher_parked", 1)
                    del engine
                    if self._stop.is_set():  # close came before the clear, which undid its set
                        return
                    self._go.wait()
                    idle = 0
                continue
            idle = 0
            late = clock_ns() - started
            if late > self._limit_ns and started != told:
                told = started
                frame = sys._current_frames().get(self._thread_id)
                stack = "".join(traceback.format_stack(frame)) if frame else "(no stack)"
                log.warning(
                    "a step has kept the engine for %.0f ms:\n%s", late / 1e6, stack.rstrip()
                )
