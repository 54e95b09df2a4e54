# SPDX-License-Identifier: Apache-2.0
"""The rows of `iodma bench vfio-user`, as data.

Invariants
 - One row for each figure that the project promises, in the order of its documents.
 - A row without a peer is a count, and has to be right in every sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iodma.tools.bench.harness import Better
from iodma.tools.bench.vfio_servers import our_server, peer_server

__all__ = ["WORKS", "Side", "Work"]

LOAD = "iodma.tools.bench.vfio_load"
#: So many messages take long where others want the processors, too.
MANY_S = 8.0


@dataclass(frozen=True, slots=True)
class Side:
    """A side of a row.

    Attributes:
        name: a short one, as the table has it.
        case: a function of `vfio_load`.
        command: of the server; empty: there is none, and the case runs on the server's processor.
    """

    name: str
    case: str
    command: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        return f"{LOAD}:{self.case}"


@dataclass(frozen=True, slots=True)
class Work:
    """A row before it is measured.

    Attributes:
        name: what is done.
        must: the value to reach.
        ours: our side.
        peer: the other side; None: what ours gives is a count.
        timed: a sample takes the time that it is told to; else `seconds`, about.
        told_s: what a sample is told that is not timed; the longer, the longer it is waited for.
        start_s: what setting a side up takes, about.
    """

    name: str
    must: float
    ours: Side
    peer: Side | None
    better: Better = "lower"
    unit: str = "x"
    timed: bool = True
    seconds: float = 0.0
    told_s: float = 0.1
    start_s: float = 1.0

    @property
    def loads_both(self) -> bool:
        """Both sides are servers."""
        return bool(self.ours.command and self.peer and self.peer.command)

    def itself(self) -> Work:
        """With the peer on both sides."""
        assert self.peer is not None
        return replace(self, ours=self.peer)


def ours(case: str) -> Side:
    return Side("iodma", case, tuple(our_server()))


def theirs(case: str, what: str) -> Side:
    return Side(f"C {what} server", case, tuple(peer_server(what)))


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
        peer=Side("C loop, memcpy", "copies"),
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
