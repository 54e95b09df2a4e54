# SPDX-License-Identifier: Apache-2.0
"""The initialization block (section "Initialization Block") and MODE, its first word.

Twelve words at the address in CSR1 and CSR2, which is even:

| word | |
|---|---|
| 0 | MODE |
| 1 to 3 | PADR: the physical address, least significant byte first |
| 4 to 7 | LADRF: the logical address filter |
| 8, 9 | RDRA: address of the receive ring (23:3), and RLEN in the three highest bits |
| 10, 11 | TDRA and TLEN, likewise |

Invariants
 - A ring has 1 to 128 entries, a power of two, and begins at a multiple of 8, whatever the block
   holds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

__all__ = ["SIZE", "InitializationBlock", "Mode"]

#: Bytes.
SIZE = 24
_WORDS = struct.Struct("<12H")


class Mode(IntFlag):
    """The MODE register, word 0 of the initialization block."""

    PROM = 0x8000
    INTL = 0x0040
    DRTY = 0x0020
    COLL = 0x0010
    DTCR = 0x0008
    LOOP = 0x0004
    DTX = 0x0002
    DRX = 0x0001


@dataclass(frozen=True, slots=True)
class InitializationBlock:
    """What the chip has read of its initialization block.

    Attributes:
        mode: MODE, as a plain number; its bits are `Mode`.
        padr: the physical address, six bytes as they come over the wire.
        ladrf: the logical address filter; bit n is n of its 64 bits.
        rdra, tdra: bus addresses of the rings, 24 bits, multiples of 8.
        rlen, tlen: entries of the rings, 1 to 128.
    """

    mode: int = 0
    padr: bytes = bytes(6)
    ladrf: int = 0
    rdra: int = 0
    rlen: int = 1
    tdra: int = 0
    tlen: int = 1

    @classmethod
    def from_bytes(cls, data: bytes) -> InitializationBlock:
        """Reads the 24 bytes as the chip sees them: words of two bytes, the low one first."""
        word = _WORDS.unpack(data)
        return cls(
            mode=word[0],
            padr=data[2:8],
            ladrf=int.from_bytes(data[8:16], "little"),
            rdra=(word[9] & 0xFF) << 16 | word[8] & ~7,
            rlen=1 << (word[9] >> 13),
            tdra=(word[11] & 0xFF) << 16 | word[10] & ~7,
            tlen=1 << (word[11] >> 13),
        )

    def to_bytes(self) -> bytes:
        """The block that `from_bytes` reads so: for drivers and tests."""
        data = struct.pack("<H6sQ", self.mode, self.padr, self.ladrf)
        for address, entries in ((self.rdra, self.rlen), (self.tdra, self.tlen)):
            high = (entries.bit_length() - 1) << 13 | address >> 16 & 0xFF
            data += struct.pack("<HH", address & 0xFFFF, high)
        return data
