# SPDX-License-Identifier: Apache-2.0
"""`iodma bench core`: the core against what else one could use for the same work.

Invariants
 - One row for each figure that the project promises, in the order of its documents.
 - Both sides of a row have the same file, lists, depth, batch, completions waited for,
   registrations and processor, and read into the very same pages of memory.
 - Where the user may not pin that memory, it is registered on neither side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iodma.tools.bench.fio import FioJob
from iodma.tools.bench.harness import Better, Compare
from iodma.tools.bench.workers import Case

__all__ = ["FILE_BYTES", "GUEST_BYTES", "WORKS", "Work", "unpinned"]

#: More than the caches hold, so that both sides read memory.
FILE_BYTES = 256 << 20
#: Where small lists are read from: what is compared there is the vector, not the memory's latency.
HOT_BYTES = 8 << 20
#: The memory of a guest, and so that of the peer.
GUEST_BYTES = 64 << 20
#: The guest of the row that weighs requests in flight.
SMALL_GUEST_BYTES = 32 << 20
REQUESTS = 4096
#: Of 64 KiB each, twice: 32 requests in flight, as in the other rows, and each in its own place.
SWAP_PIECES = 32

#: What a peer's name ends in that has the memory registered.
FIXED = ", fixed buffer"

OURS = "iodma.tools.bench.ours"
PEERS = "iodma.tools.bench.peers"


@dataclass(frozen=True, slots=True)
class Work:
    """A row before it is measured.

    Attributes:
        name: what is done.
        must: the value to reach.
        ours: our side.
        peer: the other side.
        fresh: every sample is a process of its own, and takes the time that it takes.
    """

    name: str
    must: float
    ours: Case
    peer: Case | FioJob
    better: Better = "higher"
    compare: Compare = "ratio"
    unit: str = "x"
    fresh: bool = False


def block_reads(
    name: str,
    must: float,
    *,
    block: int,
    depth: int,
    batch: int,
    complete_min: int = 0,
    sequential: bool = False,
    direct: bool = False,
) -> Work:
    """Reads of whole blocks, against fio."""
    complete_min = complete_min or batch
    ours = {
        "file_bytes": FILE_BYTES,
        "depth": depth,
        "batch": batch,
        "complete_min": complete_min,
        "longest": block,
        "unit": block,
        "random": not sequential,
        "direct": direct,
    }
    peer = FioJob(
        block_bytes=block,
        order="read" if sequential else "randread",
        depth=depth,
        batch=batch,
        complete_min=complete_min,
        direct=direct,
    )
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:reads", ours, reads_file=True, shares_memory=True),
        peer=peer,
    )


def list_reads(name: str, must: float, *, segments: int, shortest: int, longest: int) -> Work:
    """Random reads into scatter lists, against a C loop with the same lists."""
    # Below a page the peer is a plain readv: no registered buffer, and nobody who plans.
    fixed = shortest >= 4096
    options = {
        "file_bytes": FILE_BYTES if fixed else HOT_BYTES,
        "depth": 32,
        "batch": 16,
        "complete_min": 16,
        "segments": segments,
        "shortest": shortest,
        "longest": longest,
    }
    label = "C loop, io_uring readv" + (FIXED if fixed else "")
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:reads", options, reads_file=True, shares_memory=True),
        peer=Case(
            label,
            f"{PEERS}:list_reads",
            {**options, "fixed": fixed},
            reads_file=True,
            shares_memory=True,
        ),
    )


def coroutine_reads(name: str, must: float, *, depth: int) -> Work:
    """A device with a coroutine for each request, against fio."""
    options = {"file_bytes": FILE_BYTES, "depth": depth}
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:coroutines", options, reads_file=True, shares_memory=True),
        peer=FioJob(4096, depth=depth, batch=16, complete_min=16),
    )


def translations(name: str, must: float, *, regions: int) -> Work:
    """Translation from Python, against plain lookups in C."""
    options = {"regions": regions, "segments": 64}
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:translations", options),
        peer=Case("C loop, plain lookups", f"{PEERS}:lookups", options),
        better="lower",
    )


def swaps(name: str, must: float) -> Work:
    """The 16-bit swap path, against memcpy."""
    options = {"piece": 64 << 10, "pieces": SWAP_PIECES}
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:swapped", {**options, "batch": 16}),
        peer=Case("C loop, memcpy", f"{PEERS}:copies", options),
    )


def footprint(name: str, must: float) -> Work:
    """Memory that requests in flight add."""
    options = {"file_bytes": FILE_BYTES, "requests": REQUESTS, "ram_bytes": SMALL_GUEST_BYTES}
    return Work(
        name,
        must,
        ours=Case("iodma", f"{OURS}:footprint", options, reads_file=True),
        peer=Case("idle process", f"{OURS}:idle", {"ram_bytes": SMALL_GUEST_BYTES}),
        better="lower",
        compare="difference",
        unit="MiB",
        fresh=True,
    )


def thread_reads(name: str, must: float) -> Work:
    """The threads engine, against fio's plain preads."""
    block = 128 << 10
    options = {
        "file_bytes": FILE_BYTES,
        "depth": 16,
        "batch": 8,
        "complete_min": 8,
        "longest": block,
        "unit": block,
        "engine": "threads",
    }
    return Work(
        name,
        must,
        ours=Case("iodma, threads", f"{OURS}:reads", options, reads_file=True, shares_memory=True),
        peer=FioJob(block, engine="psync"),
    )


def unpinned(work: Work) -> Work:
    """The same row, with memory that is not registered on either side."""

    def side(what: Case | FioJob) -> Case | FioJob:
        if isinstance(what, FioJob):
            return replace(what, fixed=False)
        if not what.shares_memory:
            return what
        name = what.name.removesuffix(FIXED)
        return replace(what, name=name, options={**what.options, "fixed": False})

    ours = side(work.ours)
    assert isinstance(ours, Case)
    return replace(work, ours=ours, peer=side(work.peer))


KIB, MIB = 1 << 10, 1 << 20

WORKS = (
    block_reads("4 KiB random reads, cached, depth 32", 1.0, block=4 * KIB, depth=32, batch=16),
    block_reads("4 KiB random reads, cached, depth 256", 1.0, block=4 * KIB, depth=256, batch=16),
    block_reads("4 KiB random reads, cached, depth 1", 0.75, block=4 * KIB, depth=1, batch=1),
    block_reads(
        "4 KiB random reads, O_DIRECT, depth 32",
        0.9,
        block=4 * KIB,
        depth=32,
        batch=16,
        complete_min=8,
        direct=True,
    ),
    block_reads(
        "64 KiB sequential reads", 0.95, block=64 * KIB, depth=16, batch=8, sequential=True
    ),
    block_reads("1 MiB sequential reads", 0.95, block=MIB, depth=8, batch=4, sequential=True),
    list_reads("lists of 8 x 4 KiB, depth 32", 0.95, segments=8, shortest=4096, longest=4096),
    list_reads("lists of 64 x 4 KiB, depth 32", 0.95, segments=64, shortest=4096, longest=4096),
    list_reads("lists of 64 x 32-128 B, depth 32", 1.5, segments=64, shortest=32, longest=128),
    coroutine_reads("4 KiB reads, one coroutine each, depth 32", 0.55, depth=32),
    translations("translate 64 segments, 4 regions, time", 1.5, regions=4),
    translations("translate 64 segments, 4096 regions, time", 1.25, regions=4096),
    swaps("16-bit swap of 64 KiB", 0.8),
    footprint("memory added by 4096 requests in flight", 32),
    thread_reads("128 KiB random reads, threads engine", 0.9),
)
