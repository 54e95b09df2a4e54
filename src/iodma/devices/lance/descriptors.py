# SPDX-License-Identifier: Apache-2.0
"""Message descriptors and their rings (sections "Receive" and "Transmit Descriptor Ring Entry").

A descriptor is four words, MD0 to MD3; as the chip sees them, the low byte of each comes first:

| word | receive | transmit |
|---|---|---|
| 0 | LADR: bits 15:0 of the buffer's address | the same |
| 1 | `RMD1`: status, and HADR, bits 23:16 of the address | `TMD1`, likewise |
| 2 | BCNT, bits 11:0: minus the buffer's length | the same |
| 3 | MCNT, bits 11:0: the length of the message | `TMD3`: errors, TDR |

Invariants
 - Addresses are 24 bits and wrap there, as the chip's counters do: a buffer that reaches past the
   end of the address space goes on at 0.
 - A descriptor's OWN is read before the rest of it: what the host filled in before it set OWN is
   what is read.
 - Of what it does not own, the chip writes nothing. Status bits are set by the chip and cleared by
   the host, so all but OWN are or-ed to what stands there.
 - Looking ahead never faults: a descriptor that cannot be read matters when its turn comes.
"""

from __future__ import annotations

from enum import IntFlag

from iodma.errors import DmaFault
from iodma.port import Port

__all__ = ["ENTRY", "RMD1", "TMD1", "TMD3", "Ring", "buffer", "released"]

#: Bytes of a descriptor.
ENTRY = 8
ADDRESS_SPACE = 1 << 24
ADDRESS_MASK = ADDRESS_SPACE - 1
#: No translation is finer: reading ahead stays inside, so that it touches no page that the chip
#: would not.
_PAGE = 4096


class RMD1(IntFlag):
    """The status bits of a receive descriptor, in word 1."""

    OWN = 0x8000
    ERR = 0x4000
    FRAM = 0x2000
    OFLO = 0x1000
    CRC = 0x0800
    BUFF = 0x0400
    STP = 0x0200
    ENP = 0x0100


class TMD1(IntFlag):
    """The status bits of a transmit descriptor, in word 1."""

    OWN = 0x8000
    ERR = 0x4000
    MORE = 0x1000
    ONE = 0x0800
    DEF = 0x0400
    STP = 0x0200
    ENP = 0x0100


class TMD3(IntFlag):
    """The error bits of a transmit descriptor, in word 3. Valid where TMD1.ERR is set."""

    BUFF = 0x8000
    UFLO = 0x4000
    LCOL = 0x1000
    LCAR = 0x0800
    RTRY = 0x0400


#: Where the status byte is in an entry, and its bits there, which both kinds share.
STATUS = 3
OWN, STP, ENP = 0x80, 0x02, 0x01

_IS_OWNED = bytes(status >> 7 for status in range(256))
_RELEASED = bytes(status & ~OWN for status in range(256))


def owned_entries(data: bytes) -> int:
    """How many entries of `data`, from the first one on, the chip owns."""
    found = data[STATUS::ENTRY].translate(_IS_OWNED).find(0)
    return len(data) // ENTRY if found < 0 else found


def released(data: bytes) -> bytearray:
    """The entries, given back to the host: OWN is clear."""
    given = bytearray(data)
    given[STATUS::ENTRY] = data[STATUS::ENTRY].translate(_RELEASED)
    return given


def buffer(data: bytes, entry: int) -> tuple[int, int]:
    """Address and length, 1 to 4096 bytes, of the buffer that an entry of `data` describes."""
    at = entry * ENTRY
    address = int.from_bytes(data[at : at + 3], "little")
    return address, 4096 - (int.from_bytes(data[at + 4 : at + 6], "little") & 0xFFF)


def segments(address: int, length: int) -> list[tuple[int, int]]:
    """The bus addresses of a buffer: two runs if it wraps."""
    if address + length <= ADDRESS_SPACE:
        return [(address, length)]
    first = ADDRESS_SPACE - address
    return [(address, first), (0, length - first)]


class Ring:
    """A descriptor ring and the chip's place in it.

    Args:
        base: bus address, a multiple of 8.
        entries: a power of two, 1 to 128.

    Attributes:
        index: the current descriptor.
    """

    __slots__ = ("base", "entries", "index")

    def __init__(self, base: int = 0, entries: int = 1) -> None:
        self.base = base
        self.entries = entries
        self.index = 0

    def __repr__(self) -> str:
        return f"<Ring of {self.entries} at {self.base:#x}, at {self.index}>"

    def advance(self, entries: int) -> None:
        """Goes on to another descriptor, around the ring."""
        self.index = (self.index + entries) % self.entries

    async def owned(self, port: Port) -> tuple[bytes, DmaFault | None]:
        """The descriptors that the chip owns, from the current one on, once around at most.

        Returns:
            Their bytes; and the fault, if it was one that ended the run.
        """
        run = b""
        while len(run) < self.entries * ENTRY:
            try:
                piece, asked = await self._piece(port, len(run) // ENTRY)
            except DmaFault as fault:
                return run, fault
            run += piece
            if len(piece) < asked:
                break
        return run, None

    async def _piece(self, port: Port, ahead: int) -> tuple[bytes, int]:
        """The owned ones among those that one load reaches, and how many bytes it looked at."""
        first = (self.index + ahead) % self.entries
        address = (self.base + first * ENTRY) & ADDRESS_MASK
        count = min(self.entries - first, self.entries - ahead, (_PAGE - address % _PAGE) // ENTRY)
        try:
            data = await port.load_bytes(address, count * ENTRY)
        except DmaFault:
            if count == 1:
                raise
            count = 1
            data = await port.load_bytes(address, ENTRY)
        owned = owned_entries(data)
        if owned:
            data = await port.load_bytes(address, owned * ENTRY)
            owned = owned_entries(data)
        return data[: owned * ENTRY], count * ENTRY

    async def store(self, port: Port, data: bytes | bytearray) -> None:
        """Writes entries, from the current one on.

        Raises:
            DmaFault: memory refused; those before the wrap of the ring may have been written.
        """
        first = (self.entries - self.index) * ENTRY
        for at, part in ((self.index, data[:first]), (0, data[first:])):
            for address, length in segments((self.base + at * ENTRY) & ADDRESS_MASK, len(part)):
                done, part = part[:length], part[length:]
                if done:
                    await port.store_bytes(address, done)
