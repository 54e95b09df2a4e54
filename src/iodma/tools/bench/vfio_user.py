# SPDX-License-Identifier: Apache-2.0
"""`iodma bench vfio-user`: a device of ours in its own process, and C servers that do just that.

The client has one processor, each server the other one. Both sleep when they wait, as the threads
of a machine monitor do, and so each has to be woken: often the most of what a round trip takes. So
the rows that load a server are measured once more with both on one processor, where a switch is
all, and what the server does shows; those figures need not reach anything.

Invariants
 - Both sides of a row share the same memory with the same client.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace

from iodma.errors import ArgumentError
from iodma.tools.bench.beside import facts
from iodma.tools.bench.budget import plan
from iodma.tools.bench.ends import begin, end
from iodma.tools.bench.harness import Report, table
from iodma.tools.bench.options import Options
from iodma.tools.bench.sides import described
from iodma.tools.bench.two_sides import Bench, costs, find_peers, limits, on_sides, places
from iodma.tools.bench.vfio_works import WORKS

__all__ = ["run"]

#: Of `iodma._peer`.
PEERS = ("VfioUser", "vfio_serve", "list_copy_loop")


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
    works = on_sides(options, WORKS)
    client, server = places(options.cpu)
    find_peers(PEERS)
    budget = plan(costs(works), **limits(options))
    where = f"client on processor {client}, server on {server}"
    begin(options, budget, where, tell)
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
    extra = {
        "one processor": [asdict(row) for row in one],
        "one processor, table": table(one, judge=False) if one else "",
        "rows": bench.details,
        "stand-in": "the peer is on both sides" if options.itself else "",
    }
    report = Report(options.name, rows, peers, facts(budget, client, server), extra)
    return end(options, report, tell, bench.others)
