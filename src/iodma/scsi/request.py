# SPDX-License-Identifier: Apache-2.0
"""One command on its way through a logical unit: a state machine with a table.

    request = target.request(0, cdb, initiator=7)
    await request.ready                                   # an initiator on a bus disconnects here
    while request.left:
        done = await request.transfer(port, segments)     # any number of times, any sizes
    await request.finished
    request.status, request.sense

Invariants
 - `_to` alone changes the state, along `EDGES` and no other way.
 - A request ends once: COMPLETED with a status, or CANCELLED without one; nothing of it is in
   flight then, and no byte moves after that.
 - The data phase begins at most once, moves at most `expected` bytes, and moves them in order.
 - What an initiator sent never raises: it is a status with sense data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from iodma._core import Completion, Transfer, Wait, completion
from iodma.errors import BusyError
from iodma.port import Port
from iodma.scsi.sense import CheckCondition, ScsiStatus, Sense
from iodma.sg import ScatterList
from iodma.types import Status

if TYPE_CHECKING:
    from iodma.scsi.unit import LogicalUnit, Nexus

__all__ = ["EDGES", "DataDirection", "Mover", "Request", "State", "TaskAttribute", "diagram"]

T = TypeVar("T")
Segments = ScatterList | Sequence[tuple[int, int]] | tuple[int, int]


class TaskAttribute(Enum):
    """How a command stands to the others of its task set (SAM-5 8.6)."""

    SIMPLE = "simple"
    ORDERED = "ordered"
    HEAD_OF_QUEUE = "head of queue"


class DataDirection(Enum):
    """Which way the data phase goes, named from the initiator's side, as SAM-5 does."""

    NONE = "none"
    IN = "in"  #: to the initiator
    OUT = "out"  #: from the initiator


class State(IntEnum):
    """Where a request is; SAM-5 8.5 has the first two."""

    DORMANT = 0
    ENABLED = 1
    DATA = 2
    ABORTING = 3
    COMPLETED = 4
    CANCELLED = 5


#: All edges that there are, and what happens on them.
EDGES: dict[tuple[State, State], str] = {
    (State.DORMANT, State.ENABLED): "its turn in the task set",
    (State.DORMANT, State.COMPLETED): "refused at once",
    (State.DORMANT, State.CANCELLED): "cancelled before its turn",
    (State.ENABLED, State.DATA): "the data phase may begin",
    (State.ENABLED, State.COMPLETED): "status",
    (State.ENABLED, State.ABORTING): "cancelled",
    (State.DATA, State.ENABLED): "all moved, an error, or the initiator wants no more",
    (State.DATA, State.ABORTING): "cancelled",
    (State.ABORTING, State.CANCELLED): "nothing is in flight any more",
}


def diagram() -> str:
    """The state table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> DORMANT: accepted"]
    lines += [f"    {a.name} --> {b.name}: {why}" for (a, b), why in EDGES.items()]
    return "\n".join(lines)


class Mover(Protocol):
    """One side of a data phase: the bytes that a command has, or wants."""

    async def move(
        self, request: Request, port: Port, segments: ScatterList, at: int
    ) -> Completion:
        """Moves all of `segments`, which are bytes `at` and on of the data phase.

        What it has in flight it tells `request.flight`. A completion that is not OK but FAULT or
        CANCELLED ends the command with `failed`.
        """
        ...

    def failed(self, at: int, done: Completion) -> Sense:
        """The sense data for a move that ended so, `at` bytes into the data phase."""
        ...


class Request:
    """A command, from its CDB to its status. Made by `Target.request`.

    Attributes:
        lun, cdb, tag, initiator, attribute: as given.
        autosense: the transport delivers `sense` with the status; else the unit keeps it for
            REQUEST SENSE.
        offered: bytes that the initiator is ready to move, where its transport says so; None: it
            does not.
        state: a `State`.
        direction: of the data phase, once `ready`.
        expected: bytes of the data phase, once `ready`.
        left: bytes that have not been moved.
        status: a `ScsiStatus`; None until it is over, and when it was cancelled.
        sense: of a CHECK CONDITION, else None.
    """

    def __init__(
        self,
        unit: LogicalUnit,
        nexus: Nexus,
        lun: int,
        cdb: bytes,
        tag: int | None,
        attribute: TaskAttribute,
        autosense: bool,
        offered: int | None,
    ) -> None:
        engine = unit.engine
        self.unit = unit
        self.nexus = nexus
        self.lun = lun
        self.cdb = cdb
        self.tag = tag
        self.attribute = attribute
        self.autosense = autosense
        self.offered = offered
        self.state = State.DORMANT
        self.direction = DataDirection.NONE
        self.expected = 0
        self.left = 0
        self.status: ScsiStatus | None = None
        self.sense: Sense | None = None
        self._engine = engine
        self._ready: Wait[None] = Wait(engine)
        self._finished: Wait[ScsiStatus | None] = Wait(engine)
        self._data: Wait[None] | None = None
        self._mover: Mover | None = None
        self._error: Sense | None = None
        self._calling = False
        self._flights: set[Transfer[Any]] = set()
        self._abort: Callable[[], None] | None = None
        self._at_end: list[Callable[[], object]] = []
        self._working = False

    # --- for the initiator's side -----------------------------------------------------------------

    @property
    def initiator(self) -> object:
        """Who sent it."""
        return self.nexus.initiator

    @property
    def ready(self) -> Wait[None]:
        """Await it: the data phase may begin, or the request is over."""
        return self._ready

    @property
    def finished(self) -> Wait[ScsiStatus | None]:
        """Await it for the status; None: the request was cancelled, and nothing moves any more."""
        return self._finished

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._finished.done

    @property
    def cancelled(self) -> bool:
        """Whether it ended, or will end, without a status."""
        return self.state in (State.ABORTING, State.CANCELLED)

    @property
    def moves_data(self) -> bool:
        """Whether it is in its data phase."""
        return self.state is State.DATA

    @property
    def in_flight(self) -> bool:
        """Whether a transfer of it is."""
        return bool(self._flights)

    @property
    def working(self) -> bool:
        """Whether it will go on by itself: it waits neither for its initiator nor for its turn."""
        return self._calling or self.state in (State.ENABLED, State.ABORTING)

    async def transfer(self, port: Port, segments: Segments) -> Completion:
        """Moves the next bytes of the data phase, straight between `segments` and the medium.

        Args:
            port: whose space the addresses are of.
            segments: a list; what reaches further than `left` is left alone.

        Returns:
            How it ended. FAULT: the initiator's memory refused; the request stays as it is, short
            of what was moved. IO_ERROR: the medium did, and the request ends with a status of its
            own. CANCELLED: it was cancelled. With no data phase, or none any more, OK and 0 bytes.

        Raises:
            BusyError: a transfer of this request is under way.
        """
        if self._calling:
            raise BusyError(f"{self!r}: a transfer is under way")
        if self.cancelled:
            return completion(Status.CANCELLED, 0, 0)
        mover = self._mover
        if not self.moves_data or mover is None:
            return completion(Status.OK, 0, 0)
        some = segments if isinstance(segments, ScatterList) else ScatterList(_list(segments))
        wanted = some.total_bytes
        if wanted > self.left:
            wanted = self.left
            some = some.slice(0, wanted)
        at = self.expected - self.left
        self._calling = True
        try:
            done = await mover.move(self, port, some, at)
        finally:
            self._calling = False
            self._drained()
        self.left -= done.moved
        if self._mover is not mover or self.state is State.ABORTING:
            return done
        short = done.ok and done.moved < wanted
        if short or done.status in (Status.IO_ERROR, Status.PEER_GONE):
            self._error = mover.failed(at + done.moved, done)
            if short:
                done = completion(Status.IO_ERROR, done.moved, 0)
        if self._error is not None or not self.left:
            self._end_of_data()
        return done

    def end_data(self) -> None:
        """The initiator moves no more, though something may be left: the status comes next."""
        if self.state is State.DATA and not self._calling:
            self._end_of_data()

    def cancel(self) -> bool:
        """Asks that it end without a status; `finished` tells when nothing of it is in flight.

        Returns:
            False: it was over.
        """
        if self.state is State.DORMANT:
            self._end(State.CANCELLED)
        elif self.state in (State.ENABLED, State.DATA):
            self._to(State.ABORTING)
            for transfer in tuple(self._flights):
                transfer.cancel()
            if self._abort is not None:
                self._abort()
            self._drained()
        else:
            return self.state is State.ABORTING
        return True

    def when_over(self, callback: Callable[[], object]) -> None:
        """Has a plain function called when it ends; it is not over yet."""
        self._at_end.append(callback)

    # --- for the logical unit ---------------------------------------------------------------------

    async def data_phase(self, direction: DataDirection, length: int, mover: Mover) -> None:
        """Has the initiator move `length` bytes, or as many of them as it likes.

        Raises:
            CheckCondition: the medium refused.
        """
        if length <= 0:
            return
        self.direction = direction
        self.expected = self.left = length
        self._mover = mover
        self._data = Wait(self._engine)
        self._to(State.DATA)
        self._ready._resolve(None)
        await self._data
        if self._error is not None:
            raise CheckCondition(self._error)

    async def flight(self, transfer: Transfer[T]) -> T:
        """Awaits a transfer that is part of the request: a cancel cancels it, and waits for it."""
        self._flights.add(transfer)
        transfer._when_done(self._landed)  # also where who awaits it here is cancelled
        if self.state is State.ABORTING:
            transfer.cancel()
        return await transfer

    def enable(self, abort: Callable[[], None]) -> None:
        """Its turn has come, and a task works on it, which `abort` ends."""
        self._to(State.ENABLED)
        self._abort = abort
        self._working = True

    def task_ended(self) -> None:
        """The task that worked on it is over."""
        self._working = False
        self._drained()

    def complete(self, status: ScsiStatus, sense: Sense | None = None) -> None:
        """It is over, with a status."""
        self.status, self.sense = status, sense
        self._end(State.COMPLETED)

    # --- state ------------------------------------------------------------------------------------

    def _end_of_data(self) -> None:
        self._to(State.ENABLED)
        self._mover = None
        if self._data is not None:
            self._data._resolve(None)

    def _landed(self, transfer: Wait[Any]) -> None:
        self._flights.discard(transfer)
        self.unit.landed()
        self._drained()

    def _drained(self) -> None:
        busy = self._calling or self._working or self._flights
        if self.state is State.ABORTING and not busy:
            self._end(State.CANCELLED)

    def _end(self, state: State) -> None:
        self._to(state)
        self._mover = None
        self.unit.ended(self)
        if not self._ready.done:
            self._ready._resolve(None)
        self._finished._resolve(self.status)
        for callback in self._at_end:
            callback()

    def _to(self, state: State) -> None:
        if (self.state, state) not in EDGES:
            raise AssertionError(f"{self!r}: no edge from {self.state.name} to {state.name}")
        self.state = state

    def __repr__(self) -> str:
        return (
            f"<Request {self.cdb.hex(' ')} tag {self.tag} of {self.initiator!r},"
            f" {self.state.name}, {self.left} of {self.expected} bytes left>"
        )


def _list(segments: Segments) -> Sequence[tuple[int, int]]:
    """A list of segments, where one alone may be given."""
    if isinstance(segments, tuple) and len(segments) == 2 and isinstance(segments[0], int):
        return [(segments[0], segments[1])]
    return segments  # type: ignore[return-value]
