# SPDX-License-Identifier: Apache-2.0
"""What the two ends of `iodma bench vfio-user` agree on: registers, descriptors, where memory is.

Invariants
 - Only numbers: the device, the client and the peers import this, and it imports none of them.
 - The lists' pages lie in the memory out of order, as a guest's do, and no two overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["list_tables"]

PAGE = 4096

# --- registers, in BAR 0 ---

SOURCE, TARGET, COPY = 0x00, 0x08, 0x10
ENTRIES, RING, TAIL = 0x14, 0x18, 0x20
STATUS = 0x24
PYTHON_BYTES, COPIED_BYTES = 0x28, 0x30
BAR_BYTES = 4096
#: Interrupts: one page was copied; a group of lists was.
PAGE_DONE, LISTS_DONE = 0, 1

# --- memory ---

#: Shared by the client and the server; on the bus from here on.
MEMORY_BYTES = 64 << 20
MEMORY_AT = 1 << 32
#: A copy of one page, of the row that does one at a time.
PAGE_SOURCE, PAGE_TARGET = 0x40000, 0x80000
#: Copies by lists: the ring of descriptors, their tables, and the pages.
RING_AT, TABLES_AT, PAGES_AT = 0, 0x100000, 0x200000
DESCRIPTOR_BYTES, RESULT_AT, RESULT_BYTES = 32, 24, 8
LISTS, GROUP, SEGMENTS = 64, 16, 64
LIST_BYTES = SEGMENTS * PAGE
#: What the device reads and writes for a list, beside what it copies: control, not payload.
ENTRY_BYTES = 16
CONTROL_BYTES = DESCRIPTOR_BYTES + RESULT_BYTES + 2 * SEGMENTS * ENTRY_BYTES

# --- many regions ---

#: Of one page each, downwards from below 4 GiB, as Linux gives bus addresses behind an IOMMU; of
#: the file every page at most once, in no order.
REGIONS = 10_000
FIRST_REGION = 0xFFFF_F000
FILE_PAGES = MEMORY_BYTES // PAGE
FILE_STEP = 7919
SEED = 20070625


def list_tables() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sources and targets: rows of (offset into the memory, length), `SEGMENTS` to a list."""
    count = LISTS * SEGMENTS
    places = PAGES_AT + PAGE * np.random.default_rng(SEED).permutation(2 * count)
    tables = np.full((2, count, 2), PAGE, np.uint64)
    tables[:, :, 0] = places.reshape(2, count)
    return tables[0].copy(), tables[1].copy()
