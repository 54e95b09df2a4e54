"""Malformed messages: each is answered with the errno that libvfio-user gives, and the session goes
on, or ends where messages cannot be told from each other any more."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from iodma import Engine
from iodma.pci import PciSlot
from iodma.transports.vfio_user import VfioUserServer
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import (
    BOOL,
    CONFIG,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSIX,
    NONE,
    REQ,
    TRIGGER,
    UNMASK,
    Client,
    Refused,
)
from tests.unit.vfio_kit import Copier, run, serving

engine = vfio_kit.engine
client = vfio_kit.client


def refused(client: Client, command: int, payload: bytes, number: int = errno.EINVAL) -> None:
    with pytest.raises(Refused) as caught:
        client.ask(command, payload)
    assert caught.value.errno == number
    alive(client)


def alive(client: Client) -> None:
    assert client.read(CONFIG, 0, 2) == b"\xda\xf1"


def header(client: Client, command: int, size: int, flags: int = 0) -> vc.Reply:
    client.send(vc.HEADER.pack(77, command, size, flags, 0))
    return client.reply(77)


# --- headers --------------------------------------------------------------------------------------


def test_a_size_below_that_of_the_header(client: Client) -> None:
    reply = header(client, vc.SET_IRQS, 15)
    assert (reply.flags, reply.errno, reply.command) == (0x21, errno.EINVAL, vc.SET_IRQS)
    alive(client)


def test_a_size_above_all(client: Client) -> None:
    assert header(client, vc.SET_IRQS, (1 << 20) + 4096).errno == errno.EINVAL
    alive(client)


def test_a_size_above_all_with_its_bytes_ends_the_session(client: Client) -> None:
    client.send(vc.HEADER.pack(77, vc.REGION_WRITE, 0xFFFF_FFFF, 0, 0) + bytes(4096))
    assert client.reply(77).errno == errno.EINVAL
    assert client.gone()


@pytest.mark.parametrize("command", [0, 1, 11, 12, 17, 18, 19, 0xFFFF])
def test_no_such_command(client: Client, command: int) -> None:
    refused(client, command, bytes(64))


@pytest.mark.parametrize("kind", [1, 2, 15])
def test_an_answer_that_nobody_waits_for(client: Client, kind: int) -> None:
    assert header(client, vc.SET_IRQS, 16, kind).errno == errno.EINVAL
    alive(client)


LEAST = {
    vc.DMA_MAP: 32,
    vc.DMA_UNMAP: 24,
    vc.GET_INFO: 16,
    vc.GET_REGION_INFO: 32,
    vc.GET_REGION_IO_FDS: 16,
    vc.GET_IRQ_INFO: 16,
    vc.SET_IRQS: 20,
    vc.REGION_READ: 16,
    vc.REGION_WRITE: 16,
    vc.WRITE_MULTI: 8,
    vc.FEATURE: 8,
}


@pytest.mark.parametrize("command", LEAST)
def test_a_payload_that_is_too_short(client: Client, command: int) -> None:
    for length in (0, 1, LEAST[command] - 1):
        refused(client, command, bytes(length))


@pytest.mark.parametrize("command", [vc.GET_INFO, vc.GET_REGION_INFO, vc.GET_IRQ_INFO])
def test_an_argsz_that_is_too_small(client: Client, command: int) -> None:
    for argsz in (0, 8, LEAST[command] - 1):
        refused(client, command, struct.pack("=I", argsz).ljust(LEAST[command], b"\0"))


def test_no_reply_is_honoured_for_errors_and_all_else(client: Client) -> None:
    client.post(vc.GET_INFO, bytes(3), flags=vc.NO_REPLY)
    client.post(99, b"", flags=vc.NO_REPLY)
    head = struct.pack("=QII", 0, 0, 4)
    client.post(vc.REGION_WRITE, head + bytes([1, 2, 3, 4]), flags=vc.NO_REPLY)
    client.post(vc.RESET, b"", flags=vc.NO_REPLY)
    client.post(vc.REGION_WRITE, head + bytes([5, 6, 7, 8]), flags=vc.NO_REPLY)
    id = client.post(vc.REGION_READ, head)
    reply = client.reply()
    assert reply.id == id and reply.payload[16:] == bytes([5, 6, 7, 8])


def test_ids_are_the_clients_own(client: Client) -> None:
    payload = struct.pack("=QII", 0, CONFIG, 2)
    for id in (0, 0xFFFF, 3, 3, 3):
        client.post(vc.REGION_READ, payload, id=id)
    assert [client.reply().id for _ in range(5)] == [0, 0xFFFF, 3, 3, 3]


# --- the first message ----------------------------------------------------------------------------


def version(client: Client, payload: bytes, command: int = vc.VERSION, **how: Any) -> vc.Reply:
    return client.reply(client.post(command, payload, **how))


BAD = {
    "nothing": b"",
    "short": b"\0\0",
    "major": struct.pack("=HH", 999, 0),
    "no zero": struct.pack("=HH", 0, 0) + b"{}",
    "no JSON": struct.pack("=HH", 0, 0) + b"{\0",
    "a string": struct.pack("=HH", 0, 0) + b'"a"\0',
    "a quote": struct.pack("=HH", 0, 0) + b'"\0',
    "nested": struct.pack("=HH", 0, 0) + b"[" * 100_000 + b"\0",
    "no UTF-8": struct.pack("=HH", 0, 0) + b'{"\xff\xfe": 1}\0',
    **{
        text: struct.pack("=HH", 0, 0) + b'{"capabilities": ' + text.encode() + b"}\0"
        for text in (
            '"23"',
            '{"max_msg_fds": "foo"}',
            '{"max_msg_fds": -1}',
            '{"max_msg_fds": 1025}',
            '{"max_msg_fds": true}',
            '{"max_msg_fds": 1.5}',
            '{"max_data_xfer_size": "foo"}',
            '{"max_data_xfer_size": -4}',
            '{"migration": "23"}',
            '{"migration": {"pgsize": "foo"}}',
            '{"migration": {"pgsize": 4095}}',
            '{"twin_socket": 1}',
            '{"twin_socket": {"supported": "yes"}}',
            '{"write_multiple": 3}',
        )
    },
}


@pytest.mark.parametrize("what", BAD)
def test_a_version_that_cannot_be(engine: Engine, tmp_path: Path, what: str) -> None:
    server = VfioUserServer(engine, Copier(engine.port(PciSlot())), tmp_path / "s")
    with Client(tmp_path / "s", engine) as client:
        reply = version(client, BAD[what])
        assert (reply.command, reply.flags, reply.errno) == (1, 0x21, errno.EINVAL)
        assert client.gone()
    with Client(tmp_path / "s", engine) as client:
        client.negotiate()
        alive(client)
    run(engine, server.close)


@pytest.mark.parametrize("what", ["command", "reply", "descriptor", "size"])
def test_a_first_message_that_is_none(engine: Engine, tmp_path: Path, what: str) -> None:
    server = VfioUserServer(engine, Copier(engine.port(PciSlot())), tmp_path / "s")
    good = struct.pack("=HH", 0, 0)
    with Client(tmp_path / "s", engine) as client:
        if what == "command":
            reply = version(client, bytes(16), vc.GET_INFO)
        elif what == "reply":
            reply = version(client, good, flags=1)
        elif what == "size":
            reply = version(client, b"", size=1 << 30)
        else:
            reply = version(client, good, fds=[0])
        assert reply.errno == errno.EINVAL
        assert client.gone()
    run(engine, server.close)


@pytest.mark.parametrize(("minor", "expected"), [(0, 0), (1, 1), (2, 1), (0xFFFF, 1)])
def test_the_lower_minor_version(engine: Engine, tmp_path: Path, minor: int, expected: int) -> None:
    with serving(engine, tmp_path, minor=minor) as (_, client):
        assert client.minor == expected


@pytest.mark.parametrize("text", [b"", b"{}\0", b'{"capabilities": {}}\0', b"{}\0\0\0"])
def test_a_client_need_not_say_anything(engine: Engine, tmp_path: Path, text: bytes) -> None:
    server = VfioUserServer(engine, Copier(engine.port(PciSlot())), tmp_path / "s")
    with Client(tmp_path / "s", engine) as client:
        reply = version(client, struct.pack("=HH", 0, 1) + text)
        assert reply.flags == 1 and b"max_msg_fds" in reply.payload
        assert b"twin" not in reply.payload and b"write_multiple" not in reply.payload
        alive(client)
    run(engine, server.close)


def test_what_is_offered_is_agreed_on(engine: Engine, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "max_dma_maps": 65535,
        "pgsizes": 4096,
        "write_multiple": True,
        "twin_socket": {"supported": True},
    }
    with serving(engine, tmp_path, **how) as (_, client):
        assert client.capabilities == how | {
            "max_msg_fds": 16,
            "max_data_xfer_size": 1 << 20,
            "twin_socket": {"supported": True, "fd_index": 0},
        }


# --- accesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "region", "count"),
    [
        (0, 9, 4),
        (0, 0xFFFF_FFFF, 4),
        (0, 2, 4),  # a BAR that there is not
        (0, 6, 1),
        (4096, 0, 1),
        (4093, 0, 4),
        (0xFFFF_FFFF_FFFF_FFFF, 0, 4),
        (0xFFFF_FFFF_FFFF_FFFC, 7, 8),
        (0, 7, 4097),
        (0, 0, 0xFFFF_FFFF),
    ],
)
def test_an_access_that_is_outside(client: Client, offset: int, region: int, count: int) -> None:
    head = struct.pack("=QII", offset, region, count)
    refused(client, vc.REGION_READ, head)
    refused(client, vc.REGION_WRITE, head + bytes(min(count, 64)))


def test_a_write_with_other_data_than_it_says(client: Client) -> None:
    head = struct.pack("=QII", 0, 0, 4)
    for length in (0, 3, 5, 8):
        refused(client, vc.REGION_WRITE, head + bytes(length))


def test_an_access_of_nothing(client: Client) -> None:
    head = struct.pack("=QII", 0, 0, 0)
    assert client.ask(vc.REGION_READ, head).payload == b""
    client.ask(vc.REGION_WRITE, head)


def test_several_writes_that_were_not_agreed_on(client: Client) -> None:
    refused(client, vc.WRITE_MULTI, struct.pack("=Q", 0))


def test_several_writes(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, write_multiple=True) as (_, client):

        def multi(*writes: tuple[int, int, bytes], count: int | None = None) -> bytes:
            body = struct.pack("=Q", len(writes) if count is None else count)
            for offset, region, data in writes:
                body += struct.pack("=QII8s", offset, region, len(data), data)
            return body

        good = multi((0, 0, b"\1\2\3\4"), (4, CONFIG, b"\6\0"), (8, 0, bytes(range(8))))
        assert client.ask(vc.WRITE_MULTI, good).payload == struct.pack("=Q", 3)
        assert client.read(0, 0, 4) == b"\1\2\3\4" and client.read(CONFIG, 4, 2) == b"\6\0"
        assert client.read(0, 8, 8) == bytes(range(8))
        assert client.ask(vc.WRITE_MULTI, multi()).payload == struct.pack("=Q", 0)
        # One that cannot be, and none is made.
        refused(client, vc.WRITE_MULTI, multi((0, 0, bytes(4)), (4096, 0, b"\0")))
        refused(client, vc.WRITE_MULTI, multi((0, 0, bytes(4)), count=2))
        refused(client, vc.WRITE_MULTI, multi((0, 0, bytes(4)), count=0))
        refused(client, vc.WRITE_MULTI, multi(count=(1 << 64) - 1))
        nine = struct.pack("=QQII8s", 1, 0, 0, 9, bytes(8))
        refused(client, vc.WRITE_MULTI, nine)
        assert client.read(0, 0, 4) == b"\1\2\3\4"


# --- regions --------------------------------------------------------------------------------------


def test_regions_that_are_not(client: Client) -> None:
    for index in (9, 0xFFFF_FFFF):
        refused(client, vc.GET_REGION_INFO, struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))
        refused(client, vc.GET_IRQ_INFO, struct.pack("=IIII", 16, 0, index, 0))
    for argsz, flags, index, count in (
        (16, 1, 0, 0),
        (16, 0, 0, 1),
        (15, 0, 0, 0),
        ((1 << 20) + 1, 0, 0, 0),
        (16, 0, 9, 0),
        (16, 0, 2, 0),
    ):
        refused(client, vc.GET_REGION_IO_FDS, struct.pack("=IIII", argsz, flags, index, count))


# --- interrupts -----------------------------------------------------------------------------------

BAD_IRQS: list[tuple[int, int, int, int, bytes, int]] = [
    # index, flags, start, count, data, descriptors
    (5, NONE | TRIGGER, 0, 0, b"", 0),
    (MSIX, MASK | UNMASK | NONE, 0, 1, b"", 0),
    (MSIX, NONE, 0, 1, b"", 0),
    (MSIX, TRIGGER, 0, 1, b"", 0),
    (MSIX, MASK | NONE | BOOL, 0, 1, b"", 0),
    (MSIX, TRIGGER | NONE | 64, 0, 1, b"", 0),
    (MSIX, MASK | NONE, 2, 2, b"", 0),
    (MSIX, MASK | NONE, 4, 1, b"", 0),
    (MSIX, TRIGGER | EVENTFD, 1, 0xFFFF_FFFF, b"", 0),
    (MSIX, MASK | NONE, 1, 0, b"", 0),
    (MSIX, MASK | NONE, 0, 0, b"", 0),
    (MSIX, TRIGGER | BOOL, 0, 0, b"", 0),
    (MSIX, TRIGGER | EVENTFD, 0, 0, b"", 0),
    (MSIX, TRIGGER | BOOL, 0, 1, b"\0", 1),
    (MSIX, TRIGGER | NONE, 0, 1, b"", 1),
    (MSIX, TRIGGER | EVENTFD, 0, 2, b"", 1),
    (MSIX, TRIGGER | EVENTFD, 0, 1, b"", 2),
    (MSIX, TRIGGER | BOOL, 0, 2, b"\0", 0),
    (MSIX, TRIGGER | BOOL, 0, 2, b"\0\0\0", 0),
    (ERR, MASK | NONE, 0, 1, b"", 0),
    (REQ, UNMASK | NONE, 0, 1, b"", 0),
    (ERR, TRIGGER | NONE, 0, 2, b"", 0),
    (INTX, TRIGGER | NONE, 1, 1, b"", 0),
]


@pytest.mark.parametrize("case", BAD_IRQS)
def test_set_irqs_that_cannot_be(
    client: Client, case: tuple[int, int, int, int, bytes, int]
) -> None:
    index, flags, start, count, data, number = case
    before = sorted(os.listdir("/proc/self/fd"))
    fds = [os.eventfd(0) for _ in range(number)]
    with pytest.raises(Refused) as caught:
        client.set_irqs(index, flags, start, count, data, fds)
    assert caught.value.errno == errno.EINVAL
    for fd in fds:
        os.close(fd)
    assert sorted(os.listdir("/proc/self/fd")) == before
    alive(client)


def test_set_irqs_with_a_small_argsz(client: Client) -> None:
    refused(client, vc.SET_IRQS, struct.pack("=IIIII", 3, TRIGGER | NONE, REQ, 0, 0))


def test_what_stands_for_an_interrupt_is_an_eventfd(client: Client, tmp_path: Path) -> None:
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(Refused, match="Invalid argument"),
    ):
        client.set_irqs(MSIX, TRIGGER | EVENTFD, 0, 1, fds=[file.fileno()])
    alive(client)


# --- descriptors ----------------------------------------------------------------------------------


def test_descriptors_that_nobody_asked_for_are_closed(client: Client) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    payload = struct.pack("=QII", 0, CONFIG, 2)
    for count in (1, 16):
        client.ask(vc.REGION_READ, payload, [0] * count)
        client.ask(vc.RESET, b"", [0] * count)
    client.ask(vc.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0), [0])
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_more_descriptors_than_a_message_may_have(client: Client) -> None:
    client.post(vc.REGION_READ, struct.pack("=QII", 0, CONFIG, 2), [0] * 17)
    assert client.gone()


def test_descriptors_come_with_the_message_that_they_were_sent_with(
    engine: Engine, client: Client
) -> None:
    """Messages that lie in the socket together, some of them sent at once."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]

    def message(start: int, count: int) -> bytes:
        body = struct.pack("=IIIII", 20, EVENTFD | TRIGGER, MSIX, start, count)
        return vc.HEADER.pack(start, vc.SET_IRQS, 16 + len(body), 0, 0) + body

    info = vc.HEADER.pack(9, vc.GET_INFO, 32, 0, 0) + struct.pack("=IIII", 16, 0, 0, 0)
    client.send(info)
    client.send(message(0, 1) + info, [fds[0]])
    client.send(info + info)
    client.send(message(1, 2) + info, fds[1:])
    for _ in range(7):
        assert client.reply().flags == 1
    client.set_irqs(MSIX, NONE | TRIGGER, 0, 3)
    assert [os.eventfd_read(fd) for fd in fds] == [1, 1, 1]
    for fd in fds:
        os.close(fd)


def test_a_message_that_comes_byte_by_byte(client: Client) -> None:
    data = vc.HEADER.pack(5, vc.REGION_READ, 32, 0, 0) + struct.pack("=QII", 0, CONFIG, 2)
    for place in range(len(data)):
        client.send(data[place : place + 1])
        client._pump()
    assert client.reply(5).payload[16:] == b"\xda\xf1"
