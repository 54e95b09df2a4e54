"""Initiators that the thin iSCSI target must outlive: it is a peer that other tests rely on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import Buffer, Engine
from iodma.scsi import Disk, Target
from iodma.testing import strict_engine
from tests.peers.iscsi.connection import NAME
from tests.peers.iscsi.login import LoginRefused, answer, make_text, number, parse_text
from tests.peers.iscsi.pdu import Opcode, lun_of
from tests.peers.iscsi.server import MOST, Server

LOGIN = {
    "InitiatorName": "iqn.2026-01.example:it",
    "TargetName": NAME,
    "SessionType": "Normal",
    "AuthMethod": "None",
}


class Peer:
    """An initiator that sends what it likes."""

    def __init__(self, engine: Engine, server: Server) -> None:
        self.engine = engine
        self.server = server
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.setblocking(False)
        self.number = 1

    def send(self, opcode: int, data: bytes = b"", flags: int = 0x80, **words: int) -> None:
        head = bytearray(48)
        head[0], head[1] = opcode, flags
        head[5:8] = words.pop("length", len(data)).to_bytes(3, "big")
        head[4] = words.pop("ahs", 0)
        struct.pack_into(">I", head, 24, self.number)
        for at, value in words.items():
            struct.pack_into(">I", head, int(at[1:]), value)
        with suppress(OSError):  # it has ended the connection
            self.socket.send(bytes(head) + data + bytes(-len(data) % 4))

    def login(self, keys: dict[str, str] = LOGIN) -> None:
        self.send(0x43, make_text(keys), 0x87)

    def take(self) -> bytes:
        """Runs the target until it has something to say; b"": that it ends the connection."""
        self.engine.add_reader(self.socket.fileno(), self.engine.stop)
        try:
            self.engine.run()
            return self.socket.recv(1 << 20)
        except OSError:
            return b""
        finally:
            self.engine.remove_reader(self.socket.fileno())

    def leave(self) -> None:
        """Says no more, and runs the target until it has noticed."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self.engine.run(self._noticed())
        self.socket.close()

    async def _noticed(self) -> None:
        await self.server.somebody.wait()
        await self.server.ended()


@contextmanager
def served() -> Iterator[tuple[Engine, Server, Target]]:
    with strict_engine() as engine, Buffer(64 * 512) as disk:
        target = Target(engine, Disk(disk))
        server = Server(engine, target)
        yield engine, server, target
        server.close()
        engine.run(server.ended())
        assert not server.connections and not len(target.units[0].tasks)
        target.close()


def test_a_session_that_is_well_behaved() -> None:
    with served() as (engine, server, _):
        peer = Peer(engine, server)
        peer.login()
        assert peer.take()[:1] == bytes((Opcode.LOGIN_RESPONSE,))
        peer.send(Opcode.SCSI_COMMAND | 0x40, flags=0xC0, w20=36, w32=0x12000000, w36=0x24000000)
        came = peer.take()
        while len(came) < 48 + 36 + 48:
            came += peer.take()
        assert came[0] == Opcode.DATA_IN and came[48 + 8 : 48 + 13] == b"IODMA"
        assert came[84] == Opcode.SCSI_RESPONSE
        peer.send(Opcode.NOP_OUT | 0x40, b"ping", w16=7, w20=0xFFFFFFFF)
        assert peer.take()[48:52] == b"ping"
        peer.leave()


@pytest.mark.parametrize(
    "wrong",
    [
        {"opcode": 0x41, "length": (1 << 24) - 1},
        {"opcode": 0x41, "flags": 0xA0, "w20": 1, "data": bytes(512), "w32": 0x2A000000},
        {"opcode": 0x41, "flags": 0x80, "w20": 512, "data": bytes(512)},
        {"opcode": 0x41, "w16": 0xFFFFFFFF},
        {"opcode": 0x44, "data": bytes(8196)},
        {"opcode": 0x44, "data": b"no key"},
    ],
    ids=str,
)
def test_what_ends_a_connection(wrong: dict[str, Any]) -> None:
    with served() as (engine, server, _):
        peer = Peer(engine, server)
        peer.login()
        peer.take()
        peer.send(**wrong)
        assert peer.take() == b""
        peer.leave()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {**LOGIN, "TargetName": "another"},
        {**LOGIN, "AuthMethod": "CHAP"},
        {**LOGIN, "HeaderDigest": "CRC32C"},
        {**LOGIN, "MaxBurstLength": "many"},
        {**LOGIN, "MaxRecvDataSegmentLength": "-1"},
    ],
    ids=str,
)
def test_logins_that_are_refused(keys: dict[str, str]) -> None:
    with served() as (engine, server, _):
        peer = Peer(engine, server)
        peer.login(keys)
        came = peer.take()
        assert came[0] == Opcode.LOGIN_RESPONSE and came[36] == 2, "initiator error"
        peer.leave()


def test_there_are_only_so_many() -> None:
    with served() as (engine, server, _):
        peers = [Peer(engine, server) for _ in range(MOST + 1)]
        for index, peer in enumerate(peers):
            peer.login({**LOGIN, "InitiatorName": f"iqn.2026-01.example:{index}"})
        said = [peer.take() for peer in peers]
        assert [bool(each) for each in said] == [True] * MOST + [False]
        for peer in peers:
            peer.socket.close()
        engine.run(server.ended())


def test_who_logs_in_again_ends_the_session_from_before() -> None:
    with served() as (engine, server, _):
        first, second = Peer(engine, server), Peer(engine, server)
        first.login()
        assert first.take()
        second.login()
        assert second.take() and first.take() == b""
        second.leave()
        first.socket.close()


opcodes = st.sampled_from([*Opcode]) | st.integers(0, 63)


@given(
    st.lists(
        st.tuples(
            opcodes,
            st.sampled_from((0x80, 0xC0, 0xA0, 0xE0, 0x00)) | st.integers(0, 255),
            st.binary(max_size=80),
            st.sampled_from((0, 0, 0, 1)),
            st.lists(st.sampled_from((0, 1, 2, 512, 1024, 0xFFFFFFFF)), min_size=8, max_size=8),
            st.sampled_from((0x28, 0x2A, 0x12, 0x00, 0x2F, 0x89, 0x41)),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_whatever_comes(many: list[Any], logged_in: bool) -> None:
    with served() as (engine, server, _):
        peer = Peer(engine, server)
        if logged_in:
            peer.login()
        for opcode, flags, data, ahs, words, command in many:
            w8, w12, w16, w20, w36, w40, w44, immediate = words
            peer.send(
                opcode | 0x40 * (immediate != 2),
                data,
                flags,
                ahs=ahs,
                w8=w8,
                w12=w12,
                w16=w16,
                w20=w20,
                w32=command << 24,
                w36=w36,
                w40=w40,
                w44=w44,
            )
        peer.leave()


@given(st.binary(max_size=200))
def test_whatever_text_comes(data: bytes) -> None:
    try:
        keys = answer(parse_text(data))
    except LoginRefused:
        return
    assert set(keys) <= set(parse_text(data))


def test_numbers_and_luns() -> None:
    assert number("0x200") == 512 and number("12") == 12
    assert [lun_of(bytes(each) + bytes(6)) for each in ((0, 3), (0x40, 3), (0x80, 3))] == [3, 3, -1]
