"""Commands to the client: DMA_READ and DMA_WRITE, many at once, on one socket or on a twin."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from iodma import Engine
from iodma.transports.vfio_user.remote import Remote
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import CONFIG, DMA_READ, DMA_WRITE, Client
from tests.unit.vfio_kit import pump, serving

SIZE = 1 << 16


class Asked:
    """A request whose outcome is kept."""

    def __init__(self) -> None:
        self.outcome: bytes | None = None
        self.told = 0

    def done(self, data: bytes = b"", /) -> None:
        self.outcome = bytes(data)
        self.told += 1

    def fail(self) -> None:
        self.told += 1


engine = vfio_kit.engine


@contextmanager
def asking(
    engine: Engine, path: Path, twin: bool = False
) -> Iterator[tuple[Remote, Client, bytearray]]:
    """A client that has memory, and answers when it is told to."""
    how: dict[str, Any] = {"twin_socket": {"supported": True}} if twin else {}
    memory = bytearray(SIZE)

    def serve(command: int, address: int, what: int | bytes) -> bytes | int:
        if isinstance(what, bytes):
            if address + len(what) > SIZE:
                return errno.EFAULT
            memory[address : address + len(what)] = what
            return b""
        if address + what > SIZE:
            return errno.EFAULT
        return bytes(memory[address : address + what])

    with serving(engine, path, minor=1, **how) as (server, client):
        assert (client.twin is not None) is twin
        assert server.session is not None
        client.serve = serve
        yield server.session.remote, client, memory


@pytest.mark.parametrize("twin", [False, True])
def test_bytes_of_the_client(engine: Engine, tmp_path: Path, twin: bool) -> None:
    with asking(engine, tmp_path, twin) as (remote, client, memory):
        wrote, read, bad = Asked(), Asked(), Asked()
        remote.write(0x100, b"some bytes", wrote)
        client.wait(lambda: wrote.told)
        assert memory[0x100:0x10A] == b"some bytes" and wrote.outcome == b""
        remote.read(0x105, 5, read)
        remote.read(SIZE, 1, bad)
        client.wait(lambda: read.told and bad.told)
        assert read.outcome == b"bytes" and bad.outcome is None
        assert len(remote) == 0


@pytest.mark.parametrize("twin", [False, True])
def test_many_at_once_answered_in_any_order(engine: Engine, tmp_path: Path, twin: bool) -> None:
    with asking(engine, tmp_path, twin) as (remote, client, memory):
        serve, client.serve = client.serve, None
        memory[:] = bytes(range(256)) * (SIZE // 256)
        requests = [Asked() for _ in range(1500)]
        for place, each in enumerate(requests):
            remote.read(place * 8, 8, each)
        random = Random(1)

        def enough(least: int) -> bool:
            return len(client.asked) >= least

        answered = 0
        while answered < len(requests):
            least = min(100, len(requests) - answered)
            client.wait(partial(enough, least))
            random.shuffle(client.asked)
            # Between them a command of the client's, which is done at once.
            assert client.read(CONFIG, 0, 2) == b"\xda\xf1"
            client.serve = serve
            for message in client.asked:
                client.answer(message)
                answered += 1
            client.asked.clear()
            client.serve = None
        client.wait(lambda: all(each.told for each in requests))
        for place, each in enumerate(requests):
            assert each.told == 1
            assert each.outcome == bytes(memory[place * 8 : place * 8 + 8])


def test_the_client_goes_and_what_was_asked_fails(engine: Engine, tmp_path: Path) -> None:
    with asking(engine, tmp_path) as (remote, client, _):
        client.serve = None
        requests = [Asked() for _ in range(2000)]
        for each in requests:
            remote.read(0, 8, each)
        client.close()
        pump(engine, lambda: all(each.told for each in requests))
        assert all(each.told == 1 and each.outcome is None for each in requests)
        late = Asked()
        remote.read(0, 8, late)
        assert late.told == 1 and late.outcome is None


def test_a_client_that_closes_the_twin_has_gone(engine: Engine, tmp_path: Path) -> None:
    with asking(engine, tmp_path, True) as (remote, client, _):
        asked = Asked()
        client.serve = None
        remote.read(0, 8, asked)
        assert client.twin is not None
        client.twin.close()
        client.twin = None
        pump(engine, lambda: asked.told)
        assert asked.outcome is None and client.gone()


def raw(client: Client, id: int, command: int, payload: bytes, flags: int = 1) -> None:
    client.sock.sendall(vc.HEADER.pack(id, command, 16 + len(payload), flags, 0) + payload)


ANSWERS = {
    "an error": (DMA_READ, b"", 0x21),
    "nothing": (DMA_READ, b"", 1),
    "too little": (DMA_READ, struct.pack("=QQ", 0, 8) + bytes(7), 1),
    "too much": (DMA_READ, struct.pack("=QQ", 0, 8) + bytes(9), 1),
    "another count": (DMA_READ, struct.pack("=QQ", 0, 7) + bytes(8), 1),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_cannot_be(engine: Engine, tmp_path: Path, what: str) -> None:
    with asking(engine, tmp_path) as (remote, client, _):
        client.serve = None
        asked = Asked()
        remote.read(0, 8, asked)
        client.wait(lambda: client.asked)
        command, payload, flags = ANSWERS[what]
        raw(client, client.asked[0].id, command, payload, flags)
        client.wait(lambda: asked.told)
        assert asked.outcome is None and asked.told == 1
        # Its id is free, and what comes for it now is for nobody.
        raw(client, client.asked[0].id, command, payload, flags)
        assert client.reply().errno == errno.EINVAL
        assert client.read(CONFIG, 0, 2) == b"\xda\xf1"


@pytest.mark.parametrize("twin", [False, True])
def test_an_answer_to_another_id_or_command(engine: Engine, tmp_path: Path, twin: bool) -> None:
    with asking(engine, tmp_path, twin) as (remote, client, _):
        client.serve = None
        asked = Asked()
        remote.read(0, 8, asked)
        client.wait(lambda: client.asked)
        id = client.asked[0].id
        good = struct.pack("=QQ", 0, 8) + bytes(8)
        raw(client, id ^ 1, DMA_READ, good)
        assert client.reply().errno == errno.EINVAL
        raw(client, id, DMA_WRITE, good)
        assert client.reply().errno == errno.EINVAL
        if twin:  # the right answer on the wrong socket
            raw(client, id, DMA_READ, good)
            assert client.reply().errno == errno.EINVAL
            assert client.twin is not None
            client.sock, client.twin = client.twin, client.sock
        assert not asked.told
        raw(client, id, DMA_READ, good)
        client.wait(lambda: asked.told)
        assert asked.outcome == bytes(8)


def test_commands_on_the_twin_are_refused(engine: Engine, tmp_path: Path) -> None:
    with asking(engine, tmp_path, True) as (remote, client, memory):
        assert client.twin is not None
        main, client.sock, client.twin = client.sock, client.twin, client.sock
        with pytest.raises(vc.Refused) as caught:
            client.info()
        assert caught.value.errno == errno.EINVAL
        client.post(vc.GET_INFO, bytes(16), flags=vc.NO_REPLY)
        client.sock, client.twin = main, client.sock
        asked = Asked()
        memory[:2] = b"ok"
        remote.read(0, 2, asked)
        client.wait(lambda: asked.told)
        assert asked.outcome == b"ok"


def test_the_clients_limit_is_kept(engine: Engine, tmp_path: Path) -> None:
    for said, most in ((4096, 4096), (1, 1), (1 << 40, 1 << 15)):
        with serving(engine, tmp_path, max_data_xfer_size=said) as (server, client):
            assert server.session is not None and server.session.remote.most == most
            asked = Asked()
            server.session.remote.read(0, most + 1, asked)
            assert asked.told == 1 and asked.outcome is None
            assert not client.asked


def test_a_client_that_has_32_bits_of_count(engine: Engine, tmp_path: Path) -> None:
    """Data follow the low half of the count, as in the first QEMU that had a client: its first
    answer shows it."""
    with serving(engine, tmp_path) as (server, client):
        assert server.session is not None
        remote = server.session.remote
        asked = Asked()
        remote.read(0x1000, 6, asked)
        client.wait(lambda: client.asked)
        message = client.asked.pop()
        assert message.payload == struct.pack("=QQ", 0x1000, 6)
        body = struct.pack("=QI", 0x1000, 6) + b"abcdef" + bytes(4)
        raw(client, message.id, DMA_READ, body)
        client.wait(lambda: asked.told)
        assert asked.outcome == b"abcdef" and remote.short
        asked = Asked()
        remote.write(0x1000, b"ghi", asked)
        client.wait(lambda: client.asked)
        message = client.asked.pop()
        assert message.payload == struct.pack("=QI", 0x1000, 3) + b"ghi" + bytes(4)
        raw(client, message.id, DMA_WRITE, b"")
        client.wait(lambda: asked.told)
        assert asked.outcome == b""


def test_a_client_that_does_not_read(engine: Engine, tmp_path: Path) -> None:
    """What is sent is kept to a limit, and then the session ends."""
    with serving(engine, tmp_path, minor=1) as (server, client):
        session = server.session
        assert session is not None
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        requests = [Asked() for _ in range(1023)] + [Asked() for _ in range(100)]
        for each in requests:
            session.remote.write(0, bytes(1 << 15), each)
        pump(engine, lambda: server.session is None)
        assert all(each.told == 1 and each.outcome is None for each in requests)
        assert client.sock.fileno() >= 0
