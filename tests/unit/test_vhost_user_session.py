"""A front-end's session: negotiation, memory, rings, status, configuration, and its end."""

from __future__ import annotations

import gc
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma import Status
from iodma.log import GuestLog
from iodma.transports.vhost_user.messages import MESSAGES
from iodma.transports.vhost_user.session import Session
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import GUEST, PAGE, SIZE, USER, Bench, FrontEnd


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # Its own: what other tests have made the log say does not count.
    for module in ("session", "handlers"):
        log = f"iodma.transports.vhost_user.{module}.log"
        monkeypatch.setattr(log, GuestLog("iodma.vhost_user"))
    with fe.bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def front(made: Bench) -> FrontEnd:
    return made.connect()


@pytest.fixture
def ready(front: FrontEnd) -> FrontEnd:
    """Negotiated, with memory."""
    front.negotiate()
    front.share_memory()
    return front


def test_every_message_has_a_handler() -> None:
    for request, kind in MESSAGES.items():
        assert callable(getattr(Session, f"_{kind.handler}", None)), request


# --- negotiation ----------------------------------------------------------------------------------


def test_features_are_the_device_s_and_the_transport_s(made: Bench, front: FrontEnd) -> None:
    assert fe.u64_of(front.ask(fe.GET_FEATURES)) == fe.feature_bits(made.device)
    front.negotiate()
    assert made.device.negotiated == fe.VERSION_1 | fe.DEVICE_BITS


def test_protocol_features_that_work_are_offered(front: FrontEnd) -> None:
    offered = fe.u64_of(front.ask(fe.GET_PROTOCOL_FEATURES))
    known = [fe.MQ, fe.REPLY_ACK, fe.BACKEND_REQ, fe.CONFIG, fe.INFLIGHT, fe.F_RESET, fe.MEM_SLOTS]
    assert offered == sum(1 << each for each in (*known, fe.STATUS, fe.LOG_SHMFD))


def test_queues_and_slots_are_told(front: FrontEnd) -> None:
    assert fe.u64_of(front.ask(fe.GET_QUEUE_NUM)) == 2
    assert fe.u64_of(front.ask(fe.GET_MAX_MEM_SLOTS)) >= 32


def test_only_what_asks_is_acknowledged(front: FrontEnd) -> None:
    front.negotiate(protocol=())
    # Not negotiated: the flag means nothing.
    front.send(fe.SET_OWNER, flags=1 | fe.NEED_REPLY)
    front.ask(fe.GET_FEATURES)
    front.send(fe.SET_PROTOCOL_FEATURES, fe.u64(1 << fe.REPLY_ACK))
    front.send(fe.SET_OWNER)
    assert fe.u64_of(front.ask(fe.SET_OWNER, flags=1 | fe.NEED_REPLY)) == 0
    # What has an answer has no second one.
    front.ask(fe.GET_FEATURES, flags=1 | fe.NEED_REPLY)
    front.ask(fe.GET_QUEUE_NUM)


def test_messages_that_need_nothing_done(front: FrontEnd) -> None:
    front.negotiate()
    assert front.tell(fe.RESET_OWNER) == 0
    assert front.tell(fe.SET_OWNER) == 0


# --- how messages arrive --------------------------------------------------------------------------


def test_messages_may_come_in_pieces_and_many_at_once(front: FrontEnd) -> None:
    message = struct.pack("=III", fe.SET_FEATURES, 1, 8) + fe.u64(fe.VERSION_1)
    asked = struct.pack("=III", fe.GET_FEATURES, 1, 0)
    for at in range(len(message)):
        front.send_bytes(message[at : at + 1])
        fe.settle(front.engine)
    front.send_bytes(message * 50 + asked)
    assert front.receive()[0] == fe.GET_FEATURES
    front.send_bytes(asked * 3 + asked[:5])
    for _ in range(3):
        assert front.receive()[0] == fe.GET_FEATURES
    front.send_bytes(asked[5:])
    assert front.receive()[0] == fe.GET_FEATURES


def test_descriptors_belong_to_the_message_whose_first_byte_they_come_with(
    made: Bench, ready: FrontEnd
) -> None:
    kick, call = ready.notifier(), ready.notifier()
    head = struct.pack("=III", fe.SET_VRING_KICK, 1, 8) + fe.u64(0)
    tail = struct.pack("=III", fe.SET_VRING_CALL, 1, 8) + fe.u64(0)
    ready.send_bytes(head[:1], [kick])
    ready.send_bytes(head[1:])
    ready.send_bytes(tail, [call])
    ready.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    ready.tell(fe.SET_VRING_ADDR, fe.ring_at(0, USER))
    ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 1))
    setup = made.queue.setup
    assert same(setup.kick, kick) and same(setup.call, call)


def same(one: int, other: int) -> bool:
    """Whether two descriptors are the same eventfd: what is written to one is read from the
    other."""
    os.eventfd_write(other, 5)
    return os.eventfd_read(one) == 5


def test_an_answer_waits_for_a_front_end_that_reads_late(front: FrontEnd) -> None:
    front.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    count = 2000
    asked = struct.pack("=III", fe.GET_FEATURES, 1, 0)
    front.send_bytes(asked * count)
    fe.settle(front.engine)
    for _ in range(count):
        assert front.receive()[0] == fe.GET_FEATURES


def test_a_front_end_that_never_reads_is_closed(made: Bench, front: FrontEnd) -> None:
    asked = struct.pack("=III", fe.GET_CONFIG, 1, 268) + fe.config(0, 256)
    with pytest.raises(fe.Gone):
        for _ in range(10_000):
            front.send_bytes(asked)
            fe.settle(front.engine)
    made.wait_until_free()


# --- memory ---------------------------------------------------------------------------------------


def load(made: Bench, address: int, length: int) -> bytes | Status:
    """What the device reads there."""
    port = made.engine.port(made.session.table.memory)
    try:
        waits = port.load_bytes(address, length)
        fe.drive(made.engine, lambda: waits.done)
        if waits.exception is not None:
            return Status.FAULT
        return waits.result
    finally:
        port.close()


def test_guest_memory_is_where_the_guest_has_it(made: Bench, ready: FrontEnd) -> None:
    os.pwrite(ready.memory, b"hello", 0x1234)
    assert load(made, GUEST + 0x1234, 5) == b"hello"
    assert load(made, GUEST + SIZE - 2, 4) is Status.FAULT
    assert load(made, USER, 1) is Status.FAULT


def test_a_region_may_begin_anywhere_in_its_file(made: Bench, front: FrontEnd) -> None:
    front.negotiate()
    os.pwrite(front.memory, b"there", 0x5678)
    # A front-end of old sends room for two regions, and one.
    payload = fe.regions((0x1000, 0x8000, USER, 0x5000)) + bytes(32)
    assert front.tell(fe.SET_MEM_TABLE, payload, [front.memory]) == 0
    assert load(made, 0x1678, 5) == b"there"
    assert front.tell(fe.SET_MEM_TABLE, fe.regions((0, 0x100, USER, 0x5670)), [front.memory]) == 0
    assert load(made, 8, 5) == b"there"


def test_a_new_table_keeps_what_is_in_both(made: Bench, ready: FrontEnd) -> None:
    table = made.session.table
    kept = table._slots[GUEST].ram
    more = (GUEST + SIZE, PAGE, USER + SIZE, 0)
    both = fe.regions((GUEST, SIZE, USER, 0), more)
    other = ready.own(os.memfd_create("more", os.MFD_CLOEXEC))
    os.ftruncate(other, PAGE)
    assert ready.tell(fe.SET_MEM_TABLE, both, [ready.memory, other]) == 0
    assert table._slots[GUEST].ram is kept and len(table) == 2
    assert ready.tell(fe.SET_MEM_TABLE, fe.regions(more), [other]) == 0
    assert kept.closed and len(table) == 1
    assert load(made, GUEST, 1) is Status.FAULT
    assert load(made, GUEST + SIZE, 1) == b"\0"


def test_regions_come_and_go_while_rings_run(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    queue = made.queue
    slot = (1 << 32, SIZE, USER + SIZE, 0)
    assert ready.tell(fe.ADD_MEM_REG, fe.single(*slot), [ready.memory]) == 0
    assert load(made, 1 << 32, 1) == b"\0"
    # With a descriptor that nobody needs, as some front-ends do.
    assert ready.tell(fe.REM_MEM_REG, fe.single(*slot), [ready.memory]) == 0
    assert load(made, 1 << 32, 1) is Status.FAULT
    assert made.queue is queue and queue.running


def test_a_region_in_another_s_place_stops_the_rings_for_it(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring(next=7)
    queue = made.queue
    queue.take(3)
    halves = fe.regions((GUEST, SIZE // 2, USER, 0), (GUEST + SIZE // 2, SIZE // 2, 1 << 20, 0))
    ready.send(fe.SET_MEM_TABLE, halves, [ready.memory] * 2, 1 | fe.NEED_REPLY)
    fe.settle(made.engine)
    assert not fe.readable(ready.sock) and not queue.running
    queue.give_back()
    assert fe.u64_of(ready.receive()[2]) == 0
    assert made.queue is not queue
    assert (made.queue.setup.next, made.queue.setup.descriptor) == (10, GUEST)


def test_a_ring_whose_memory_has_moved_goes_on_there(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring(next=3)
    queue = made.queue
    assert ready.tell(fe.SET_MEM_TABLE, fe.regions((0, SIZE, USER, 0)), [ready.memory]) == 0
    assert queue.released and made.queue is not queue
    assert (made.queue.setup.descriptor, made.queue.setup.next) == (0, 3)


def test_the_same_memory_may_be_at_two_addresses(made: Bench, front: FrontEnd) -> None:
    front.negotiate()
    twice = fe.regions((0, SIZE, USER, 0), (GUEST, SIZE, USER, 0))
    assert front.tell(fe.SET_MEM_TABLE, twice, [front.memory] * 2) == 0
    os.pwrite(front.memory, b"x", 9)
    assert load(made, 9, 1) == load(made, GUEST + 9, 1) == b"x"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings are looked at in each turn, and for ever."""
    monkeypatch.setattr("iodma.transports.vhost_user.silence.PATIENCE_S", 0.0)


def start_kicked(front: FrontEnd, index: int, kicks: int, next: int = 0) -> int:
    """A ring that runs, and an eventfd that was kicked before."""
    kick = front.own(os.eventfd(kicks, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    front.set_up_ring(index, next=next, at=4 * PAGE * index)
    front.tell(fe.SET_VRING_KICK, fe.u64(index), [kick])
    front.tell(fe.SET_VRING_ENABLE, fe.state(index, 1))
    return kick


def test_memory_that_is_not_shared_is_said(
    made: Bench, ready: FrontEnd, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    """A ring is kicked, and nothing is there; the kick that QEMU begins with is none."""
    kick = start_kicked(ready, 0, 1)
    for _ in range(100):
        made.engine.pump()
    assert not caplog.text
    os.eventfd_write(kick, 1)
    fe.drive(made.engine, lambda: "share=on" in caplog.text)
    assert os.eventfd_read(kick) == 2, "it is the queue's"
    caplog.clear()
    start_kicked(ready, 1, 2)
    assert not made.session._silence._watched, "once"


def test_rings_that_are_used_or_stopped_are_not_watched(
    made: Bench, ready: FrontEnd, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    watched = made.session._silence._watched
    used, stopped = start_kicked(ready, 0, 0), start_kicked(ready, 1, 0)
    assert set(watched) == {0, 1}
    first = made.device.made[0]
    first.take(1)
    for each in (used, stopped):
        os.eventfd_write(each, 1)
    ready.ask(fe.GET_VRING_BASE, fe.state(1, 0))
    fe.drive(made.engine, lambda: not watched)
    first.give_back()
    ready.ask(fe.GET_VRING_BASE, fe.state(0, 0))
    start_kicked(ready, 0, 5, next=1)  # where it stopped: that there is nothing new is no wonder
    assert not watched and not caplog.text


def test_a_ring_that_was_watched_is_not_kept(made: Bench, ready: FrontEnd) -> None:
    """What a queue has is let go of with the session, and not when Python collects garbage."""
    gc.collect()
    gc.disable()
    try:
        start_kicked(ready, 0, 0)
        assert list(made.session._silence._watched) == [0]
        queue = weakref.ref(made.device.made.pop())
        ready.close()
        made.wait_until_free()
        assert queue() is None
    finally:
        gc.enable()


# --- rings ----------------------------------------------------------------------------------------


def test_a_ring_starts_when_all_is_known_and_it_is_enabled(made: Bench, ready: FrontEnd) -> None:
    ready.set_up_ring(1, size=128, next=9, at=0x8000)
    assert not made.device.queues
    assert ready.tell(fe.SET_VRING_ENABLE, fe.state(1, 1)) == 0
    setup = made.queue.setup
    assert list(made.device.queues) == [1]
    assert (setup.index, setup.size, setup.next) == (1, 128, 9)
    first = GUEST + 0x8000
    assert (setup.descriptor, setup.available, setup.used) == (
        first,
        first + PAGE,
        first + 2 * PAGE,
    )
    assert setup.kick >= 0 and setup.call >= 0 and setup.error == -1


def test_without_protocol_features_it_starts_with_its_kick(made: Bench, front: FrontEnd) -> None:
    front.tell(fe.SET_FEATURES, fe.u64(fe.VERSION_1))
    front.share_memory()
    front.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    front.tell(fe.SET_VRING_ADDR, fe.ring_at(0, USER))
    assert not made.device.queues
    front.tell(fe.SET_VRING_KICK, fe.u64(0), [front.notifier()])
    assert made.queue.running


def test_a_ring_may_do_without_notifiers(made: Bench, ready: FrontEnd) -> None:
    ready.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    ready.tell(fe.SET_VRING_ADDR, fe.ring_at(0, USER))
    for request in (fe.SET_VRING_KICK, fe.SET_VRING_CALL, fe.SET_VRING_ERR):
        assert ready.tell(request, fe.u64(fe.NO_FD)) == 0
    assert ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 1)) == 0
    assert (made.queue.setup.kick, made.queue.setup.call, made.queue.setup.error) == (-1, -1, -1)


def test_notifiers_change_while_it_runs(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    for request, name in (
        (fe.SET_VRING_CALL, "call"),
        (fe.SET_VRING_ERR, "error"),
        (fe.SET_VRING_KICK, "kick"),
    ):
        fd = ready.notifier()
        assert ready.tell(request, fe.u64(0), [fd]) == 0
        what, given = made.queue.fds[-1]
        assert what == name and same(given, fd)
        assert ready.tell(request, fe.u64(fe.NO_FD)) == 0
        assert made.queue.fds[-1] == (name, -1)


def test_a_pipe_is_a_notifier(made: Bench, ready: FrontEnd) -> None:
    there, here = os.pipe2(os.O_CLOEXEC)
    ready.own(there)
    assert ready.tell(fe.SET_VRING_CALL, fe.u64(0), [ready.own(here)]) == 0


def test_one_end_of_a_pair_of_sockets_is_a_notifier(made: Bench, ready: FrontEnd) -> None:
    """As User Mode Linux has it."""
    there, here = socket.socketpair()
    with there, here:
        assert ready.tell(fe.SET_VRING_CALL, fe.u64(0), [here.fileno()]) == 0
        assert not os.get_blocking(here.fileno())


def test_notifiers_never_block(made: Bench, ready: FrontEnd) -> None:
    fd = ready.own(os.eventfd(0, os.EFD_CLOEXEC))
    assert os.get_blocking(fd)
    ready.tell(fe.SET_VRING_CALL, fe.u64(0), [fd])
    assert not os.get_blocking(fd)


def test_a_stop_is_answered_when_the_ring_has_drained(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring(next=0xFFFE)
    queue = made.queue
    queue.take(4)
    ready.send(fe.GET_VRING_BASE, fe.state(0, 0))
    ready.send(fe.GET_QUEUE_NUM)
    fe.settle(made.engine)
    assert not queue.running and not fe.readable(ready.sock), "neither is answered yet"
    queue.give_back()
    assert ready.receive() == (fe.GET_VRING_BASE, 5, fe.state(0, 2))
    assert ready.receive()[0] == fe.GET_QUEUE_NUM
    assert queue.released


def test_a_ring_goes_on_where_it_stopped(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    made.queue.take(5)
    made.queue.give_back()
    assert ready.ask(fe.GET_VRING_BASE, fe.state(0, 0)) == fe.state(0, 5)
    assert not made.device.queues, "and waits for its kick"
    ready.tell(fe.SET_VRING_BASE, fe.state(0, 5))
    ready.tell(fe.SET_VRING_KICK, fe.u64(0), [ready.notifier()])
    assert made.queue.running and made.queue.setup.next == 5
    # A ring that does not run says where it is, too.
    assert ready.ask(fe.GET_VRING_BASE, fe.state(1, 0)) == fe.state(1, 0)


def test_a_ring_that_is_disabled_stops_and_goes_on(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    queue = made.queue
    queue.take(2)
    ready.send(fe.SET_VRING_ENABLE, fe.state(0, 0), flags=1 | fe.NEED_REPLY)
    fe.settle(made.engine)
    assert not fe.readable(ready.sock)
    queue.give_back()
    assert fe.u64_of(ready.receive()[2]) == 0
    assert ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 1)) == 0
    assert made.queue is not queue and made.queue.setup.next == 2


def test_what_is_said_again_changes_nothing(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    queue = made.queue
    ready.tell(fe.SET_VRING_NUM, fe.state(0, 64))
    # Its writes are to be logged: that comes with the addresses that it has.
    ready.tell(fe.SET_VRING_ADDR, fe.ring_at(0, USER, flags=1))
    ready.tell(fe.SET_FEATURES, fe.u64(fe.VERSION_1 | fe.PROTOCOL | fe.DEVICE_BITS))
    ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 1))
    ready.share_memory()
    assert made.queue is queue and queue.running


# --- status and configuration ---------------------------------------------------------------------


def test_status_is_the_device_s(made: Bench, ready: FrontEnd) -> None:
    assert ready.tell(fe.SET_STATUS, fe.u64(3)) == 0
    assert fe.u64_of(ready.ask(fe.GET_STATUS)) == 3 == made.device.status


@pytest.mark.parametrize("message", [fe.SET_STATUS, fe.RESET_DEVICE])
def test_a_reset_is_acknowledged_when_all_has_drained(
    made: Bench, ready: FrontEnd, message: int
) -> None:
    ready.start_ring()
    ready.tell(fe.SET_STATUS, fe.u64(7))
    queue, resets = made.queue, made.device.resets
    queue.take(1)
    payload = fe.u64(0) if message == fe.SET_STATUS else b""
    ready.send(message, payload, flags=1 | fe.NEED_REPLY)
    fe.settle(made.engine)
    assert not fe.readable(ready.sock)
    queue.give_back()
    assert fe.u64_of(ready.receive()[2]) == 0
    assert made.device.resets == resets + 1
    assert made.device.negotiated == 0 and fe.u64_of(ready.ask(fe.GET_STATUS)) == 0
    # ... and the driver may begin again.
    ready.tell(fe.SET_FEATURES, fe.u64(fe.VERSION_1 | fe.PROTOCOL))
    ready.start_ring()
    assert made.queue is not queue and made.queue.setup.next == 0


def test_after_status_0_a_ring_still_says_where_it_stopped(made: Bench, ready: FrontEnd) -> None:
    """That is how QEMU 7.2 stops a device whose machine is stopped, and it goes on there."""
    ready.start_ring(next=3)
    made.queue.take(5)
    made.queue.give_back()
    assert ready.tell(fe.SET_STATUS, fe.u64(0)) == 0
    assert ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 0)) == 0
    assert ready.ask(fe.GET_VRING_BASE, fe.state(0, 0)) == fe.state(0, 8)
    ready.tell(fe.SET_VRING_KICK, fe.u64(0), [ready.notifier()])
    ready.tell(fe.SET_VRING_ENABLE, fe.state(0, 1))
    assert made.queue.setup.next == 0, "unless it is told to, it begins anew"


def test_configuration_is_read_and_written(made: Bench, ready: FrontEnd) -> None:
    size = (0x1122334455667788).to_bytes(8, "little")
    assert ready.ask(fe.GET_CONFIG, fe.config(0, 8)) == fe.config(0, 8, data=size)
    # More than there is reads as zeroes: front-ends ask for what the newest device would have.
    answer = ready.ask(fe.GET_CONFIG, fe.config(4, 200))
    assert answer == fe.config(4, 200, data=size[4:].ljust(200, b"\0"))
    assert ready.tell(fe.SET_CONFIG, fe.config(8, 1, data=b"\x01")) == 0
    assert made.device.config["mode"] == 1


def test_a_write_that_the_device_refuses_ends_nothing(made: Bench, ready: FrontEnd) -> None:
    assert ready.tell(fe.SET_CONFIG, fe.config(0, 8)) == 1
    assert ready.tell(fe.SET_CONFIG, fe.config(100, 1)) == 1
    assert made.device.config["size"] == 0x1122334455667788


def test_a_change_of_the_configuration_is_told(made: Bench, ready: FrontEnd) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert ready.tell(fe.SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0
        made.device.config_changed()
        assert mine.recv(100) == struct.pack("=III", 2, 1, 0)
        # An answer that nobody asked for is dropped, and so is the channel when it is closed.
        mine.send(b"whatever")
        fe.settle(made.engine)
    made.device.config_changed()
    fe.settle(made.engine)
    assert ready.tell(fe.SET_OWNER) == 0


# --- the end --------------------------------------------------------------------------------------


def test_a_front_end_that_goes_leaves_nothing(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    queue, resets = made.queue, made.device.resets
    queue.take(2)
    session: Session = made.session
    ready.close()
    fe.settle(made.engine)
    assert not session.over.is_set and len(session.table) == 1, "it drains first"
    queue.give_back()
    made.wait_until_free()
    assert queue.released and made.device.resets == resets + 1
    assert not made.device.queues and len(session.table) == 0
    other = made.connect()
    other.negotiate()
    other.share_memory()
    other.start_ring()
    assert made.queue is not queue


def test_a_front_end_that_goes_while_a_ring_drains(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    made.queue.take(1)
    ready.send(fe.GET_VRING_BASE, fe.state(0, 0))
    ready.send(fe.GET_QUEUE_NUM)  # not read any more
    fe.settle(made.engine)
    session = made.session
    ready.close()
    fe.drive(made.engine, lambda: session._ending)
    made.queue.give_back()
    made.wait_until_free()


def test_the_next_front_end_waits_for_its_turn(made: Bench, ready: FrontEnd) -> None:
    other = made.connect()
    other.send(fe.GET_QUEUE_NUM)
    fe.settle(made.engine)
    assert not fe.readable(other.sock)
    ready.close()
    assert fe.u64_of(other.receive()[2]) == 2


def test_a_server_that_closes_drains_first(made: Bench, ready: FrontEnd) -> None:
    ready.start_ring()
    queue = made.queue
    queue.take(1)
    task = made.engine.start(made.server.close())
    fe.settle(made.engine)
    assert not task.done and not os.path.exists(made.path)
    queue.give_back()
    fe.drive(made.engine, lambda: task.done)
    assert task.exception is None and made.server.closed
    ready.expect_end()
