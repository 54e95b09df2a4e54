"""A vhost-user front-end of the tests' own, and a device whose rings are scripted.

Everything happens in one thread: the engine is pumped until what a test waits for is there, and it
is waited for with select, never by sleeping.

Invariants:

- The numbers and layouts here are written down a second time, from the specification, and not taken
  from the code under test.
- A front-end closes what it made; what it sent belongs to who received it.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from iodma import Engine
from iodma.testing import strict_engine
from iodma.transports.vhost_user import VhostUserServer
from iodma.virtio import ConfigField, QueueSetup, VirtioDevice
from tests.unit.fakequeue import FakeQueue

# Message numbers.
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_BASE, SET_LOG_FD = 6, 7
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, IOTLB_MSG, GET_CONFIG, SET_CONFIG, RESET_DEVICE = 21, 22, 24, 25, 34
GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40
# Protocol features, by number.
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT, F_RESET, MEM_SLOTS, STATUS = (
    0,
    3,
    5,
    9,
    12,
    13,
    15,
    16,
)
NEED_REPLY = 8
NO_FD = 0x100
VERSION_1 = 1 << 32
#: Features that have a meaning for the device alone.
DEVICE_BITS = 1 << 3 | 1 << 23 | 1 << 55
PROTOCOL = 1 << 30
LOG_ALL = 1 << 26
LOG_SHMFD = 1
PLATFORM, PACKED = 1 << 33, 1 << 34

#: Seconds after which a test that waits has failed.
PATIENCE = 20.0
PAGE = 4096
#: Where the front-end's guest has its memory, and the front-end itself.
GUEST, USER, SIZE = 0x4000_0000, 0x7F00_0000_0000, 1 << 20


class Gone(Exception):
    """The back-end has closed the connection."""


# --- the device -----------------------------------------------------------------------------------


class IdleQueue(FakeQueue):
    """A queue that takes chains when the test says so, and gives them back then, too."""

    def __init__(self, port: Any, setup: QueueSetup) -> None:
        super().__init__(port, setup)
        self.fds: list[tuple[str, int]] = []

    def take(self, count: int = 1) -> None:
        assert self.running
        self.next = (self.next + count) & 0xFFFF
        self.in_flight += count

    def give_back(self) -> None:
        self.in_flight = 0
        self.gave_back()

    async def batches(self, limit: int = 16) -> Any:
        await self._ready
        if self.in_flight < 0:
            yield

    def pop(self, limit: int) -> None:
        return None

    def push(self, done: Any, ok: int = 0, error: int = 1) -> None:
        raise AssertionError("nothing was submitted")

    def finish(self, id: int, written: int, trailer: bytes) -> None:
        raise AssertionError("nothing was popped")

    def set_call(self, fd: int) -> None:
        self.fds.append(("call", fd))

    def set_kick(self, fd: int) -> None:
        self.fds.append(("kick", fd))

    def set_error(self, fd: int) -> None:
        self.fds.append(("error", fd))


class FakeDevice(VirtioDevice):
    """Two queues, and a configuration space with one field that a driver may write."""

    device_id = 42
    queue_max = 256
    config_layout = (ConfigField("size", 0, 8), ConfigField("mode", 8, 1))

    def __init__(self, queues: int = 2) -> None:
        super().__init__(name="fake")
        self.queue_count = queues
        self.config["size"] = 0x1122334455667788
        self.made: list[IdleQueue] = []
        self.resets = 0

    @property
    def features(self) -> int:
        return super().features | DEVICE_BITS

    def reset(self) -> None:
        self.resets += 1

    def make_queue(self, port: Any, setup: QueueSetup) -> IdleQueue:
        queue = IdleQueue(port, setup)
        self.made.append(queue)
        return queue

    async def serve(self, queue: Any) -> None:
        async for _ in queue.batches():
            pass

    def config_written(self, field: ConfigField, value: int) -> None:
        if field.name != "mode":
            super().config_written(field, value)
        self.config["mode"] = value


# --- the front-end --------------------------------------------------------------------------------


class FrontEnd:
    """One end of a connection.

    Attributes:
        memory: a memory file of `SIZE` bytes, the guest's RAM.
    """

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self.engine = engine
        self.sock = sock
        self.sock.setblocking(False)
        self.memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, SIZE)
        self._mine: list[int] = [self.memory]
        self._read = b""
        #: Descriptors that came with answers.
        self.received: list[int] = []
        self.acks = False
        #: This side of the back-end's own channel.
        self.channel: socket.socket | None = None

    # raw

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1
    ) -> None:
        self.send_bytes(struct.pack("=III", request, flags, len(payload)) + payload, fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            while data:
                try:
                    sent = self.sock.sendmsg([data], ancillary)
                except BlockingIOError:
                    drive(self.engine, lambda: writable(self.sock))
                    continue
                data, ancillary = data[sent:], []
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self) -> tuple[int, int, bytes]:
        """The next message: request, flags, payload. Raises Gone."""
        while True:
            if len(self._read) >= 12:
                request, flags, size = struct.unpack_from("=III", self._read)
                if len(self._read) >= 12 + size:
                    payload, self._read = self._read[12 : 12 + size], self._read[12 + size :]
                    return request, flags, payload
            drive(self.engine, lambda: readable(self.sock), self.sock)
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 4096, 8)
            except ConnectionResetError:
                data = b""
            else:
                self.received += [self.own(fd) for fd in fds]
            if not data:
                raise Gone
            self._read += data

    def ask(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1
    ) -> bytes:
        """A message and the payload of its answer."""
        self.send(request, payload, fds, flags)
        answered, how, payload = self.receive()
        assert (answered, how) == (request, 5), (answered, how)
        return payload

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A message, and its acknowledgement (0: it was done); without REPLY_ACK, one of a later
        message."""
        if not self.acks:
            self.send(request, payload, fds)
            self.ask(GET_FEATURES)
            return 0
        return int.from_bytes(self.ask(request, payload, fds, 1 | NEED_REPLY), "little")

    def refused(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1
    ) -> None:
        """A message that ends the session."""
        self.send(request, payload, fds, flags)
        self.expect_end()

    def expect_end(self) -> None:
        try:
            answer = self.receive()
        except Gone:
            return
        raise AssertionError(f"the session goes on: {answer}")

    def notifier(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._mine.append(fd)
        return fd

    def own(self, fd: int) -> int:
        self._mine.append(fd)
        return fd

    def close(self) -> None:
        self.sock.close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        for fd in self._mine:
            os.close(fd)
        self._mine.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # as front-ends do it

    def negotiate(
        self,
        protocol: Sequence[int] = (MQ, REPLY_ACK, CONFIG, STATUS),
        bits: int = DEVICE_BITS,
    ) -> None:
        """Features and protocol features, with PROTOCOL_FEATURES accepted."""
        offered = u64_of(self.ask(GET_FEATURES))
        assert offered & PROTOCOL
        wanted = sum(1 << each for each in protocol)
        assert u64_of(self.ask(GET_PROTOCOL_FEATURES)) & wanted == wanted
        self.send(SET_PROTOCOL_FEATURES, u64(wanted))
        self.acks = REPLY_ACK in protocol
        if BACKEND_REQ in protocol:
            assert self.channel is None
            self.channel, theirs = socket.socketpair()
            self.channel.setblocking(False)
            with theirs:
                assert self.tell(SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0
        self.send(SET_OWNER)
        assert u64_of(self.ask(GET_FEATURES)) & bits == bits
        self.tell(SET_FEATURES, u64(VERSION_1 | PROTOCOL | bits))

    def share_memory(self) -> None:
        """One region: all of the memory file."""
        assert self.tell(SET_MEM_TABLE, regions((GUEST, SIZE, USER, 0)), [self.memory]) == 0

    def set_up_ring(self, index: int = 0, size: int = 64, next: int = 0, at: int = 0) -> None:
        """All but that it is enabled. `at`: where in memory its parts are."""
        self.tell(SET_VRING_NUM, state(index, size))
        self.tell(SET_VRING_BASE, state(index, next))
        self.tell(SET_VRING_ADDR, ring_at(index, USER + at))
        self.tell(SET_VRING_CALL, u64(index), [self.notifier()])
        self.tell(SET_VRING_KICK, u64(index), [self.notifier()])

    def start_ring(self, index: int = 0, size: int = 64, next: int = 0, at: int = 0) -> None:
        self.set_up_ring(index, size, next, at)
        assert self.tell(SET_VRING_ENABLE, state(index, 1)) == 0


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def u64_of(payload: bytes) -> int:
    assert len(payload) == 8
    return int(struct.unpack("=Q", payload)[0])


def state(index: int, number: int) -> bytes:
    return struct.pack("=II", index, number)


def ring_at(index: int, user: int, flags: int = 0) -> bytes:
    """Descriptor table, used ring and available ring, 4 KiB apart."""
    return struct.pack("=IIQQQQ", index, flags, user, user + 2 * PAGE, user + PAGE, 0)


def region(guest: int, size: int, user: int, offset: int) -> bytes:
    return struct.pack("=QQQQ", guest, size, user, offset)


def regions(*each: tuple[int, int, int, int]) -> bytes:
    return struct.pack("=II", len(each), 0) + b"".join(region(*one) for one in each)


def single(guest: int, size: int, user: int, offset: int = 0) -> bytes:
    return u64(0) + region(guest, size, user, offset)


def config(offset: int, size: int, flags: int = 0, data: bytes | None = None) -> bytes:
    return struct.pack("=III", offset, size, flags) + (bytes(size) if data is None else data)


def iotlb(iova: int, size: int, user: int, access: int, type: int) -> bytes:
    return struct.pack("=QQQBB", iova, size, user, access, type) + bytes(6)


def area(size: int, offset: int, queues: int, queue_size: int) -> bytes:
    """An inflight description."""
    return struct.pack("=QQHH", size, offset, queues, queue_size) + bytes(4)


# --- both -----------------------------------------------------------------------------------------


def readable(sock: socket.socket | int) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def writable(sock: socket.socket) -> bool:
    return bool(select.select([], [sock], [], 0)[1])


def drive(engine: Engine, until: Callable[[], object], *also: Any) -> None:
    """Pumps the engine until something is so; what it waits for is waited for in the kernel.

    Args:
        also: descriptors that may become readable, where the server is in another process.
    """
    end = time.monotonic() + PATIENCE
    fd = engine.fileno()
    while not until():
        if not engine.pump():
            if until():
                return
            left = end - time.monotonic()
            assert left > 0, "it never comes"
            select.select([fd, *also], [], [], left)


def settle(engine: Engine) -> None:
    """Pumps until nothing more happens by itself."""
    fd = engine.fileno()
    while engine.pump() or select.select([fd], [], [], 0)[0]:
        pass


def finish(engine: Engine, main: Callable[[], Any]) -> Any:
    """Runs a coroutine to its end."""
    task = engine.start(main())
    drive(engine, lambda: task.done)
    return task.result


class Bench:
    """An engine, a device, a server at a path, and front-ends that connect to it."""

    def __init__(self, folder: Path, queues: int = 2) -> None:
        self.engine = strict_engine(slow_step=None)
        self.device = FakeDevice(queues)
        self.path = str(folder / "vhost.sock")
        self.server = VhostUserServer(self.engine, self.device, self.path)
        self._front_ends: list[FrontEnd] = []
        self.connected = 0
        settle(self.engine)

    def connect(self) -> FrontEnd:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        front = FrontEnd(self.engine, sock)
        self._front_ends.append(front)
        self.connected += 1
        return front

    def forget_front_ends(self) -> None:
        """Those that are closed: a test that has thousands."""
        self._front_ends.clear()

    @property
    def queue(self) -> IdleQueue:
        """The one that was made last."""
        return self.device.made[-1]

    @property
    def session(self) -> Any:
        assert self.server.session is not None
        return self.server.session

    def wait_until_free(self) -> None:
        """Until nothing is left of any front-end that has connected."""
        served = self.connected
        drive(self.engine, lambda: self.server.session is None and self.server.sessions >= served)

    def close(self) -> None:
        for front in self._front_ends:
            front.close()
        for queue in self.device.made:
            queue.give_back()
        finish(self.engine, self.server.close)
        self.engine.close()


@contextmanager
def bench(folder: Path, queues: int = 2) -> Iterator[Bench]:
    made = Bench(folder, queues)
    try:
        yield made
    finally:
        made.close()


def feature_bits(device: VirtioDevice) -> int:
    """What the transport offers of the device's features."""
    return device.features & ~(PLATFORM | PACKED) | PROTOCOL | LOG_ALL
