# SPDX-License-Identifier: Apache-2.0
"""The commands of a direct access block device, as SBC-4 and SPC-4 lay them out.

Invariant: a field is here by its name in the standard, once; `Disk` has the handlers.
"""

from __future__ import annotations

from iodma.scsi.cdb import Command, Field

__all__ = ["BLOCKS"]

# Where commands of a length have what.
_LBA_6, _LENGTH_6 = Field("LOGICAL BLOCK ADDRESS", 1, 21, 4), Field("TRANSFER LENGTH", 4)
_LBA_10, _LENGTH_10 = Field("LOGICAL BLOCK ADDRESS", 2, 32), Field("TRANSFER LENGTH", 7, 16)
_LBA_12, _LENGTH_12 = Field("LOGICAL BLOCK ADDRESS", 2, 32), Field("TRANSFER LENGTH", 6, 32)
_LBA_16, _LENGTH_16 = Field("LOGICAL BLOCK ADDRESS", 2, 64), Field("TRANSFER LENGTH", 10, 32)
_DPO, _FUA = Field("DPO", 1, 1, 4), Field("FUA", 1, 1, 3)
_RDPROTECT, _WRPROTECT = Field("RDPROTECT", 1, 3, 7), Field("WRPROTECT", 1, 3, 7)


def _read(name: str, section: str, opcode: int, *where: Field) -> Command:
    return Command(name, section, opcode, (_RDPROTECT, _DPO, _FUA, *where), "read", medium=True)


def _write(name: str, section: str, opcode: int, *where: Field) -> Command:
    fields = (_WRPROTECT, _DPO, _FUA, *where)
    return Command(name, section, opcode, fields, "write", writes=True, medium=True)


BLOCKS = (
    Command("READ (6)", "SBC-3 5.7", 0x08, (_LBA_6, _LENGTH_6), "read", medium=True),
    _read("READ (10)", "SBC-4 5.15", 0x28, _LBA_10, _LENGTH_10),
    _read("READ (12)", "SBC-4 5.16", 0xA8, _LBA_12, _LENGTH_12),
    _read("READ (16)", "SBC-4 5.17", 0x88, _LBA_16, _LENGTH_16),
    Command(
        "WRITE (6)", "SBC-3 5.31", 0x0A, (_LBA_6, _LENGTH_6), "write", writes=True, medium=True
    ),
    _write("WRITE (10)", "SBC-4 5.40", 0x2A, _LBA_10, _LENGTH_10),
    _write("WRITE (12)", "SBC-4 5.41", 0xAA, _LBA_12, _LENGTH_12),
    _write("WRITE (16)", "SBC-4 5.42", 0x8A, _LBA_16, _LENGTH_16),
    Command("READ CAPACITY (10)", "SBC-4 5.20", 0x25, (), "read_capacity_10", medium=True),
    Command(
        "READ CAPACITY (16)",
        "SBC-4 5.21",
        0x9E,
        (Field("ALLOCATION LENGTH", 10, 32),),
        "read_capacity_16",
        service_action=0x10,
        medium=True,
    ),
    Command(
        "SYNCHRONIZE CACHE (10)",
        "SBC-4 5.33",
        0x35,
        (Field("IMMED", 1, 1, 1), _LBA_10, Field("NUMBER OF LOGICAL BLOCKS", 7, 16)),
        "synchronize_cache",
        medium=True,
    ),
    Command(
        "SYNCHRONIZE CACHE (16)",
        "SBC-4 5.34",
        0x91,
        (Field("IMMED", 1, 1, 1), _LBA_16, Field("NUMBER OF LOGICAL BLOCKS", 10, 32)),
        "synchronize_cache",
        medium=True,
    ),
)
