# SPDX-License-Identifier: Apache-2.0
"""A disk: a direct access block device, from its parts.

Invariants
 - A command that is in the table has a handler, and nothing that is not in it is done.
 - A reset puts everything back that commands can change, but for what is on the medium, and a
   medium that was ejected.
"""

from __future__ import annotations

from typing import ClassVar

from iodma.endpoints import Endpoint
from iodma.scsi.blocks import BLOCKS
from iodma.scsi.cdb import Commands
from iodma.scsi.mode import Modes
from iodma.scsi.power import Power
from iodma.scsi.primary import PRIMARY
from iodma.scsi.provisioning import Provisioning
from iodma.scsi.reservation import Reservation
from iodma.scsi.vpd import Identity

__all__ = ["Disk"]


class Disk(Identity, Modes, Power, Provisioning, Reservation):
    """A disk for SCSI initiators, on a file, block device, NBD export or memory endpoint.

    Args:
        disk: where the bytes are: a `File`, an `Nbd`, a `Buffer`, or any endpoint with a `size`. It
            stays the caller's. Its `write_through`, where it has that, is set as commands ask.
        block: bytes of a logical block, a power of two from 512 to 65536.
        physical: bytes of a physical block, which initiators had better align to.
        read_only: every write ends with WRITE PROTECTED; None: as the file was opened.
        removable: the medium can be ejected, and loaded again.
        write_cache: WCE as it is at power-on.
        vendor, product, revision: of INQUIRY: at most 8, 16 and 4 characters of ASCII.
        serial: of the VPD pages; at most 20 characters.
        depth: most commands at a time; one more is TASK SET FULL.

    Attributes:
        disk, block, read_only, physical, removable: as given, or as it came out.
        blocks: its capacity.
        flushes: `Flushes` of the disk: whether one has failed.
        state: whether the medium is ready, stopped or ejected.

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
        physical: int = 4096,
        read_only: bool | None = None,
        removable: bool = False,
        write_cache: bool = True,
        vendor: str = "IODMA",
        product: str = "DISK",
        revision: str = "1",
        serial: str = "",
        depth: int = 64,
    ) -> None:
        super().__init__(disk, block, read_only, depth)
        self.init_identity(vendor, product, revision, serial, removable, physical)
        self.init_modes(write_cache)
        self.init_power()
        self.init_reservation()
