# SPDX-License-Identifier: Apache-2.0
"""Where things are in the machines of `iodma bench sun4m`: a SPARCstation 5, ours or QEMU's.

Invariants
 - Only numbers and what follows from them: machines, drivers and peers import this, and it imports
   none of them.
 - Neighbours on the SBus are not neighbours in RAM, so that every frame and every read crosses
   pages that lie apart.

Sources: "Sun-4M System Architecture" (SBus IOMMU), NCR89C100 (DMA2), Am7990 (LANCE), NCR53C90
(ESP).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["descriptors", "initialization_block", "page_table", "physical"]

PAGE = 4096
RAM_BYTES = 16 << 20

# --- registers, by physical address ---

IOMMU_CONTROL, IOMMU_BASE, IOMMU_FLUSH_ALL = 0x1000_0000, 0x1000_0004, 0x1000_0014
ESPDMA_CSR, ESPDMA_ADDR = 0x7840_0000, 0x7840_0004
LEDMA_CSR, LEDMA_BASE = 0x7840_0010, 0x7840_001C
ESP = 0x7880_0000
RDP, RAP = 0x78C0_0000, 0x78C0_0002
#: Of our machine alone: what its engine has counted, 8 bytes each.
COUNTERS = 0x7F00_0000
COPIED, PYTHON_BYTES, FROM_MEMORY, TO_MEMORY = range(0, 32, 8)

# --- the SBus: a window of 16 MiB, the IOMMU's smallest ---

WINDOW = 0xFF00_0000
WINDOW_BYTES = 16 << 20
#: The table in RAM, a big-endian word a page; and the pages behind the first of the window.
TABLE, FIRST, PAGES = 0x10_0000, 0x40_0000, 1024
WRITABLE, VALID = 4, 2

# --- LANCE: 24-bit addresses, of that window ---

INIT_BLOCK, RING, BUFFERS = 0x0000, 0x1000, 0x10_0000
FRAMES, FRAME_BYTES = 64, 1514
RING_LOG2 = 6
#: From one buffer to the next: each third one crosses a page.
STRIDE = 0x600
INIT, STRT, STOP, TDMD, IDON, TINT = 0x0001, 0x0002, 0x0004, 0x0008, 0x0100, 0x0200
BSWP = 4
OWN, STP, ENP = 0x8000, 0x0200, 0x0100
STATION = bytes.fromhex("080020010203")

# --- ESP ---

#: Where READ(10) puts its 64 KiB: 17 pages, as the first one is entered in its middle.
DATA, READ_BYTES, BLOCK = 0x20_0200, 65536, 512
COMMAND = 0x30_0000
DISK_BYTES = 64 << 20

# --- lists to translate ---

LISTS, LIST_PAGES = 64, 16


def physical(address: int) -> int:
    """Where a byte of the window is in RAM."""
    page, offset = divmod(address, PAGE)
    return FIRST + (page * 389 + 17) % PAGES * 2 * PAGE + offset


def page_table() -> bytes:
    """The IOMMU's: `PAGES` entries."""
    entries = (physical(page * PAGE) >> 4 | WRITABLE | VALID for page in range(PAGES))
    return struct.pack(f">{PAGES}I", *entries)


def words(*values: int) -> bytes:
    """16-bit words as LANCE's bus has them in memory."""
    return struct.pack(f">{len(values)}H", *(value & 0xFFFF for value in values))


def initialization_block() -> bytes:
    """24 bytes: no receive ring to speak of, and a transmit ring of `FRAMES`."""
    station = struct.unpack("<3H", STATION)
    rings = (RING + 0x800, 0, RING, RING_LOG2 << 13)
    return words(0, *station, 0, 0, 0, 0, *rings)


def descriptors(lengths: Sequence[int]) -> bytes:
    """The transmit ring: a frame each, all given to the chip."""
    ring = b""
    for number, length in enumerate(lengths):
        address = BUFFERS + number * STRIDE
        ring += words(address, OWN | STP | ENP | address >> 16, 0xF000 | -length & 0xFFF, 0)
    return ring
