# SPDX-License-Identifier: Apache-2.0
"""Status bytes and sense data (SAM-5 5.3.1, SPC-4 4.5).

Invariants
 - Sense data is a value: made once, given as often as it is asked for.
 - INFORMATION is never cut: what fixed format has no room for is not VALID there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

__all__ = ["CheckCondition", "ScsiStatus", "Sense", "SenseKey"]


class ScsiStatus(IntEnum):
    """The status byte (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(IntEnum):
    """What kind of thing went wrong (SPC-4 4.5.6)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data.

    Attributes:
        key: the sense key.
        asc, ascq: additional sense code and its qualifier (SPC-4 annex F).
        information: INFORMATION, mostly the LBA where it happened; None: not valid.
        field: (byte, bit or None, in the CDB): the field pointer of an ILLEGAL REQUEST
            (SPC-4 4.5.2.4.2); None: not valid.
        descriptors: whether `data` is in descriptor format, as D_SENSE asks for.
    """

    key: SenseKey
    asc: int = 0
    ascq: int = 0
    information: int | None = None
    field: tuple[int, int | None, bool] | None = None
    descriptors: bool = False

    def at(self, byte: int, bit: int | None = None, *, in_cdb: bool = True) -> Sense:
        """The same, pointing at a byte of the CDB or parameters, and its upmost wrong bit."""
        return replace(self, field=(min(byte, 0xFFFF), bit, in_cdb))

    def told(self, information: int) -> Sense:
        """The same with INFORMATION."""
        return replace(self, information=information)

    @property
    def data(self) -> bytes:
        """The bytes that go with the status."""
        return self.descriptor() if self.descriptors else self.fixed()

    def fixed(self) -> bytes:
        """18 bytes in fixed format, for the current command (SPC-4 4.5.3)."""
        valid = self.information is not None and self.information < 1 << 32
        return struct.pack(
            ">BBBIBIBBB3s",
            0x70 | valid << 7,
            0,
            self.key,
            self.information if valid and self.information is not None else 0,
            10,
            0,
            self.asc,
            self.ascq,
            0,
            self._specific(),
        )

    def descriptor(self) -> bytes:
        """In descriptor format, for the current command (SPC-4 4.5.2): 8, 16, 20 or 28 bytes."""
        told = b""
        if self.information is not None:
            told += struct.pack(">BBBxQ", 0x00, 0x0A, 0x80, self.information)
        if self.field is not None:
            told += struct.pack(">BBxx3sx", 0x02, 0x06, self._specific())
        return struct.pack(">BBBB3xB", 0x72, self.key, self.asc, self.ascq, len(told)) + told

    def _specific(self) -> bytes:
        if self.field is None:
            return bytes(3)
        byte, bit, in_cdb = self.field
        bits = 0 if bit is None else 0x08 | bit
        return struct.pack(">BH", 0x80 | in_cdb << 6 | bits, byte)

    def __str__(self) -> str:
        return f"{self.key.name} {self.asc:02X}/{self.ascq:02X}"


_ILLEGAL, _ATTENTION = SenseKey.ILLEGAL_REQUEST, SenseKey.UNIT_ATTENTION

NONE = Sense(SenseKey.NO_SENSE)
STOPPED = Sense(SenseKey.NOT_READY, 0x04, 0x02)  # INITIALIZING COMMAND REQUIRED
NO_MEDIUM = Sense(SenseKey.NOT_READY, 0x3A, 0x00)
WRITE_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
READ_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11, 0x00)  # UNRECOVERED READ ERROR
NO_SPACE = Sense(SenseKey.DATA_PROTECT, 0x27, 0x07)  # SPACE ALLOCATION FAILED WRITE PROTECT
WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x00)
SOFTWARE_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27, 0x02)
INTERNAL_FAILURE = Sense(SenseKey.HARDWARE_ERROR, 0x44, 0x00)
MISCOMPARE = Sense(SenseKey.MISCOMPARE, 0x1D, 0x00)
OVERLAPPED = Sense(SenseKey.ABORTED_COMMAND, 0x4E, 0x00)
PARAMETER_LIST_LENGTH = Sense(_ILLEGAL, 0x1A, 0x00)
INVALID_OPCODE = Sense(_ILLEGAL, 0x20, 0x00)
LBA_OUT_OF_RANGE = Sense(_ILLEGAL, 0x21, 0x00)
INVALID_FIELD_IN_CDB = Sense(_ILLEGAL, 0x24, 0x00)
NO_SUCH_UNIT = Sense(_ILLEGAL, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETERS = Sense(_ILLEGAL, 0x26, 0x00)
SAVING_NOT_SUPPORTED = Sense(_ILLEGAL, 0x39, 0x00)
REMOVAL_PREVENTED = Sense(_ILLEGAL, 0x53, 0x02)
MEDIUM_CHANGED = Sense(_ATTENTION, 0x28, 0x00)
POWER_ON = Sense(_ATTENTION, 0x29, 0x00)  # or reset, or bus device reset
BUS_RESET = Sense(_ATTENTION, 0x29, 0x02)
UNIT_RESET = Sense(_ATTENTION, 0x29, 0x03)  # BUS DEVICE RESET FUNCTION OCCURRED
MODE_CHANGED = Sense(_ATTENTION, 0x2A, 0x01)
CAPACITY_CHANGED = Sense(_ATTENTION, 0x2A, 0x09)
CLEARED_BY_ANOTHER = Sense(_ATTENTION, 0x2F, 0x00)


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION and this sense data."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense
