"""The vfio-user client of benchmarks against servers in C, and against answers that are none."""

import errno
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iodma._peer import VfioUser, list_copy_loop
from iodma.tools.bench import vfio_layout as layout
from iodma.tools.bench.files import shared_memory
from iodma.tools.bench.servers import Server
from iodma.tools.bench.vfio_client import BAR0, REGION_READ, REGION_WRITE, Session
from iodma.tools.bench.vfio_servers import peer_server


@pytest.fixture
def memory() -> Iterator[str]:
    with shared_memory(layout.MEMORY_BYTES) as path:
        yield path


@pytest.fixture
def echo() -> Iterator[Server]:
    with Server(peer_server("echo"), None) as server:
        yield server


@pytest.fixture
def doorbell() -> Iterator[Server]:
    with Server(peer_server("doorbell"), None) as server:
        yield server


def session(server: Server, memory: str, *, shared: bool = True) -> Session:
    return server.reach(lambda path: Session(path, memory, shared=shared))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_every_answer_has_the_size_that_the_protocol_gives_it(echo: Server) -> None:
    with echo.reach(VfioUser) as client:
        assert client.request(1, struct.pack("<HH", 0, 0) + b"{}\0")[1][:4] == bytes(4)
        assert client.request(4, bytes(16)) == (0, struct.pack("<IIII", 16, 3, 9, 5))
        assert len(client.request(5, bytes(32))[1]) == 32
        assert len(client.request(7, bytes(16))[1]) == 16
        assert client.request(2, bytes(32)) == (0, b"")
        unmap = struct.pack("<IIQQ", 24, 0, 4096, 4096)
        assert client.request(3, unmap) == (0, unmap)
        assert client.request(8, bytes(20)) == (0, b"")
        read = struct.pack("<QII", 0, BAR0, 8)
        assert client.request(REGION_READ, read) == (0, read + bytes(8))
        assert client.request(REGION_WRITE, read + bytes(8)) == (0, read)
        assert client.request(13) == (0, b"")
        assert client.request(99) == (errno.ENOTSUP, b"")
        assert client.request(2, bytes(31)) == (errno.EINVAL, b"")
        assert client.reads(BAR0, 0, requests=100, seconds=30)["requests"] == 100


def test_the_echo_server_keeps_no_descriptor(echo: Server, memory: str) -> None:
    with session(echo, memory, shared=False) as client:
        before = descriptors(echo.pid)
        client.map_regions()
        client.unmap_regions()
        assert descriptors(echo.pid) == before
        assert client.mappings(echo.pid) == 0


def test_a_page_is_there_when_the_interrupt_comes(doorbell: Server, memory: str) -> None:
    before = 0
    with session(doorbell, memory) as client:
        assert client.mappings(doorbell.pid) == 1
        client.prepare_page()
        client.memory[layout.PAGE_SOURCE : layout.PAGE_SOURCE + 4096] = os.urandom(4096)
        done = client.doorbells(0.05)
        assert done["requests"] == done["waits"] > 0
        source, target = (
            client.memory[at : at + layout.PAGE] for at in (layout.PAGE_SOURCE, layout.PAGE_TARGET)
        )
        assert source == target
        before = descriptors(doorbell.pid)
    # The next client finds a server that has let go of everything.
    with session(doorbell, memory) as client:
        assert client.mappings(doorbell.pid) == 1
        assert descriptors(doorbell.pid) == before


def test_a_copy_that_does_not_arrive_is_an_error(doorbell: Server, memory: str) -> None:
    with session(doorbell, memory) as client:
        client.prepare_page()
        client.write(layout.TARGET, 8, layout.MEMORY_AT)  # not where the client looks
        with pytest.raises(OSError, match="came before the bytes") as raised:
            client.doorbells(5.0)
        assert raised.value.errno == errno.EIO
        with pytest.raises(BrokenPipeError):
            client.reads(1.0)


class Script:
    """A server that says what the test wants, once."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(1)
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection, self._socket:
            connection.recv(4096)
            connection.sendall(self._answer)

    def join(self) -> None:
        self._thread.join()


def header(id: int, command: int, size: int, flags: int, error: int = 0) -> bytes:
    return struct.pack("<HHIII", id, command, size, flags, error)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", ConnectionResetError),
        (header(0, 13, 16, 1)[:7], ConnectionResetError),
        (header(1, 13, 16, 1), OSError),
        (header(0, 12, 16, 1), OSError),
        (header(0, 13, 16, 0), OSError),
        (header(0, 13, 15, 1), OSError),
        (header(0, 13, 1 << 30, 1), OSError),
        (header(0, 13, 16, 1) + b"more", OSError),
    ],
    ids=["nothing", "a part", "id", "command", "no answer", "short", "long", "more"],
)
def test_what_is_no_answer_is_an_error(tmp_path: Path, answer: bytes, kind: type[OSError]) -> None:
    server = Script(tmp_path / "s", answer)
    with VfioUser(tmp_path / "s", patience=10) as client:
        with pytest.raises(kind) as raised:
            client.request(13)
        if kind is OSError:
            assert raised.value.errno == errno.EPROTO
        with pytest.raises(BrokenPipeError):
            client.request(13)
    server.join()


def test_a_server_that_stops_answering_is_an_error(echo: Server) -> None:
    with echo.reach(lambda path: VfioUser(path, patience=0.2)) as client:
        os.kill(echo.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="no answer to command 9"):
                client.reads(BAR0, 0, seconds=30)
        finally:
            os.kill(echo.pid, signal.SIGCONT)


def test_arguments_that_cannot_be_right(echo: Server, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        VfioUser(tmp_path / "none")
    with pytest.raises(ValueError, match="a path of"):
        VfioUser("x" * 200)
    with echo.reach(VfioUser) as client:
        room = bytearray(8192)
        wrong: list[Any] = [
            lambda: client.reads(0, 0, 3),
            lambda: client.reads(0, 0, seconds=0),
            lambda: client.doorbells(0, 0, room, 8192, 0, 4096, 0),
            lambda: client.doorbells(0, 0, room, 0, 1 << 63, 4096, 0),
            lambda: client.lists(0, 0, room, 0, 512, 8, 4096, 0),
            lambda: client.lists(0, 0, room, 0, 64, 64, 4096, 0),
            lambda: client.lists(0, 0, room, 4, 64, 8, 4096, 0),
            lambda: client.map(0, 0, 2, 16),
            lambda: client.map(0, 1 << 32, 0, 16),
            lambda: client.request(9, bytes(9000)),
            lambda: client.request(1 << 16),
            lambda: client.request(2, bytes(32), range(9)),
        ]
        for call in wrong:
            with pytest.raises(ValueError):
                call()
        assert client.request(13) == (0, b"")
    with pytest.raises(ValueError, match="closed"):
        client.reads(0, 0)


def test_lists_are_copied_as_they_say() -> None:
    sources, targets = layout.list_tables()
    begins = np.concatenate([sources[:, 0], targets[:, 0]])
    assert len(set(begins.tolist())) == 2 * layout.LISTS * layout.SEGMENTS
    assert int(begins.max()) + layout.PAGE <= layout.MEMORY_BYTES
    area = bytearray(os.urandom(1 << 16))
    before = bytes(area)
    here = np.array([[0, 4096], [8192, 100]], np.uint64)
    there = np.array([[32768, 4096], [16384, 100]], np.uint64)
    ns, requests, moved = list_copy_loop(area, here, there, segments=2, seconds=0.001)
    assert ns > 0
    assert moved == requests * 4196
    assert area[32768 : 32768 + 4096] == before[:4096]
    assert area[16384 : 16384 + 100] == before[8192 : 8192 + 100]
    assert area[16484:32768] == before[16484:32768]
    with pytest.raises(ValueError, match="same shape"):
        list_copy_loop(area, here, there[::-1].copy(), segments=2)


def test_the_regions_do_not_overlap() -> None:
    pages = [number * layout.FILE_STEP % layout.FILE_PAGES for number in range(layout.REGIONS)]
    assert len(set(pages)) == layout.REGIONS
    assert layout.FIRST_REGION - layout.REGIONS * layout.PAGE >= 0
