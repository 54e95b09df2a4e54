# SPDX-License-Identifier: Apache-2.0
"""What a disk says of itself: standard INQUIRY data, VPD pages, READ CAPACITY (16).

Invariant: what is said here is what the commands do; limits come from where they are checked.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from iodma.errors import ArgumentError
from iodma.scsi.cdb import Cdb
from iodma.scsi.provisioning import MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS
from iodma.scsi.request import Request
from iodma.scsi.verify import Verify

__all__ = ["Identity"]

#: VERSION DESCRIPTORs (SPC-4 table 142): SAM-5, SPC-4, SBC-3, none of a certain revision.
_VERSIONS = (0x00A0, 0x0460, 0x04C0)
_REMOVABLE, _CMDQUE = 0x80, 0x02


class Identity(Verify):
    """INQUIRY and what goes with it.

    Attributes:
        vendor, product, revision, serial: as bytes.
        removable: whether the medium can be.
        physical: bytes of a physical block.
    """

    removable = False

    def init_identity(
        self, vendor: str, product: str, revision: str, serial: str, removable: bool, physical: int
    ) -> None:
        """Raises ArgumentError: one of them does not fit."""
        self.vendor = _ascii("vendor", vendor, 8).ljust(8)
        self.product = _ascii("product", product, 16).ljust(16)
        self.revision = _ascii("revision", revision, 4).ljust(4)
        self.serial = _ascii("serial", serial, 20)
        self.removable = bool(removable)
        if not 512 <= physical <= 1 << 20 or physical & (physical - 1):
            raise ArgumentError(f"physical is {physical}; a power of two would be right")
        self.physical = max(physical, self.block)

    def inquiry_data(self) -> bytes:
        """SPC-4 6.6.2."""
        data = struct.pack(
            ">BBBBBBBB8s16s4s",
            self.peripheral,
            _REMOVABLE if self.removable else 0,
            0x06,  # VERSION: SPC-4
            0x02,  # RESPONSE DATA FORMAT
            91,  # ADDITIONAL LENGTH
            0,
            0,
            _CMDQUE,
            self.vendor,
            self.product,
            self.revision,
        ).ljust(58, b"\0")
        return (data + struct.pack(">3H", *_VERSIONS)).ljust(96, b"\0")

    def vital_product_data(self, page: int) -> bytes | None:
        """SPC-4 7.8, SBC-3 6.6."""
        made = _PAGES.get(page)
        return made(self) if made is not None else None

    def _supported_pages(self) -> bytes:
        return bytes(sorted(_PAGES))

    def _unit_serial_number(self) -> bytes:
        return self.serial or b"    "

    def _device_identification(self) -> bytes:
        """SPC-4 7.8.6: a T10 vendor ID based one, and a locally assigned NAA one."""
        name = self.vendor + self.product + self.serial
        digest = hashlib.sha256(name).digest()
        naa = bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]
        # CODE SET, DESIGNATOR TYPE, DESIGNATOR LENGTH
        return b"".join(
            bytes((code_set, kind, 0, len(data))) + data
            for code_set, kind, data in ((2, 1, name), (1, 3, naa))
        )

    def _block_limits(self) -> bytes:
        """SBC-3 6.6. 0: no limit, or none that is told."""
        writable = not self.read_only
        return struct.pack(
            ">BBHIIIIIIIQ",
            0,  # WSNZ: 0 blocks of WRITE SAME are those to the end
            self.most_compared,
            self.physical // self.block,  # OPTIMAL TRANSFER LENGTH GRANULARITY
            0,
            0,
            0,
            MAX_UNMAP_BLOCKS if writable else 0,
            MAX_UNMAP_DESCRIPTORS if writable else 0,
            self.physical // self.block,  # OPTIMAL UNMAP GRANULARITY
            1 << 31,  # UGAVALID, UNMAP GRANULARITY ALIGNMENT
            0,  # MAXIMUM WRITE SAME LENGTH
        ).ljust(60, b"\0")

    def _characteristics(self) -> bytes:
        """SBC-3 6.6: a medium that does not rotate."""
        return struct.pack(">H", 1).ljust(60, b"\0")

    def _provisioning(self) -> bytes:
        """SBC-3 6.6: LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned."""
        if self.read_only:
            return bytes(4)
        return bytes((0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0))

    async def read_capacity_16(self, request: Request, cdb: Cdb) -> None:
        """READ CAPACITY (16) (SBC-3 5.16)."""
        exponent = (self.physical // self.block).bit_length() - 1
        thin = 0 if self.read_only else 0xC000  # LBPME, LBPRZ
        data = struct.pack(">QIBBH", max(self.blocks - 1, 0), self.block, 0, exponent, thin)
        await self.give(request, data.ljust(32, b"\0"), cdb["ALLOCATION LENGTH"])


_PAGES: dict[int, Callable[[Identity], bytes]] = {
    0x00: Identity._supported_pages,
    0x80: Identity._unit_serial_number,
    0x83: Identity._device_identification,
    0xB0: Identity._block_limits,
    0xB1: Identity._characteristics,
    0xB2: Identity._provisioning,
}


def _ascii(what: str, value: str, most: int) -> bytes:
    data = value.encode("ascii", "replace")
    if len(data) > most or any(not 0x20 <= byte < 0x7F for byte in data):
        raise ArgumentError(f"{what} is {value!r}; {most} printable characters are the most")
    return data
