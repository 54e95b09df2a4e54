# SPDX-License-Identifier: Apache-2.0
"""Scatter lists and positions, the same for both sides of a row.

Invariants
 - Everything follows from the arguments: both sides, in processes of their own, get the same lists.
 - Segments never overlap, and lie in the memory out of order, as a guest's pages do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Positions", "memory_bytes", "segment_table"]

U64 = NDArray[np.uint64]
SEED = 20070625


def stride(longest: int) -> int:
    """The distance between segments: a power of two, at least `longest` bytes."""
    return 1 << (longest - 1).bit_length()


def memory_bytes(lists: int, segments: int, longest: int) -> int:
    """The memory that `segment_table` spreads its segments over, in whole pages."""
    return -(-lists * segments * stride(longest) // 4096) * 4096


def segment_table(lists: int, segments: int, shortest: int, longest: int) -> U64:
    """(address, length) rows: the segments of list 0, then those of list 1, ...

    Lengths are even and spread evenly over `shortest` to `longest`. A list of one segment lies
    where its number says, as the buffers of a plain program would; longer lists are scattered.
    """
    count = lists * segments
    rng = np.random.default_rng(SEED)
    table = np.empty((count, 2), np.uint64)
    places = np.arange(count) if segments == 1 else rng.permutation(count)
    table[:, 0] = places * stride(longest)
    table[:, 1] = rng.integers(shortest // 2, longest // 2, count, endpoint=True) * 2
    return table


class Positions:
    """Where in the file each request goes; starts over when it has come to the end.

    Attributes:
        all: every position there is to come, in order.
    """

    def __init__(self, file_bytes: int, request_bytes: int, unit: int, random: bool) -> None:
        if random:
            last = (file_bytes - request_bytes) // unit
            rng = np.random.default_rng(SEED)
            self.all = rng.integers(0, last, 1 << 17, np.uint64, endpoint=True) * np.uint64(unit)
        else:
            self.all = np.arange(0, file_bytes - request_bytes + 1, unit).astype(np.uint64)
        self._next = 0

    def take(self, count: int) -> U64:
        """The next `count` positions, as a view."""
        begin = self._next
        end = begin + count
        if end > len(self.all):
            begin, end = 0, count
        self._next = end
        return self.all[begin:end]
