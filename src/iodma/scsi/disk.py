# SPDX-License-Identifier: Apache-2.0
"""A disk: a direct access block device on an endpoint.

Invariants
 - No command reaches past the capacity: `extent` is the one place where LBAs and lengths are
   checked, and everything else has byte offsets from it.
 - A write is on the medium when its status is given if FUA or a write-through cache asks for that;
   a failed flush fails all later ones (see `Flushes`).
"""

from __future__ import annotations

import struct
from typing import ClassVar

from iodma.endpoints import Buffer, Endpoint, File, Nbd
from iodma.endpoints.flushes import Flushes
from iodma.errors import ArgumentError, ArgumentTypeError
from iodma.scsi import sense as senses
from iodma.scsi.blocks import BLOCKS
from iodma.scsi.cdb import Cdb, Commands
from iodma.scsi.movers import OnEndpoint
from iodma.scsi.primary import PRIMARY
from iodma.scsi.request import DataDirection, Request
from iodma.scsi.sense import CheckCondition
from iodma.scsi.unit import LogicalUnit

__all__ = ["Disk"]


class Disk(LogicalUnit):
    """A disk for SCSI initiators, on a file, block device, NBD export or memory endpoint.

    Args:
        disk: where the bytes are: a `File`, an `Nbd`, a `Buffer`, or any endpoint with a `size`. It
            stays the caller's. Its `write_through`, where it has that, is set as commands ask.
        block: bytes of a logical block, a power of two from 512 to 65536.
        read_only: every write ends with WRITE PROTECTED; None: as the file was opened.
        vendor, product, revision: of INQUIRY: at most 8, 16 and 4 characters of ASCII.
        serial: of the VPD page; at most 20 characters.
        depth: most commands at a time; one more is TASK SET FULL.

    Attributes:
        disk, block: as given.
        flushes: `Flushes` of the disk: whether one has failed.

    Raises:
        ArgumentError: a value that is not one of those above.
    """

    commands: ClassVar[Commands] = Commands(*PRIMARY, *BLOCKS)
    peripheral: ClassVar[int] = 0x00

    def __init__(
        self,
        disk: Endpoint,
        *,
        block: int = 512,
        read_only: bool | None = None,
        vendor: str = "IODMA",
        product: str = "DISK",
        revision: str = "1",
        serial: str = "",
        depth: int = 64,
    ) -> None:
        if not isinstance(disk, Endpoint) or not hasattr(disk, "size"):
            raise ArgumentTypeError(f"{disk!r} has no size: a File or a Buffer would be right")
        if not 512 <= block <= 1 << 16 or block & (block - 1):
            raise ArgumentError(f"block is {block}; a power of two, 512 to 65536, would be right")
        super().__init__(depth=depth)
        self.disk: File | Nbd | Buffer = disk  # type: ignore[assignment]
        self.block = block
        self.vendor = _ascii("vendor", vendor, 8)
        self.product = _ascii("product", product, 16)
        self.revision = _ascii("revision", revision, 4)
        self.serial = _ascii("serial", serial, 20)
        opened_so = bool(getattr(disk, "read_only", False))
        self.read_only = opened_so if read_only is None else bool(read_only) or opened_so
        self.flushes = Flushes(disk)
        self.blocks = disk.size // block

    # --- checks -----------------------------------------------------------------------------------

    def check(self, cdb: Cdb) -> None:
        if cdb.command.writes and self.read_only:
            raise CheckCondition(senses.WRITE_PROTECTED)

    def extent(self, cdb: Cdb, length: str = "TRANSFER LENGTH") -> tuple[int, int]:
        """Which bytes of the disk a command is about: (offset, length).

        Raises:
            CheckCondition: LBA OUT OF RANGE (SBC-4 4.5.1).
        """
        lba, count = cdb["LOGICAL BLOCK ADDRESS"], cdb[length]
        if not count and cdb.command.length == 6:
            count = 256
        if lba + count > self.blocks:
            raise CheckCondition(
                cdb.point(senses.LBA_OUT_OF_RANGE, "LOGICAL BLOCK ADDRESS").told(
                    max(lba, self.blocks)
                )
            )
        return lba * self.block, count * self.block

    # --- reading and writing ----------------------------------------------------------------------

    async def read(self, request: Request, cdb: Cdb) -> None:
        """READ (SBC-4 5.15 to 5.17)."""
        if cdb.get("RDPROTECT"):
            raise cdb.invalid("RDPROTECT")
        offset, length = self.extent(cdb)
        mover = OnEndpoint(self.disk, offset, self.block, DataDirection.IN)
        await request.data_phase(DataDirection.IN, length, mover)

    async def write(self, request: Request, cdb: Cdb) -> None:
        """WRITE (SBC-4 5.40 to 5.42)."""
        if cdb.get("WRPROTECT"):
            raise cdb.invalid("WRPROTECT")
        offset, length = self.extent(cdb)
        mover = OnEndpoint(self.disk, offset, self.block, DataDirection.OUT)
        await request.data_phase(DataDirection.OUT, length, mover)
        if cdb.get("FUA"):
            await self.flush()

    async def synchronize_cache(self, request: Request, cdb: Cdb) -> None:
        """SYNCHRONIZE CACHE (SBC-4 5.33, 5.34): of the whole disk, whatever range is named."""
        self.extent(cdb, "NUMBER OF LOGICAL BLOCKS")
        await self.flush()

    async def flush(self) -> None:
        """Raises CheckCondition: what was written is not on the medium."""
        if not await self.flushes.flush(self.engine, self.port):
            raise CheckCondition(senses.WRITE_ERROR)

    # --- what it is -------------------------------------------------------------------------------

    async def read_capacity_10(self, request: Request, cdb: Cdb) -> None:
        """READ CAPACITY (10) (SBC-4 5.20)."""
        last = min(max(self.blocks - 1, 0), 0xFFFFFFFF)
        await self.give(request, struct.pack(">II", last, self.block), 8)

    async def read_capacity_16(self, request: Request, cdb: Cdb) -> None:
        """READ CAPACITY (16) (SBC-4 5.21)."""
        data = struct.pack(">QI", max(self.blocks - 1, 0), self.block).ljust(32, b"\0")
        await self.give(request, data, cdb["ALLOCATION LENGTH"])

    def inquiry_data(self) -> bytes:
        return struct.pack(
            ">BBBBBBBB8s16s4s",
            self.peripheral,
            0,
            0x06,  # SPC-4
            0x02,  # RESPONSE DATA FORMAT
            31,
            0,
            0,
            0x02,  # CMDQUE
            self.vendor,
            self.product,
            self.revision,
        )


def _ascii(what: str, value: str, most: int) -> bytes:
    data = value.encode("ascii", "replace")
    if len(data) > most or any(not 0x20 <= byte < 0x7F for byte in data):
        raise ArgumentError(f"{what} is {value!r}; {most} printable characters are the most")
    return data.ljust(most) if what != "serial" else data
