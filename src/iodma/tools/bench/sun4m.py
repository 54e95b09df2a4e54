# SPDX-License-Identifier: Apache-2.0
"""`iodma bench sun4m`: a SPARCstation 5 of ours and QEMU's, driven alike, and loops in C.

The driver has one processor, each machine the other one. It is a program that speaks qtest: what it
writes and reads is the same for both, and neither has a processor of its own that would run code.

Invariants
 - Both machines have the same frames to send, the same disk, and the same lines to answer.
 - A count is what the worst sample gave.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

from iodma.errors import ArgumentError
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.beside import facts
from iodma.tools.bench.budget import Budget, plan
from iodma.tools.bench.files import data_file
from iodma.tools.bench.harness import BenchError, Report
from iodma.tools.bench.options import Options
from iodma.tools.bench.sun4m_works import MachineSide, works
from iodma.tools.bench.vfio_user import (
    MOST_OTHERS,
    Bench,
    costs,
    described,
    limits,
    places,
)
from iodma.tools.bench.vfio_works import Side, Work
from iodma.tools.bench.workers import Case, Worker

__all__ = ["run"]

#: Of the C loops.
LOOPS = ("packet_send_loop", "packet_drain", "table_walk_loop")


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
        raise ArgumentError("sun4m takes no trace: its machines are processes of their own")
    client, server = places(options.cpu)
    find_loops()
    chosen = chosen_works(options)
    budget = plan([once(work) for work in chosen], **limits(options))
    if options.output:
        options.output.touch()
    tell(f"{options.name}: {budget}; driver on processor {client}, machine on {server}")
    if (load := os.getloadavg()[0]) > 0.5 * len(os.sched_getaffinity(0)):
        tell(f"note: others use this machine (load {load:.1f}): expect the pairs to differ more")
    with ExitStack() as opened:
        disk = opened.enter_context(data_file(options.directory, layout.DISK_BYTES))
        bench = MachineBench(disk.path, budget, client, tell, opened)
        rows = [
            bench.measure(work, server, f"[{number}/{len(chosen)}] {work.name}")
            for number, work in enumerate(chosen, 1)
        ]
        machine = facts(budget, client, server, filesystem=disk.filesystem)
    machine["others_percent"] = round(median(bench.others or [0.0]), 1)
    if (others := machine["others_percent"]) > MOST_OTHERS:
        tell(f"note: others had {others:.0f} % of the processors: these figures tell little")
    peers = {work.name: described(work.peer, server) for work in chosen}
    extra = {
        "rows": bench.details,
        "stand-in": "the peer is on both sides" if options.itself else "",
    }
    report = Report(options.name, rows, peers, machine, extra)
    if options.output:
        report.write(options.output)
    return report


class MachineBench(Bench):
    """Sides that may have a disk."""

    def __init__(
        self,
        disk: Path,
        budget: Budget,
        client: int,
        tell: Callable[[str], None],
        opened: ExitStack,
    ) -> None:
        super().__init__(budget, client, tell, opened)
        self._disk = disk

    def open(self, side: Side, server: int, opened: ExitStack) -> Worker:
        """A side, started."""
        options: dict[str, Any] = {}
        if side.command:
            options = {"command": list(side.command), "server_cpu": server}
        reads = isinstance(side, MachineSide) and side.disk
        case = Case(side.name, side.function, options, reads_file=reads, shares_memory=True)
        cpu = self._client if side.command else server
        return opened.enter_context(closing(Worker(case, self._disk, cpu, self._memory)))


def once(work: Work) -> tuple[bool, float, float]:
    """What a row costs, measured once."""
    return costs([work])[0]


def find_loops() -> None:
    """Sees that the C loops are there.

    Raises:
        BenchError: they are not.
    """
    try:
        from iodma import _peer
    except ImportError as error:
        raise BenchError(
            f"the peers of this benchmark are C loops that are built from a checkout: {error}"
        ) from None
    for name in LOOPS:
        if not hasattr(_peer, name):
            raise BenchError(f"iodma._peer has no {name}, a peer of this benchmark: make build")


def chosen_works(options: Options) -> list[Work]:
    """The rows that are asked for.

    Raises:
        ArgumentError: there is no such row.
    """
    found = works(options.wants)
    if options.itself:
        found = [work.itself() for work in found if work.peer is not None]
    if not found:
        raise ArgumentError(f"no row of {options.name} contains any of {', '.join(options.only)}")
    return found
