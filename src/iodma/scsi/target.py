# SPDX-License-Identifier: Apache-2.0
"""A SCSI target device: logical units behind one address, and task management over them.

Invariants
 - Commands and task management functions never raise for what an initiator sent.
 - A task management function begins at once; what it returns is done when nothing that it ended is
   in flight any more (SAM-5 7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iodma._core import Wait
from iodma.engine import Engine
from iodma.errors import ArgumentError, integer
from iodma.scsi import sense as senses
from iodma.scsi.request import Request, TaskAttribute
from iodma.scsi.scratch import Scratch
from iodma.scsi.unit import Absent, LogicalUnit

__all__ = ["Target"]


class Target:
    """A target with logical units.

        target = Target(engine, {0: Disk(iodma.File("disk.img"))})
        request = target.request(0, bytes.fromhex("28000000000000000800"), initiator=7)

    Args:
        engine: on which it works.
        units: LUN -> `LogicalUnit`, or one, which is LUN 0. LUNs are 0 to 16383.
        name: for messages.

    Attributes:
        engine, units, name: as given.
        port, scratch: the device server's own, for what reaches no initiator: flushes and the like.

    Raises:
        ArgumentError: a LUN that cannot be.
        Error: a unit that is in another target.
    """

    def __init__(
        self,
        engine: Engine,
        units: Mapping[int, LogicalUnit] | LogicalUnit,
        *,
        name: str = "scsi0",
    ) -> None:
        self.engine = engine
        self.name = name
        self.units = {0: units} if isinstance(units, LogicalUnit) else dict(sorted(units.items()))
        for lun, unit in self.units.items():
            if not 0 <= integer(lun, "a LUN") < 1 << 14:
                raise ArgumentError(f"a LUN is {lun}; 0 to 16383 would be right")
            unit.attach(self, lun)
        self.scratch = Scratch(engine, f"{name} device server")
        self.port = engine.port(self.scratch.memory, name)
        self._nobody = Absent(depth=256)
        self._nobody.attach(self, 0)

    def request(
        self,
        lun: int,
        cdb: bytes,
        tag: int | None = None,
        *,
        attribute: TaskAttribute = TaskAttribute.SIMPLE,
        initiator: object = 0,
        autosense: bool = False,
        offered: int | None = None,
    ) -> Request:
        """A command from an initiator. It goes its way in later turns of the engine.

        Args:
            cdb: as many bytes as the initiator sent.
            tag: unique among the initiator's commands to the unit; None: untagged, of which an
                initiator has one at a time (else OVERLAPPED COMMANDS ATTEMPTED, SAM-5 5.10).
            initiator: who it is: anything that can be a key.
            autosense: the transport delivers `Request.sense` with the status. Else the sense data
                of a CHECK CONDITION waits for REQUEST SENSE.
            offered: bytes that the initiator is ready to move, where its transport says so.
        """
        unit = self.units.get(lun, self._nobody)
        return unit.request(bytes(cdb), tag, attribute, initiator, autosense, lun, offered)

    # --- task management (SAM-5 chapter 7) --------------------------------------------------------

    def abort_task(self, lun: int, tag: int | None, initiator: object = 0) -> Wait[bool]:
        """ABORT TASK. Await it: whether there was one."""
        return self._unit(lun).abort(
            lambda each: each.initiator == initiator and each.tag == tag and each.lun == lun
        )

    def abort_task_set(self, lun: int, initiator: object = 0) -> Wait[bool]:
        """ABORT TASK SET: all commands of an initiator. Await it: whether there was one."""
        return self._unit(lun).abort(lambda each: each.initiator == initiator and each.lun == lun)

    def clear_task_set(self, lun: int, initiator: object = 0) -> Wait[bool]:
        """CLEAR TASK SET: all commands; other initiators are told. Await it."""
        return self._unit(lun).clear(initiator)

    def reset_unit(self, lun: int) -> Wait[bool]:
        """LOGICAL UNIT RESET. Await it."""
        return self._unit(lun).reset(senses.UNIT_RESET)

    def reset(self, *, bus: bool = False) -> Wait[None]:
        """Target reset, or with `bus` a reset of the bus that it is on (SAM-5 6.3.2). Await it."""
        sense = senses.BUS_RESET if bus else senses.UNIT_RESET
        return self._all(lambda unit: unit.reset(sense))

    def forget(self, initiator: object) -> Wait[None]:
        """I_T nexus loss: an initiator is gone, and its commands with it. Await it."""
        return self._all(lambda unit: unit.forget(initiator))

    def _all(self, act: Callable[[LogicalUnit], Wait[Any]]) -> Wait[None]:
        """What is over when `act` is, on every unit."""
        done: Wait[None] = Wait(self.engine)
        units = (*self.units.values(), self._nobody)
        left = len(units)

        def over(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                done._resolve(None)

        for unit in units:
            act(unit)._when_done(over)
        return done

    def _unit(self, lun: int) -> LogicalUnit:
        return self.units.get(lun, self._nobody)

    def close(self) -> None:
        """Ends what is under way, and takes nothing more."""
        if not self.port.closed:
            self.reset()
            self.port.close()
            self.scratch.close()

    def __repr__(self) -> str:
        return f"<Target {self.name}, LUNs {', '.join(map(str, self.units))}>"
