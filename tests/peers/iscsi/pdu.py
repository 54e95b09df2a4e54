"""iSCSI PDUs (RFC 7143 chapter 11): the 48 bytes of a basic header segment, read and made.

Invariants:

- Nothing here believes a length: who receives checks `data_length` and `ahs_length` before use.
"""

from __future__ import annotations

import struct
from enum import IntEnum

BHS = 48
NO_TAG = 0xFFFFFFFF


class Opcode(IntEnum):
    """Initiator opcodes, then target opcodes (section 11.2.1.2)."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT = 0x02
    LOGIN = 0x03
    TEXT = 0x04
    DATA_OUT = 0x05
    LOGOUT = 0x06
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    REJECT = 0x3F


class Pdu:
    """A basic header segment that came, and its data segment once it was received."""

    def __init__(self, header: bytes) -> None:
        self.header = header
        self.data = b""
        self.opcode = header[0] & 0x3F
        self.immediate = bool(header[0] & 0x40)
        self.flags = header[1]
        self.final = bool(header[1] & 0x80)
        self.ahs_length = header[4] * 4
        self.data_length = int.from_bytes(header[5:8], "big")
        self.lun = lun_of(header[8:16])
        self.tag = self.word(16)
        self.command_number = self.word(24)

    def word(self, at: int) -> int:
        return int(struct.unpack_from(">I", self.header, at)[0])


def lun_of(field: bytes) -> int:
    """A single level LUN, by peripheral or flat space addressing (SAM-5 4.6); -1: another one."""
    first = int.from_bytes(field[:2], "big")
    if any(field[2:]) or first >> 14 > 1:
        return -1
    return first & 0x3FFF if first >> 14 else first & 0xFF


def header(
    opcode: Opcode, flags: int, length: int, tag: int, words: dict[int, int], *bytes_at: int
) -> bytearray:
    """A header with 32-bit words at some offsets, and bytes 2 and 3."""
    data = bytearray(BHS)
    data[0], data[1] = opcode, flags
    for index, value in enumerate(bytes_at):
        data[2 + index] = value
    data[5:8] = length.to_bytes(3, "big")
    struct.pack_into(">I", data, 16, tag)
    for at, value in words.items():
        struct.pack_into(">I", data, at, value & 0xFFFFFFFF)
    return data
