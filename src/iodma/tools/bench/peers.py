# SPDX-License-Identifier: Apache-2.0
"""The C loops of `iodma._peer` as cases of a worker: see `workers.py` for what a case is.

Invariants
 - A peer gets the lists, the file, the depth, the batch and the registrations of our side.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import iodma
from iodma import _peer
from iodma.tools.bench.lists import segment_table
from iodma.tools.bench.maps import address_lists, scattered_memory

__all__ = ["copies", "list_reads", "lookups"]

Sample = Callable[[float], float]


def mapped(memory: str) -> mmap.mmap:
    """The memory that both sides of a row share."""
    fd = os.open(memory, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


@contextmanager
def list_reads(
    path: str,
    memory: str,
    file_bytes: int,
    depth: int,
    segments: int,
    shortest: int,
    longest: int,
    batch: int,
    complete_min: int,
    fixed: bool,
) -> Iterator[Sample]:
    """Random reads into lists, through io_uring: requests a second."""
    lists = segment_table(depth, segments, shortest, longest)
    with ExitStack() as opened:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        target = opened.enter_context(mapped(memory))

        def sample(seconds: float) -> float:
            ns, requests, _ = _peer.uring_read_loop(
                fd,
                target,
                lists,
                segments=segments,
                file_bytes=file_bytes,
                batch=batch,
                complete_min=complete_min,
                fixed_file=True,
                fixed_buffer=fixed,
                seconds=seconds,
            )
            return requests / ns * 1e9

        yield sample


@contextmanager
def copies(piece: int, pieces: int) -> Iterator[Sample]:
    """memcpy between two areas of `pieces` pieces: copies a second."""
    with mmap.mmap(-1, piece * pieces) as source, mmap.mmap(-1, piece * pieces) as target:
        source.write(os.urandom(piece) * pieces)

        def sample(seconds: float) -> float:
            ns, done, _ = _peer.memcpy_loop(target, source, piece, seconds=seconds)
            return done / ns * 1e9

        yield sample


@contextmanager
def lookups(regions: int, segments: int) -> Iterator[Sample]:
    """Plain lookups in the map of a memory: nanoseconds a segment."""
    with scattered_memory(regions) as memory:
        lists = [
            iodma.ScatterList([(int(address), int(length)) for address, length in one])
            for one in address_lists(regions, segments)
        ]

        def sample(seconds: float) -> float:
            total = 0.0
            rounds = 0
            while total < seconds * 1e9:
                for one in lists:
                    total += memory._lookup_loop(one, 1)
                rounds += 1
            return total / (rounds * len(lists) * segments)

        yield sample
