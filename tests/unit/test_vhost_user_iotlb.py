"""Addresses that go through the front-end's IOMMU: misses, answers, invalidations."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma import Access, DmaFault
from iodma._core import Task
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import PAGE, USER, Bench, FrontEnd
from tests.unit.vhost_guest import (
    BUFFER,
    IN,
    OUT,
    SECTOR,
    GuestWithIommu,
    machine_with,
    pattern,
)

READ, WRITE, RW = 1, 2, 3
UPDATE, INVALIDATE = 2, 3
BUS = GuestWithIommu.bus


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestWithIommu]:
    with machine_with(GuestWithIommu, tmp_path) as guest:
        guest.boot()
        yield guest


# --- with a disk ----------------------------------------------------------------------------------


def test_a_disk_behind_an_iommu(guest: GuestWithIommu) -> None:
    assert guest.request(IN, 3, into=1024) == (0, pattern(2))
    data = os.urandom(SECTOR)
    assert guest.request(OUT, 7, data)[0] == 0
    assert guest.request(IN, 7, into=SECTOR) == (0, data)
    pages = {address for address, _ in guest.misses}
    assert pages <= set(guest.mapped) and len(guest.misses) == len(set(guest.misses))


def test_exactly_what_is_needed_is_asked_for(guest: GuestWithIommu) -> None:
    at = BUFFER + 16 * PAGE
    for iova in (BUS + at, BUS + at + PAGE):
        guest.mapped[iova] = (guest.mapped[iova][0], WRITE)
    guest.misses.clear()
    status, data = guest.add(IN, 0, into=2 * PAGE, at=at)
    guest.wait(1)
    assert guest.view[status] == 0
    assert guest.view[data : data + SECTOR] == pattern()
    asked = [each for each in guest.misses if each[0] >= BUS + at]
    assert sorted(asked) == [(BUS + at, WRITE), (BUS + at + PAGE, WRITE)]


def test_what_is_not_mapped_so_is_an_error_of_that_request(guest: GuestWithIommu) -> None:
    at = BUFFER + 16 * PAGE
    guest.mapped[BUS + at] = (at, READ)
    status, _ = guest.add(IN, 0, into=SECTOR, at=at)
    guest.wait(1)
    assert guest.view[status] == 1
    del guest.mapped[BUS + at]
    assert guest.invalidate(BUS + at, PAGE) == 0
    status, _ = guest.add(IN, 0, into=SECTOR, at=at)
    guest.wait(1)
    assert guest.view[status] == 1
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())


def test_a_status_that_has_no_place_holds_nobody_up(guest: GuestWithIommu) -> None:
    guest.request(IN, 0, into=SECTOR)
    guest.free = BUFFER + 21 * PAGE - 16  # the header before a page's end, the status behind it
    guest.mapped.pop(BUS + BUFFER + 21 * PAGE)
    status, _ = guest.add(IN, 0, into=SECTOR, at=BUFFER)
    guest.wait(1)  # and no answer to another miss helps
    assert guest.view[status] == 0xEE


def test_answers_of_the_rights_that_were_asked_for_add_up(guest: GuestWithIommu) -> None:
    """As QEMU's virtio-iommu gives them: header and status share a page here."""
    guest.exact = True
    guest.misses.clear()
    guest.free = BUFFER + 16 * PAGE
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())
    page = BUS + BUFFER + 16 * PAGE
    assert sorted(each for each in guest.misses if each[0] == page) == [(page, READ), (page, WRITE)]


def test_an_answer_of_fewer_rights_is_a_refusal(guest: GuestWithIommu) -> None:
    guest.tells_less = True
    at = BUFFER + 16 * PAGE
    guest.mapped[BUS + at] = (at, READ)
    status, _ = guest.add(IN, 0, into=SECTOR, at=at)
    guest.wait(1)
    assert guest.view[status] == 1
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())


class WithoutAcknowledgements(GuestWithIommu):
    """A front-end of old: what it does not answer it says nothing of."""

    protocol = (fe.MQ, fe.BACKEND_REQ, fe.CONFIG, fe.STATUS)


def test_a_front_end_without_acknowledgements(tmp_path: Path) -> None:
    with machine_with(WithoutAcknowledgements, tmp_path) as guest:
        guest.boot()
        assert guest.request(IN, 3, into=1024) == (0, pattern(2))
        guest.tells_less = True
        at = BUFFER + 16 * PAGE
        guest.mapped[BUS + at] = (at, READ)
        status, _ = guest.add(IN, 0, into=SECTOR, at=at)
        guest.wait(1)
        assert guest.view[status] == 1 and not guest.acks


def test_what_was_invalidated_is_asked_for_again(guest: GuestWithIommu) -> None:
    at, other = BUFFER + 16 * PAGE, BUFFER + 17 * PAGE
    for to in (at, other, at):
        guest.mapped[BUS + at] = (to, RW)
        assert guest.invalidate(BUS + at, PAGE) == 0
        guest.view[to : to + SECTOR] = bytes(SECTOR)
        status, _ = guest.add(IN, 0, into=SECTOR, at=at)
        guest.wait(1)
        assert guest.view[status] == 0 and guest.view[to : to + SECTOR] == pattern()
    # All of it, rings too, as a size that has no room in its field.
    for size in (0, (1 << 64) - 1):
        assert guest.invalidate(0, size) == 0
        guest.misses.clear()
        assert guest.request(IN, 0, into=SECTOR) == (0, pattern())
        assert len(guest.misses) >= 2


def test_an_invalidation_waits_for_what_is_under_way(tmp_path: Path) -> None:
    disk = ScriptedEndpoint(bytes(range(256)) * 512, script=lambda request: Answer.hold())
    with disk, machine_with(GuestWithIommu, tmp_path, disk=disk) as guest:
        guest.boot()
        guest.add(IN, 0, into=SECTOR, at=BUFFER + 16 * PAGE)
        fe.drive(guest.engine, lambda: disk.waiting)
        payload = fe.iotlb(BUS + BUFFER + 16 * PAGE, PAGE, 0, 0, INVALIDATE)
        guest.front.send(fe.IOTLB_MSG, payload, (), 9)
        fe.settle(guest.engine)
        assert not fe.readable(guest.front.sock)
        # Others are acknowledged in their turn, and that is behind it.
        guest.front.send(fe.GET_QUEUE_NUM)
        fe.settle(guest.engine)
        assert not fe.readable(guest.front.sock)
        disk.answer_all()
        assert guest.front.receive()[0] == fe.IOTLB_MSG
        assert guest.front.receive()[0] == fe.GET_QUEUE_NUM
        guest.wait(1)


@pytest.mark.parametrize("what", ["header", "data", "status"])
def test_a_stop_leaves_what_waits_for_an_answer_in_the_ring(tmp_path: Path, what: str) -> None:
    with machine_with(GuestWithIommu, tmp_path) as guest:
        guest.boot()
        guest.request(IN, 0, into=SECTOR)
        guest.silent = True
        page = BUFFER + 16 * PAGE
        if what == "header":
            guest.free = page
        status, data = guest.add(
            IN,
            0,
            into=SECTOR,
            at=page if what == "data" else BUFFER + 64,
            status_at=page if what == "status" else 0,
        )
        fe.drive(guest.engine, lambda: guest.misses[-1][0] == BUS + page)
        assert guest.front.ask(fe.GET_VRING_BASE, fe.state(0, 0)) == fe.state(0, 1)
        guest.speak()
        guest.start()
        guest.wait(1)
        assert guest.view[status] == 0 and guest.view[data : data + SECTOR] == pattern()


def test_all_that_a_request_misses_is_asked_for_together(guest: GuestWithIommu) -> None:
    guest.request(IN, 0, into=SECTOR)
    guest.silent = True
    guest.misses.clear()
    pages = [BUFFER + at * PAGE for at in (16, 18, 20)]
    guest.free = pages[0]
    guest.add(IN, 0, into=SECTOR, at=pages[1], status_at=pages[2])
    fe.settle(guest.engine)
    assert guest.misses == [(BUS + pages[0], READ), *((BUS + at, WRITE) for at in pages[1:])]


def test_a_channel_that_is_lost_refuses(guest: GuestWithIommu) -> None:
    guest.request(IN, 0, into=SECTOR)
    guest.silent = True
    status, _ = guest.add(IN, 0, into=SECTOR, at=BUFFER + 16 * PAGE)
    fe.drive(guest.engine, lambda: guest.misses[-1][0] == BUS + BUFFER + 16 * PAGE)
    guest.drop_channel()
    guest.wait(1)
    assert guest.view[status] == 1
    status, _ = guest.add(IN, 0, into=SECTOR, at=BUFFER + 17 * PAGE)
    guest.wait(1)
    assert guest.view[status] == 1


def test_a_front_end_that_goes_while_it_is_asked(tmp_path: Path) -> None:
    with machine_with(GuestWithIommu, tmp_path) as guest:
        guest.silent = True
        guest.boot()
        guest.add(IN, 0, into=SECTOR)
        fe.drive(guest.engine, lambda: guest.misses)


def test_memory_that_changes_is_asked_for_again(guest: GuestWithIommu) -> None:
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())
    before = len(guest.misses)
    front = guest.front
    slot = fe.single(1 << 32, PAGE, 0)
    assert front.tell(fe.ADD_MEM_REG, slot, [front.memory]) == 0
    assert front.tell(fe.REM_MEM_REG, slot) == 0
    assert guest.request(IN, 0, into=SECTOR) == (0, pattern())
    assert len(guest.misses) > before


# --- by itself ------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Bench]:
    with fe.bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def front(made: Bench) -> FrontEnd:
    front = made.connect()
    front.negotiate((fe.MQ, fe.REPLY_ACK, fe.BACKEND_REQ), bits=fe.PLATFORM)
    front.share_memory()
    return front


def said(front: FrontEnd, *numbers: int) -> int:
    return fe.u64_of(front.ask(fe.IOTLB_MSG, fe.iotlb(*numbers), (), 9))


def found(made: Bench, address: int, length: int = 1) -> object:
    """What the IOTLB knows: pieces of host memory, or a fault, or a miss."""
    return made.session.iotlb.iommu.translate((address, length), Access.RW)


def test_it_is_offered_to_a_front_end_that_can_be_asked(made: Bench) -> None:
    """User Mode Linux has its features before it gives a channel, and no IOMMU.

    Nor does it start packed rings where their drivers do.
    """
    front = made.connect()
    assert not fe.u64_of(front.ask(fe.GET_FEATURES)) & (fe.PLATFORM | fe.PACKED)
    front.negotiate((fe.REPLY_ACK, fe.BACKEND_REQ))
    both = fe.u64_of(front.ask(fe.GET_FEATURES)) & (fe.PLATFORM | fe.PACKED)
    assert both == fe.PLATFORM | fe.PACKED


def test_answers_may_be_large_and_lie_in_two_regions(made: Bench, front: FrontEnd) -> None:
    after = fe.single(1 << 32, fe.SIZE, USER + fe.SIZE)
    front.tell(fe.SET_PROTOCOL_FEATURES, fe.u64(1 << fe.REPLY_ACK | 1 << fe.MEM_SLOTS))
    assert front.tell(fe.ADD_MEM_REG, after, [front.memory]) == 0
    assert said(front, 0, 2 * fe.SIZE, USER, RW, UPDATE) == 0
    assert said(front, 1 << 62, PAGE, USER + fe.SIZE - PAGE, READ, UPDATE) == 0
    iotlb = made.session.iotlb
    assert iotlb.iommu._ranges()[:2] == [
        (0, fe.SIZE, fe.GUEST, RW),
        (fe.SIZE, fe.SIZE, 1 << 32, RW),
    ]
    assert said(front, PAGE, PAGE, 0, 0, INVALIDATE) == 0
    assert said(front, 0, PAGE, USER, RW, UPDATE) == 0
    assert iotlb.iommu._ranges()[0][:2] in [(0, PAGE), (0, PAGE)]


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0, USER, RW, UPDATE),
        (0, 100, USER, RW, UPDATE),
        (1, PAGE, USER, RW, UPDATE),
        (0, PAGE, USER + 8, RW, UPDATE),
        (0, PAGE, USER, 4, UPDATE),
        (0, PAGE, 0, RW, UPDATE),
        (0, fe.SIZE + PAGE, USER, RW, UPDATE),
        ((1 << 64) - PAGE, 2 * PAGE, USER, RW, UPDATE),
        (0, 2 * PAGE, (1 << 64) - PAGE, RW, UPDATE),
        ((1 << 64) - PAGE, 2 * PAGE, 0, 0, INVALIDATE),
    ],
    ids=str,
)
def test_what_cannot_be_is_not_done(made: Bench, front: FrontEnd, numbers: tuple[int, ...]) -> None:
    assert said(front, *numbers) == 1
    assert not made.session.iotlb.iommu._ranges()


def test_other_types_end_the_session(front: FrontEnd) -> None:
    front.refused(fe.IOTLB_MSG, fe.iotlb(0, PAGE, 0, RW, 1))


def test_without_the_feature_there_is_no_such_message(made: Bench) -> None:
    front = made.connect()
    front.negotiate()
    front.refused(fe.IOTLB_MSG, fe.iotlb(0, PAGE, USER, RW, UPDATE))


def test_a_ring_s_addresses_are_its_iommu_s(made: Bench, front: FrontEnd) -> None:
    front.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    front.tell(fe.SET_VRING_ADDR, fe.ring_at(0, 0x123000))
    front.tell(fe.SET_VRING_KICK, fe.u64(fe.NO_FD))
    front.tell(fe.SET_VRING_ENABLE, fe.state(0, 1))
    assert made.queue.setup.descriptor == 0x123000
    assert made.queue.port.space is made.session.iotlb.iommu


def test_a_ring_that_wraps_is_refused(front: FrontEnd) -> None:
    front.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    front.tell(fe.SET_VRING_ADDR, fe.ring_at(0, (1 << 64) - 3 * PAGE))
    front.tell(fe.SET_VRING_KICK, fe.u64(fe.NO_FD))
    front.tell(fe.SET_VRING_NUM, fe.state(0, 256))
    front.tell(fe.SET_VRING_ADDR, fe.ring_at(0, (1 << 64) - 2 * PAGE - 16))
    front.refused(fe.SET_VRING_ENABLE, fe.state(0, 1))


def begin_load(made: Bench, front: FrontEnd) -> Task[bytes]:
    """A ring of the device's has a chain under way, which comes upon a page that is asked for."""
    front.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    front.tell(fe.SET_VRING_ADDR, fe.ring_at(0, 0x123000))
    front.tell(fe.SET_VRING_KICK, fe.u64(fe.NO_FD))
    front.tell(fe.SET_VRING_ENABLE, fe.state(0, 1))
    queue = made.queue

    async def load() -> bytes:
        queue.take(1)
        try:
            return bytes(await queue.port.load_bytes(0x5000, 4))
        except DmaFault:
            return b"fault"
        finally:
            queue.give_back()

    task = made.engine.start(load())
    fe.settle(made.engine)
    assert not task.done
    return task


def test_a_stop_lets_misses_be_answered(made: Bench, front: FrontEnd) -> None:
    task = begin_load(made, front)
    front.send(fe.GET_VRING_BASE, fe.state(0, 0))
    front.send(fe.GET_QUEUE_NUM)
    fe.settle(made.engine)
    front.send(fe.IOTLB_MSG, fe.iotlb(0x9000, PAGE, 0, 0, INVALIDATE), (), 9)
    assert front.receive()[0] == fe.IOTLB_MSG, "it is done while the others wait"
    front.send(fe.IOTLB_MSG, fe.iotlb(0x5000, PAGE, USER, RW, UPDATE))
    assert front.receive()[0] == fe.GET_VRING_BASE
    assert front.receive()[0] == fe.GET_QUEUE_NUM
    assert task.result == bytes(4)


def test_many_messages_behind_a_stop(made: Bench, front: FrontEnd) -> None:
    task = begin_load(made, front)
    front.send(fe.GET_VRING_BASE, fe.state(0, 0))
    for _ in range(40):
        front.send(fe.GET_QUEUE_NUM)
    fe.settle(made.engine)
    assert not fe.readable(front.sock) and len(made.session._held) == 16
    made.session.iotlb.refuse_all()
    assert front.receive()[0] == fe.GET_VRING_BASE
    for _ in range(40):
        assert front.receive()[0] == fe.GET_QUEUE_NUM
    assert task.result == b"fault"


def test_a_stop_does_not_wait_for_answers_that_cannot_come(
    made: Bench,
    front: FrontEnd,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("iodma.transports.vhost_user.handlers.MISSES_S", 0.01)
    task = begin_load(made, front)
    assert front.ask(fe.GET_VRING_BASE, fe.state(0, 0)) == fe.state(0, 1)
    assert task.result == b"fault"
    assert "has not answered 1 misses" in caplog.text


def test_a_front_end_that_goes_while_messages_are_held(made: Bench, front: FrontEnd) -> None:
    begin_load(made, front)
    front.send(fe.GET_VRING_BASE, fe.state(0, 0))
    front.send(fe.SET_VRING_CALL, fe.u64(0), [front.notifier()])
    fe.settle(made.engine)
    front.close()
    made.wait_until_free()


def test_the_cache_has_an_end(
    made: Bench, front: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iodma.transports.vhost_user.iotlb.MOST_MAPPINGS", 8)
    for at in range(20):
        assert said(front, 2 * at * PAGE, PAGE, USER, RW, UPDATE) == 0
    iotlb = made.session.iotlb
    assert len(iotlb.iommu._ranges()) <= 8 and iotlb.dropped == 2


def test_what_is_no_answer_loses_the_channel(made: Bench, front: FrontEnd) -> None:
    for data in (b"x" * 12, bytes(12), fe.u64(5 << 32 | 1) + bytes(4)):
        mine, theirs = socket.socketpair()
        with mine, theirs:
            assert front.tell(fe.SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0
            mine.send(data)
            fe.settle(made.engine)
            assert made.session._backend.closed
        assert front.tell(fe.SET_OWNER) == 0
