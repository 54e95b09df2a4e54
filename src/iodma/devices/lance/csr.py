# SPDX-License-Identifier: Apache-2.0
"""The control and status registers (section "Control and Status Registers").

What a write to CSR0 does is in three tables here: bits that a one clears, the flags that ask for
service, and `STATES`, the transitions that STOP, INIT and STRT make.  The chip does what these
tables say, and nothing else changes its state but a memory error, a transmitter's failure
(`CSR0.TXON`, `CSR0.RXON`) and the end of an initialization.

Invariants
 - ERR and INTR are never stored: they are what the other flags make of them, at each read.
 - While STOP is set every other bit of CSR0 is clear.
"""

from __future__ import annotations

from enum import Enum, IntFlag

__all__ = ["CSR0", "CSR3", "STATES", "Chip", "command", "summary"]


class CSR0(IntFlag):
    """Control and Status Register 0."""

    ERR = 0x8000
    BABL = 0x4000
    CERR = 0x2000
    MISS = 0x1000
    MERR = 0x0800
    RINT = 0x0400
    TINT = 0x0200
    IDON = 0x0100
    INTR = 0x0080
    INEA = 0x0040
    RXON = 0x0020
    TXON = 0x0010
    TDMD = 0x0008
    STOP = 0x0004
    STRT = 0x0002
    INIT = 0x0001


class CSR3(IntFlag):
    """Control and Status Register 3: how the chip is wired to its bus.

    BSWP is what the model acts on; ACON and BCON choose the polarity and meaning of pins that a bus
    in software does not have, and are kept.
    """

    BSWP = 4
    ACON = 2
    BCON = 1


# As plain numbers: arithmetic on members of an IntFlag costs a microsecond.
ERR, BABL, CERR, MISS, MERR = 0x8000, 0x4000, 0x2000, 0x1000, 0x0800
RINT, TINT, IDON, INTR, INEA = 0x0400, 0x0200, 0x0100, 0x0080, 0x0040
RXON, TXON, TDMD, STOP, STRT, INIT = 0x0020, 0x0010, 0x0008, 0x0004, 0x0002, 0x0001

#: What ERR is the OR of.
ERRORS = BABL | CERR | MISS | MERR
#: What INTR is the OR of: CERR asks for no service.
CAUSES = BABL | MISS | MERR | RINT | TINT | IDON
#: "Read/clear only": a one that is written clears the flag.
CLEARED_BY_ONE = BABL | CERR | MISS | MERR | RINT | TINT | IDON


def summary(flags: int) -> int:
    """CSR0 as the bus reads it: the stored flags with ERR and INTR."""
    if flags & ERRORS:
        flags |= ERR
    if flags & CAUSES:
        flags |= INTR
    return flags


class Chip(Enum):
    """What the chip is doing, as STOP, INIT and STRT say."""

    #: STOP is set: after a reset, or when it was written. No DMA, no packets.
    STOPPED = "stopped"
    #: INIT was set; the initialization block is being read.
    INITIALIZING = "initializing"
    #: The same, and STRT was set: the chip starts when the block has been read.
    STARTING = "starting"
    #: The block has been read (IDON); the chip waits for STRT.
    INITIALIZED = "initialized"
    #: STRT was set: rings are polled, packets go and come as far as TXON and RXON say.
    STARTED = "started"


#: (state, what a write asks for) -> the state after it. What is not here changes nothing:
#: STOP must have been set before INIT is, and INIT is not begun twice. STOP leads from every state
#: to STOPPED.
STATES: dict[tuple[Chip, str], Chip] = {
    (Chip.STOPPED, "INIT"): Chip.INITIALIZING,
    (Chip.STOPPED, "INIT STRT"): Chip.STARTING,
    (Chip.STOPPED, "STRT"): Chip.STARTED,
    (Chip.INITIALIZING, "STRT"): Chip.STARTING,
    (Chip.INITIALIZING, "INIT STRT"): Chip.STARTING,
    (Chip.INITIALIZED, "STRT"): Chip.STARTED,
    (Chip.INITIALIZED, "INIT STRT"): Chip.STARTED,
    # Not written by the bus: the block has been read.
    (Chip.INITIALIZING, "IDON"): Chip.INITIALIZED,
    (Chip.STARTING, "IDON"): Chip.STARTED,
    **{(state, "STOP"): Chip.STOPPED for state in Chip},
}


def command(value: int) -> str:
    """What a value written to CSR0 asks for: "STOP" overrides the others; "": nothing."""
    if value & STOP:
        return "STOP"
    if value & INIT:
        return "INIT STRT" if value & STRT else "INIT"
    return "STRT" if value & STRT else ""
