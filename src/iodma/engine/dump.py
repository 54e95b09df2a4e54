# SPDX-License-Identifier: Apache-2.0
"""Tells, on a signal, what every open engine of the process is doing.

    kill -USR1 PID

Invariants
 - It only looks: what it tells of goes on undisturbed, also what is stuck.
 - It writes to descriptor 2 itself, because the signal may come in the middle of a write to
   `sys.stderr`.
 - An engine of another thread is read as it is just then: its figures may be of two moments.
 - Where a coroutine waits is told by the innermost line of it that is not iodma's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

from iodma._core import Task
from iodma.engine.loop import Engine, engines
from iodma.engine.stats import Stats, TransferInfo

__all__ = ["describe", "dump_on_signal", "waits_at"]

#: Most transfers, and most tasks, that are listed of one engine, the oldest first.
MOST = 100

_PACKAGE = Path(__file__).parents[1]


def dump_on_signal(signum: int = signal.SIGUSR1, *, fd: int = 2) -> None:
    """From now on, the signal writes `describe` to ``fd``, standard error, and changes nothing.

    The commands of ``iodma`` do this.  To be called in the main thread.
    A signal that comes while the main thread is inside a long call of C is answered after it.

    Raises:
        ValueError: called in another thread, or the signal cannot be caught.
    """

    def dump(signum: int, frame: FrameType | None) -> None:
        text = describe().encode()
        while text:
            text = text[os.write(fd, text) :]

    signal.signal(signum, dump)


def describe() -> str:
    """All open engines: their transfers in flight, tasks and statistics, as text with a line for
    each."""
    lines: list[str] = []
    for engine in sorted(engines, key=lambda engine: engine.name):
        if not engine.closed:
            lines += _engine(engine)
    return "\n".join(lines or ["iodma: no engine is open"]) + "\n"


def _engine(engine: Engine) -> list[str]:
    stats = engine.stats()
    transfers = sorted(engine.transfers(), key=lambda each: -each.age_s)
    lines = [
        f"iodma: {engine.name} ({engine.kind}):"
        f" {len(transfers)} transfers in flight, {stats.tasks} tasks"
    ]
    lines += [f"  {_transfer(each)}" for each in transfers[:MOST]]
    if len(transfers) > MOST:
        lines.append(f"  ... and {len(transfers) - MOST} younger ones")
    tasks = engine._all_tasks()
    lines += [f"  {_task(each)}" for each in tasks[:MOST]]
    if len(tasks) > MOST:
        lines.append(f"  ... and {len(tasks) - MOST} younger tasks")
    return [*lines, f"  {_counters(stats)}"]


def _transfer(info: TransferInfo) -> str:
    waits = f" for {info.waits_for}" if info.waits_for else ""
    endpoint = f", {info.endpoint}" if info.endpoint else ""
    return (
        f"{info.ticket:#x} {info.port}: {info.kind} {info.direction}, {info.state}{waits}"
        f" {info.age_s:.3f} s, {info.moved} of {info.total} bytes{endpoint}"
    )


def _task(task: Task[Any]) -> str:
    return f"task {task.name}" + (f", at {place}" if (place := waits_at(task.coroutine)) else "")


def waits_at(coroutine: object) -> str:
    """Where a coroutine waits: FILE:LINE, or nothing where it does not, or that cannot be seen."""
    found = ""
    inner: Any = coroutine
    while isinstance(inner, Coroutine):
        frame = getattr(inner, "cr_frame", None)
        if frame is None:
            break
        if not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE) or not found:
            found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        inner = getattr(inner, "cr_await", None)
    return found


def _counters(stats: Stats) -> str:
    """Those that are not zero, on one line."""
    flat: dict[str, object] = {}
    for name, value in stats.as_dict().items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": each for key, each in value.items()})
        else:
            flat[name] = value
    return " ".join(f"{name}={value}" for name, value in flat.items() if value)
