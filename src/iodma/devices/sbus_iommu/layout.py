# SPDX-License-Identifier: Apache-2.0
"""The bits of the SBus IOMMU's registers and page-table entries, by their names.

Invariant: nothing here knows of the device.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from iodma.stages import PageEntry

__all__ = [
    "AFSR_RESV",
    "ARBITER_MASK",
    "IOPTE",
    "MASK_ID",
    "MID",
    "PAGE_BYTES",
    "RANGE_BYTES",
    "SBAE_MASK",
    "SLOT_MASK",
    "Afsr",
    "Arbiter",
    "Control",
    "IoPte",
    "SlotConfig",
    "iopte",
    "page_frame",
]

PAGE_BYTES = 4096
#: The range that RNGE says, by its value: it always ends at 0xffffffff.
RANGE_BYTES = tuple((16 << 20) << code for code in range(8))
#: Read-only bits of the module ID register: the IOMMU is MBus module 8.
MID = 0x8
#: The bits of the module ID register that let slots 0 to 3, SCSI and Ethernet arbitrate.
SBAE_MASK = 0x001F_0000
#: What bits 23:20 of the AFSR always read as.
AFSR_RESV = 0x0080_0000
#: Of the mask ID register: a turboSPARC's.
MASK_ID = 0x2300_0000


class Control(IntEnum):
    """The control register: fields as masks."""

    IMPL = 0xF000_0000
    VERS = 0x0F00_0000
    #: Size of the range: 16 MiB << RNGE.
    RNGE = 0x0000_001C
    #: Translation is on.
    ENAB = 0x0000_0001


class Afsr(IntFlag):
    """The asynchronous fault status register."""

    #: One of LE, TO and BE is set.
    ERR = 0x8000_0000
    #: Late error: found after the transaction was acknowledged.
    LE = 0x4000_0000
    #: Time-out.
    TO = 0x2000_0000
    #: Bus error: an error acknowledgement.
    BE = 0x1000_0000
    #: Size of the transaction.
    SIZE = 0x0E00_0000
    #: The processor was in supervisor mode.
    S = 0x0100_0000
    #: More than one error since the first, which is the one that the registers describe.
    ME = 0x0008_0000
    #: A read from memory.
    RD = 0x0004_0000
    #: The AFAR holds the address.
    FAV = 0x0002_0000


class Arbiter(IntFlag):
    """The arbiter enable register."""

    P0 = 0x0000_0001
    P1 = 0x0000_0002
    P2 = 0x0000_0004
    P3 = 0x0000_0008
    SB0 = 0x0001_0000
    SB1 = 0x0002_0000
    SB2 = 0x0004_0000
    SB3 = 0x0008_0000
    #: SCSI and Ethernet.
    SBF = 0x0010_0000
    #: Writes from the SBus may be asynchronous.
    SBW = 0x8000_0000


#: All of them.
ARBITER_MASK = 0x801F_000F


class SlotConfig(IntFlag):
    """A slot configuration register."""

    #: Physical address bit 30 of what bypasses the IOMMU.
    SAB30 = 0x0001_0000
    #: The slot's slave takes bursts of 16 bytes.
    BA16 = 0x0000_0004
    #: ... and of 8.
    BA8 = 0x0000_0002
    #: What the slot's master says is physical.
    BYPASS = 0x0000_0001


#: All of them.
SLOT_MASK = 0x0001_0007


class IoPte(IntFlag):
    """An entry of the page table (IOPTE)."""

    #: Physical page number: PA[35:12].
    PAGE = 0xFFFF_FF00
    #: Cacheable.
    CACHE = 0x80
    #: May be written.
    WRITE = 0x04
    VALID = 0x02
    #: Written as zero.
    WAZ = 0x01


def page_frame(physical_bits: int) -> int:
    """The bits of an IOPTE that say where its page is, in a machine of so many address bits."""
    return int(IoPte.PAGE) & ((1 << physical_bits) - 1) >> 4


#: The format, for 36-bit physical addresses.
IOPTE = PageEntry(
    width=4,
    byteorder="big",
    valid=int(IoPte.VALID),
    write=int(IoPte.WRITE),
    frame=page_frame(36),
    shift=4,
    cacheable=int(IoPte.CACHE),
)


def iopte(physical: int, *, write: bool = True, cache: bool = False) -> int:
    """A valid entry for the page at a physical address."""
    flags = IoPte.VALID | (IoPte.WRITE if write else 0) | (IoPte.CACHE if cache else 0)
    return physical >> 4 & IoPte.PAGE | flags
