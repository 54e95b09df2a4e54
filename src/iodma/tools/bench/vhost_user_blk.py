# SPDX-License-Identifier: Apache-2.0
"""`iodma bench vhost-user-blk`: `iodma serve blk` beside qemu-storage-daemon, loaded by one client.

"Own": the client and the server each have a processor; the client watches the used ring. "One":
both share one; the client sleeps until it is called.

The peer is run in several ways, all are tried before each row, and the best one is what the row is
measured against. Every row is also measured with our server's spinning off; those figures need not
reach anything.

Invariants
 - Each side has a file of its own, of the same size, in the page cache and with nothing dirty when
   a row begins.
 - The three samples of a round follow each other; each goes first in turn.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from iodma.errors import ArgumentError
from iodma.tools.bench.again import note_again, taken_again
from iodma.tools.bench.beside import check_pairs, facts, middle, processors, sampler
from iodma.tools.bench.budget import Budget, plan
from iodma.tools.bench.ends import begin, chosen, end
from iodma.tools.bench.files import PIECE, DataFile, data_file, shared_memory
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
from iodma.tools.bench.vhost_servers import (
    PEER,
    find_storage_daemon,
    null_storage_daemon,
    our_server,
    peer_variants,
)
from iodma.tools.bench.vhost_works import WORKS, Work, small
from iodma.tools.bench.workers import Case, Worker

__all__ = ["run"]

FILE_BYTES = 256 << 20
#: For the data of all requests in flight.
MEMORY_BYTES = 16 << 20
LOAD = "iodma.tools.bench.vhost_load:load"
NULL = "iodma.tools.bench.vhost_load:null"
IDLE = "iodma.tools.bench.vhost_load:idle"
OURS, OFF, BEST = "iodma", "iodma, spinning off", "best"
#: Each way to run the peer has so many short samples before a row.
TRIES, TRY_S = 3, 0.1
#: And each side one that nobody looks at, after its server has started.
WARM_S = 0.1
CEILING_S = 0.15
#: Times what a server does with I/O; with less the row measures the client.
LEAST_CEILING = 2.0
IDLE_S = 2.5
#: Estimates: a worker, a server that it starts, the three files.
WORKER_START_S, SERVER_START_S, FILES_S = 0.6, 0.5, 6.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the sides run."""

    client: int
    other: int | None

    def server(self, work: Work) -> int:
        return self.other if work.own and self.other is not None else self.client


def run(options: Options, tell: Callable[[str], None]) -> Report:
    """Measures every row, and writes the report.

    Args:
        options: what and how.
        tell: gets lines of progress.

    Raises:
        ArgumentError: an option that cannot be right.
        BenchError: a peer is missing, there is no room, or a side failed.
        OSError: a file or the report could not be written.
    """
    if options.trace is not None:
        raise ArgumentError(
            "vhost-user-blk takes no trace: trace the server, `iodma serve --trace`"
        )
    works = chosen(options, WORKS)
    place = places(options.cpu, works)
    _, version = find_storage_daemon()
    budget = plan(map(cost, works), sides=3, **limits(options))
    where = f"client on processor {place.client}, server on {place.other} or the same"
    begin(options, budget, where, tell)
    with ExitStack() as opened:
        bench = Bench(options, budget, place, tell, opened)
        rows, peers = [], {}
        for number, work in enumerate(works, 1):
            row, peers[work.name] = bench.measure(work, f"[{number}/{len(works)}] {work.name}")
            rows.append(row)
        extra = bench.extra()
        servers = {"own": place.other, "one": place.client}
        told = {PEER: version, "filesystem": bench.filesystem}
        machine = facts(budget, place.client, servers, **told)
    report = Report(options.name, rows, peers, machine, extra)
    return end(options, report, tell, bench.others)


class Bench:
    """The processes and files of a run, and what they showed beside the rows."""

    def __init__(
        self,
        options: Options,
        budget: Budget,
        place: Place,
        tell: Callable[[str], None],
        opened: ExitStack,
    ) -> None:
        self._options = options
        self._budget = budget
        self._place = place
        self._tell = tell
        self._opened = opened
        self._files: dict[tuple[str, int], DataFile] = {}
        self._memory = opened.enter_context(shared_memory(MEMORY_BYTES))
        self._workers: dict[str, Worker] = {}
        self._details: dict[str, Any] = {}
        self._off: list[Row] = []
        self.others: list[float] = []

    @property
    def filesystem(self) -> str:
        return self.file(BEST).filesystem

    def file(self, side: str, piece: int = PIECE) -> DataFile:
        """The file of a side, written in such pieces."""
        key = (side, piece)
        if key not in self._files:
            file = data_file(self._options.directory, FILE_BYTES, piece=piece)
            self._files[key] = self._opened.enter_context(file)
        return self._files[key]

    def measure(self, work: Work, heading: str) -> tuple[Row, str]:
        """One row, and its peer's command."""
        before = self.again()
        for name in (OURS, OFF, BEST):
            settle(self.file(name, work.piece))
        best, tried = self.best_peer(work)
        self._tell(f"{heading}: the peer is best with {best}")
        sides = [self.ours(work, spin=work.spin), self.peer(work, best)]
        if work.spin:
            sides.append(self.ours(work, spin=False))
        for side in sides:
            side.sample(WARM_S)
        seen: list[list[dict[str, Any]]] = [[] for _ in sides]

        samples = [
            sampler(side, self._budget.sample_s, details, self.others)
            for side, details in zip(sides, seen, strict=True)
        ]

        def progress(number: int, values: list[float]) -> None:
            text = ", ".join(f"{value:.6g}" for value in values)
            ratio = values[0] / values[1]
            self._tell(f"{heading}: round {number}/{self._budget.pairs}: {text}: {ratio:.3f} x")

        rounds = run_rounds(samples, self._budget.pairs, progress)
        row = self.row(work, work.name, best, [Pair(each[0], each[1]) for each in rounds])
        details = {"peer": best, "tried": tried, "ours": middle(seen[0]), "best": middle(seen[1])}
        if work.spin:
            name = f"{work.name}; spinning off"
            self._off.append(
                self.row(work, name, best, [Pair(each[2], each[1]) for each in rounds])
            )
            details["ours, spinning off"] = middle(seen[2])
        ceiling = self.ceiling(work)
        details["client alone"] = ceiling
        alone = max(ceiling.values())
        if alone < LEAST_CEILING * max(each["requests_per_second"] for each in seen[0]):
            self._tell(f"{heading}: note: the client alone does no more than {alone:.6g}")
        details["taken again"] = again = taken_again(self.again(), before)
        if again:
            self._tell(f"{heading}: {note_again(again)}")
        self._details[work.name] = details
        return row, self.described(work, peer_variants(work.direct)[best])

    def again(self) -> dict[str, int]:
        """How many samples each worker has had to take again."""
        return {name: worker.again for name, worker in self._workers.items()}

    def row(self, work: Work, name: str, best: str, pairs: list[Pair]) -> Row:
        return summarize(
            pairs, work=name, peer=f"{PEER}, {best}", must=work.must, better=work.better
        )

    def best_peer(self, work: Work) -> tuple[str, dict[str, float]]:
        """The way to run the peer that is best for this row, and what each gave."""
        names = list(peer_variants(work.direct))
        sides = [self.peer(work, name) for name in names]
        for side in sides:
            side.sample(WARM_S)
        samples = [partial(side.sample, TRY_S) for side in sides]
        columns = zip(*run_rounds(samples, TRIES), strict=True)
        tried = {name: round(median(each), 3) for name, each in zip(names, columns, strict=True)}
        choose = max if work.better == "higher" else min
        return choose(tried, key=lambda name: tried[name]), tried

    def peer(self, work: Work, name: str) -> Worker:
        """The peer in one of its ways."""
        return self.side(name, self.file(BEST, work.piece), work, peer_variants(work.direct)[name])

    def ours(self, work: Work, *, spin: bool) -> Worker:
        """Our server, or the peer in its place."""
        command = our_server(direct=work.direct, spin=spin)
        if self._options.itself:
            command = peer_variants(work.direct)["main loop"]
        side = OURS if spin else OFF
        return self.side(side, self.file(side, work.piece), work, command)

    def side(self, name: str, file: DataFile, work: Work, command: list[str]) -> Worker:
        options = {
            "command": command,
            "server_cpu": self._place.server(work),
            "shape": dict(work.shape),
            "write": work.write,
            "poll": work.own,
            "metric": work.metric,
        }
        return self.worker(name, Case(name, LOAD, options, True, True), file)

    def worker(self, name: str, case: Case, file: DataFile) -> Worker:
        """The worker of that name, with this case open."""
        worker = self._workers.get(name)
        if worker is None:
            worker = Worker(case, file.path, self._place.client, self._memory)
            self._workers[name] = self._opened.enter_context(closing(worker))
        elif worker.case != case:
            worker.open(case, file.path)
        return worker

    def ceiling(self, work: Work) -> dict[str, float]:
        """What the client does against two servers without I/O: a thread, and the peer."""
        file = self.file(BEST)
        options = {
            "server_cpu": self._place.server(work),
            "shape": dict(work.shape),
            "poll": work.own,
        }
        thread = self.worker("ceiling", Case("a thread", NULL, options), file)
        result = {"a thread that answers at once": round(thread.sample(CEILING_S), 1)}
        options["command"] = null_storage_daemon(FILE_BYTES)
        null = self.worker("ceiling", Case("null", LOAD, options, True, True), file)
        null.sample(WARM_S)
        result[f"{PEER}, null-co"] = round(null.sample(CEILING_S), 1)
        return result

    def idle(self) -> dict[str, Any]:
        """Milliseconds of processor time that connected servers use while nothing is asked."""
        result: dict[str, Any] = {"seconds": IDLE_S}
        commands = {OURS: our_server(), PEER: peer_variants(False)["main loop"]}
        if self._options.itself:
            del commands[OURS]
        for name, command in commands.items():
            options = {
                "command": command,
                "server_cpu": self._place.client,
                "shape": small(32),
            }
            file = self.file(OURS if name == OURS else BEST)
            # In the worker whose server had that file.
            worker = name if name == OURS else "ceiling"
            side = self.worker(worker, Case(name, IDLE, options, True), file)
            result[f"{name}, ms of processor time"] = round(side.sample(IDLE_S), 3)
        return result

    def extra(self) -> dict[str, Any]:
        """All that is not a row."""
        return {
            "spinning off": [asdict(row) for row in self._off],
            "spinning off, table": table(self._off, judge=False) if self._off else "",
            "rows": self._details,
            "idle": self.idle(),
            "ours": shlex.join(our_server()),
            "stand-in": "the peer is on both sides" if self._options.itself else "",
        }

    def described(self, work: Work, command: list[str]) -> str:
        return f"taskset -c {self._place.server(work)} {shlex.join(command)}"


def settle(file: DataFile) -> None:
    """The file is in the page cache, and nothing of it is dirty."""
    with open(file.path, "rb") as opened:
        os.fsync(opened.fileno())
    file.warm()


def places(wanted: int | None, works: Sequence[Work]) -> Place:
    """Where client and server run.

    Raises:
        ArgumentError: this process may not use the processor that is asked for.
        BenchError: a row needs two processors, and there is one.
    """
    client, other = processors(wanted)
    if other is None and any(work.own for work in works):
        raise BenchError('rows named "own" need two processors: give --only one')
    return Place(client, other)


def cost(work: Work) -> tuple[bool, float, float]:
    """For the plan: whether it is timed, seconds once, seconds a pair."""
    ways = len(peer_variants(work.direct))
    servers = (ways + 4) * SERVER_START_S
    samples = ways * (TRIES * TRY_S + WARM_S) + 4 * WARM_S + 2 * CEILING_S
    return True, servers + samples, 0.0


def limits(options: Options) -> dict[str, Any]:
    """For the plan: what the options leave.

    Raises:
        ArgumentError: an option that cannot be right.
    """
    check_pairs(options)
    workers = (len(peer_variants(False)) + 3) * WORKER_START_S
    once = FILES_S + workers + 2 * (IDLE_S + SERVER_START_S)
    return {
        "pairs": options.pairs,
        "total_s": options.seconds - once,
        "sample_s": options.sample_s,
    }
