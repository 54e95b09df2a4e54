# SPDX-License-Identifier: Apache-2.0
"""Taking the events of a trace out of the core while the engine runs.

Invariants
 - While no trace runs, each change of a transfer's state costs one branch that is not taken.
 - Memory is bounded: the core's buffer has a fixed size and is emptied into a temporary file before
   it is full; after ``limit`` events no more are kept. What is not kept is counted in `Trace.lost`.
 - The file is written when the trace stops: while the engine runs, events are only taken.
"""

from __future__ import annotations

import os
import tempfile
from typing import IO, TYPE_CHECKING, Any, Self

from iodma.errors import ArgumentError, BusyError, WrongThreadError
from iodma.trace.perfetto import EVENT, open_output, write

if TYPE_CHECKING:
    from iodma.engine import Engine

__all__ = ["Trace", "attach", "trace_to"]

#: Events; a transfer makes about ten, and some 3 KiB in the file.
LIMIT = 1 << 18
_ROOM = 1 << 17


class Trace:
    """A trace of one engine: from `start` (or ``with``) until `stop` or the end of the engine.

    Args:
        engine: whose transfers are traced.
        path: the file to write, for https://ui.perfetto.dev; compressed if it ends in ``.gz``.
        limit: most events that are kept.

    Attributes:
        events: how many were taken so far.
        lost: how many were not, because of ``limit`` or because one turn overran the buffer.

    Raises:
        OSError: the file cannot be written; when it is made, not when the trace is over.
    """

    def __init__(self, engine: Engine, path: str | os.PathLike[str], *, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ArgumentError(f"limit is {limit} events; at least 1 would be right")
        self.path = os.fspath(path)
        self.events = 0
        self.lost = 0
        self._engine = engine
        self._limit = limit
        self._names: dict[int, str] = {}
        self._spool: IO[bytes] | None = None
        self._output: IO[str] | None = None

    @property
    def running(self) -> bool:
        """Whether it is between `start` and `stop`."""
        return self._spool is not None

    def start(self) -> None:
        """Begin, in the engine's thread.

        Raises:
            BusyError: another trace of the engine runs.
            OSError: the file cannot be written.
        """
        engine = self._engine
        if engine._tracer is not None:
            raise BusyError(f"{engine.name} is being traced already; one trace at a time")
        output = open_output(self.path)
        try:
            self._spool = tempfile.TemporaryFile(prefix="iodma-trace-")  # noqa: SIM115
            engine._trace(_ROOM)
        except BaseException:
            self._spool = None
            output.close()
            raise
        self._output = output
        engine._tracer = self

    def drain(self) -> None:
        """Take what the core holds; the engine calls it."""
        spool = self._spool
        if spool is None:
            return
        events, lost, names = self._engine._take_trace()
        self.lost += lost
        if not events:
            return
        self._names = names
        count = len(events) // EVENT.size
        keep = min(count, self._limit - self.events)
        spool.write(events if keep == count else events[: keep * EVENT.size])
        self.events += keep
        self.lost += count - keep

    def stop(self) -> None:
        """End it and write the file; nothing happens if it does not run.

        Raises:
            WrongThreadError: another thread than the engine's.
        """
        spool, output, engine = self._spool, self._output, self._engine
        if spool is None or output is None:
            return
        if not engine._owned:
            raise WrongThreadError("a trace is stopped in the thread of its engine")
        self.drain()
        engine._trace(0)
        engine._tracer = None
        self._spool = self._output = None
        with spool, output:
            spool.seek(0)
            write(
                output, spool, self._names, title=f"{engine.name} ({engine.kind})", lost=self.lost
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<Trace to {self.path}: {state}, {self.events} events, {self.lost} lost>"


def trace_to(engine: Engine, path: str | os.PathLike[str], **options: Any) -> Trace:
    """A `Trace` for a ``with`` statement: it runs inside, and the file is there afterwards."""
    return Trace(engine, path, **options)


def attach(engine: Engine, path: str | os.PathLike[str], **options: Any) -> Trace:
    """Start a `Trace` that runs until it is stopped or the engine is closed."""
    trace = Trace(engine, path, **options)
    trace.start()
    return trace
