# SPDX-License-Identifier: Apache-2.0
"""The C loops of `iodma._peer` as cases of a worker: see `workers.py` for what a case is.

Invariants
 - A peer gets the lists, the file, the depth, the batch and the registrations of our side.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from iodma import _peer
from iodma.tools.bench.lists import memory_bytes, segment_table
from iodma.tools.bench.maps import address_lists, scattered_memory

__all__ = ["copies", "list_reads", "lookups"]

Sample = Callable[[float], float]


@contextmanager
def list_reads(
    path: str,
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
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with mmap.mmap(-1, memory_bytes(depth, segments, longest)) as memory:

        def sample(seconds: float) -> float:
            ns, requests, _ = _peer.uring_read_loop(
                fd,
                memory,
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

        try:
            yield sample
        finally:
            os.close(fd)


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
        addresses = address_lists(regions, segments)[:, :, 0].copy()

        def sample(seconds: float) -> float:
            total = found = rounds = 0
            while total < seconds * 1e9:
                rounds = min(2 * rounds or 1, 1024)
                ns, count, _ = _peer.lookup_loop(memory, addresses, rounds=rounds)
                total, found = total + ns, found + count
            return total / found

        yield sample
