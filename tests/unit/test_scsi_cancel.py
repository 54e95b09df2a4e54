"""A request is cancelled in each phase of its life: nothing of it moves after it has ended."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iodma import BusyError, Ram, ScatterList, Status
from iodma._core import Wait
from iodma.scsi import Disk, Request, State, Target, TaskAttribute
from iodma.scsi.request import EDGES
from iodma.scsi.scratch import SLOTS
from iodma.testing import Answer, ScriptedEndpoint, strict_engine
from tests.unit.engines import settle
from tests.unit.scsikit import CHECK, GOOD, Initiator, cdb, state_of

BLOCKS = 1024
READ = cdb("READ (10)", TRANSFER_LENGTH=8)
WRITE = cdb("WRITE (10)", TRANSFER_LENGTH=8)
CAW = cdb("COMPARE AND WRITE", NUMBER_OF_LOGICAL_BLOCKS=1)


class Slow:
    """An initiator on a disk that answers when the test says so, and does not honour cancels."""

    def __init__(self, disk: ScriptedEndpoint, it: Initiator) -> None:
        self.disk = disk
        self.it = it
        self.tasks: list[Any] = []

    def settle(self) -> None:
        settle(self.it.engine)

    def begin(self, cdb: bytes, out: bytes = b"", **options: Any) -> Request:
        """Sends a command, and moves what it wants as soon as it wants it."""
        request = self.it.send(cdb, **options)
        self.tasks.append(
            self.it.engine.start(self.it.move(request, out, (1 << 20,), at=len(self.tasks) << 16))
        )
        self.settle()
        return request


@pytest.fixture
def slow() -> Iterator[Slow]:
    disk = ScriptedEndpoint(BLOCKS * 512, script=lambda _: Answer.hold(), on_cancel="ignore")
    with strict_engine() as engine, Ram(1 << 20) as ram, disk:
        target = Target(engine, Disk(disk))
        it = Initiator(engine, target, ram)
        engine.run(it.settle())
        yield Slow(disk, it)
        assert not len(target.units[0].tasks)
        target.close()
        it.port.close()
        settle(engine)


def ended(request: Request) -> None:
    assert state_of(request) is State.CANCELLED and request.status is None and request.sense is None
    assert request.ready.done and request.finished.done and not request.cancel()
    assert not request.working


def test_while_it_waits_for_its_turn(slow: Slow) -> None:
    first = slow.begin(READ, tag=1)
    second = slow.begin(READ, tag=2, attribute=TaskAttribute.ORDERED)
    third = slow.begin(READ, tag=3)
    assert (second.state, third.state) == (State.DORMANT, State.DORMANT)
    assert not second.working and second.cancel()
    ended(second)
    slow.settle()
    assert state_of(third) is State.DATA, "what it held up goes on"
    slow.disk.answer_all()
    slow.settle()
    assert first.status is third.status is GOOD


def test_before_its_first_turn(slow: Slow) -> None:
    request = slow.it.send(READ)
    assert state_of(request) is State.ENABLED and request.cancel() and request.cancel()
    slow.settle()
    ended(request)
    assert not slow.disk.requests


def test_before_the_first_byte(slow: Slow) -> None:
    request = slow.it.send(READ)
    slow.settle()
    assert state_of(request) is State.DATA and not request.working and request.cancel()
    slow.settle()
    ended(request)
    assert not slow.disk.requests


@pytest.mark.parametrize("cdb", [READ, WRITE])
def test_while_bytes_move(slow: Slow, cdb: bytes) -> None:
    request = slow.begin(cdb, bytes(4096))
    assert len(slow.disk.waiting) == 1 and request.cancel()
    slow.settle()
    assert state_of(request) is State.ABORTING and request.working, "the medium still has it"
    assert slow.disk.waiting[0].cancelled
    slow.disk.answer()
    slow.settle()
    ended(request)


def test_while_bytes_move_and_who_moved_them_is_gone(slow: Slow) -> None:
    request = slow.begin(READ)
    slow.tasks[-1].cancel()
    slow.settle()
    assert slow.tasks[-1].done and state_of(request) is State.DATA
    assert request.cancel()
    slow.settle()
    assert state_of(request) is State.ABORTING, "its transfer is in flight"
    slow.disk.answer()
    slow.settle()
    ended(request)


def test_between_two_pieces(slow: Slow) -> None:
    request = slow.it.send(READ)

    async def one() -> None:
        await request.ready
        assert (await request.transfer(slow.it.port, (0, 512))).moved == 512

    slow.it.engine.start(one())
    slow.settle()
    slow.disk.answer()
    slow.settle()
    assert request.left == 7 * 512 and request.cancel()
    slow.settle()
    ended(request)


@pytest.mark.parametrize(
    "what",
    [
        cdb("SYNCHRONIZE CACHE (10)"),
        cdb("VERIFY (10)", VERIFICATION_LENGTH=8),
        cdb("WRITE SAME (16)", NDOB=1, NUMBER_OF_LOGICAL_BLOCKS=8),
        cdb("WRITE SAME (16)", NDOB=1, UNMAP=1, NUMBER_OF_LOGICAL_BLOCKS=8),
    ],
    ids=lambda raw: f"{raw[0]:02x}-{raw[1]:02x}",
)
def test_while_the_device_server_works(slow: Slow, what: bytes) -> None:
    request = slow.begin(what)
    assert state_of(request) is State.ENABLED and len(slow.disk.waiting) == 1
    assert request.cancel()
    slow.settle()
    if what[0] != 0x35:  # a flush changes nothing that could be seen later
        assert state_of(request) is State.ABORTING
    slow.disk.answer()
    slow.settle()
    ended(request)


@pytest.mark.parametrize("phase", range(3))
def test_after_the_data_and_before_the_status(slow: Slow, phase: int) -> None:
    """WRITE AND VERIFY: written, read back, flushed."""
    request = slow.begin(cdb("WRITE AND VERIFY (10)", BYTCHK=1, TRANSFER_LENGTH=8), bytes(4096))
    for _ in range(phase):
        slow.disk.answer()
        slow.settle()
    assert len(slow.disk.waiting) == 1 and request.cancel()
    slow.settle()
    slow.disk.answer()
    slow.settle()
    ended(request)


def test_a_slot_is_given_back_when_its_transfer_has_ended(slow: Slow) -> None:
    verify = cdb("VERIFY (10)", VERIFICATION_LENGTH=8)
    some = [slow.begin(verify, tag=tag) for tag in range(SLOTS + 1)]
    assert len(slow.disk.waiting) == SLOTS, "one waits for a slot"
    late = slow.begin(verify, tag=99)
    late.cancel()
    some[0].cancel()
    slow.settle()
    assert len(slow.disk.requests) == SLOTS, "the slot is still written to"
    slow.disk.answer(slow.disk.waiting[0])
    slow.settle()
    ended(some[0])
    ended(late)
    assert len(slow.disk.requests) == SLOTS + 1
    slow.disk.answer_all()
    slow.settle()
    assert all(each.status is GOOD for each in some[1:])
    for tag in range(SLOTS):
        slow.begin(verify, tag=tag)
    assert len(slow.disk.waiting) == SLOTS, "none is lost"
    slow.disk.answer_all()
    slow.settle()


def test_who_is_cancelled_waits_for_no_slot_any_more(slow: Slow) -> None:
    """An initiator may hold all slots for as long as it likes, and send and abort others."""
    verify = cdb("VERIFY (10)", VERIFICATION_LENGTH=8)
    for tag in range(SLOTS):
        slow.begin(verify, tag=tag)
    for _ in range(20):
        late = slow.begin(verify, tag=99)
        late.cancel()
        slow.settle()
        ended(late)
    assert len(slow.it.target.scratch._waiting) <= 1
    last = slow.begin(verify, tag=99)
    slow.disk.answer_all()
    slow.settle()
    slow.disk.answer_all()
    slow.settle()
    assert last.status is GOOD


def test_before_the_turn_in_which_the_data_phase_would_begin(slow: Slow) -> None:
    request = slow.begin(cdb("READ (10)", FUA=1, TRANSFER_LENGTH=8))
    slow.disk.answer()  # the flush in front of it
    assert request.cancel()
    slow.settle()
    ended(request)
    assert len(slow.disk.requests) == 1


def test_alone_on_the_medium(slow: Slow) -> None:
    before = slow.begin(READ, tag=1)
    alone = slow.begin(CAW, bytes(512) + b"\x11" * 512, tag=2)
    behind = slow.begin(WRITE, b"\x22" * 4096, tag=3)
    assert len(slow.disk.waiting) == 1, "it waits for who is there, and others for it"
    slow.disk.answer()
    slow.settle()
    assert before.status is GOOD and len(slow.disk.requests) == 2
    slow.disk.answer()
    slow.settle()
    assert len(slow.disk.requests) == 3 and not alone.over
    slow.disk.answer()
    slow.settle()
    assert alone.status is GOOD and len(slow.disk.waiting) == 1
    slow.disk.answer()
    slow.settle()
    assert behind.status is GOOD and slow.disk.content[:4096] == b"\x22" * 4096


@pytest.mark.parametrize("answers", range(3))
def test_who_is_alone_is_cancelled(slow: Slow, answers: int) -> None:
    before = slow.begin(READ, tag=1)
    alone = slow.begin(CAW, bytes(512) + b"\x11" * 512, tag=2)
    behind = slow.begin(WRITE, bytes(4096), tag=3)
    for _ in range(answers):
        slow.disk.answer()
        slow.settle()
    alone.cancel()
    slow.settle()
    while slow.disk.waiting:
        slow.disk.answer()
        slow.settle()
    ended(alone)
    assert before.status is behind.status is GOOD, "others go on"


@pytest.mark.parametrize("act", ["abort_task_set", "clear_task_set", "reset_unit", "reset"])
def test_task_management_is_done_when_nothing_moves(slow: Slow, act: str) -> None:
    some = [slow.begin(READ, tag=tag) for tag in range(3)]
    manage: dict[str, Callable[[], Wait[Any]]] = {
        "abort_task_set": lambda: slow.it.target.abort_task_set(0, slow.it.name),
        "clear_task_set": lambda: slow.it.target.clear_task_set(0, slow.it.name),
        "reset_unit": lambda: slow.it.target.reset_unit(0),
        "reset": lambda: slow.it.target.reset(),
    }
    done = manage[act]()
    for index in range(3):
        slow.settle()
        assert not done.done, index
        slow.disk.answer()
    slow.settle()
    assert done.done
    for each in some:
        ended(each)


# --- what else can go wrong -----------------------------------------------------------------------


def test_an_address_that_is_refused_leaves_the_request_as_it_is(slow: Slow) -> None:
    request = slow.it.send(READ)

    async def main() -> None:
        await request.ready
        done = await request.transfer(slow.it.port, [(0, 512), (1 << 40, 512)])
        assert (done.status, done.moved) == (Status.FAULT, 0) and request.left == 4096
        done = await request.transfer(slow.it.port, (0, 1 << 16))
        assert (done.status, done.moved) == (Status.OK, 4096)

    task = slow.it.engine.start(main())
    slow.settle()
    slow.disk.answer()
    slow.settle()
    assert task.done and task.exception is None and request.status is GOOD


@pytest.mark.parametrize(
    ("raw", "moved"),
    [
        (cdb("INQUIRY", ALLOCATION_LENGTH=96), 60),
        (cdb("MODE SELECT (10)", PF=1, PARAMETER_LIST_LENGTH=96), 60),
        (cdb("VERIFY (10)", BYTCHK=1, VERIFICATION_LENGTH=1), 0),
        (READ, 0),
    ],
)
def test_a_fault_is_where_the_address_was_refused(slow: Slow, raw: bytes, moved: int) -> None:
    request = slow.it.send(raw)
    pieces = [(0, 20), (100, 0), (100, 40), (1 << 40, 20)]

    async def main() -> None:
        await request.ready
        done = await request.transfer(slow.it.port, pieces)
        assert (done.status, done.moved) == (Status.FAULT, moved)
        assert done.fault is not None
        assert (done.fault.offset, done.fault.address) == (60, 1 << 40)
        assert request.left == request.expected - moved
        request.cancel()
        await request.finished

    task = slow.it.engine.start(main())
    slow.settle()
    assert task.done and task.exception is None


@pytest.mark.parametrize(
    ("cdb", "error", "moved", "sense", "lba"),
    [
        (READ, errno.EIO, 0, "MEDIUM_ERROR 11/00", 0),
        (READ, errno.EIO, 1024, "MEDIUM_ERROR 11/00", 2),
        (WRITE, errno.EIO, 1024, "MEDIUM_ERROR 0C/00", 2),
        (WRITE, errno.ENOSPC, 0, "DATA_PROTECT 27/07", 0),
        (READ, 0, 0, "MEDIUM_ERROR 11/00", 0),  # the file has become shorter
    ],
)
def test_an_error_of_the_medium_is_told(
    slow: Slow, cdb: bytes, error: int, moved: int, sense: str, lba: int
) -> None:
    request = slow.begin(cdb, bytes(4096))
    if moved:
        slow.disk.answer(moved=moved)
        slow.settle()
    if error:
        slow.disk.answer(error=error)
    else:
        slow.disk.answer(moved=0)
    slow.settle()
    assert request.status is CHECK and str(request.sense) == sense
    assert request.sense is not None and request.sense.information == lba
    assert request.left == 4096 - moved


@pytest.mark.parametrize("how", ["SYNCHRONIZE CACHE", "FUA", "WRITE AND VERIFY"])
def test_after_one_flush_has_failed_all_fail(slow: Slow, how: str) -> None:
    def flush() -> Request:
        if how == "SYNCHRONIZE CACHE":
            return slow.begin(cdb("SYNCHRONIZE CACHE (16)"))
        name = "WRITE (10)" if how == "FUA" else "WRITE AND VERIFY (10)"
        fields = {"FUA": 1} if how == "FUA" else {}
        return slow.begin(cdb(name, TRANSFER_LENGTH=1, **fields), bytes(512))

    request = flush()
    while slow.disk.waiting:  # writes, then the flush
        last = slow.disk.waiting[0]
        slow.disk.answer(error=errno.EIO if last.kind == "flush" else 0)
        slow.settle()
    assert str(request.sense) == "MEDIUM_ERROR 0C/00"
    again = flush()
    while slow.disk.waiting:
        assert slow.disk.waiting[0].kind != "flush", "the kernel would say that all is well"
        slow.disk.answer()
        slow.settle()
    assert str(again.sense) == "MEDIUM_ERROR 0C/00"


# --- the table, and what a caller may do ----------------------------------------------------------


def test_every_edge_is_walked(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    walked = set()
    original = Request._to

    def watched(request: Request, state: State) -> None:
        walked.add((request.state, state))
        original(request, state)

    monkeypatch.setattr(Request, "_to", watched)
    first = slow.begin(READ, tag=1)
    second = slow.begin(READ, tag=2, attribute=TaskAttribute.ORDERED)
    slow.begin(READ, tag=3).cancel()
    slow.begin(b"\xc0", tag=4)
    slow.disk.answer()
    slow.settle()
    slow.disk.answer()
    slow.settle()
    assert first.status is second.status is GOOD
    slow.begin(READ, tag=5).cancel()
    slow.settle()
    slow.disk.answer()
    slow.begin(cdb("SYNCHRONIZE CACHE (10)"), tag=6).cancel()
    slow.settle()
    slow.disk.answer_all()
    slow.begin(READ, tag=7, attribute=TaskAttribute.ORDERED)
    slow.begin(READ, tag=8).cancel()
    slow.disk.answer_all()
    slow.settle()
    assert walked == set(EDGES)
    with pytest.raises(AssertionError, match="no edge"):
        first._to(State.DATA)


def test_one_transfer_of_a_request_at_a_time(slow: Slow) -> None:
    request = slow.begin(READ)

    async def another() -> None:
        with pytest.raises(BusyError):
            await request.transfer(slow.it.port, (0, 512))
        request.end_data()
        assert state_of(request) is State.DATA, "not while bytes move"

    task = slow.it.engine.start(another())
    slow.settle()
    assert task.done and task.exception is None
    slow.disk.answer()
    slow.settle()
    assert request.status is GOOD


def test_pieces_of_any_form(slow: Slow) -> None:
    slow.disk._script = iter(())  # answers all
    slow.disk.content[:4096] = bytes(range(256)) * 16
    request = slow.it.send(READ)

    async def main() -> None:
        await request.ready
        assert (await request.transfer(slow.it.port, [])).moved == 0
        assert (await request.transfer(slow.it.port, (0, 0))).moved == 0
        assert (await request.transfer(slow.it.port, (0, 100))).moved == 100
        assert (await request.transfer(slow.it.port, [(100, 0), (100, 400)])).moved == 400
        assert (await request.transfer(slow.it.port, ScatterList([(500, 1 << 16)]))).moved == 3596
        assert (await request.transfer(slow.it.port, (0, 100))).moved == 0
        assert await request.finished is GOOD

    slow.it.engine.run(main())
    assert slow.it.ram.view(0, 4096) == slow.disk.content[:4096]


def test_a_data_phase_that_the_initiator_ends(slow: Slow) -> None:
    slow.disk._script = iter(())

    async def main() -> None:
        for raw in (READ, WRITE):
            request = slow.it.send(raw)
            await request.ready
            await request.transfer(slow.it.port, (0, 1000))
            request.end_data()
            assert await request.finished is GOOD and request.left == 3096

    slow.it.engine.run(main())
