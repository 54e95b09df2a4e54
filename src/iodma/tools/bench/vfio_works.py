# SPDX-License-Identifier: Apache-2.0
"""The rows of `iodma bench vfio-user`, as data.

Invariants
 - One row for each figure that the project promises, in the order of its documents.
 - A count has to be right in every sample.
"""

from __future__ import annotations

from iodma.tools.bench.sides import Side, Work
from iodma.tools.bench.vfio_servers import our_server, peer_server

__all__ = ["WORKS"]

LOAD = "iodma.tools.bench.vfio_load"
#: So many messages take long where others want the processors, too.
MANY_S = 8.0


def ours(case: str) -> Side:
    return Side("iodma", f"{LOAD}:{case}", tuple(our_server()))


def theirs(case: str, what: str) -> Side:
    return Side(f"C {what} server", f"{LOAD}:{case}", tuple(peer_server(what)))


WORKS = (
    Work("register read round trip, median", 3.0, ours("reads"), theirs("reads", "echo")),
    Work(
        "doorbell to interrupt with one 4 KiB DMA, median",
        3.0,
        ours("doorbells"),
        theirs("doorbells", "doorbell"),
    ),
    Work(
        "copy engine, lists of 64 x 4 KiB, MB/s",
        0.8,
        ours=ours("lists"),
        peer=Side("C loop, memcpy", f"{LOAD}:copies"),
        better="higher",
        start_s=2.0,
    ),
    Work(
        "10,000 DMA regions of 4 KiB, map and unmap",
        2.5,
        ours("regions"),
        theirs("regions", "echo"),
        timed=False,
        seconds=1.5,
        told_s=MANY_S,
    ),
    Work(
        "mappings held for 10,000 regions of one file",
        4,
        ours=ours("mappings"),
        peer=None,
        unit="mappings",
        timed=False,
        seconds=1.0,
        told_s=MANY_S,
    ),
    Work(
        "payload bytes through Python",
        0,
        ours=ours("payload"),
        peer=None,
        unit="bytes",
        timed=False,
        seconds=0.4,
        start_s=2.0,
    ),
)
