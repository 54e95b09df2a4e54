# SPDX-License-Identifier: Apache-2.0
"""Interrupt sources of a sun4m machine, and the bits of the controller's registers.

Bit numbers are those of the system interrupt pending register (NCR89C105, "Interrupt Control";
Linux's and NetBSD's sun4m headers have the same).

Invariant: nothing here knows of the device.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = [
    "CLEARED",
    "HARD_15",
    "IMPLEMENTED",
    "LEVELS",
    "MASK_ALL",
    "PROCESSOR_TIMER",
    "SOFT",
    "TARGET",
    "Line",
]


class Line(IntEnum):
    """Sources that a SPARCstation 5 has, by their bits."""

    SBUS1 = 7
    SBUS2 = 8
    SBUS3 = 9
    SBUS4 = 10
    SBUS5 = 11
    SBUS6 = 12
    SBUS7 = 13
    KEYBOARD = 14
    SERIAL = 15
    ETHERNET = 16
    AUDIO = 17
    SCSI = 18
    TIMER = 19
    VIDEO = 20
    MODULE = 21
    FLOPPY = 22
    #: Errors of the VME bridge, memory, M-to-S, and of a module, which the IOMMU is.
    VME_ERROR = 27
    ECC_ERROR = 28
    M_TO_S_ERROR = 29
    MODULE_ERROR = 30


#: Bit of the system interrupt pending register -> processor interrupt level; 0: no source.
LEVELS: Final = (
    *(2, 3, 5, 7, 9, 11, 13),  # VME 1 to 7
    *(2, 3, 5, 7, 9, 11, 13),  # SBus 1 to 7
    *(12, 12, 6, 13, 4, 10, 8, 9, 11),
    *(0, 0, 0, 0),
    *(15, 15, 15, 15),
    0,
)

#: Of the mask registers: all interrupts are masked but software's.
MASK_ALL: Final = 1 << 31
#: Sources that the mask registers have bits for, and `MASK_ALL`: SBus, SLAVIO's own, errors.
IMPLEMENTED: Final = 0xF05D_FF80
#: Of the target register.
TARGET: Final = 0xF

#: Of a processor's registers: software interrupts of levels 1 to 15, in the upper half.
SOFT: Final = 0xFFFE_0000
HARD_15: Final = 1 << 15
PROCESSOR_TIMER: Final = 1 << 14
#: What the clear pending register can clear.
CLEARED: Final = SOFT | HARD_15
