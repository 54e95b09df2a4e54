# SPDX-License-Identifier: Apache-2.0
"""A logical unit: takes commands, lets them begin in their order, and gives each a status.

Invariants
 - Every command ends with one of the statuses that its standard names, or CANCELLED; what a handler
   raises besides is INTERNAL TARGET FAILURE, and comes out of the engine.
 - A unit attention is told once to each initiator, by the first command that is not exempt
   (SAM-5 5.14.1), or by REQUEST SENSE.
 - Sense data that no transport has delivered is kept for REQUEST SENSE until the initiator's next
   command (SCSI-2 8.2.14).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from iodma._core import Wait
from iodma.engine import Engine
from iodma.errors import Error
from iodma.log import GuestLog
from iodma.port import Port
from iodma.scsi import sense as senses
from iodma.scsi.cdb import Cdb, Command, Commands
from iodma.scsi.movers import FromBytes, ToBytes
from iodma.scsi.opcodes import supported_opcodes
from iodma.scsi.primary import PRIMARY
from iodma.scsi.request import DataDirection, Request, State, TaskAttribute
from iodma.scsi.sense import CheckCondition, ScsiStatus, Sense
from iodma.scsi.taskset import TaskSet

if TYPE_CHECKING:
    from iodma.scsi.target import Target

__all__ = ["Absent", "LogicalUnit", "Nexus"]

log = GuestLog("iodma.scsi")

REQUEST_SENSE = 0x03
#: Opcodes of commands that are done though a unit attention is pending (SAM-5 5.14.1).
EXEMPT = frozenset(each.opcode for each in PRIMARY if each.exempt)
#: Most unit attentions that wait for one initiator: there are no more kinds.
MOST_ATTENTIONS = 8


class Nexus:
    """What a logical unit knows of one initiator (an I_T_L nexus, SAM-5 4.7).

    Attributes:
        initiator: who it is.
        attentions: the unit attentions that it has not been told.
        sense: what no transport has delivered; None: nothing.
    """

    __slots__ = ("attentions", "initiator", "sense")

    def __init__(self, initiator: object) -> None:
        self.initiator = initiator
        self.attentions: deque[Sense] = deque((senses.POWER_ON,), MOST_ATTENTIONS)
        self.sense: Sense | None = None

    def attention(self, sense: Sense) -> None:
        """Something to be told; what is there already is not told twice."""
        if sense not in self.attentions:
            self.attentions.append(sense)


class LogicalUnit:
    """The base of logical units.

    Args:
        depth: most commands in its task set; one more is TASK SET FULL.

    Attributes:
        lun: where it is in its target.
        tasks: its `TaskSet`.
    """

    commands: ClassVar[Commands] = Commands(*PRIMARY)
    #: PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE (SPC-4 6.6.2).
    peripheral: ClassVar[int] = 0x1F

    def __init__(self, *, depth: int = 64) -> None:
        self.lun = 0
        self.tasks = TaskSet(depth)
        self._nexuses: dict[object, Nexus] = {}
        self._target: Target | None = None

    # --- in a target ------------------------------------------------------------------------------

    @property
    def target(self) -> Target:
        """The target that it is in. Raises Error: none."""
        if self._target is None:
            raise Error(f"{self!r} is in no target")
        return self._target

    @property
    def engine(self) -> Engine:
        """Its target's."""
        return self.target.engine

    @property
    def port(self) -> Port:
        """Of the device server itself, for what reaches no initiator."""
        return self.target.port

    def attach(self, target: Target, lun: int) -> None:
        """It is unit `lun` of a target now. Raises Error: it is in one already."""
        if self._target is not None:
            raise Error(f"{self!r} is in a target already")
        self._target = target
        self.lun = lun

    def nexus(self, initiator: object) -> Nexus:
        """What is known of an initiator; a new one hears of the power-on first."""
        found = self._nexuses.get(initiator)
        if found is None:
            found = self._nexuses[initiator] = Nexus(initiator)
        return found

    def attention(self, sense: Sense, *, but: object = None) -> None:
        """A unit attention for all initiators, but one."""
        for nexus in self._nexuses.values():
            if but is None or nexus.initiator != but:
                nexus.attention(sense)

    # --- commands ---------------------------------------------------------------------------------

    def request(
        self,
        cdb: bytes,
        tag: int | None,
        attribute: TaskAttribute,
        initiator: object,
        autosense: bool,
        lun: int,
        offered: int | None,
    ) -> Request:
        """See `Target.request`."""
        nexus = self.nexus(initiator)
        request = Request(self, nexus, lun, cdb, tag, attribute, autosense, offered)
        if self.tasks.full:
            request.complete(ScsiStatus.TASK_SET_FULL)
            return request
        if any(
            other.nexus is nexus and other.tag == tag and other.lun == lun for other in self.tasks
        ):
            self.abort(lambda other: other.nexus is nexus)
            self._refuse(request, senses.OVERLAPPED)  # SAM-5 5.10
            return request
        self.tasks.add(request)
        self._schedule()
        return request

    def abort(self, which: Callable[[Request], bool]) -> Wait[bool]:
        """Cancels commands. Await it: whether there were any, when nothing of them is in flight."""
        done: Wait[bool] = Wait(self.engine)
        chosen = [each for each in self.tasks if which(each)]
        left = len(chosen)

        def over() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                done._resolve(bool(chosen))

        for each in chosen:
            each.when_over(over)
            each.cancel()
        if not chosen:
            done._resolve(False)
        return done

    def clear(self, initiator: object) -> Wait[bool]:
        """CLEAR TASK SET (SAM-5 7.5): all commands, of all initiators, who are told."""
        for each in self.tasks:
            if each.initiator != initiator:
                each.nexus.attention(senses.CLEARED_BY_ANOTHER)
        return self.abort(lambda _: True)

    def reset(self, why: Sense = senses.UNIT_RESET) -> Wait[bool]:
        """LOGICAL UNIT RESET (SAM-5 7.7). Await it: nothing is in flight."""
        done = self.abort(lambda _: True)
        for nexus in self._nexuses.values():
            nexus.sense = None
            nexus.attentions.clear()
            nexus.attention(why)
        self.power_on()
        return done

    @property
    def descriptor_sense(self) -> bool:
        """Hook: whether sense data is in descriptor format (D_SENSE)."""
        return False

    def power_on(self) -> None:
        """Hook: everything that commands can change is as it was at first."""

    def forget(self, initiator: object) -> Wait[bool]:
        """I_T NEXUS LOSS (SAM-5 6.3.4): an initiator is gone, and so are its commands."""
        done = self.abort(lambda each: each.initiator == initiator)
        self._nexuses.pop(initiator, None)
        self.forgotten(initiator)
        return done

    def forgotten(self, initiator: object) -> None:
        """Hook: an initiator is gone."""

    def ended(self, request: Request) -> None:
        """A request is over: others may begin."""
        self.tasks.remove(request)
        if len(self.tasks):
            self._schedule()

    def landed(self) -> None:
        """Hook: a transfer of one of its requests has ended."""

    def _schedule(self) -> None:
        for request in self.tasks.runnable():
            if request.state is State.DORMANT:  # one before it may have ended the others
                self._begin(request)

    def _begin(self, request: Request) -> None:
        nexus = request.nexus
        try:
            opcode = request.cdb[0] if request.cdb else -1
            if opcode != REQUEST_SENSE:
                nexus.sense = None
            if opcode not in EXEMPT:
                pending = self.pending(nexus)
                if pending is not None:
                    raise CheckCondition(pending)
            command = self.commands.find(request.cdb)
            if self.conflicts(request, command):
                request.complete(ScsiStatus.RESERVATION_CONFLICT)
                return
            cdb = command.parse(request.cdb)
            self.check(cdb)
        except CheckCondition as refused:
            self._refuse(request, refused.sense)
            return
        handler: Callable[[Request, Cdb], Awaitable[ScsiStatus | None]]
        handler = getattr(self, command.handler)
        task = self.engine.start(self._run(request, cdb, handler), name=command.name)
        request.enable(task.cancel)
        task._when_done(lambda _: request.task_ended())

    async def _run(
        self,
        request: Request,
        cdb: Cdb,
        handler: Callable[[Request, Cdb], Awaitable[ScsiStatus | None]],
    ) -> None:
        try:
            status = await handler(request, cdb)
        except CheckCondition as refused:
            self._refuse(request, refused.sense)
        except Exception:
            self._refuse(request, senses.INTERNAL_FAILURE)
            raise
        else:
            if not request.cancelled:
                request.complete(ScsiStatus.GOOD if status is None else status)

    def _refuse(self, request: Request, sense: Sense) -> None:
        if request.cancelled:
            return
        if self.descriptor_sense and not sense.descriptors:
            sense = replace(sense, descriptors=True)
        if not request.autosense:
            request.nexus.sense = sense
        request.complete(ScsiStatus.CHECK_CONDITION, sense)

    def pending(self, nexus: Nexus) -> Sense | None:
        """The unit attention that a command ends with, which is told now; None: there is none."""
        return nexus.attentions.popleft() if nexus.attentions else None

    def conflicts(self, request: Request, command: Command) -> bool:
        """Hook: whether another initiator has reserved the unit."""
        return False

    def check(self, cdb: Cdb) -> None:
        """Hook: whether a command can be done now, whatever it says: state and protection.

        Raises:
            CheckCondition: it cannot.
        """

    # --- data phases ------------------------------------------------------------------------------

    async def give(self, request: Request, data: bytes, allocation: int) -> None:
        """Data for the initiator, cut to ALLOCATION LENGTH (SPC-4 4.2.5.6)."""
        data = data[:allocation]
        await request.data_phase(DataDirection.IN, len(data), FromBytes(data))

    async def take(self, request: Request, length: int) -> bytes:
        """A parameter list of `length` bytes, or what the initiator gave of it."""
        into = ToBytes()
        await request.data_phase(DataDirection.OUT, length, into)
        return bytes(into.data)

    # --- the commands of every unit ---------------------------------------------------------------

    async def test_unit_ready(self, request: Request, cdb: Cdb) -> None:
        """TEST UNIT READY: `check` has said it."""

    async def request_sense(self, request: Request, cdb: Cdb) -> None:
        """REQUEST SENSE (SPC-4 6.39): what was kept, else a unit attention, else nothing."""
        nexus = request.nexus
        sense = nexus.sense or self.pending(nexus) or self.condition()
        nexus.sense = None
        data = sense.descriptor() if cdb["DESC"] else sense.fixed()  # whatever D_SENSE says
        await self.give(request, data, cdb["ALLOCATION LENGTH"])

    def condition(self) -> Sense:
        """Hook: what REQUEST SENSE tells where nothing has happened."""
        return senses.NONE

    async def inquiry(self, request: Request, cdb: Cdb) -> None:
        """INQUIRY (SPC-4 6.6)."""
        page = cdb["PAGE CODE"]
        if not cdb["EVPD"]:
            if page:
                raise cdb.invalid("PAGE CODE")
            data = self.inquiry_data()
        else:
            found = self.vital_product_data(page)
            if found is None:
                raise cdb.invalid("PAGE CODE")
            data = bytes((self.peripheral, page)) + len(found).to_bytes(2, "big") + found
        await self.give(request, data, cdb["ALLOCATION LENGTH"])

    def inquiry_data(self) -> bytes:
        """Hook: standard INQUIRY data (SPC-4 6.6.2)."""
        return bytes((self.peripheral, 0, 0x06, 0x02, 31)).ljust(36, b"\0")

    def vital_product_data(self, page: int) -> bytes | None:
        """Hook: a VPD page behind its header; None: there is no such page."""
        return None

    async def report_luns(self, request: Request, cdb: Cdb) -> None:
        """REPORT LUNS (SPC-4 6.33)."""
        allocation = cdb["ALLOCATION LENGTH"]
        if cdb["SELECT REPORT"] > 2:
            raise cdb.invalid("SELECT REPORT")
        luns: Iterable[int] = self.target.units if cdb["SELECT REPORT"] != 1 else ()
        # Single level, peripheral device addressing; above 255 flat space (SAM-5 4.6.6).
        # The well known unit of REPORT LUNS is not there, so that SELECT REPORT 01h is none.
        words = [lun if lun < 256 else lun | 0x4000 for lun in luns]
        data = b"".join(word.to_bytes(2, "big") + bytes(6) for word in words)
        await self.give(request, len(data).to_bytes(4, "big") + bytes(4) + data, allocation)

    async def send_diagnostic(self, request: Request, cdb: Cdb) -> None:
        """SEND DIAGNOSTIC (SPC-4 6.42): the default self-test, which finds nothing."""
        for what in ("SELF-TEST CODE", "DEVOFFL", "UNITOFFL", "PARAMETER LIST LENGTH"):
            if cdb[what]:
                raise cdb.invalid(what)
        if not cdb["SELFTEST"]:
            raise cdb.invalid("SELFTEST")

    async def report_opcodes(self, request: Request, cdb: Cdb) -> None:
        """REPORT SUPPORTED OPERATION CODES (SPC-4 6.35)."""
        data = supported_opcodes(self.commands, cdb)
        await self.give(request, data, cdb["ALLOCATION LENGTH"])

    async def report_functions(self, request: Request, cdb: Cdb) -> None:
        """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36): ATS, ATSS, CTSS, LURS, TRS."""
        data = bytes((0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0, 0))
        await self.give(request, data, cdb["ALLOCATION LENGTH"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at LUN {self.lun}, {len(self.tasks)} commands>"


class Absent(LogicalUnit):
    """What answers at a LUN where nothing is (SPC-4 6.6.2, 6.39, SAM-5 5.13)."""

    peripheral: ClassVar[int] = 0x7F

    def pending(self, nexus: Nexus) -> Sense | None:
        return senses.NO_SUCH_UNIT
