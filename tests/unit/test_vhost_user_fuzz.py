"""Whatever a front-end sends, nothing crashes, hangs or stays behind.

Sessions are made of what real front-ends do, and then broken: fields that are out of range,
messages that are left out, said twice or out of order, descriptors too many, too few or of the
wrong kind, messages cut into pieces or cut off, chains in flight while rings stop.

Invariants:

- After every session - whatever it was - the server is free, no queue runs, no memory is mapped,
  and there are as many descriptors as before it.
- A session is a list of plain steps, which hypothesis can make shorter.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SOAK
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import GUEST, PAGE, SIZE, USER, Bench

TOP = 1 << 64
#: Numbers that are near to where something ends.
EDGES = (0, 1, 2, 7, 8, 63, 64, 255, 256, 257, 511, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
ADDRESSES = (
    0,
    1,
    8,
    GUEST,
    GUEST + SIZE,
    USER,
    USER + 2,
    USER + 16,
    USER + SIZE - 16,
    TOP - 16,
    TOP - 1,
)
SIZES = (0, 1, 15, PAGE - 1, PAGE, SIZE - PAGE, SIZE, SIZE + 1, 1 << 40, 1 << 63, TOP - 1)
#: What descriptors are: see `descriptor`.
KINDS = ("memory", "notifier", "pipe", "socket", "null", "small", "itself")

#: What a session is made of: (name, numbers).
Step = tuple[str, tuple[int, ...]]


class Player:
    """Plays steps to a server, as a front-end that has everything it could need."""

    def __init__(self, made: Bench) -> None:
        self.made = made
        self.front = made.connect()
        self.fds = {
            "memory": self.front.memory,
            "notifier": self.front.notifier(),
            "small": self.front.own(os.memfd_create("small", os.MFD_CLOEXEC)),
            "null": self.front.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)),
        }
        os.ftruncate(self.fds["small"], 100)
        here, there = os.pipe2(os.O_CLOEXEC)
        self.fds["pipe"] = self.front.own(there)
        self.front.own(here)
        self.mine, theirs = socket.socketpair()
        self.mine.setblocking(False)
        self.fds["socket"] = self.front.own(theirs.detach())
        self.fds["itself"] = self.front.own(os.dup(self.front.sock.fileno()))

    def close(self) -> None:
        self.mine.close()
        self.front.close()

    def play(self, steps: list[Step]) -> None:
        with suppress(fe.Gone):
            for name, numbers in steps:
                getattr(self, name)(*numbers)
        fe.settle(self.made.engine)

    def descriptors(self, *which: int) -> list[int]:
        return [self.fds[KINDS[each % len(KINDS)]] for each in which]

    # steps

    def message(self, request: int, flags: int, size: int, filler: int, *fds: int) -> None:
        """Any message at all."""
        payload = struct.pack("=Q", filler % TOP) * (min(size, 400) // 8 + 1)
        data = struct.pack("=III", request, flags, size) + payload[: min(size, 400)]
        self.front.send_bytes(data, self.descriptors(*fds))

    def plain(self, request: int, *fds: int) -> None:
        self.front.send(request, b"", self.descriptors(*fds), 1 | fe.NEED_REPLY)

    def number(self, request: int, value: int, *fds: int) -> None:
        self.front.send(request, fe.u64(value % TOP), self.descriptors(*fds), 1 | fe.NEED_REPLY)

    def state(self, request: int, index: int, value: int) -> None:
        self.front.send(request, fe.state(index, value), (), 1 | fe.NEED_REPLY)

    def addresses(self, index: int, flags: int, *parts: int) -> None:
        payload = struct.pack("=IIQQQQ", index, flags, *parts, 0)
        self.front.send(fe.SET_VRING_ADDR, payload)

    def table(self, count: int, *numbers: int) -> None:
        each = [numbers[at : at + 4] for at in range(0, len(numbers) - 3, 4)]
        payload = struct.pack("=II", count, 0) + b"".join(struct.pack("=QQQQ", *r) for r in each)
        fds = self.descriptors(*[0] * len(each))
        self.front.send(fe.SET_MEM_TABLE, payload, fds, 1 | fe.NEED_REPLY)

    def slot(self, request: int, guest: int, size: int, user: int, offset: int, *fds: int) -> None:
        payload = fe.single(guest, size, user, offset)
        self.front.send(request, payload, self.descriptors(*fds), 1 | fe.NEED_REPLY)

    def config(self, request: int, offset: int, size: int, flags: int, there: int) -> None:
        self.front.send(request, fe.config(offset, size, flags, bytes(there)))

    def set_up(self) -> None:
        """All that it takes, in the right order: what comes next hits rings that run."""
        self.number(fe.SET_PROTOCOL_FEATURES, 1 << fe.MQ | 1 << fe.REPLY_ACK | 1 << fe.CONFIG)
        self.number(fe.SET_FEATURES, fe.VERSION_1 | fe.PROTOCOL)
        self.table(1, GUEST, SIZE, USER, 0)
        for index in range(2):
            self.ring(index)

    def set_up_with_iommu(self) -> None:
        """... whose addresses are translated."""
        features = 1 << fe.MQ | 1 << fe.REPLY_ACK | 1 << fe.BACKEND_REQ
        self.number(fe.SET_PROTOCOL_FEATURES, features)
        self.plain(fe.SET_BACKEND_REQ_FD, KINDS.index("socket"))
        self.number(fe.SET_FEATURES, fe.VERSION_1 | fe.PROTOCOL | fe.PLATFORM)
        self.table(1, GUEST, SIZE, USER, 0)
        self.iotlb(USER, SIZE, USER, 3, 2)
        for index in range(2):
            self.ring(index)

    def iotlb(self, iova: int, size: int, user: int, access: int, type: int) -> None:
        numbers = (iova % TOP, size % TOP, user % TOP, access & 0xFF, type & 0xFF)
        payload = fe.iotlb(*numbers)
        self.front.send(fe.IOTLB_MSG, payload, (), 1 | fe.NEED_REPLY)

    def inflight(
        self, request: int, size: int, offset: int, queues: int, entries: int, *fds: int
    ) -> None:
        payload = fe.area(size % TOP, offset % TOP, queues & 0xFFFF, entries & 0xFFFF)
        self.front.send(request, payload, self.descriptors(*fds), 1 | fe.NEED_REPLY)

    def log(self, size: int, offset: int, *fds: int) -> None:
        payload = struct.pack("=QQ", size % TOP, offset % TOP)
        self.front.send(fe.SET_LOG_BASE, payload, self.descriptors(*fds))

    def answer_on_channel(self, request: int, flags: int, size: int) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            self.mine.send(struct.pack("=III", request, flags, size) + bytes(min(size, 400)))

    def ring(self, index: int) -> None:
        self.state(fe.SET_VRING_NUM, index, 64)
        at = USER + index * 4 * PAGE
        self.addresses(index, 0, at, at + 2 * PAGE, at + PAGE)
        self.number(fe.SET_VRING_CALL, index, 1)
        self.number(fe.SET_VRING_KICK, index, 1)
        self.state(fe.SET_VRING_ENABLE, index, 1)

    def pieces(self, request: int, cut: int) -> None:
        """A message in two pieces, with turns between them."""
        data = struct.pack("=III", request, 1, 8) + bytes(8)
        self.front.send_bytes(data[: cut % 20])
        fe.settle(self.made.engine)
        self.front.send_bytes(data[cut % 20 :])

    def settle(self) -> None:
        fe.settle(self.made.engine)

    def take(self, count: int) -> None:
        """The driver makes chains available, and the device takes them."""
        fe.settle(self.made.engine)
        for queue in self.made.device.made:
            if queue.running:
                queue.take(count % 5)

    def give_back(self) -> None:
        for queue in self.made.device.made:
            queue.give_back()

    def read(self) -> None:
        with suppress(BlockingIOError, ConnectionResetError):
            self.front.sock.recv(1 << 16)


def check(made: Bench, steps: list[Step]) -> None:
    """Plays a session, and looks at what is left of it."""
    before = len(os.listdir("/proc/self/fd"))
    mapped_before = mapped()
    player = Player(made)
    session = made.session if made.server.session else None
    player.play(steps)
    session = session or made.server.session
    player.close()
    player.give_back()
    made.wait_until_free()
    assert not made.device.queues and all(queue.released for queue in made.device.made)
    assert session is None or len(session.table) == 0
    after = len(os.listdir("/proc/self/fd"))
    assert after == before, f"{after} descriptors, and {before} before"
    made.device.made.clear()
    made.forget_front_ends()
    assert not mapped() - mapped_before


def mapped() -> set[str]:
    """What is mapped of front-ends' files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line for line in lines if "memfd:guest" in line or "memfd:iodma-inflight" in line}


# --- any steps at all -----------------------------------------------------------------------------

edge = st.sampled_from(EDGES)
address = st.sampled_from(ADDRESSES) | st.integers(0, TOP - 1)
length = st.sampled_from(SIZES) | st.integers(0, TOP - 1)
request = st.integers(0, 45)
kinds = st.lists(st.integers(0, len(KINDS) - 1), max_size=3)
index = st.sampled_from((0, 0, 0, 1, 1, 2, 255, 0xFFFFFFFF))
four = st.tuples(address, length, address, length)


def step(name: str, *parts: st.SearchStrategy[object]) -> st.SearchStrategy[Step]:
    """Numbers, or lists of them, one after the other."""

    def flat(values: tuple[object, ...]) -> Step:
        numbers: list[int] = []
        for value in values:
            numbers += value if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]
        return name, tuple(numbers)

    return st.tuples(*parts).map(flat)


def only(*values: int) -> st.SearchStrategy[object]:
    return st.sampled_from(values)


STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        step("set_up"),
        step("set_up_with_iommu"),
        step("iotlb", address, length, address, only(0, 1, 3, 4), only(1, 2, 2, 3, 3, 4)),
        step("log", only(0, 64, PAGE, SIZE, TOP - 1), address, only(0, 5)),
        step("number", only(2), only(fe.VERSION_1 | fe.PROTOCOL | fe.LOG_ALL), st.just(())),
        step("inflight", only(31), edge, address, only(0, 1, 2, 3), edge, st.just(())),
        step("inflight", only(32), length, address, only(0, 1, 2, 3), edge, only(0, 5)),
        step("answer_on_channel", only(0, 1, 1, 2), only(1, 5), only(0, 8, 65)),
        step("ring", only(0, 1)),
        step("settle"),
        step("take", only(1, 3)),
        step("give_back"),
        step("read"),
        step("message", request, only(1, 1, 9, 9, 5, 0x101), edge, address, kinds),
        step("plain", only(1, 3, 4, 15, 17, 21, 34, 36, 40), kinds),
        step("number", only(2, 12, 13, 14, 16, 39), edge | address, kinds),
        step("state", only(8, 10, 11, 18), index, edge),
        step("addresses", index, only(0, 1, 2), address, address, address),
        step("table", only(0, 1, 1, 2, 9), four, st.just(()) | four),
        step("slot", only(37, 37, 38), address, length, address, length, kinds),
        step("slot", only(38), only(GUEST), only(SIZE), only(USER), only(0)),
        step("config", only(24, 25), edge, edge, only(0, 1, 2), only(0, 1, 8, 256)),
        step("pieces", request, st.integers(0, 19)),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with fe.bench(tmp_path_factory.mktemp("vhost")) as bench:
        yield bench


@pytest.mark.leaks_allowed  # the server of all examples; `check` looks after each of them
@given(STEPS)
@settings(max_examples=2000 if SOAK else 60)
def test_any_session(made: Bench, steps: list[Step]) -> None:
    check(made, steps)


# --- sessions of real front-ends, mutated ---------------------------------------------------------

#: What a session is like, from its beginning to its end.
WHOLE: list[Step] = [
    ("plain", (fe.GET_FEATURES,)),
    ("plain", (fe.GET_PROTOCOL_FEATURES,)),
    ("number", (fe.SET_PROTOCOL_FEATURES, 1 << fe.MQ | 1 << fe.REPLY_ACK | 1 << fe.CONFIG)),
    ("plain", (fe.GET_QUEUE_NUM,)),
    ("plain", (fe.SET_OWNER,)),
    ("plain", (fe.SET_BACKEND_REQ_FD, 3)),
    ("config", (fe.GET_CONFIG, 0, 60, 0, 60)),
    ("number", (fe.SET_FEATURES, fe.VERSION_1 | fe.PROTOCOL)),
    ("table", (1, GUEST, SIZE, USER, 0)),
    ("slot", (fe.ADD_MEM_REG, 1 << 32, SIZE, USER + SIZE, 0, 0)),
    ("ring", (0,)),
    ("ring", (1,)),
    ("number", (fe.SET_STATUS, 7)),
    ("log", (SIZE - PAGE, PAGE, 0)),
    ("number", (fe.SET_FEATURES, fe.VERSION_1 | fe.PROTOCOL | fe.LOG_ALL)),
    ("take", (2,)),
    ("number", (fe.SET_VRING_CALL, 0, 1)),
    ("slot", (fe.REM_MEM_REG, 1 << 32, SIZE, USER + SIZE, 0)),
    ("give_back", ()),
    ("config", (fe.SET_CONFIG, 8, 1, 0, 1)),
    ("take", (3,)),
    ("state", (fe.GET_VRING_BASE, 0, 0)),
    ("settle", ()),
    ("give_back", ()),
    ("state", (fe.SET_VRING_BASE, 0, 5)),
    ("number", (fe.SET_VRING_KICK, 0, 1)),
    ("state", (fe.SET_VRING_ENABLE, 1, 0)),
    ("give_back", ()),
    ("read", ()),
    ("number", (fe.SET_STATUS, 0)),
    ("plain", (fe.GET_STATUS,)),
    ("plain", (fe.RESET_DEVICE,)),
    ("ring", (0,)),
]


#: ... and one through an IOMMU, which is asked and answers.
WITH_IOMMU: list[Step] = [
    ("plain", (fe.GET_FEATURES,)),
    ("set_up_with_iommu", ()),
    ("inflight", (fe.GET_INFLIGHT_FD, 0, 0, 2, 64)),
    ("take", (2,)),
    ("iotlb", (1 << 40, PAGE, USER, 1, 2)),
    ("iotlb", (USER + 2 * PAGE, PAGE, 0, 0, 3)),
    ("answer_on_channel", (1, 5, 8)),
    ("state", (fe.GET_VRING_BASE, 0, 0)),
    ("iotlb", (0, 0, 0, 0, 3)),
    ("give_back", ()),
    ("inflight", (fe.SET_INFLIGHT_FD, 1 << 16, 0, 2, 64, 0)),
    ("slot", (fe.REM_MEM_REG, GUEST, SIZE, USER, 0)),
    ("iotlb", (USER, SIZE, USER, 3, 2)),
    ("number", (fe.SET_STATUS, 0)),
    ("number", (fe.SET_FEATURES, fe.VERSION_1 | fe.PROTOCOL)),
    ("table", (1, GUEST, SIZE, USER, 0)),
    ("ring", (0,)),
]


#: Steps whose fields are 64 bits wide, but for the first.
WIDE = ("number", "slot", "addresses", "table")


def mutate(steps: list[Step], rng: random.Random) -> list[Step]:
    """The same, with a few things wrong."""
    steps = list(steps)
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(steps))
        name, numbers = steps[at]
        what = rng.randrange(7)
        if what == 0:
            del steps[at]
        elif what == 1:
            steps.insert(rng.randrange(len(steps)), steps[at])
        elif what == 2:
            other = rng.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        elif what == 3:
            extra = rng.choice([("settle", ()), ("take", (1,)), ("give_back", ()), ("read", ())])
            steps.insert(at, extra)
        elif what == 4:
            flags = rng.choice((1, 1, 1, 9, 5, 0))
            garbage = (rng.randrange(45), flags, rng.choice(EDGES), rng.getrandbits(64))
            steps.insert(at, ("message", (*garbage, *[0] * rng.randrange(3))))
        elif what == 5 and name in ("plain", "number", "slot"):
            steps[at] = (name, (*numbers, rng.randrange(len(KINDS))))
        elif numbers and name not in ("take", "ring", "config"):
            # A field; the number of the message stays, and so does how many fields there are.
            field = rng.randrange(len(numbers))
            if field or name in ("addresses", "table", "iotlb"):
                wide = name in WIDE and field > 0
                value = rng.choice(ADDRESSES + SIZES if wide else EDGES)
                if rng.random() < 0.3:
                    value = (numbers[field] ^ 1 << rng.randrange(16)) & 0xFFFFFFFF
                steps[at] = (name, (*numbers[:field], value, *numbers[field + 1 :]))
    return steps[: rng.randrange(len(steps) + 1) if rng.random() < 0.3 else len(steps)]


@pytest.mark.leaks_allowed
@pytest.mark.limit(4 * 3600 if SOAK else 60)
def test_mutated_sessions(made: Bench, rng: random.Random) -> None:
    for _ in range(100_000 if SOAK else 150):
        check(made, mutate(rng.choice((WHOLE, WHOLE, WITH_IOMMU)), rng))


def test_the_whole_session_is_one(tmp_path: Path) -> None:
    """What is mutated goes through as it is: the fuzzing does not end at its first message."""
    with fe.bench(tmp_path) as made:
        player = Player(made)
        player.play(WHOLE)
        assert len(made.device.made) == 4 and made.queue.running
        assert made.device.config["mode"] == 0 and made.device.resets >= 2
        player.give_back()
        player.close()
