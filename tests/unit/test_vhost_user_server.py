"""The server's socket: a path, a descriptor, one front-end at a time, what is left at the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma import ArgumentError, ArgumentTypeError, BusyError, Engine
from iodma.testing import strict_engine
from iodma.transports.vhost_user import VhostUserServer
from tests.unit import vhost_front as fe
from tests.unit.vhost_front import FakeDevice, FrontEnd


@pytest.fixture
def engine() -> Iterator[Engine]:
    with strict_engine(slow_step=None) as engine:
        yield engine


def close(engine: Engine, server: VhostUserServer) -> None:
    fe.finish(engine, server.close)


def unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def test_the_socket_file_is_there_while_the_server_is(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = VhostUserServer(engine, FakeDevice(), path)
    assert path.is_socket() and "waits" in repr(server)
    close(engine, server)
    assert not path.exists() and server.closed
    close(engine, server)


def test_as_a_context(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        async with VhostUserServer(engine, FakeDevice(), path):
            assert path.exists()

    fe.finish(engine, main)
    assert not path.exists()


def test_a_path_where_somebody_listens_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    server = VhostUserServer(engine, FakeDevice(), path)
    with pytest.raises(BusyError, match="another server listens"):
        VhostUserServer(engine, FakeDevice(), path)
    # Whoever tried is no front-end, and the server goes on.
    fe.settle(engine)
    with unix() as sock:
        sock.connect(path)
        with FrontEnd(engine, sock) as front:
            assert front.ask(fe.GET_QUEUE_NUM) == fe.u64(2)
    close(engine, server)


def test_a_path_whose_backlog_is_full_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with unix() as other, unix() as first, unix() as second:
        other.bind(path)
        other.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(path)
        with pytest.raises(BusyError):
            VhostUserServer(engine, FakeDevice(), path)


def test_the_socket_of_a_dead_server_is_replaced(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix() as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    server = VhostUserServer(engine, FakeDevice(), path)
    with unix() as sock:
        sock.connect(str(path))
        with FrontEnd(engine, sock) as front:
            front.ask(fe.GET_QUEUE_NUM)
    close(engine, server)


def test_what_is_no_socket_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BusyError, match="is no socket"):
        VhostUserServer(engine, FakeDevice(), path)
    assert path.read_text() == "data"


def test_another_server_s_socket_is_not_removed(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = VhostUserServer(engine, FakeDevice(), path)
    path.unlink()
    with unix() as other:
        other.bind(str(path))
        close(engine, server)
        assert path.is_socket()


def test_arguments(engine: Engine, tmp_path: Path) -> None:
    device = FakeDevice()
    with pytest.raises(ArgumentError, match="one of them"):
        VhostUserServer(engine, device)
    with pytest.raises(ArgumentError, match="one of them"):
        VhostUserServer(engine, device, tmp_path / "s", fd=0)
    with pytest.raises(ArgumentError, match="1 to 107 bytes"):
        VhostUserServer(engine, device, tmp_path / ("s" * 200))
    with pytest.raises(ArgumentTypeError, match="not a VirtioDevice"):
        VhostUserServer(engine, "device", tmp_path / "s")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        VhostUserServer(engine, device, tmp_path / "none" / "s")
    with open(os.devnull) as file, pytest.raises(ArgumentError, match="is no socket"):
        VhostUserServer(engine, device, fd=file.fileno())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
        pytest.raises(ArgumentError, match="no unix stream"),
    ):
        VhostUserServer(engine, device, fd=sock.fileno())


def test_a_descriptor_that_listens(engine: Engine, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with unix() as listening:
        listening.bind(path)
        listening.listen()
        server = VhostUserServer(engine, FakeDevice(), fd=listening.fileno())
    for _ in range(2):
        with unix() as sock:
            sock.connect(path)
            with FrontEnd(engine, sock) as front:
                front.ask(fe.GET_QUEUE_NUM)
        fe.drive(engine, lambda: server.session is None)
    assert server.sessions == 2
    close(engine, server)
    assert os.path.exists(path), "it is not the server's"


def test_a_descriptor_that_is_connected_is_served_once(engine: Engine) -> None:
    here, there = socket.socketpair()
    with here:
        server = VhostUserServer(engine, FakeDevice(), fd=here.fileno())
    waits = engine.start(server.wait())
    with FrontEnd(engine, there) as front:
        front.negotiate()
        front.share_memory()
        front.start_ring()
        assert not waits.done and "busy" in repr(server)
    fe.drive(engine, lambda: waits.done)
    assert server.closed
    close(engine, server)


def test_a_process_without_descriptors_left_goes_on_later(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    server = VhostUserServer(engine, FakeDevice(), path)
    real = server._listening
    assert real is not None

    class Poor:
        """A listening socket whose process has no descriptor left, once."""

        tries = 0

        def accept(self) -> object:
            self.tries += 1
            if self.tries == 1:
                raise OSError(24, "Too many open files")
            assert real is not None
            return real.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    monkeypatch.setattr(server, "_listening", Poor())
    monkeypatch.setattr("iodma.transports.listener._RETRY_NS", 1)
    with unix() as sock:
        sock.connect(path)
        with FrontEnd(engine, sock) as front:
            front.ask(fe.GET_QUEUE_NUM)
        fe.drive(engine, lambda: server.session is None)
    close(engine, server)
