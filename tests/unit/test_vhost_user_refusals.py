"""What a broken or hostile front-end says ends its session, with one line that says what and why;
and the next front-end is served.

The leak checker looks around every test: no descriptor that was refused stays open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iodma.log import GuestLog
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import GUEST, PAGE, SIZE, USER, Bench, FrontEnd

TOP = 1 << 64


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # Its own: what other tests have made the log say does not count.
    for module in ("session", "handlers"):
        log = f"iodma.transports.vhost_user.{module}.log"
        monkeypatch.setattr(log, GuestLog("iodma.vhost_user"))
    with fe.bench(tmp_path) as bench:
        yield bench


Act = Callable[[FrontEnd], None]


def says(
    request: int, payload: bytes = b"", fds: Callable[[FrontEnd], list[int]] | None = None
) -> Act:
    """One message, with the descriptors that `fds` gives."""
    return lambda front: front.send(request, payload, fds(front) if fds else ())


def in_turn(*acts: Act) -> Act:
    def all_of_them(front: FrontEnd) -> None:
        for act in acts:
            act(front)

    return all_of_them


def memory(front: FrontEnd) -> list[int]:
    return [front.memory]


def notifier(front: FrontEnd) -> list[int]:
    return [front.notifier()]


def pipe(front: FrontEnd) -> list[int]:
    here, there = os.pipe2(os.O_CLOEXEC)
    front.own(there)
    return [front.own(here)]


def read_only(front: FrontEnd) -> list[int]:
    return [front.own(os.open(f"/proc/self/fd/{front.memory}", os.O_RDONLY | os.O_CLOEXEC))]


def stranger(front: FrontEnd) -> list[int]:
    fd = front.own(os.memfd_create("stranger", os.MFD_CLOEXEC))
    os.ftruncate(fd, SIZE)
    return [fd]


def start(front: FrontEnd) -> None:
    front.start_ring()


def raw(data: bytes, fds: int = 0) -> Act:
    return lambda front: front.send_bytes(data, [front.notifier() for _ in range(fds)])


def header(request: int, size: int, flags: int = 1) -> bytes:
    return struct.pack("=III", request, flags, size)


def addresses(index: int, descriptor: int, available: int, used: int, flags: int = 0) -> bytes:
    return struct.pack("=IIQQQQ", index, flags, descriptor, used, available, 0)


def a_ring_of(descriptor: int, available: int, used: int) -> Act:
    """Said, and enabled: its addresses are looked at then."""
    return in_turn(
        says(fe.SET_VRING_NUM, fe.state(0, 64)),
        says(fe.SET_VRING_ADDR, addresses(0, descriptor, available, used)),
        says(fe.SET_VRING_KICK, fe.u64(fe.NO_FD)),
        says(fe.SET_VRING_ENABLE, fe.state(0, 1)),
    )


END = USER + SIZE

REFUSED: dict[str, tuple[Act, str]] = {
    # messages
    "unknown": (says(99), "message 99: there is no such message"),
    "zero": (says(0), "message 0: there is no such"),
    "not-offered": (says(26, bytes(8)), "message 26: there is no such"),
    # the log
    "log-no-file": (says(fe.SET_LOG_BASE, bytes(16)), "SET_LOG_BASE: a log without a descriptor"),
    "log-empty": (says(fe.SET_LOG_BASE, bytes(16), memory), "a log of no bytes"),
    "log-pipe": (says(fe.SET_LOG_BASE, bytes(16), pipe), "a descriptor that is no file"),
    "log-long": (
        says(fe.SET_LOG_BASE, struct.pack("=QQ", SIZE, PAGE), memory),
        "SET_LOG_BASE: a log of 0x100000 bytes at 0x1000 of its file cannot be mapped",
    ),
    "log-wraps": (
        says(fe.SET_LOG_BASE, struct.pack("=QQ", 1, TOP - 1), memory),
        "a log of 0x1 bytes at 0xffffffffffffffff of its file cannot be mapped",
    ),
    "log-huge": (says(fe.SET_LOG_BASE, struct.pack("=QQ", TOP - 1, 0), memory), "cannot be mapped"),
    "log-small": (
        in_turn(
            says(fe.SET_FEATURES, fe.u64(fe.VERSION_1 | fe.PROTOCOL | fe.DEVICE_BITS | 1 << 26)),
            says(fe.SET_LOG_BASE, struct.pack("=QQ", 100, 0), memory),
        ),
        "SET_LOG_BASE: the region of 0x100000 bytes at guest address 0x40000000 is not in the log",
    ),
    "version": (raw(header(1, 0, 0)), "GET_FEATURES: version 0"),
    "reply": (raw(header(1, 0, 5)), "a reply to nothing"),
    "flags": (raw(header(1, 0, 0x11)), "flags 0x10"),
    "too-long": (raw(header(2, 0xFFFFFFFF)), "SET_FEATURES: a payload of 4294967295 bytes; 8"),
    "too-short": (says(fe.SET_VRING_NUM, bytes(4)), "SET_VRING_NUM: a payload of 4 bytes; 8"),
    "no-payload": (says(fe.GET_FEATURES, bytes(8)), "a payload of 8 bytes; 0 would"),
    "uneven": (says(fe.SET_MEM_TABLE, bytes(50)), "a payload of 50 bytes; 8 to 264 in steps of 32"),
    "descriptors": (says(fe.SET_OWNER, b"", notifier), "SET_OWNER: 1 descriptors; 0 would"),
    "two-kicks": (raw(header(12, 8) + bytes(8), 2), "2 descriptors; 0 to 1"),
    "nine": (raw(header(5, 8) + bytes(8), 9), "9 descriptors; 0 to 8"),
    "many": (raw(header(5, 8) + bytes(8), 40), "more than 8 descriptors"),
    "late-descriptors": (
        in_turn(raw(header(12, 8)), raw(bytes(8), 1)),
        "beside something else than a message's first byte",
    ),
    # features
    "features": (says(fe.SET_FEATURES, fe.u64(1 << 60)), "features 0x1000000000000000, which"),
    "platform": (says(fe.SET_FEATURES, fe.u64(1 << 33)), "features 0x200000000, which"),
    "protocol": (says(fe.SET_PROTOCOL_FEATURES, fe.u64(1 << 8)), "protocol features 0x100"),
    "features-run": (
        in_turn(start, says(fe.SET_FEATURES, fe.u64(fe.PROTOCOL))),
        "features change while rings run",
    ),
    # memory
    "no-file": (says(fe.SET_MEM_TABLE, fe.regions((0, SIZE, USER, 0))), "share=on"),
    "two-for-one": (
        says(fe.SET_MEM_TABLE, fe.regions((0, SIZE, USER, 0)), lambda f: [f.memory] * 2),
        "2 descriptors for 1 regions",
    ),
    "count": (
        says(fe.SET_MEM_TABLE, struct.pack("=II", 0xFFFFFFFF, 0) + bytes(64)),
        "4294967295 regions in a payload that has room for 2",
    ),
    "empty": (
        says(fe.SET_MEM_TABLE, fe.regions((0, 0, USER, 0)), memory),
        "SET_MEM_TABLE: the region at guest address 0x0 has no bytes",
    ),
    "guest-wraps": (
        says(fe.SET_MEM_TABLE, fe.regions((TOP - PAGE, 2 * PAGE, USER, 0)), memory),
        "guest address 0xfffffffffffff000 and its size reach past",
    ),
    "user-wraps": (
        says(fe.SET_MEM_TABLE, fe.regions((0, 2 * PAGE, TOP - PAGE, 0)), memory),
        "user address 0xfffffffffffff000 and its size reach past",
    ),
    "offset-wraps": (
        says(fe.SET_MEM_TABLE, fe.regions((0, 2 * PAGE, USER, TOP - PAGE)), memory),
        "mmap offset 0xfffffffffffff000 and its size reach past",
    ),
    "past-the-file": (
        says(fe.SET_MEM_TABLE, fe.regions((0, SIZE, USER, PAGE)), memory),
        "of a file of 0x100000 bytes",
    ),
    "far-past-the-file": (
        says(fe.SET_MEM_TABLE, fe.regions((0, PAGE, USER, TOP - 2 * PAGE)), memory),
        "of a file of 0x100000 bytes",
    ),
    "overlap": (
        says(
            fe.SET_MEM_TABLE,
            fe.regions((0, SIZE, USER, 0), (SIZE - 1, PAGE, 0, 0)),
            lambda f: [f.memory] * 2,
        ),
        "overlaps the region of 0x100000 bytes at guest address 0x0",
    ),
    "user-overlap": (
        says(
            fe.SET_MEM_TABLE,
            fe.regions((0, SIZE, USER, 0), (SIZE, PAGE, USER + PAGE, 0)),
            lambda f: [f.memory] * 2,
        ),
        "has user addresses of",
    ),
    "user-overlap-of-another-file": (
        says(
            fe.SET_MEM_TABLE,
            fe.regions((0, SIZE, USER, 0), (SIZE, PAGE, USER, 0)),
            lambda f: [f.memory, *stranger(f)],
        ),
        "has user addresses of",
    ),
    "no-memory-file": (
        says(fe.SET_MEM_TABLE, fe.regions((0, PAGE, USER, 0)), pipe),
        "a descriptor that is no file",
    ),
    "read-only": (
        says(fe.SET_MEM_TABLE, fe.regions((0, SIZE, USER, 0)), read_only),
        "cannot be mapped: Permission denied",
    ),
    "add-overlap": (
        says(fe.ADD_MEM_REG, fe.single(GUEST + SIZE - 1, PAGE, 0), memory),
        "ADD_MEM_REG: the region of 0x1000 bytes at guest address 0x400fffff overlaps",
    ),
    "add-no-file": (says(fe.ADD_MEM_REG, fe.single(0, PAGE, 0)), "without a descriptor: guest mem"),
    "remove-none": (says(fe.REM_MEM_REG, fe.single(0, PAGE, 0)), "REM_MEM_REG: the region of"),
    "remove-other": (says(fe.REM_MEM_REG, fe.single(GUEST, SIZE, 0)), "is not there"),
    "remove-half": (says(fe.REM_MEM_REG, fe.single(GUEST, PAGE, USER)), "is not there"),
    # rings
    "ring-index": (says(fe.SET_VRING_NUM, fe.state(2, 64)), "ring 2; there are 2"),
    "ring-addr-index": (says(fe.SET_VRING_ADDR, fe.ring_at(255, USER)), "ring 255; there are 2"),
    "ring-base-index": (says(fe.SET_VRING_BASE, fe.state(1 << 31, 0)), "ring 2147483648;"),
    "ring-get-index": (says(fe.GET_VRING_BASE, fe.state(2, 0)), "GET_VRING_BASE: ring 2;"),
    "ring-kick-index": (says(fe.SET_VRING_KICK, fe.u64(7), notifier), "SET_VRING_KICK: ring 7;"),
    "ring-call-index": (says(fe.SET_VRING_CALL, fe.u64(2), notifier), "SET_VRING_CALL: ring 2;"),
    "ring-err-index": (says(fe.SET_VRING_ERR, fe.u64(2), notifier), "SET_VRING_ERR: ring 2;"),
    "ring-enable-index": (says(fe.SET_VRING_ENABLE, fe.state(9, 1)), "ring 9;"),
    "size-zero": (says(fe.SET_VRING_NUM, fe.state(0, 0)), "ring 0 of 0 entries; a power of two"),
    "size-odd": (says(fe.SET_VRING_NUM, fe.state(0, 96)), "ring 0 of 96 entries"),
    "size-large": (says(fe.SET_VRING_NUM, fe.state(0, 512)), "up to 256 would be right"),
    "base-large": (says(fe.SET_VRING_BASE, fe.state(0, 65536)), "entry 65536"),
    "enable-two": (says(fe.SET_VRING_ENABLE, fe.state(0, 2)), "ring 0: 2; 0 or 1"),
    "addr-flags": (says(fe.SET_VRING_ADDR, fe.ring_at(0, USER, flags=2)), "ring 0: flags 0x2"),
    "unaligned-table": (
        says(fe.SET_VRING_ADDR, addresses(0, USER + 8, USER, USER)),
        "its descriptor table at 0x7f0000000008 is not a multiple of 16",
    ),
    "unaligned-available": (
        says(fe.SET_VRING_ADDR, addresses(0, USER, USER + 1, USER)),
        "its available ring at 0x7f0000000001 is not a multiple of 2",
    ),
    "unaligned-used": (
        says(fe.SET_VRING_ADDR, addresses(0, USER, USER, USER + 2)),
        "its used ring at 0x7f0000000002 is not a multiple of 4",
    ),
    "table-outside": (
        a_ring_of(END - 512, USER, USER),
        "SET_VRING_ENABLE: ring 0's descriptor table, 1024 bytes at user address",
    ),
    "available-outside": (a_ring_of(USER, END - 132, USER), "ring 0's available ring, 134 bytes"),
    "used-outside": (a_ring_of(USER, USER, END - 512), "ring 0's used ring, 518 bytes"),
    "address-wraps": (a_ring_of(TOP - 16, USER, USER), "is outside of guest memory"),
    "guest-address": (a_ring_of(GUEST, USER, USER), "is outside of guest memory"),
    "size-runs": (
        in_turn(start, says(fe.SET_VRING_NUM, fe.state(0, 128))),
        "ring 0 runs: its size cannot change",
    ),
    "addr-runs": (
        in_turn(start, says(fe.SET_VRING_ADDR, fe.ring_at(0, USER + PAGE))),
        "ring 0 runs: its addresses cannot change",
    ),
    "base-runs": (in_turn(start, says(fe.SET_VRING_BASE, fe.state(0, 1))), "its position cannot"),
    "ring-s-memory-goes": (
        in_turn(start, says(fe.REM_MEM_REG, fe.single(GUEST, SIZE, USER))),
        "REM_MEM_REG: ring 0's descriptor table, 1024 bytes at user address 0x7f0000000000, is"
        " outside of guest memory; there is no memory at all",
    ),
    "kick-without": (says(fe.SET_VRING_KICK, fe.u64(0)), "no descriptor comes with it, and"),
    "kick-with": (says(fe.SET_VRING_KICK, fe.u64(fe.NO_FD), notifier), "a descriptor comes with"),
    "kick-bits": (says(fe.SET_VRING_KICK, fe.u64(1 << 9), notifier), "bits 0x200"),
    "kick-file": (says(fe.SET_VRING_KICK, fe.u64(0), memory), "ring 0: its kick notifier is /memf"),
    "call-itself": (
        says(fe.SET_VRING_CALL, fe.u64(0), lambda f: [f.sock.fileno()]),
        "SET_VRING_CALL: a connection to this server",
    ),
    "call-file": (says(fe.SET_VRING_CALL, fe.u64(0), memory), "call notifier is /memfd"),
    # status, configuration, the other channel
    "status": (says(fe.SET_STATUS, fe.u64(256)), "status 0x100"),
    "config-size": (says(fe.GET_CONFIG, fe.config(0, 8)[:-1]), "7 bytes of configuration space, a"),
    "config-large": (says(fe.GET_CONFIG, fe.config(1, 256)), "256 bytes at 1 of a configuration"),
    "config-wraps": (says(fe.GET_CONFIG, fe.config(0xFFFFFFFF, 1)), "1 bytes at 4294967295 of"),
    "config-flags": (says(fe.SET_CONFIG, fe.config(8, 1, flags=2)), "flags 0x2"),
    "channel-file": (says(fe.SET_BACKEND_REQ_FD, b"", memory), "a descriptor that is no socket"),
    "channel-itself": (
        says(fe.SET_BACKEND_REQ_FD, b"", lambda f: [f.sock.fileno()]),
        "SET_BACKEND_REQ_FD: a connection to this server",
    ),
    "channel-none": (says(fe.SET_BACKEND_REQ_FD), "0 descriptors; 1 would"),
}


@pytest.mark.parametrize("act, text", REFUSED.values(), ids=REFUSED)
def test_a_refusal(made: Bench, caplog: pytest.LogCaptureFixture, act: Act, text: str) -> None:
    front = made.connect()
    front.negotiate()
    front.share_memory()
    caplog.clear()
    front.acks = False  # nothing waits for an acknowledgement from here on
    act(front)
    with pytest.raises(fe.Gone):
        while True:
            front.receive()
    made.wait_until_free()
    lines = [r.getMessage() for r in caplog.records if "connection is closed" in r.getMessage()]
    assert len(lines) == 1 and text in lines[0], lines
    other = made.connect()
    other.negotiate()
    other.share_memory()
    other.start_ring()
    assert made.queue.running


def test_a_socket_of_another_kind_is_no_channel(made: Bench) -> None:
    front = made.connect()
    front.negotiate()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        front.refused(fe.SET_BACKEND_REQ_FD, b"", [other.fileno()])
    made.wait_until_free()


def test_the_end_in_the_middle_of_a_message(made: Bench) -> None:
    front = made.connect()
    front.send_bytes(header(fe.SET_VRING_KICK, 8), [front.notifier()])
    fe.settle(made.engine)
    front.close()
    made.wait_until_free()


def test_a_session_that_ends_with_messages_unread(made: Bench) -> None:
    front = made.connect()
    front.negotiate()
    front.send(99)
    front.send(fe.SET_VRING_KICK, fe.u64(0), [front.notifier()])
    front.expect_end()
    made.wait_until_free()


def test_a_flood_of_broken_sessions_is_not_a_flood_of_lines(
    made: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(40):
        front = made.connect()
        front.send(99)
        front.expect_end()
        made.wait_until_free()
        front.close()
    lines = [r for r in caplog.records if "connection is closed" in r.getMessage()]
    assert 0 < len(lines) <= 20


def test_memory_that_the_kernel_cannot_map(made: Bench, caplog: pytest.LogCaptureFixture) -> None:
    front = made.connect()
    front.negotiate()
    size = 1 << 46
    file = front.own(os.memfd_create("huge", os.MFD_CLOEXEC))
    os.ftruncate(file, size)
    # Some fit into the address space of this process, the last does not.
    for at in range(4):
        with contextlib.suppress(fe.Gone):
            front.send(fe.ADD_MEM_REG, fe.single(at * size, size, at * size), [file])
    front.expect_end()
    assert "cannot be mapped: Cannot allocate memory" in caplog.text
    made.wait_until_free()
