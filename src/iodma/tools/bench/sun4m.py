# SPDX-License-Identifier: Apache-2.0
"""`iodma bench sun4m`: a SPARCstation 5 of ours and QEMU's, driven alike, and loops in C.

The driver has one processor, each machine the other one. It is a program that speaks qtest: what it
writes and reads is the same for both, and neither has a processor of its own that would run code.

Invariants
 - Both machines have the same frames to send, the same disk, and the same lines to answer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from iodma.errors import ArgumentError
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.beside import facts
from iodma.tools.bench.budget import plan
from iodma.tools.bench.ends import begin, end
from iodma.tools.bench.files import data_file
from iodma.tools.bench.harness import Report
from iodma.tools.bench.options import Options
from iodma.tools.bench.sides import Work, described
from iodma.tools.bench.sun4m_works import works
from iodma.tools.bench.two_sides import Bench, costs, find_peers, limits, on_sides, places

__all__ = ["run"]

#: Of `iodma._peer`.
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
    find_peers(LOOPS)
    chosen = on_sides(options, works(options.wants))
    budget = plan([once(work) for work in chosen], **limits(options))
    begin(options, budget, f"driver on processor {client}, machine on {server}", tell)
    with ExitStack() as opened:
        disk = opened.enter_context(data_file(options.directory, layout.DISK_BYTES))
        bench = Bench(budget, client, tell, opened, disk.path)
        rows = [
            bench.measure(work, server, f"[{number}/{len(chosen)}] {work.name}")
            for number, work in enumerate(chosen, 1)
        ]
        machine = facts(budget, client, server, filesystem=disk.filesystem)
    peers = {work.name: described(work.peer, server) for work in chosen}
    extra = {
        "rows": bench.details,
        "stand-in": "the peer is on both sides" if options.itself else "",
    }
    report = Report(options.name, rows, peers, machine, extra)
    return end(options, report, tell, bench.others)


def once(work: Work) -> tuple[bool, float, float]:
    """What a row costs, measured once."""
    return costs([work])[0]
