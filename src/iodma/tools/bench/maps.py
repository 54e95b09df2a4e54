# SPDX-License-Identifier: Apache-2.0
"""Memories of many regions, and the lists to translate through them.

Invariants
 - Regions never touch, so that none merge; both sides of a row build the same map from the same
   numbers.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

import iodma

__all__ = ["LISTS", "REGION_BYTES", "address_lists", "scattered_memory"]

#: Different lists that are translated in turn, so that no cache of one lookup serves them all.
LISTS = 256
REGION_BYTES = 64 << 10
#: From the first byte of a region to that of the next.
SPACING = 1 << 20
SEGMENT_BYTES = 4096
SEED = 64


def allow_descriptors(count: int) -> None:
    """Raises the soft limit on open descriptors, if it is below `count` and may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def scattered_memory(regions: int) -> Iterator[iodma.Memory]:
    """A memory of `regions` regions of one file, with holes between them."""
    allow_descriptors(2 * regions + 64)
    with ExitStack() as opened:
        fd = os.memfd_create("bench", os.MFD_CLOEXEC)
        opened.callback(os.close, fd)
        os.ftruncate(fd, regions * REGION_BYTES)
        yield iodma.Memory(
            {
                number * SPACING: opened.enter_context(
                    iodma.Ram.from_fd(fd, number * REGION_BYTES, REGION_BYTES)
                )
                for number in range(regions)
            }
        )


def address_lists(regions: int, segments: int) -> NDArray[np.uint64]:
    """LISTS x segments x (address, length): pages anywhere in the regions."""
    rng = np.random.default_rng(SEED)
    table = np.empty((LISTS, segments, 2), np.uint64)
    shape = (LISTS, segments)
    pages = rng.integers(0, REGION_BYTES // SEGMENT_BYTES, shape, np.uint64)
    table[:, :, 0] = rng.integers(0, regions, shape, np.uint64) * np.uint64(SPACING)
    table[:, :, 0] += pages * np.uint64(SEGMENT_BYTES)
    table[:, :, 1] = SEGMENT_BYTES
    return table
