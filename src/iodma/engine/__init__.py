# SPDX-License-Identifier: Apache-2.0
"""The engine: rings, requests in flight, the run loop, coroutine scopes."""

from iodma.engine.clock import Clock, SystemClock
from iodma.engine.event import Event
from iodma.engine.loop import Engine, Task, Timer
from iodma.engine.stats import Stats

__all__ = ["Clock", "Engine", "Event", "Stats", "SystemClock", "Task", "Timer"]
