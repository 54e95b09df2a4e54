# SPDX-License-Identifier: Apache-2.0
"""The commands of a direct access block device, as SBC-3 and SPC-4 lay them out.

Invariant: a field is here by its name in the standard, once; `Disk` has the handlers.
"""

from __future__ import annotations

from dataclasses import replace

from iodma.scsi.cdb import Command, Field

__all__ = ["BLOCKS"]

# Where commands of a length have what.
_LBA_6, _LENGTH_6 = Field("LOGICAL BLOCK ADDRESS", 1, 21, 4), Field("TRANSFER LENGTH", 4)
_LBA_10, _LENGTH_10 = Field("LOGICAL BLOCK ADDRESS", 2, 32), Field("TRANSFER LENGTH", 7, 16)
_LBA_12, _LENGTH_12 = Field("LOGICAL BLOCK ADDRESS", 2, 32), Field("TRANSFER LENGTH", 6, 32)
_LBA_16, _LENGTH_16 = Field("LOGICAL BLOCK ADDRESS", 2, 64), Field("TRANSFER LENGTH", 10, 32)
_DPO, _FUA = Field("DPO", 1, 1, 4), Field("FUA", 1, 1, 3)
_RDPROTECT, _WRPROTECT = Field("RDPROTECT", 1, 3, 7), Field("WRPROTECT", 1, 3, 7)


_IMMED = Field("IMMED", 1, 1, 1)
_VRPROTECT, _BYTCHK = Field("VRPROTECT", 1, 3, 7), Field("BYTCHK", 1, 2, 2)


def _read(name: str, section: str, opcode: int, *where: Field) -> Command:
    return Command(name, section, opcode, (_RDPROTECT, _DPO, _FUA, *where), "read", medium=True)


def _write(name: str, section: str, opcode: int, *where: Field) -> Command:
    fields = (_WRPROTECT, _DPO, _FUA, *where)
    return Command(name, section, opcode, fields, "write", writes=True, medium=True)


def _verify(name: str, section: str, opcode: int, lba: Field, length: Field) -> Command:
    fields = (_VRPROTECT, _DPO, _BYTCHK, lba, renamed(length, "VERIFICATION LENGTH"))
    return Command(name, section, opcode, fields, "verify", medium=True)


def _write_and_verify(name: str, section: str, opcode: int, *where: Field) -> Command:
    fields = (_WRPROTECT, _DPO, _BYTCHK, *where)
    return Command(name, section, opcode, fields, "write_and_verify", writes=True, medium=True)


def _write_same(
    name: str, section: str, opcode: int, lba: Field, length: Field, *more: Field
) -> Command:
    fields = (
        _WRPROTECT,
        Field("ANCHOR", 1, 1, 4),
        Field("UNMAP", 1, 1, 3),
        *more,
        lba,
        renamed(length, "NUMBER OF LOGICAL BLOCKS"),
    )
    return Command(name, section, opcode, fields, "write_same", writes=True, medium=True)


def _synchronize_cache(name: str, section: str, opcode: int, lba: Field, length: Field) -> Command:
    fields = (_IMMED, lba, renamed(length, "NUMBER OF LOGICAL BLOCKS"))
    return Command(name, section, opcode, fields, "synchronize_cache", medium=True)


def _prefetch(name: str, section: str, opcode: int, lba: Field, length: Field) -> Command:
    fields = (_IMMED, lba, renamed(length, "PREFETCH LENGTH"))
    return Command(name, section, opcode, fields, "prefetch", medium=True)


def renamed(field: Field, name: str) -> Field:
    """The same place, as another command calls it."""
    return replace(field, name=name)


def _read_defect_data(
    name: str, section: str, opcode: int, byte: int, allocation: Field
) -> Command:
    fields = (
        Field("REQ_PLIST", byte, 1, 4),
        Field("REQ_GLIST", byte, 1, 3),
        Field("DEFECT LIST FORMAT", byte, 3, 2),
        allocation,
    )
    return Command(name, section, opcode, fields, "read_defect_data", medium=True)


_RESERVE = (Field("3RDPTY", 1, 1, 4), Field("EXTENT", 1, 1, 0))
_MODE_SENSE = (
    Field("DBD", 1, 1, 3),
    Field("PC", 2, 2, 7),
    Field("PAGE CODE", 2, 6, 5),
    Field("SUBPAGE CODE", 3),
)
_MODE_SELECT = (Field("PF", 1, 1, 4), Field("SP", 1, 1, 0))

BLOCKS = (
    Command("READ (6)", "SCSI-2 9.2.5", 0x08, (_LBA_6, _LENGTH_6), "read", medium=True),
    _read("READ (10)", "SBC-3 5.11", 0x28, _LBA_10, _LENGTH_10),
    _read("READ (12)", "SBC-3 5.12", 0xA8, _LBA_12, _LENGTH_12),
    _read("READ (16)", "SBC-3 5.13", 0x88, _LBA_16, _LENGTH_16),
    Command(
        "WRITE (6)", "SCSI-2 9.2.20", 0x0A, (_LBA_6, _LENGTH_6), "write", writes=True, medium=True
    ),
    _write("WRITE (10)", "SBC-3 5.33", 0x2A, _LBA_10, _LENGTH_10),
    _write("WRITE (12)", "SBC-3 5.34", 0xAA, _LBA_12, _LENGTH_12),
    _write("WRITE (16)", "SBC-3 5.35", 0x8A, _LBA_16, _LENGTH_16),
    Command(
        "READ CAPACITY (10)",
        "SBC-3 5.15",
        0x25,
        (),
        "read_capacity_10",
        medium=True,
        unreserved=True,
    ),
    Command(
        "READ CAPACITY (16)",
        "SBC-3 5.16",
        0x9E,
        (Field("ALLOCATION LENGTH", 10, 32),),
        "read_capacity_16",
        service_action=0x10,
        medium=True,
        unreserved=True,
    ),
    _synchronize_cache("SYNCHRONIZE CACHE (10)", "SBC-3 5.26", 0x35, _LBA_10, _LENGTH_10),
    _synchronize_cache("SYNCHRONIZE CACHE (16)", "SBC-3 5.27", 0x91, _LBA_16, _LENGTH_16),
    _prefetch("PRE-FETCH (10)", "SBC-3 5.8", 0x34, _LBA_10, _LENGTH_10),
    _prefetch("PRE-FETCH (16)", "SBC-3 5.9", 0x90, _LBA_16, _LENGTH_16),
    _verify("VERIFY (10)", "SBC-3 5.29", 0x2F, _LBA_10, _LENGTH_10),
    _verify("VERIFY (12)", "SBC-3 5.30", 0xAF, _LBA_12, _LENGTH_12),
    _verify("VERIFY (16)", "SBC-3 5.31", 0x8F, _LBA_16, _LENGTH_16),
    _write_and_verify("WRITE AND VERIFY (10)", "SBC-3 5.37", 0x2E, _LBA_10, _LENGTH_10),
    _write_and_verify("WRITE AND VERIFY (12)", "SBC-3 5.38", 0xAE, _LBA_12, _LENGTH_12),
    _write_and_verify("WRITE AND VERIFY (16)", "SBC-3 5.39", 0x8E, _LBA_16, _LENGTH_16),
    Command(
        "COMPARE AND WRITE",
        "SBC-3 5.2",
        0x89,
        (_WRPROTECT, _DPO, _FUA, _LBA_16, Field("NUMBER OF LOGICAL BLOCKS", 13)),
        "compare_and_write",
        writes=True,
        medium=True,
    ),
    _write_same("WRITE SAME (10)", "SBC-3 5.43", 0x41, _LBA_10, _LENGTH_10),
    _write_same("WRITE SAME (16)", "SBC-3 5.44", 0x93, _LBA_16, _LENGTH_16, Field("NDOB", 1, 1, 0)),
    Command(
        "UNMAP",
        "SBC-3 5.28",
        0x42,
        (Field("ANCHOR", 1, 1, 0), Field("PARAMETER LIST LENGTH", 7, 16)),
        "unmap",
        writes=True,
        medium=True,
    ),
    Command(
        "START STOP UNIT",
        "SBC-3 5.25",
        0x1B,
        (
            Field("IMMED", 1, 1, 0),
            Field("POWER CONDITION", 4, 4, 7),
            Field("NO_FLUSH", 4, 1, 2),
            Field("LOEJ", 4, 1, 1),
            Field("START", 4, 1, 0),
        ),
        "start_stop_unit",
    ),
    Command(
        "PREVENT ALLOW MEDIUM REMOVAL",
        "SBC-3 5.10",
        0x1E,
        (Field("PREVENT", 4, 2, 1),),
        "prevent_allow",
    ),
    Command("RESERVE (6)", "SCSI-2 9.2.12", 0x16, _RESERVE, "reserve"),
    Command("RELEASE (6)", "SCSI-2 9.2.11", 0x17, _RESERVE, "release", unreserved=True),
    _read_defect_data(
        "READ DEFECT DATA (10)", "SBC-3 5.17", 0x37, 2, Field("ALLOCATION LENGTH", 7, 16)
    ),
    _read_defect_data(
        "READ DEFECT DATA (12)", "SBC-3 5.18", 0xB7, 1, Field("ALLOCATION LENGTH", 6, 32)
    ),
    Command(
        "MODE SENSE (6)",
        "SPC-4 6.13",
        0x1A,
        (*_MODE_SENSE, Field("ALLOCATION LENGTH", 4)),
        "mode_sense",
    ),
    Command(
        "MODE SENSE (10)",
        "SPC-4 6.14",
        0x5A,
        (Field("LLBAA", 1, 1, 4), *_MODE_SENSE, Field("ALLOCATION LENGTH", 7, 16)),
        "mode_sense",
    ),
    Command(
        "MODE SELECT (6)",
        "SPC-4 6.11",
        0x15,
        (*_MODE_SELECT, Field("PARAMETER LIST LENGTH", 4)),
        "mode_select",
    ),
    Command(
        "MODE SELECT (10)",
        "SPC-4 6.12",
        0x55,
        (*_MODE_SELECT, Field("PARAMETER LIST LENGTH", 7, 16)),
        "mode_select",
    ),
)
