# SPDX-License-Identifier: Apache-2.0
"""RESERVE and RELEASE: a logical unit for one initiator alone (SCSI-2 9.2.11, 9.2.12).

Invariants
 - While a unit is reserved, what other initiators send ends with RESERVATION CONFLICT, but for the
   commands that say that they may be done (`Command.unreserved`).
 - A reservation ends with a release by its holder, any reset, or the loss of its holder.
"""

from __future__ import annotations

from iodma.scsi.block import BlockUnit
from iodma.scsi.cdb import Cdb, Command
from iodma.scsi.request import Request

__all__ = ["Reservation"]


class Reservation(BlockUnit):
    """Handlers of RESERVE and RELEASE.

    Attributes:
        holder: the initiator that has reserved the unit; None: none has.
    """

    def init_reservation(self) -> None:
        """As at power-on."""
        self.holder: object = None

    def power_on(self) -> None:
        super().power_on()
        self.holder = None

    def forgotten(self, initiator: object) -> None:
        super().forgotten(initiator)
        if self.holder == initiator:
            self.holder = None

    def conflicts(self, request: Request, command: Command) -> bool:
        return self.holder not in (None, request.initiator) and not command.unreserved

    async def reserve(self, request: Request, cdb: Cdb) -> None:
        """RESERVE (SCSI-2 9.2.12): of the whole unit, for who asks."""
        for what in ("3RDPTY", "EXTENT"):
            if cdb[what]:
                raise cdb.invalid(what)
        self.holder = request.initiator

    async def release(self, request: Request, cdb: Cdb) -> None:
        """RELEASE (SCSI-2 9.2.11). Of what somebody else has reserved it changes nothing."""
        for what in ("3RDPTY", "EXTENT"):
            if cdb[what]:
                raise cdb.invalid(what)
        if self.holder == request.initiator:
            self.holder = None
