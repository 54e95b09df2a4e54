# SPDX-License-Identifier: Apache-2.0
"""`iodma bench vfio-user`: a device of ours in its own process, and C servers that do just that.

The client has one processor, each server the other one. Both sleep when they wait, as the threads
of a machine monitor do, and so each has to be woken: often the most of what a round trip takes. So
the rows that load a server are measured once more with both on one processor, where a switch is
all, and what the server does shows; those figures need not reach anything.

Invariants
 - Both sides of a row share the same memory with the same client, and are sampled in turn.
 - It ends in time on a busy machine, too: what takes the time that it takes has fewer pairs then.
 - A count is what the worst sample gave.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from iodma.errors import ArgumentError
from iodma.tools.bench.again import note_again, taken_again
from iodma.tools.bench.beside import check_pairs, facts, middle, processors
from iodma.tools.bench.budget import Budget, plan
from iodma.tools.bench.files import shared_memory
from iodma.tools.bench.harness import (
    BenchError,
    Pair,
    Report,
    Row,
    run_rounds,
    summarize,
    table,
)
from iodma.tools.bench.options import Options
from iodma.tools.bench.vfio_layout import MEMORY_BYTES
from iodma.tools.bench.vfio_works import WORKS, Side, Work
from iodma.tools.bench.workers import Case, Worker

__all__ = ["run"]

WARM_S = 0.1
#: Of the samples of a row that takes the time that it takes.
MOST_S = 30.0
#: Of the processors, in percent: above this there is a warning.
MOST_OTHERS = 3.0
#: Of what is counted, in place of a peer.
COUNTED = "a count"


def run(options: Options, tell: Callable[[str], None]) -> Report:
    """Measures every row, and writes the report.

    Args:
        options: what and how.
        tell: gets lines of progress.

    Raises:
        ArgumentError: an option that cannot be right.
        BenchError: a peer is missing, there are too few processors, or a side failed.
        OSError: the report could not be written.
    """
    if options.trace is not None:
        raise ArgumentError("vfio-user takes no trace: its servers are processes of their own")
    works = chosen(options)
    client, server = places(options.cpu)
    find_peers()
    budget = plan(costs(works), **limits(options))
    if options.output:
        options.output.touch()
    tell(f"{options.name}: {budget}; client on processor {client}, server on {server}")
    if (load := os.getloadavg()[0]) > 0.5 * len(os.sched_getaffinity(0)):
        tell(f"note: others use this machine (load {load:.1f}): expect the pairs to differ more")
    with ExitStack() as opened:
        bench = Bench(budget, client, tell, opened)
        rows, one, peers = [], [], {}
        for number, work in enumerate(works, 1):
            heading = f"[{number}/{len(works)}] {work.name}"
            rows.append(bench.measure(work, server, heading))
            peers[work.name] = described(work.peer, server)
            if work.loads_both:
                once_more = replace(work, name=f"{work.name}; on one processor")
                one.append(bench.measure(once_more, client, f"{heading}; on one processor"))
    machine = facts(budget, client, server)
    machine["others_percent"] = round(median(bench.others or [0.0]), 1)
    if (others := machine["others_percent"]) > MOST_OTHERS:
        tell(f"note: others had {others:.0f} % of the processors: these figures tell little")
    extra = {
        "one processor": [asdict(row) for row in one],
        "one processor, table": table(one, judge=False) if one else "",
        "rows": bench.details,
        "stand-in": "the peer is on both sides" if options.itself else "",
    }
    report = Report(options.name, rows, peers, machine, extra)
    if options.output:
        report.write(options.output)
    return report


class Bench:
    """The processes of a run, and what they showed beside the rows."""

    def __init__(
        self,
        budget: Budget,
        client: int,
        tell: Callable[[str], None],
        opened: ExitStack,
    ) -> None:
        self._budget = budget
        self._client = client
        self._tell = tell
        self._memory = opened.enter_context(shared_memory(MEMORY_BYTES))
        self.details: dict[str, Any] = {}
        self.others: list[float] = []

    def measure(self, work: Work, server: int, heading: str) -> Row:
        """One row, with the servers on that processor."""
        with ExitStack() as opened:
            sides = [self.open(side, server, opened) for side in (work.ours, work.peer) if side]
            begun = time.monotonic()
            for side in sides:
                side.sample(WARM_S if work.timed else work.told_s)
            count = self._budget.pairs
            if not work.timed:  # on a busy machine they take long, and fewer have to do
                took = max(time.monotonic() - begun, work.seconds)
                count = max(1, min(count, int(MOST_S / took)))
            seen: list[list[dict[str, Any]]] = [[] for _ in sides]

            def sampler(index: int) -> Callable[[], float]:
                def sample() -> float:
                    value = sides[index].sample(
                        self._budget.sample_s if work.timed else work.told_s
                    )
                    if details := sides[index].details:
                        seen[index].append(details)
                        self.others.append(details["others_percent"])
                    return value

                return sample

            samples = [sampler(index) for index in range(len(sides))]
            pairs = self.pairs(work, samples, count, heading)
            names = ("ours", "peer")[: len(sides)]
            again = taken_again({name: side.again for name, side in zip(names, sides, strict=True)})
        if again:
            self._tell(f"{heading}: {note_again(again)}")
        self.details[work.name] = {
            "ours": middle(seen[0]) | {"command": described(work.ours, server)},
            "peer": middle(seen[1]) if work.peer else {},
            "taken again": again,
        }
        return summarize(
            pairs,
            work=work.name,
            peer=work.peer.name if work.peer else COUNTED,
            must=work.must,
            better=work.better,
            compare="ratio" if work.peer else "difference",
            unit=work.unit,
        )

    def pairs(
        self, work: Work, samples: Sequence[Callable[[], float]], count: int, heading: str
    ) -> list[Pair]:
        """The pairs of a row; of a count, the worst of all samples, so often."""
        if count < self._budget.pairs:
            self._tell(f"{heading}: note: {count} of {self._budget.pairs} pairs: they take long")
        if work.peer is None:
            worst = max(samples[0]() for _ in range(count))
            self._tell(f"{heading}: {worst:.6g} {work.unit}")
            return [Pair(worst, 0.0)] * count

        def progress(number: int, values: list[float]) -> None:
            pair = Pair(*values)
            self._tell(
                f"{heading}: pair {number}/{count}: {pair.ours:.6g} beside {pair.peer:.6g},"
                f" {pair.compared('ratio'):.3f} x"
            )

        return [Pair(*values) for values in run_rounds(samples, count, progress)]

    def open(self, side: Side, server: int, opened: ExitStack) -> Worker:
        """A side, started: a client on its processor, or what has no server on the other."""
        options: dict[str, Any] = {}
        if side.command:
            options = {"command": list(side.command), "server_cpu": server}
        case = Case(side.name, side.function, options, shares_memory=True)
        cpu = self._client if side.command else server
        return opened.enter_context(closing(Worker(case, Path(), cpu, self._memory)))


def described(side: Side | None, cpu: int) -> str:
    """A side's command as the report has it."""
    if side is None:
        return f"none: {COUNTED} of what the server did"
    if side.command:
        return f"taskset -c {cpu} {shlex.join(side.command)}"
    return f"taskset -c {cpu} {side.function.replace(':', '.')}(memory=MEMORY)"


def find_peers() -> None:
    """Sees that the peers are there.

    Raises:
        BenchError: they are not.
    """
    try:
        from iodma import _peer
    except ImportError as error:
        raise BenchError(
            f"the peers of this benchmark are C loops that are built from a checkout: {error}"
        ) from None
    for name in ("VfioUser", "vfio_serve", "list_copy_loop"):
        if not hasattr(_peer, name):
            raise BenchError(f"iodma._peer has no {name}, a peer of this benchmark: make build")


def chosen(options: Options) -> list[Work]:
    """The rows that are asked for.

    Raises:
        ArgumentError: there is no such row.
    """
    works = [work for work in WORKS if options.wants(work.name)]
    if options.itself:
        works = [work.itself() for work in works if work.peer is not None]
    if not works:
        raise ArgumentError(f"no row of {options.name} contains any of {', '.join(options.only)}")
    return works


def places(wanted: int | None) -> tuple[int, int]:
    """Where client and server run.

    Raises:
        ArgumentError: this process may not use the processor that is asked for.
        BenchError: there is only one processor.
    """
    client, server = processors(wanted)
    if server is None:
        raise BenchError("client and server need a processor each, and there is one")
    return client, server


def costs(works: Sequence[Work]) -> list[tuple[bool, float, float]]:
    """For the plan, each time that a row is measured: whether it is timed, seconds once, a pair."""
    result = []
    for work in works:
        sides = 2 if work.peer else 1
        once = work.start_s + (WARM_S if work.timed else work.seconds)
        cost = (work.timed, sides * once, sides * work.seconds)
        result += [cost] * (2 if work.loads_both else 1)
    return result


def limits(options: Options) -> dict[str, Any]:
    """For the plan: what the options leave.

    Raises:
        ArgumentError: an option that cannot be right.
    """
    check_pairs(options)
    return {"pairs": options.pairs, "total_s": options.seconds, "sample_s": options.sample_s}
