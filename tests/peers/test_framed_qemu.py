"""`iodma.packets.Framed` beside QEMU: a hub of QEMU's joins a stream of ours and datagrams."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import iodma
from iodma.packets import Framed
from iodma.testing import strict_engine
from tests.peers.guests.process import mortal
from tests.peers.sun4m.qemu import qemu11_sparc

KINDS = ["stream,addr.type=unix", "stream,addr.type=inet", "socket"]


@pytest.fixture(params=KINDS)
def ends(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected stream to QEMU, and the datagrams' end; it joins the two."""
    try:
        command = qemu11_sparc()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    far, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if request.param.endswith("unix"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "stream"))
        where = f"{request.param},addr.path={tmp_path / 'stream'},server=off"
    else:
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        where = f"{request.param},addr.host=127.0.0.1,addr.port={port},server=off"
        if request.param == "socket":
            where = f"socket,connect=127.0.0.1:{port}"
    server.listen()
    server.settimeout(20)
    kind, _, options = where.partition(",")
    process = subprocess.Popen(
        mortal(
            [
                *(*command, "-M", "none", "-display", "none", "-nodefaults"),
                *("-netdev", f"{kind},id=ours,{options}"),
                *("-netdev", "hubport,id=p0,hubid=0,netdev=ours"),
                *("-netdev", f"dgram,id=other,local.type=fd,local.str={theirs.fileno()}"),
                *("-netdev", "hubport,id=p1,hubid=0,netdev=other"),
            ]
        ),
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    try:
        with server, far:
            ours, _ = server.accept()
            far.settimeout(20)
            with ours:
                yield ours, far
    finally:
        process.kill()
        process.wait()


def test_frames_go_through_qemu_both_ways(
    ends: tuple[socket.socket, socket.socket], rng: random.Random
) -> None:
    ours, far = ends
    frames = [rng.randbytes(rng.choice((60, 61, 1514, 4000))) for _ in range(200)]
    with strict_engine() as engine, iodma.Ram(1 << 20) as ram, Framed(ours) as link:
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            for i in range(0, len(frames), 8):
                some = frames[i : i + 8]
                for k, data in enumerate(some):
                    ram.view(k * 8192, len(data))[:] = data
                sending = [
                    port.from_memory([(k * 8192, 14), (k * 8192 + 14, len(data) - 14)], to=link)
                    for k, data in enumerate(some)
                ]
                for each, data in zip(sending, some, strict=True):
                    assert (await each).ok
                    assert far.recv(65536) == data
            for i in range(0, len(frames), 8):
                some = frames[i : i + 8]
                for data in some:
                    far.send(data)
                coming = [port.to_memory((k * 8192, 8192), source=link) for k in range(len(some))]
                for k, (each, data) in enumerate(zip(coming, some, strict=True)):
                    assert (await each).moved == len(data)
                    assert bytes(ram.view(k * 8192, len(data))) == data
            assert engine.stats().copied == 0

        engine.run(main())


def test_a_length_that_qemu_would_refuse_is_never_sent(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, far = ends
    with strict_engine() as engine, iodma.Ram(1 << 20) as ram, Framed(ours) as link:
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            assert (await port.from_memory((0, 69633), to=link)).error
            assert (await port.from_memory((0, 60), to=link)).ok
            assert len(far.recv(65536)) == 60  # and the connection is as it was

        engine.run(main())
