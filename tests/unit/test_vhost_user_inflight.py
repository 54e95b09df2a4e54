"""Memory that tells of requests in flight: whose it is, what is refused, and a server that was
killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma import Engine
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import Bench, FrontEnd
from tests.unit.vhost_guest import IN, OUT, SECTOR, Guest, pattern


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Bench]:
    with fe.bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def front(made: Bench) -> FrontEnd:
    front = made.connect()
    front.negotiate((fe.MQ, fe.REPLY_ACK, fe.INFLIGHT))
    front.share_memory()
    return front


def give(front: FrontEnd, queues: int = 2, size: int = 64) -> tuple[bytes, int]:
    """What the back-end gives: the description, and the descriptor."""
    described = front.ask(fe.GET_INFLIGHT_FD, fe.area(0, 0, queues, size))
    return described, front.received[-1]


def test_memory_is_made_and_used(made: Bench, front: FrontEnd) -> None:
    described, fd = give(front)
    stride = 16 + 16 * 64 + 48  # a multiple of 64
    assert described == fe.area(2 * stride, 0, 2, 64)
    assert os.fstat(fd).st_size == 2 * stride
    assert front.tell(fe.SET_INFLIGHT_FD, described, [fd]) == 0
    for index in range(2):
        front.start_ring(index)
        setup = made.queue.setup
        assert setup.inflight is not None and setup.inflight.size == 2 * stride
        assert setup.inflight_at == index * stride


def test_packed_rings_have_larger_areas(made: Bench) -> None:
    front = made.connect()
    protocol = (fe.MQ, fe.REPLY_ACK, fe.INFLIGHT, fe.BACKEND_REQ)
    front.negotiate(protocol, fe.PACKED)
    front.share_memory()
    described, fd = give(front)
    stride = 32 + 32 * 64 + 32
    assert described == fe.area(2 * stride, 0, 2, 64)
    assert front.tell(fe.SET_INFLIGHT_FD, described, [fd]) == 0
    for index in range(2):
        front.start_ring(index, next=0x8000_8000)
        setup = made.queue.setup
        assert setup.inflight is not None and setup.inflight.size == 2 * stride
        assert setup.inflight_at == index * stride


def test_an_area_for_split_rings_is_too_small_for_packed_ones(made: Bench) -> None:
    front = made.connect()
    described, fd = give(front)
    front.tell(fe.SET_INFLIGHT_FD, described, [fd])
    front.negotiate((fe.MQ, fe.REPLY_ACK, fe.INFLIGHT, fe.BACKEND_REQ), fe.PACKED)
    front.share_memory()
    front.set_up_ring(next=0x8000_8000)
    front.refused(fe.SET_VRING_ENABLE, fe.state(0, 1))


def test_it_may_lie_anywhere_in_its_file(made: Bench, front: FrontEnd) -> None:
    fd = front.own(os.memfd_create("inflight", os.MFD_CLOEXEC))
    os.ftruncate(fd, 1 << 16)
    assert front.tell(fe.SET_INFLIGHT_FD, fe.area(4096, 4096 + 64, 1, 128), [fd]) == 0
    front.start_ring()
    assert made.queue.setup.inflight_at == 64
    # The other ring has none.
    front.start_ring(1)
    assert made.queue.setup.inflight is None


@pytest.mark.parametrize(
    "request_, payload",
    [
        (fe.GET_INFLIGHT_FD, fe.area(0, 0, 0, 64)),
        (fe.GET_INFLIGHT_FD, fe.area(0, 0, 3, 64)),
        (fe.GET_INFLIGHT_FD, fe.area(0, 0, 2, 0)),
        (fe.GET_INFLIGHT_FD, fe.area(0, 0, 2, 257)),
        (fe.SET_INFLIGHT_FD, fe.area(100, 0, 1, 64)),
        (fe.SET_INFLIGHT_FD, fe.area(1 << 16, 4, 1, 64)),
        (fe.SET_INFLIGHT_FD, fe.area(1 << 16, (1 << 20) - 64, 1, 64)),
        (fe.SET_INFLIGHT_FD, fe.area(1 << 16, (1 << 64) - 64, 1, 64)),
        (fe.SET_INFLIGHT_FD, fe.area(1 << 16, 0, 9, 64)),
    ],
)
def test_what_cannot_be_is_refused(front: FrontEnd, request_: int, payload: bytes) -> None:
    front.refused(request_, payload, [front.memory] if request_ == fe.SET_INFLIGHT_FD else [])


def test_other_refusals(made: Bench, front: FrontEnd) -> None:
    described, fd = give(front, size=32)
    front.tell(fe.SET_INFLIGHT_FD, described, [fd])
    front.set_up_ring()  # of 64 entries
    front.refused(fe.SET_VRING_ENABLE, fe.state(0, 1))
    made.wait_until_free()
    front = made.connect()
    front.negotiate()
    front.share_memory()
    front.start_ring()
    described, fd = give(front)
    front.refused(fe.SET_INFLIGHT_FD, described, [fd])
    made.wait_until_free()
    front = made.connect()
    front.refused(fe.SET_INFLIGHT_FD, fe.area(1 << 16, 0, 1, 64), [front.notifier()])
    made.wait_until_free()


# --- a server that is killed ----------------------------------------------------------------------

SERVER = """
import sys
from iodma import Engine, File
from iodma.devices.virtio_blk import VirtioBlk
from iodma.testing import Answer, ScriptedEndpoint
from iodma.transports.vhost_user import VhostUserServer

path, image, hold = sys.argv[1], sys.argv[2], sys.argv[3] == "hold"

def script(request):
    print("asked", flush=True)
    return Answer.hold() if request.offset >= 1024 else Answer.all()

disk = ScriptedEndpoint(open(image, "rb").read(), script=script) if hold else File(image)
with Engine() as engine:
    server = VhostUserServer(engine, VirtioBlk(disk), path)
    print("listens", flush=True)
    engine.run(server.wait())
"""


class Child:
    """A server in a process of its own."""

    def __init__(self, folder: Path, how: str) -> None:
        script = folder / "server.py"
        script.write_text(textwrap.dedent(SERVER))
        self.path = str(folder / "vhost.sock")
        self.process = subprocess.Popen(
            [sys.executable, str(script), self.path, str(folder / "image"), how],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hear("listens")

    def hear(self, what: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == what

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class GuestWithMemory(Guest):
    """... whose front-end keeps what is in flight."""

    protocol = (*Guest.protocol, fe.INFLIGHT)
    inflight: tuple[bytes, int] | None = None

    def prepare(self) -> None:
        if self.inflight is None:
            self.inflight = give(self.front, 1, 16)
        described, fd = self.inflight
        assert self.front.tell(fe.SET_INFLIGHT_FD, described, [fd]) == 0

    def reconnect(self, path: str) -> None:
        """As a front-end does whose back-end died: the guest sees nothing of it."""
        self.front.sock.close()
        self.front.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.front.sock.connect(path)
        self.front.sock.setblocking(False)
        self.front.acks = False
        self.boot()


def test_what_was_in_flight_when_a_server_was_killed_is_done_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(range(256)) * 512)
    first = Child(tmp_path, "hold")
    with Engine(slow_step=None) as engine:
        guest = GuestWithMemory(engine, first.path)
        guest.boot()
        try:
            # The first is answered, the others are not.
            assert guest.request(OUT, 0, b"a" * SECTOR)[0] == 0
            first.hear("asked")
            data = [os.urandom(SECTOR) for _ in range(3)]
            where = [guest.add(OUT, 10 + at, each)[0] for at, each in enumerate(data)]
            for _ in where:
                first.hear("asked")
            first.kill()
            second = Child(tmp_path, "serve")
            try:
                guest.reconnect(second.path)
                guest.wait(3)
                assert [guest.view[status] for status in where] == [0, 0, 0]
                assert guest.request(IN, 11, into=SECTOR) == (0, data[1])
            finally:
                second.kill()
            image = (tmp_path / "image").read_bytes()
            assert image[10 * SECTOR : 13 * SECTOR] == b"".join(data)
            # The first request went to the memory of the server that was killed: it was answered
            # there, and is not made again.
            assert image[:SECTOR] == pattern()
        finally:
            first.kill()
            guest.close()
