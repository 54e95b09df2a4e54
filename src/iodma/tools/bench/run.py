# SPDX-License-Identifier: Apache-2.0
"""Runs `iodma bench core`: plans the time, makes the file, measures row after row.

Invariants
 - Whatever ends a run, its processes have ended and its file is gone.
 - All that can be checked is checked before the first sample: peers, room, where the result goes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy

from iodma._version import __version__
from iodma.engine import Engine
from iodma.errors import ArgumentError, UnsupportedError
from iodma.memory import Ram
from iodma.tools.bench import core
from iodma.tools.bench.again import note_again, taken_again
from iodma.tools.bench.beside import check_pairs, processors
from iodma.tools.bench.budget import Budget, plan
from iodma.tools.bench.ends import begin, chosen, end
from iodma.tools.bench.files import DataFile, data_file, shared_memory
from iodma.tools.bench.fio import STARTUP_S, Fio, FioJob, find_fio
from iodma.tools.bench.harness import Pair, Report, Row, run_pairs, summarize
from iodma.tools.bench.options import Options
from iodma.tools.bench.workers import Case, Fresh, Worker
from iodma.tools.machine import kernel_release, processor
from iodma.trace import merge

__all__ = ["run"]

#: Estimates of what a side costs beside its samples.
WORKER_START_S = 0.5
FILE_S = 2.0
#: Of each row, for its trace.
TRACED_S = 0.002


class Side(Protocol):
    """One side of a row."""

    @property
    def name(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def again(self) -> int: ...
    def warm(self) -> None: ...
    def sample(self, seconds: float) -> float: ...
    def close(self) -> None: ...


def run(options: Options, tell: Callable[[str], None]) -> Report:
    """Measures every row, and writes the report.

    Args:
        options: what and how.
        tell: gets lines of progress.

    Raises:
        ArgumentError: an option that cannot be right.
        BenchError: a peer is missing, there is no room, or a side failed.
        OSError: the file to read or the report could not be written.
    """
    if options.itself:
        raise ArgumentError("core has many peers: none can be on both sides")
    works = chosen(options, core.WORKS)
    cpu, _ = processors(options.cpu)
    fio, fio_version = find_fio()
    pinned = may_pin(core.GUEST_BYTES)
    if not pinned:
        works = [core.unpinned(work) for work in works]
    budget = plan(map(cost, works), **limits(options))
    machine = facts(cpu, fio_version, budget) | {"memory_registered": pinned}
    begin(options, budget, f"both sides on processor {cpu}", tell)
    if not pinned:
        tell(
            f"note: {core.GUEST_BYTES >> 20} MiB may not be pinned twice here (`ulimit -l`):"
            " memory is registered on neither side"
        )
    rows = []
    peers = {}
    again: dict[str, dict[str, int]] = {}
    with ExitStack() as opened:
        file = opened.enter_context(data_file(options.directory, core.FILE_BYTES))
        traces = Traces(options.trace, opened) if options.trace else None
        machine["filesystem"] = file.filesystem
        for number, work in enumerate(works, 1):
            heading = f"[{number}/{len(works)}] {work.name}"
            row, peers[work.name], repeated = measure(
                work, file, fio, cpu, budget, tell, heading, traces
            )
            rows.append(row)
            if repeated:
                again[work.name] = repeated
        if traces is not None:
            traces.write()
    report = Report(options.name, rows, peers, machine, {"taken again": again})
    return end(options, report, tell)


def measure(
    work: core.Work,
    file: DataFile,
    fio: str,
    cpu: int,
    budget: Budget,
    tell: Callable[[str], None],
    heading: str,
    traces: Traces | None = None,
) -> tuple[Row, str, dict[str, int]]:
    """One row, its peer's command, and how many samples of each side were taken again."""
    file.warm()
    with ExitStack() as opened:
        memory = opened.enter_context(shared_memory(core.GUEST_BYTES))
        ours = opened.enter_context(closing(side(work.ours, work, file, memory, fio, cpu)))
        peer = opened.enter_context(closing(side(work.peer, work, file, memory, fio, cpu)))
        ours.warm()
        peer.warm()

        def progress(number: int, pair: Pair) -> None:
            tell(
                f"{heading}: pair {number}/{budget.pairs}:"
                f" {pair.ours:.6g} beside {pair.peer:.6g},"
                f" {pair.compared(work.compare):.3f} {work.unit}"
            )

        pairs = run_pairs(
            lambda: ours.sample(budget.sample_s),
            lambda: peer.sample(budget.sample_s),
            budget.pairs,
            progress,
        )
        row = summarize(
            pairs,
            work=work.name,
            peer=peer.name,
            must=work.must,
            better=work.better,
            compare=work.compare,
            unit=work.unit,
        )
        if traces is not None and isinstance(ours, Worker):
            traces.take(work.name, ours)
        again = taken_again({"ours": ours.again, "peer": peer.again})
        if again:
            tell(f"{heading}: {note_again(again)}")
        return row, peer.command, again


class Traces:
    """A short trace of each row, outside of what is measured, and all of them as one file."""

    def __init__(self, output: Path, opened: ExitStack) -> None:
        output.touch()
        self._output = output
        self._directory = Path(opened.enter_context(TemporaryDirectory(prefix="iodma-trace-")))
        self._parts: list[tuple[str, str]] = []

    def take(self, name: str, worker: Worker) -> None:
        """Trace one row."""
        path = self._directory / f"{len(self._parts)}.json"
        if worker.trace(TRACED_S, path):
            self._parts.append((name, str(path)))

    def write(self) -> None:
        """Write the file."""
        merge(str(self._output), self._parts)


def side(
    what: Case | FioJob, work: core.Work, file: DataFile, memory: str, fio: str, cpu: int
) -> Side:
    """A side, started."""
    if isinstance(what, FioJob):
        return Fio(fio, what, file.path, file.size, cpu, memory)
    return (Fresh if work.fresh else Worker)(what, file.path, cpu, memory)


def cost(work: core.Work) -> tuple[bool, float, float]:
    """For the plan: whether it is timed, seconds once, seconds a pair."""
    if work.fresh:
        return False, 0.0, 2 * 2 * WORKER_START_S
    fio = isinstance(work.peer, FioJob)
    setup = (1 if fio else 2) * (WORKER_START_S + 0.2)
    return True, setup, STARTUP_S if fio else 0.0


def limits(options: Options) -> dict[str, Any]:
    """For the plan: what the options leave.

    Raises:
        ArgumentError: an option that cannot be right.
    """
    check_pairs(options)
    return {
        "pairs": options.pairs,
        "total_s": options.seconds - FILE_S,
        "sample_s": options.sample_s,
    }


def may_pin(size: int) -> bool:
    """Whether both sides of a row may have ``size`` bytes registered at a time."""
    with ExitStack() as opened:
        try:
            for _ in range(2):
                engine = opened.enter_context(Engine("uring"))
                engine.register(opened.enter_context(Ram(size)))
        except (OSError, UnsupportedError):
            return False
    return True


def facts(cpu: int, fio_version: str, budget: Budget) -> dict[str, Any]:
    """What it runs on, and how."""
    return {
        "kernel": kernel_release()[0],
        "processor": processor(),
        "processors": os.cpu_count(),
        "pinned_to": cpu,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "iodma": __version__,
        "fio": fio_version,
        "load_at_start": round(os.getloadavg()[0], 2),
        "sample_seconds": round(budget.sample_s, 3),
    }
