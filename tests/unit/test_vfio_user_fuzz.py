"""Whatever a client of vfio-user sends, nothing crashes, hangs or stays behind.

Sessions are made of what VMMs do, and then broken: fields that are out of range, descriptors too
many or of the wrong kind, messages cut into pieces or cut off, answers that nobody waits for, DMA
in flight while its memory goes.

Invariants:

- Every command that wants an answer has one, in the order of the commands, until the session ends.
- After every session - whatever it was - the server is free, the function is as at power-on, no
  memory is mapped, and there are as many descriptors as before it.
- A session is a list of plain steps, which hypothesis can make shorter.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iodma import Device, Doorbell, Engine, Register
from iodma.pci import Pci, PciSlot
from iodma.testing import ScriptedEndpoint, strict_engine
from iodma.transports.vfio_user import VfioUserServer
from tests.conftest import SOAK
from tests.unit import vfio_client as vc
from tests.unit.vfio_client import Client, Gone, SharedMemory
from tests.unit.vfio_kit import StillClock, pump, run

TOP, PAGE, SIZE, BASE = 1 << 64, 4096, 1 << 20, 0x10_0000
EDGES = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 24, 31, 32, 64, 255, 4095, 4096, 0xFFFF, 0xFFFFFFFF)

LARGE = (
    0,
    1,
    4,
    PAGE - 1,
    PAGE,
    SIZE,
    BASE,
    BASE + PAGE,
    BASE + SIZE,
    1 << 63,
    TOP - PAGE,
    TOP - 1,
)
#: What descriptors are: see `Player.descriptor`.
KINDS = ("memory", "eventfd", "pipe", "socket", "null", "small", "itself")

#: What a session is made of: (name, numbers).
Step = tuple[str, tuple[int, ...]]


class Mover(Device):
    """Moves a page from its disk to an address, or from the address; every register there is."""

    pci = Pci(vendor=0xF1DA, device=3, bars={0: 4096, 4: 256}, msi=2, msix=3)
    word = Register(0x00, 4, narrowest=1)
    wide = Register(0x08, 8)
    fill = Doorbell(0x10, 8, run="filling", concurrent=True, depth=8)
    drain = Doorbell(0x18, 8, run="draining", depth=4)
    poke = Doorbell(0x20, run="poking", eventfd=1)
    line = Register(0x24, 4, write="drive")

    disk: ScriptedEndpoint

    def drive(self, value: int) -> None:
        self.interrupt.set(bool(value & 1))

    async def filling(self, at: int) -> None:
        await self.port.to_memory([(at % (TOP - PAGE), PAGE)], source=self.disk)

    async def draining(self, at: int) -> None:
        await self.port.from_memory([(at % (TOP - PAGE), PAGE)], to=self.disk)

    async def poking(self, value: int) -> None:
        pass


class Player:
    """Plays steps to a server."""

    def __init__(self, engine: Engine, path: Path, memory: SharedMemory, disk: Any) -> None:
        self.engine = engine
        self.memory = memory
        self.disk = disk
        self.client = Client(path, engine)
        self.client.serve = self.serve
        self.wanted: list[int] = []  # the ids of answers that must come
        self.promised = True
        self.answers = 0

    def serve(self, command: int, address: int, what: int | bytes) -> bytes | int:
        """Answers the server's commands, most of them rightly."""
        self.answers += 1
        if self.answers % 5 == 0:
            return 5
        if isinstance(what, bytes):
            return b""
        return bytes(what % 7 if self.answers % 7 == 0 else min(what, SIZE))

    def descriptor(self, number: int) -> list[int]:
        """One of a kind, and what must be closed after it was sent."""
        kind = KINDS[number % len(KINDS)]
        if kind == "memory":
            return [os.dup(self.memory.fd)]
        if kind == "eventfd":
            return [os.eventfd(0, os.EFD_NONBLOCK)]
        if kind == "pipe":
            return [*os.pipe()]
        if kind == "socket":
            return [each.detach() for each in socket.socketpair()]
        if kind == "null":
            return [os.open("/dev/null", os.O_RDWR)]
        if kind == "itself":
            return [os.dup(self.client.sock.fileno())]
        fd = os.memfd_create("small")
        os.ftruncate(fd, 100)
        return [fd]

    def send(self, command: int, payload: bytes, fds: list[int], flags: int = 0) -> None:
        id = self.client.post(command, payload, fds[:16], flags=flags)
        for fd in fds:
            os.close(fd)
        if not flags & vc.NO_REPLY and flags & 0xF == 0:
            self.wanted.append(id)

    # --- steps ------------------------------------------------------------------------------------

    def play(self, name: str, numbers: tuple[int, ...]) -> None:
        getattr(self, f"do_{name}")(*numbers)

    def do_version(self, minor: int, twin: int) -> None:
        text = b'{"capabilities": {"max_msg_fds": 8, "write_multiple": true'
        text += b', "twin_socket": {"supported": true}' if twin % 4 == 1 else b""
        text += b', "pgsizes": 4096, "max_dma_maps": 9' if twin % 4 == 2 else b""
        self.send(vc.VERSION, struct.pack("=HH", 0, minor % 3) + text + b"}}\0", [])

    def do_map(self, page: int, size: int, kind: int, flags: int) -> None:
        address = LARGE[page % len(LARGE)] if kind % 8 == 7 else BASE + page % 64 * PAGE
        length = LARGE[size % len(LARGE)] if size % 3 == 0 else PAGE * (1 + size % 4)
        fds = [] if kind % 4 == 3 else self.descriptor(0 if kind % 3 else kind)
        payload = struct.pack("=IIQQQ", 32, flags % 5 or 3, page % 64 * PAGE, address, length)
        self.send(vc.DMA_MAP, payload, fds)

    def do_unmap(self, page: int, size: int, flags: int) -> None:
        address, length = BASE + page % 64 * PAGE, PAGE * (1 + size % 4)
        if flags % 6 == 2:
            address = length = 0
        tail = struct.pack("=QQ", PAGE, 8) if flags % 6 == 1 else b""
        payload = struct.pack("=IIQQ", 24 + 24 * bool(tail), flags % 6 % 3, address, length)
        self.send(vc.DMA_UNMAP, payload + tail, [])

    def do_read(self, offset: int, region: int, count: int) -> None:
        self.send(vc.REGION_READ, struct.pack("=QII", offset % 4200, region % 10, count % 70), [])

    def do_write(self, offset: int, region: int, value: int, width: int) -> None:
        data = (value % TOP).to_bytes(8, "little") * 2
        data = data[: width % 17]
        head = struct.pack("=QII", offset % 4200, region % 10, len(data))
        self.send(vc.REGION_WRITE, head + data, [], vc.NO_REPLY * (width % 5 == 4))

    def do_master(self, on: int) -> None:
        head = struct.pack("=QII", 4, 7, 2)
        self.send(vc.REGION_WRITE, head + struct.pack("<H", 6 if on % 3 else 2), [])

    def do_ring(self, bell: int, page: int) -> None:
        at = LARGE[page % len(LARGE)] if bell % 7 == 6 else BASE + page % 64 * PAGE
        head = struct.pack("=QII", 0x10 + 8 * (bell % 2), 0, 8)
        self.send(vc.REGION_WRITE, head + struct.pack("<Q", at), [])

    def do_irqs(self, index: int, flags: int, start: int, count: int, kind: int) -> None:
        data = (1, 2, 4)[flags % 3]
        action = (8, 16, 32)[flags // 3 % 3]
        tail = bytes(range(count % 5)) if data == 2 else b""
        fds = []
        if data == 4 and kind % 3:
            for each in range(count % 5):
                fds += self.descriptor(kind + each if kind % 5 == 4 else 1)
        head = struct.pack("=IIIII", 20 + len(tail), data | action, index % 6, start % 4, count % 5)
        self.send(vc.SET_IRQS, head + tail, fds)

    def do_multi(self, count: int, offset: int, region: int) -> None:
        body = struct.pack("=Q", count % 5)
        for each in range(count % 5):
            body += struct.pack(
                "=QII8s", (offset + each) % 4200, region % 9, each * 3 % 10, b"x" * 8
            )
        self.send(vc.WRITE_MULTI, body, [])

    def do_feature(self, index: int, flags: int, length: int) -> None:
        body = struct.pack("=QQQ", BASE, PAGE * (length % 300), (PAGE, 1, 0, 1 << 40)[length % 4])
        if index % 10 == 6:
            body = struct.pack("=QII", PAGE, length % 2, 0) + bytes(16 * (length % 3))
        head = struct.pack("=II", 64 + length % 4096, (flags % 8) << 16 | index % 10)
        self.send(vc.FEATURE, head + body, [])

    def do_dirty(self, flags: int, length: int) -> None:
        body = struct.pack("=QQQQ", BASE, PAGE * (length % 99), PAGE, length % 99)
        self.send(
            vc.DIRTY_PAGES, struct.pack("=II", (40 + length) & 0xFFFF_FFFF, flags % 6) + body, []
        )

    def do_reset(self, payload: int) -> None:
        self.send(vc.RESET, bytes(payload % 3), [])

    def do_info(self, command: int, argsz: int, index: int) -> None:
        payload = struct.pack("=IIII", argsz, 0, index % 10, 0)
        self.send(4 + command % 4, payload + bytes(16), [])

    def do_any(self, command: int, edge: int, length: int, kind: int) -> None:
        """A message of a length and with numbers that mean nothing."""
        edge = EDGES[edge % len(EDGES)]
        payload = struct.pack("=I", edge) * (length % 20) + bytes(length % 3)
        fds = self.descriptor(kind) if kind % 4 == 0 else []
        self.send(command % 20, payload, fds, vc.NO_REPLY * (kind % 5 == 1))

    def do_reply(self, id: int, command: int, length: int) -> None:
        """An answer, to nothing or to something."""
        self.promised = False
        payload = struct.pack("=QQ", 0, length % 40) + bytes(length % 40)
        head = vc.HEADER.pack(id % 8, 11 + command % 3, 16 + len(payload), 1 + id % 3, 0)
        self.client.send(head + payload)

    def do_header(self, size: int, command: int) -> None:
        """A header whose size means nothing."""
        self.promised = False
        size = EDGES[size % len(EDGES)]
        self.client.send(vc.HEADER.pack(9, command % 20, size, 0, 0))

    def do_garbage(self, seed: int, length: int) -> None:
        self.promised = False
        self.client.send(random.Random(seed).randbytes(1 + length % 200))

    def do_pieces(self, cut: int) -> None:
        """The next message, in two."""
        data = vc.HEADER.pack(5, vc.REGION_READ, 32, 0, 0) + struct.pack("=QII", 0, 7, 4)
        cut = 1 + cut % 31
        self.wanted.append(5)
        self.client.send(data[:cut])
        self.engine.pump()
        self.client.send(data[cut:])

    def do_pump(self, turns: int) -> None:
        for _ in range(turns % 5):
            self.engine.pump()

    def do_answer(self, which: int) -> None:
        """The disk answers, the last request first or the first."""
        waiting = self.disk.waiting
        if waiting:
            self.disk.answer(waiting[-1 if which % 2 else 0])

    def do_hear(self, _: int) -> None:
        """Reads what there is."""
        self.client._read()

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, abruptly: bool) -> None:
        """Everything that was asked is answered, in order - or the session has ended."""
        if not abruptly:
            with suppress(Gone, ConnectionError):
                self.client.wait(self.all_there)
        ids = [each.id for each in self.client._replies if each.id]
        if self.promised and not self.ended:
            assert abruptly or ids == self.wanted
        for each in (*self.client._replies, *self.client.asked):
            for fd in each.fds:  # the twin socket, eventfds
                os.close(fd)
        self.client.close()

    ended = False

    def all_there(self) -> bool:
        self.disk.answer_all()
        try:
            self.client._read()
        except Gone:
            self.ended = True
        if not self.promised:
            # Whether there is more to come cannot be known: what was sent is read, and that is all.
            return self.ended or not self.engine.pump()
        return self.ended or len(self.client._replies) >= len(self.wanted)


def number() -> st.SearchStrategy[int]:
    return st.integers(0, 5000) | st.sampled_from(EDGES)


def step(name: str, count: int) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), st.tuples(*[number()] * count))


USUAL = [
    *[step("map", 4), step("unmap", 3), step("read", 3), step("write", 4), step("master", 1)],
    *[step("ring", 2), step("ring", 2), step("irqs", 5), step("pump", 1), step("answer", 1)],
    *[step("hear", 1), step("reset", 1), step("multi", 3), step("feature", 3), step("dirty", 2)],
    *[step("info", 3), step("any", 4), step("pieces", 1)],
]
BROKEN = [step("reply", 3), step("header", 2), step("garbage", 2), step("version", 2)]
SESSIONS = st.lists(st.one_of(*USUAL), max_size=40) | st.lists(
    st.one_of(*USUAL, *BROKEN), max_size=40
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with strict_engine(slow_step=None, clock=StillClock()) as engine:
        yield engine


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sessions(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "s"
    holds = random.Random(0)

    def script(request: Any) -> Any:
        from iodma.testing import Answer

        return Answer.hold() if holds.random() < 0.5 else Answer.all()

    with SharedMemory(SIZE) as memory, ScriptedEndpoint(SIZE, script=script) as disk:
        device = Mover(engine.port(PciSlot()), disk=disk)
        server = VfioUserServer(engine, device, path)
        warm = Player(engine, path, memory, disk)
        warm.client.negotiate()
        warm.client.close()
        pump(engine, lambda: server.session is None)
        before = len(os.listdir("/proc/self/fd"))

        @settings(max_examples=3000 if SOAK else 25, deadline=None)
        @given(SESSIONS, st.booleans(), st.booleans(), st.integers(0, 3))
        def sessions(steps: list[Step], polite: bool, abruptly: bool, twin: int) -> None:
            count = server.sessions
            player = Player(engine, path, memory, disk)
            pump(engine, lambda: server.session is not None)
            if polite or steps:
                player.do_version(0, twin)
            with suppress(ConnectionError, Gone):
                for name, numbers in steps:
                    player.play(name, numbers)
            player.finish(abruptly)
            disk.answer_all()
            pump(engine, lambda: server.session is None and not disk.waiting)
            assert server.sessions == count + 1 and not server.closed
            assert device.state.value == "running" and device.tasks == 0
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) == before
            with open("/proc/self/maps") as maps:
                assert sum("memfd:guest" in line for line in maps) == 1  # the test's own
            with Client(path, engine) as client:
                client.negotiate()
                assert client.read(7, 4, 2) == b"\0\0"
            pump(engine, lambda: server.session is None)

        sessions()
        run(engine, server.close)
