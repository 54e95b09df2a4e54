# SPDX-License-Identifier: Apache-2.0
"""How a generator writes a program down: a guest that maps pages, fills rings, pokes registers.

Invariants:

- Everything that is drawn comes from one generator of random numbers, so a seed gives a program.
- A `Script` knows what the guest would know (where its pages, rings and buffers are), and nothing
  of what a device does with them.
- 16-bit words that LANCE reads are big-endian in memory: DMA2's byte lanes (NCR89C100, "Ethernet").
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from tests.peers.sun4m.machine import (
    ARENA,
    ARENA_BYTES,
    IOMMU_BASE,
    IOMMU_CONTROL,
    IOMMU_FLUSH_ALL,
    IOMMU_FLUSH_PAGE,
    LEDMA,
    PAGE,
    RAP,
    RDP,
    TABLE,
    TABLE_BYTES,
)
from tests.peers.sun4m.program import Program, Step

PAGES = ARENA_BYTES // PAGE
WRITABLE, VALID = 4, 2
#: Bus addresses of the smallest range: the last 16 MiB.
WINDOW = 0xFF00_0000

# CSR0 (Am7990, "Control and Status Register 0").
ERR, BABL, CERR, MISS, MERR = 0x8000, 0x4000, 0x2000, 0x1000, 0x0800
RINT, TINT, IDON, INTR, INEA = 0x0400, 0x0200, 0x0100, 0x0080, 0x0040
RXON, TXON, TDMD, STOP, STRT, INIT = 0x0020, 0x0010, 0x0008, 0x0004, 0x0002, 0x0001
# CSR3.
BSWP, ACON, BCON = 4, 2, 1
# Mode word of the initialization block.
PROM, INTL, DRTY, COLL, DTCR, LOOP, DTX, DRX = 0x8000, 0x40, 0x20, 0x10, 8, 4, 2, 1
# Descriptors, second word.
#: What is in front of the last byte of an odd buffer whose words are swapped.
TAIL = 0xA5
OWN, STP, ENP = 0x8000, 0x0200, 0x0100


@dataclass
class Script:
    """A program that grows.

    Attributes:
        pages: of each mapped bus page (an index into the window), the arena's page behind it.
    """

    rng: random.Random
    steps: list[Step] = field(default_factory=list)
    pages: dict[int, int] = field(default_factory=dict)
    writable: dict[int, bool] = field(default_factory=dict)

    def program(self, kind: str, seed: int) -> Program:
        """What was written, and a check at the end."""
        if not self.steps or self.steps[-1].op != "check":
            self.check()
        return Program(kind, seed, tuple(self.steps))

    # --- steps ------------------------------------------------------------------------------------

    def write(self, address: int, value: int, size: int = 4) -> None:
        self.steps.append(Step("write", address, size, value))

    def read(self, address: int, size: int = 4) -> None:
        self.steps.append(Step("read", address, size))

    def store(self, address: int, data: bytes) -> None:
        if data:
            self.steps.append(Step("store", address, data=data))

    def fill(self, address: int, size: int, value: int = 0) -> None:
        self.steps.append(Step("fill", address, size, value))

    def clock(self, nanoseconds: int) -> None:
        self.steps.append(Step("clock", value=nanoseconds))

    def frame(self, data: bytes) -> None:
        self.steps.append(Step("frame", data=data))

    def check(self) -> None:
        self.steps.append(Step("check"))

    def chance(self, likely: float) -> bool:
        return self.rng.random() < likely

    # --- the IOMMU and what is behind it ----------------------------------------------------------

    def iommu(self, size: int = 0) -> None:
        """Table, base and control; no page of the last 16 MiB is mapped.

        Args:
            size: log2 of the range in units of 16 MiB, 0 to 7.
        """
        self.fill(TABLE, TABLE_BYTES)
        self.write(IOMMU_BASE, TABLE + TABLE_BYTES - (TABLE_BYTES << size) >> 4)
        self.write(IOMMU_CONTROL, size << 2 | 1)
        self.write(IOMMU_FLUSH_ALL, 0)

    def map(self, page: int, behind: int, *, writable: bool = True, valid: bool = True) -> None:
        """Writes a PTE; the page is not flushed.

        Args:
            page: of the window, 0 to 4095.
            behind: of the arena.
        """
        pte = (ARENA + behind * PAGE) >> 4 & 0xFFFF_FF00
        pte |= (WRITABLE if writable else 0) | (VALID if valid else 0)
        self.store(TABLE + 4 * page, struct.pack(">I", pte))
        self.pages[page] = behind
        self.writable[page] = writable

    def map_all(self, first: int = 0) -> None:
        """The whole arena from `first` on, in a drawn order."""
        behind = list(range(PAGES))
        self.rng.shuffle(behind)
        table = b""
        for place, page in enumerate(behind):
            table += struct.pack(">I", (ARENA + page * PAGE) >> 4 & 0xFFFF_FF00 | WRITABLE | VALID)
            self.pages[first + place] = page
            self.writable[first + place] = True
        self.store(TABLE + 4 * first, table)
        self.write(IOMMU_FLUSH_ALL, 0)

    def flush(self, page: int) -> None:
        self.write(IOMMU_FLUSH_PAGE, WINDOW + page * PAGE)

    def bus_store(self, address: int, data: bytes) -> None:
        """Stores into the pages that are behind an address of the window; elsewhere nothing."""
        address &= 0xFF_FFFF
        while data:
            page, offset = divmod(address, PAGE)
            part = data[: PAGE - offset]
            if page in self.pages:
                self.store(ARENA + self.pages[page] * PAGE + offset, part)
            data, address = data[len(part) :], address + len(part)

    # --- LANCE ------------------------------------------------------------------------------------

    def csr(self, number: int, value: int) -> None:
        self.write(RAP, number, 2)
        self.write(RDP, value, 2)

    def csr_read(self, number: int) -> None:
        self.write(RAP, number, 2)
        self.read(RDP, 2)

    def ledma(self, register: int, value: int) -> None:
        self.write(LEDMA + register, value)


def words(*values: int) -> bytes:
    """16-bit words as LANCE's bus has them in memory."""
    return struct.pack(f">{len(values)}H", *(value & 0xFFFF for value in values))


def init_block(
    mode: int, station: bytes, logical: bytes, receive: tuple[int, int], transmit: tuple[int, int]
) -> bytes:
    """24 bytes (Am7990, "Initialization Block"); a ring is its address and log2 of its length."""
    rings = ((at & 0xFFFF, at >> 16 & 0xFF | log2 << 13) for at, log2 in (receive, transmit))
    return words(
        mode,
        *struct.unpack("<3H", station),
        *struct.unpack("<4H", logical),
        *(word for ring in rings for word in ring),
    )


def descriptor(address: int, status: int, size: int, last: int = 0) -> bytes:
    """8 bytes; `size` becomes two's complement with ones above (TMD2, RMD2)."""
    return words(address, status & 0xFF00 | address >> 16 & 0xFF, 0xF000 | -size & 0xFFF, last)


def swapped(data: bytes) -> bytes:
    """Bytes of each 16-bit word exchanged; an odd tail gets `TAIL` for company."""
    data += bytes([TAIL][: len(data) % 2])
    found = bytearray(data)
    found[::2], found[1::2] = data[1::2], data[::2]
    return bytes(found)
