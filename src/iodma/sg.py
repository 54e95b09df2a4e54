# SPDX-License-Identifier: Apache-2.0
"""Scatter lists, and the columns of batches and completions.

Invariants
 - A `ScatterList` never changes.
 - The columns of a `Batch` and of `Completions` are NumPy views of one block that the core reads
   and writes; nothing is copied to submit or to complete.
 - What stands in a batch's columns is checked when it is submitted, in the core: columns may be
   filled with whatever a guest says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iodma._core import Columns, Completed, ScatterList
from iodma.errors import ArgumentError, integer
from iodma.types import Status

__all__ = ["Batch", "Completions", "ScatterList", "SegmentsLike"]

#: Anywhere a scatter list is taken: one, a sequence of (address, length), or a single (address,
#: length).
SegmentsLike: TypeAlias = ScatterList | Sequence[tuple[int, int]] | tuple[int, int]

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]


def scatter_list_from_arrays(addresses: U64, lengths: U64) -> ScatterList:
    """A `ScatterList` of two arrays of as many 64-bit numbers."""
    return ScatterList._from_arrays(
        np.ascontiguousarray(addresses, np.uint64), np.ascontiguousarray(lengths, np.uint64)
    )


class Batch(Columns):
    """Requests to be submitted with one call: a struct of arrays.

    Request ``i`` (``0 <= i < n``) moves the segments ``first[i]`` to ``first[i] + count[i] - 1``.

    Args:
        requests: most requests it holds.
        segments: most segments, of all its requests together.

    Attributes:
        n: how many requests are in use.
        id: uint64[requests], the caller's own, given back with the completion.
        position: uint64[requests], where in the endpoint, in bytes (or in the `unit` of the
            submit).
        ticket: uint64[requests], written by the submit.
        first, count: uint32[requests], which segments.
        direction: uint8[requests], a `Direction`.
        address, length: uint64[segments], bus addresses and bytes.
    """

    id: U64
    position: U64
    ticket: U64
    address: U64
    length: U64
    first: U32
    count: U32
    direction: U8

    def __new__(cls, requests: int, segments: int | None = None) -> Batch:
        requests = integer(requests, "requests")
        segments = requests if segments is None else integer(segments, "segments")
        if not 1 <= requests <= 1 << 20 or not 1 <= segments <= 1 << 24:
            raise ArgumentError(
                f"a batch of {requests} requests and {segments} segments;"
                " 1 to 2^20 and 1 to 2^24 would be right"
            )
        size = requests * (3 * 8 + 2 * 4 + 1) + segments * 16
        self = super().__new__(cls, size, requests, segments)
        block: Any = self._block

        def column(offset: int, count: int, dtype: type[np.generic]) -> Any:
            return np.frombuffer(block, dtype, count, offset)

        at = 0
        for name in ("id", "position", "ticket"):
            setattr(self, name, column(at, requests, np.uint64))
            at += requests * 8
        for name in ("address", "length"):
            setattr(self, name, column(at, segments, np.uint64))
            at += segments * 8
        for name in ("first", "count"):
            setattr(self, name, column(at, requests, np.uint32))
            at += requests * 4
        self.direction = column(at, requests, np.uint8)
        self._keep((self.ticket,))
        return self


class Completions(Completed):
    """What finished, in any order: a struct of arrays of length ``len(completions)``.

    `ticket`, `id`, `moved`, `error`, `status`, `fault_offset` and `fault_address` are its columns;
    they are used again for a later batch unless somebody still holds one of them. `all_ok` is
    whether every one of them is OK.
    """

    def __new__(cls, limit: int) -> Completions:
        self = super().__new__(cls, limit * (5 * 8 + 4 + 1), limit, 0)
        block: Any = self._block
        words = [np.frombuffer(block, np.uint64, limit, i * 8 * limit) for i in range(5)]
        at = 5 * 8 * limit
        error = np.frombuffer(block, np.int32, limit, at)
        status = np.frombuffer(block, np.uint8, limit, at + 4 * limit)
        self._keep((*words, error, status))
        return self

    def __repr__(self) -> str:
        names = [Status(s).name for s in self.status[:4]]
        return f"<Completions {self.n}: {', '.join(names)}{'...' if self.n > 4 else ''}>"
