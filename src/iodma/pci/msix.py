# SPDX-License-Identifier: Apache-2.0
"""The MSI-X table: where each vector's message goes, and which vectors it masks.

PCI Local Bus 3.0, 6.8.2.

Invariants
 - `masks` says of each vector what bit 0 of its entry says; after a reset all are masked.
 - Reserved bits, and the two lowest of an address, read as zero.
"""

from __future__ import annotations

from iodma.pci.placement import ENTRY

__all__ = ["MsixTable"]

#: The bits of an entry that software can write: address, data, the mask bit of vector control.
_WRITABLE = (0xFFFF_FFFF_FFFF_FFFC | 0xFFFF_FFFF << 64 | 1 << 96).to_bytes(ENTRY, "little")
_MASKED = (1 << 96).to_bytes(ENTRY, "little")


class MsixTable:
    """Entries of 16 bytes: address, upper address, data, vector control.

    Attributes:
        size: bytes.
        masks: bit n: vector n is masked by its entry.
    """

    __slots__ = ("_bytes", "masks", "size", "vectors")

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.size = vectors * ENTRY
        self.reset()

    def reset(self) -> None:
        """As at power-on: zeros, and masked."""
        self._bytes = bytearray(_MASKED * self.vectors)
        self.masks = (1 << self.vectors) - 1

    def message(self, vector: int) -> tuple[int, int]:
        """Where the vector's message is written, and what."""
        entry = self._bytes[vector * ENTRY : vector * ENTRY + 12]
        return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Any bytes inside the table."""
        for place, byte in enumerate(data, offset):
            self._bytes[place] = byte & _WRITABLE[place % ENTRY]
            if place % ENTRY == 12:
                bit = 1 << place // ENTRY
                self.masks = self.masks | bit if byte & 1 else self.masks & ~bit
