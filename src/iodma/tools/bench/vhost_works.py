# SPDX-License-Identifier: Apache-2.0
"""The rows of `iodma bench vhost-user-blk`, as data.

Invariants
 - One row for each figure that the project promises, in the order of its documents.
 - Both sides of a row get the same requests from the same client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from iodma.tools.bench.files import PIECE
from iodma.tools.bench.harness import Better

__all__ = ["WORKS", "Work", "small"]

#: Entries of the queue, as VMMs have it.
QUEUE_SIZE = 128


@dataclass(frozen=True, slots=True)
class Work:
    """A row before it is measured.

    Attributes:
        name: what is done.
        must: the value to reach.
        own: client and server have a processor each.
        shape: of the client's requests: depth, segments, segment_bytes.
        write: random writes, else random reads.
        direct: the server opens the file with O_DIRECT.
        spin: our server may spin.
        metric: what is compared: requests a second, or the server's processor time for each.
    """

    name: str
    must: float
    own: bool
    shape: Mapping[str, int] = field(default_factory=dict)
    write: bool = False
    direct: bool = False
    spin: bool = True
    metric: Literal["requests", "processor"] = "requests"

    @property
    def piece(self) -> int:
        """What the file is written in: as a guest that writes such requests leaves it."""
        return self.shape["segments"] * self.shape["segment_bytes"] if self.write else PIECE

    @property
    def better(self) -> Better:
        return "higher" if self.metric == "requests" else "lower"


def small(depth: int) -> dict[str, int]:
    """Requests of 4 KiB."""
    return {"depth": depth, "segments": 1, "segment_bytes": 4096, "queue_size": QUEUE_SIZE}


def large(segments: int) -> dict[str, int]:
    """Eight requests of 128 KiB."""
    size = (128 << 10) // segments
    return {"depth": 8, "segments": segments, "segment_bytes": size, "queue_size": QUEUE_SIZE}


READS = "4 KiB random reads, cached"
DIRECT = "4 KiB random reads, O_DIRECT"
LARGE = "128 KiB random reads, cached, depth 8"

WORKS = (
    Work(f"{READS}, depth 1, own", 2.0, True, small(1)),
    Work(f"{READS}, depth 1, one", 0.85, False, small(1)),
    Work(f"{READS}, depth 32, own", 1.25, True, small(32)),
    Work(f"{READS}, depth 32, one", 2.5, False, small(32)),
    Work("4 KiB random writes, cached, depth 32, own", 1.2, True, small(32), write=True),
    Work(f"{LARGE}, one segment, own", 1.0, True, large(1)),
    Work(f"{LARGE}, 32 segments, own", 1.0, True, large(32)),
    Work(f"{DIRECT}, depth 1, own", 0.95, True, small(1), direct=True),
    Work(f"{DIRECT}, depth 32, own", 0.95, True, small(32), direct=True),
    Work(
        "processor time a request in the server, depth 32, spinning off, one",
        0.5,
        False,
        small(32),
        spin=False,
        metric="processor",
    ),
)
