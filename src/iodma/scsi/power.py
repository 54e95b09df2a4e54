# SPDX-License-Identifier: Apache-2.0
"""START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.25, 5.10): a table of states.

Invariants
 - `MOVES` has every state and what START and LOEJ do to it; nothing else changes it but a reset.
 - While an initiator has said that the medium must stay it is neither ejected nor loaded.
"""

from __future__ import annotations

from enum import Enum

from iodma.scsi import sense as senses
from iodma.scsi.block import BlockUnit
from iodma.scsi.cdb import Cdb
from iodma.scsi.request import Request
from iodma.scsi.sense import CheckCondition, Sense

__all__ = ["Medium", "Power"]


class Medium(Enum):
    """Where the medium is."""

    READY = "ready"
    STOPPED = "stopped"
    EJECTED = "ejected"


#: (state, START, LOEJ) -> state.
MOVES: dict[tuple[Medium, int, int], Medium] = {
    (Medium.READY, 0, 0): Medium.STOPPED,
    (Medium.READY, 0, 1): Medium.EJECTED,
    (Medium.READY, 1, 0): Medium.READY,
    (Medium.READY, 1, 1): Medium.READY,
    (Medium.STOPPED, 0, 0): Medium.STOPPED,
    (Medium.STOPPED, 0, 1): Medium.EJECTED,
    (Medium.STOPPED, 1, 0): Medium.READY,
    (Medium.STOPPED, 1, 1): Medium.READY,
    (Medium.EJECTED, 0, 0): Medium.EJECTED,
    (Medium.EJECTED, 0, 1): Medium.EJECTED,
    (Medium.EJECTED, 1, 0): Medium.EJECTED,
    (Medium.EJECTED, 1, 1): Medium.READY,
}

#: What a command on the medium ends with.
REFUSALS: dict[Medium, Sense | None] = {
    Medium.READY: None,
    Medium.STOPPED: senses.STOPPED,
    Medium.EJECTED: senses.NO_MEDIUM,
}

#: POWER CONDITION (SBC-3 5.25): ACTIVE, IDLE, STANDBY, LU_CONTROL, FORCE_IDLE_0,
#: FORCE_STANDBY_0, which all leave a disk that needs no power as it is.
CONDITIONS = frozenset((0x1, 0x2, 0x3, 0x7, 0xA, 0xB))


class Power(BlockUnit):
    """Handlers of what starts, stops, ejects and holds the medium.

    Attributes:
        state: a `Medium`.
    """

    removable = False

    def init_power(self) -> None:
        """As at power-on."""
        self.state = Medium.READY
        self._prevents: set[object] = set()

    def power_on(self) -> None:
        super().power_on()
        self._prevents.clear()
        if self.state is Medium.STOPPED:
            self.state = Medium.READY

    def readiness(self) -> Sense | None:
        return REFUSALS[self.state]

    def forgotten(self, initiator: object) -> None:
        super().forgotten(initiator)
        self._prevents.discard(initiator)

    async def start_stop_unit(self, request: Request, cdb: Cdb) -> None:
        """START STOP UNIT (SBC-3 5.25)."""
        condition = cdb["POWER CONDITION"]
        if condition:
            if condition not in CONDITIONS:
                raise cdb.invalid("POWER CONDITION")
            return  # START and LOEJ are ignored then
        if cdb["LOEJ"] and not self.removable:
            raise cdb.invalid("LOEJ")
        after = MOVES[self.state, cdb["START"], cdb["LOEJ"]]
        if after is self.state:
            return
        if cdb["LOEJ"] and self._prevents:
            raise CheckCondition(senses.REMOVAL_PREVENTED)
        if after is not Medium.READY and not cdb["NO_FLUSH"]:
            await self.flush()
        if self.state is Medium.EJECTED:
            self.attention(senses.MEDIUM_CHANGED, but=request.initiator)
        self.state = after

    async def prevent_allow(self, request: Request, cdb: Cdb) -> None:
        """PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.10)."""
        if cdb["PREVENT"] > 1:
            raise cdb.invalid("PREVENT")
        if cdb["PREVENT"]:
            self._prevents.add(request.initiator)
        else:
            self._prevents.discard(request.initiator)
