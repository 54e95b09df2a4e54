# SPDX-License-Identifier: Apache-2.0
"""Measures rows of two sides: a client that loads servers, or cases that need none.

Invariants
 - Both sides of a row share the same memory, and are sampled in turn.
 - It ends in time on a busy machine, too: what takes the time that it takes has fewer pairs then.
 - A count is what the worst sample gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from iodma.tools.bench.again import note_again, taken_again
from iodma.tools.bench.beside import check_pairs, middle, processors, sampler
from iodma.tools.bench.budget import Budget
from iodma.tools.bench.ends import chosen
from iodma.tools.bench.files import shared_memory
from iodma.tools.bench.harness import BenchError, Pair, Row, run_rounds, summarize
from iodma.tools.bench.options import Options
from iodma.tools.bench.sides import COUNTED, Side, Work, described
from iodma.tools.bench.vfio_layout import MEMORY_BYTES
from iodma.tools.bench.workers import Case, Worker

__all__ = ["Bench", "costs", "find_peers", "limits", "on_sides", "places"]

WARM_S = 0.1
#: Of the samples of a row that takes the time that it takes.
MOST_S = 30.0
#: Where no side reads one.
NO_FILE = Path()


class Bench:
    """The processes of a run, and what they showed beside the rows."""

    def __init__(
        self,
        budget: Budget,
        client: int,
        tell: Callable[[str], None],
        opened: ExitStack,
        file: Path = NO_FILE,
    ) -> None:
        self._budget = budget
        self._client = client
        self._tell = tell
        self._file = file
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
            seconds = self._budget.sample_s if work.timed else work.told_s
            samples = [
                sampler(side, seconds, details, self.others)
                for side, details in zip(sides, seen, strict=True)
            ]
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
        case = Case(side.name, side.function, options, side.reads_file, shares_memory=True)
        cpu = self._client if side.command else server
        return opened.enter_context(closing(Worker(case, self._file, cpu, self._memory)))


def find_peers(names: Iterable[str]) -> None:
    """Sees that the peers are there: these functions of `iodma._peer`.

    Raises:
        BenchError: they are not.
    """
    try:
        from iodma import _peer
    except ImportError as error:
        raise BenchError(
            f"the peers of this benchmark are C loops that are built from a checkout: {error}"
        ) from None
    for name in names:
        if not hasattr(_peer, name):
            raise BenchError(f"iodma._peer has no {name}, a peer of this benchmark: make build")


def on_sides(options: Options, works: Iterable[Work]) -> list[Work]:
    """The rows that are asked for, with the sides that are asked for.

    Raises:
        ArgumentError: there is no such row.
    """
    if options.itself:
        works = [work.itself() for work in works if work.peer is not None]
    return chosen(options, works)


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
