"""`iodma serve sun4m` from outside, and what `--netdev` understands."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from iodma import ArgumentError, BusyError, Datagram, File
from iodma.cli import main
from iodma.tools.netdev import network
from tests.qtest import Qtest

IODMA = (sys.executable, "-m", "iodma", "serve", "sun4m")


@contextmanager
def server(*options: str, fds: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """A server whose socket can be connected to."""
    with subprocess.Popen(
        [*IODMA, *options], stderr=subprocess.PIPE, text=True, pass_fds=fds
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "is served at" in line, line
            yield process
        finally:
            process.kill()


def connected(path: Path) -> Qtest:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(path))
    return Qtest(stream)


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield sock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, number: int) -> None:
    path, here, there = tmp_path / "s", tmp_path / "here", tmp_path / "there"
    drive = tmp_path / "disk.img"
    drive.write_bytes(bytes(1 << 20))
    netdev = f"dgram,id=n,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
    with (
        bound(there),
        server(
            f"--qtest={path}", "--netdev", netdev, "--memory=32M", f"--drive={drive}"
        ) as process,
    ):
        client = connected(path)
        client.write(0x1F_FFFC, 0x1234)
        assert client.read(0x1000_0000) == 0x0500_0000 and here.is_socket()
        with File(drive) as file, pytest.raises(BusyError):
            file.lock()
        client.close()
        client = connected(path)
        assert client.read(0x1F_FFFC) == 0x1234  # as it was left
        assert client.read(0x200_0000) == 0  # beyond 32 MiB
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        client.close()
    assert not path.exists() and not here.exists()


def test_a_connection_that_was_given(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, server("--fd", str(theirs.fileno()), fds=[theirs.fileno()]) as process:
        theirs.close()
        client = Qtest(ours)
        assert client("endianness") == "big"
        client.close()
        assert process.wait(timeout=20) == 0


def test_for_the_life_of_a_command() -> None:
    program = (
        "import os, socket; s = socket.socket(socket.AF_UNIX);"
        "s.connect(os.environ['IODMA_SOCKET']); s.sendall(b'endianness\\n');"
        "assert s.recv(99) == b'OK big\\n'; raise SystemExit(7)"
    )
    command = f"{sys.executable} -c {shlex.quote(program)}"
    assert subprocess.run([*IODMA, "--run", command], timeout=50, check=False).returncode == 7


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "one of the arguments --qtest --fd --run is required"),
        (["--qtest=x", "--fd=3"], 2, "not allowed with"),
        (["--qtest=x", "--tap=a", "--netdev=b"], 2, "not allowed with"),
        (["--qtest=x", "--memory=1T"], 2, "invalid size value: '1T'"),
        (["--qtest=x", "--memory=0"], 2, "invalid size value: '0'"),
        (["--qtest=x", "--memory=1G"], 1, "up to 256 MiB, would be right"),
        (["--qtest=x", "--netdev=user"], 1, "dgram, stream, socket, tap would be right"),
        (["--qtest=x", "--netdev=dgram,local=a,remote=b"], 1, "b: nobody is there"),
        (["--qtest=x", "--drive=nothing"], 1, "nothing"),
        (["--qtest=x", *["--drive=x"] * 8], 1, "8 drives: at most 7 would be right"),
        (["--qtest=nowhere/x"], 1, "No such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["serve", "sun4m", *words]) == status
    except SystemExit as left:
        assert left.code == status
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# --- networks -------------------------------------------------------------------------------------


def test_unix_sockets(tmp_path: Path) -> None:
    here, there = tmp_path / "a,b", tmp_path / "there"
    short = f"dgram,local={str(here).replace(',', ',,')},remote={there}"
    with bound(there) as peer:
        with network(short) as cable:
            assert isinstance(cable, Datagram)
            with pytest.raises(BusyError, match="somebody has the socket"), network(short):
                pass
            peer.sendto(b"x", str(here))
        assert not here.exists()
        with bound(here):
            pass
        with network(short):  # of one that is gone
            pass
        here.write_text("")
        with pytest.raises(BusyError, match="is no socket"), network(short):
            pass


def test_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        port = peer.getsockname()[1]
        for text in (
            f"socket,udp=127.0.0.1:{port},localaddr=127.0.0.1:0",
            f"socket,udp=:{port},localaddr=:0",
            "dgram,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,"
            f"remote.host=127.0.0.1,remote.port={port}",
        ):
            with network(text) as cable:
                assert os.fstat(cable._fd)


def test_descriptors() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        for text in (
            f"socket,fd={ours.fileno()}",
            f"dgram,local.type=fd,local.str={ours.fileno()}",
        ):
            with network(text) as cable:
                assert isinstance(cable, Datagram)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a network ''"),
        ("dgram", "does not say local.type="),
        ("dgram,local", "'local' in"),
        ("dgram,local=a,local=b", "'local=b' in"),
        ("dgram,local=a,remote=b,mtu=5", "mtu= in"),
        ("dgram,local.type=vsock", "unix or inet would be right"),
        ("dgram,local.type=fd", "does not say local.str="),
        ("dgram,local=a,remote.type=inet,remote.host=h,remote.port=1", "two families"),
        ("dgram,local.type=inet,local.host=h,local.port=65536", "port '65536'"),
        ("socket,fd=x", "'x' in"),
        ("socket,udp=h:1", "does not say localaddr="),
        ("tap", "does not say ifname="),
        ("tap,ifname=x,vnet=on", "vnet= in"),
    ],
)
def test_networks_that_are_not_understood(text: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said), network(text):
        pass
