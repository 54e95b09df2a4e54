# SPDX-License-Identifier: Apache-2.0
"""Which frames are for this station (section "Station Address Detection").

A frame is taken if MODE.PROM is set; if its destination is the physical address; if it is the
broadcast address, whatever the filter holds; or if it is a logical address whose bit of LADRF is
set. That bit is chosen by the six highest bits of the CRC of the destination address.

Invariants
 - It depends on the first six bytes of a frame alone. A frame that has fewer is taken in
   promiscuous mode only.
"""

from __future__ import annotations

from zlib import crc32

from iodma.devices.lance.initblock import InitializationBlock, Mode

__all__ = ["AddressFilter", "logical_bit"]

ADDRESS_BYTES = 6
BROADCAST = b"\xff" * ADDRESS_BYTES
_PROM = int(Mode.PROM)


def logical_bit(address: bytes) -> int:
    """The bit of LADRF, 0 to 63, that a logical address hashes to.

    The chip looks at its CRC register before it is complemented, as its highest bits: those of the
    Ethernet CRC in the order of the wire.
    """
    return ~crc32(address) >> 26 & 0x3F


class AddressFilter:
    """The filter that an initialization block sets up."""

    __slots__ = ("_ladrf", "_padr", "_promiscuous")

    def __init__(self, block: InitializationBlock) -> None:
        self._promiscuous = bool(block.mode & _PROM)
        self._padr = block.padr
        self._ladrf = block.ladrf

    def accepts(self, head: bytes, logical: bool = True) -> bool:
        """Whether a frame that begins with `head` is taken.

        Args:
            head: its first bytes, six or more unless the frame is shorter.
            logical: whether the logical address filter works; in loopback it lacks the CRC logic
                while that makes the FCS.
        """
        if self._promiscuous:
            return True
        address = head[:ADDRESS_BYTES]
        if len(address) < ADDRESS_BYTES:
            return False
        if address in (self._padr, BROADCAST):
            return True
        return logical and bool(address[0] & 1) and bool(self._ladrf >> logical_bit(address) & 1)
