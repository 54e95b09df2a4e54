"""NBD servers that lie: each gets a defined answer, and no byte of memory but what was asked for.

The server is a thread of the test: it shakes hands as the protocol says (proto.md, "fixed
newstyle"), and answers the first request as its case says.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.endpoints.nbd import library_version
from iodma.testing import strict_engine

SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF
OPTION_REPLY = 0x3E889045565A9
GO, INFO, ACK = 7, 3, 1
HOLE, DONE = 2, 1
BYTES = 4096


@pytest.fixture(autouse=True)
def libnbd() -> None:
    try:
        library_version()
    except iodma.UnsupportedError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def take(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def shake_hands(sock: socket.socket, size: int, blocks: tuple[int, int, int] | None) -> None:
    sock.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    take(sock, 4)
    while True:
        _, option, length = struct.unpack(">QII", take(sock, 16))
        take(sock, length)
        infos = [struct.pack(">HQH", 0, size, 1)]
        if blocks:
            infos.append(struct.pack(">HIII", 3, *blocks))
        for info in infos if option == GO else ():
            sock.sendall(struct.pack(">QIII", OPTION_REPLY, option, INFO, len(info)) + info)
        kind = ACK if option == GO else (1 << 31) + 1
        sock.sendall(struct.pack(">QIII", OPTION_REPLY, option, kind, 0))
        if option == GO:
            return


@contextmanager
def server(
    folder: Path,
    answer: Callable[[int], bytes],
    size: int = 1 << 20,
    blocks: tuple[int, int, int] | None = None,
) -> Iterator[str]:
    path = folder / "socket"

    def serve() -> None:
        sock = listening.accept()[0]
        with sock:
            try:
                shake_hands(sock, size, blocks)
                cookie = struct.unpack_from(">Q", take(sock, 28), 8)[0]
                sock.sendall(answer(cookie))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
            except (EOFError, OSError):
                pass

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"nbd+unix:///?socket={path}"
        finally:
            with socket.socket(socket.AF_UNIX) as nobody:  # if nobody came
                nobody.connect(str(path))
            thread.join()


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", SIMPLE, error, cookie) + data


def structured(cookie: int, kind: int, data: bytes) -> bytes:
    return struct.pack(">IHHQI", STRUCTURED, DONE, kind, cookie, len(data)) + data


@pytest.mark.parametrize("kind", ["uring", "threads"])
@pytest.mark.parametrize(
    ("answer", "status", "error", "arrives"),
    [
        (lambda cookie: b"", Status.PEER_GONE, None, 0),
        (lambda cookie: b"\xff" * 10_000, Status.PEER_GONE, None, 0),
        (lambda cookie: simple(cookie)[:9], Status.PEER_GONE, None, 0),
        (lambda cookie: simple(cookie, 0, b"x" * 1000), Status.PEER_GONE, None, 1000),
        (lambda cookie: simple(cookie, 0, b"x" * BYTES), Status.OK, 0, BYTES),
        (lambda cookie: simple(cookie, 0, b"x" * 2 * BYTES), Status.OK, 0, BYTES),
        (lambda cookie: simple(cookie + 1, 0, b"x" * BYTES), Status.PEER_GONE, None, 0),
        (lambda cookie: simple(cookie, 5), Status.IO_ERROR, errno.EIO, 0),
        (lambda cookie: simple(cookie, 0xDEADBEEF), Status.IO_ERROR, errno.EINVAL, 0),
        (lambda cookie: simple(cookie, 108), Status.PEER_GONE, errno.ESHUTDOWN, 0),
        # It was not asked for structured replies: libnbd must not fill the hole.
        (
            lambda cookie: structured(cookie, HOLE, struct.pack(">QI", 0, BYTES)),
            Status.PEER_GONE,
            None,
            0,
        ),
    ],
)
def test_what_a_server_answers(
    tmp_path: Path,
    kind: str,
    answer: Callable[[int], bytes],
    status: Status,
    error: int | None,
    arrives: int,
) -> None:
    with server(tmp_path, answer) as uri, strict_engine(kind) as engine, iodma.Ram(65536) as ram:
        ram.view()[:] = b"m" * 65536
        with iodma.Nbd(uri) as disk:
            port = engine.port(iodma.Memory({0: ram}))

            async def main() -> Any:
                return await port.to_memory((BYTES, BYTES), source=disk)

            done = engine.run(main())
            assert done.status is status
            assert error is None or done.error == error
            assert done.moved == (BYTES if status is Status.OK else 0)
            assert engine.run(main()).status is Status.PEER_GONE, "nobody is there any more"
        expected = b"m" * BYTES + b"x" * arrives
        assert bytes(ram.view()) == expected + b"m" * (65536 - len(expected))


@pytest.mark.parametrize(
    ("size", "blocks"),
    [
        (1 << 63, None),
        (1 << 20, (3, 4096, 65536)),
        (1 << 20, (1 << 20, 1 << 20, 1 << 20)),
        (1 << 20, (0, 0, 0)),
    ],
)
def test_exports_that_cannot_be(
    tmp_path: Path, size: int, blocks: tuple[int, int, int] | None
) -> None:
    """They are refused, or what is wrong with them is not used."""
    with server(tmp_path, lambda cookie: b"", size, blocks) as uri:
        try:
            disk = iodma.Nbd(uri, timeout=20)
        except OSError:
            return
        with disk:
            assert disk.minimum_block == 1 and disk.maximum_request == 32 << 20
