"""Dirty pages, asked for in each of the three ways that the protocol has; what no feature is."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iodma import Engine, PciSlot
from iodma.transports.vfio_user import VfioUserServer
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import MSIX, Client, Refused, SharedMemory
from tests.unit.vfio_kit import Copier, run, serving

PAGE, BASE, SIZE = 4096, 0x10_0000, 1 << 20
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, STATE, START, STOP, REPORT = 1, 2, 6, 7, 8


engine = vfio_kit.still_engine


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[Client]:
    with serving(engine, tmp_path) as (_, client), SharedMemory(SIZE) as memory:
        client.map(BASE, SIZE, memory.fd)
        client.bus_master()
        yield client


def feature(client: Client, flags: int, data: bytes = b"", argsz: int | None = None) -> bytes:
    argsz = 8 + len(data) if argsz is None else argsz
    return client.ask(vc.FEATURE, struct.pack("=II", argsz, flags) + data).payload


def start(client: Client, page: int = PAGE, *ranges: tuple[int, int]) -> bytes:
    data = struct.pack("=QII", page, len(ranges), 0)
    data += b"".join(struct.pack("=QQ", *each) for each in ranges)
    return feature(client, START | SET, data)


def report(client: Client, page: int = PAGE, address: int = BASE, length: int = SIZE) -> int:
    data = struct.pack("=QQQ", address, length, page)
    size = -(-length // page // 64) * 8
    payload = feature(client, REPORT | GET, data, 32 + size)
    assert struct.unpack_from("=IIQQQ", payload) == (
        32 + size,
        REPORT | GET,
        address,
        length,
        page,
    )
    assert len(payload) == 32 + size
    return int.from_bytes(payload[32:], "little")


def write(client: Client, address: int) -> None:
    """Has the device write a word behind an address."""
    fd = client.eventfd(MSIX)
    client.write32(0, 0x10, address)
    client.interrupted(fd)
    os.close(fd)


def no(client: Client, flags: int, data: bytes = b"", argsz: int | None = None) -> None:
    with pytest.raises(Refused) as caught:
        feature(client, flags, data, argsz)
    assert caught.value.errno == errno.EINVAL


def test_what_can_be_asked_for(client: Client) -> None:
    for index, methods in ((START, SET), (STOP, SET), (REPORT, GET)):
        for flags in (PROBE, PROBE | methods):
            payload = client.ask(vc.FEATURE, struct.pack("=II", 8, index | flags)).payload
            assert payload == struct.pack("=II", 8, index | flags)
        no(client, index | PROBE | GET | SET)
        no(client, index)
        no(client, index | (GET | SET) & ~methods)
    for index in (0, MIGRATION, STATE, 3, 9, 0xFFFF):
        for methods in (PROBE, GET, SET):
            no(client, index | methods, bytes(32))


def test_what_dma_writes_is_reported_once(client: Client) -> None:
    assert start(client) == struct.pack("=IIQII", 24, START | SET, PAGE, 0, 0)
    assert report(client) == 0
    write(client, BASE + 5 * PAGE)
    write(client, BASE + 200 * PAGE - 8)
    assert report(client) == 1 << 5 | 1 << 200
    assert report(client) == 0
    write(client, BASE + 7 * PAGE)
    assert report(client, PAGE // 2, BASE, 16 * PAGE) == 3 << 14
    write(client, BASE + 7 * PAGE)
    assert report(client, PAGE * 4) == 1 << 1
    start(client)  # again: nothing happens
    feature(client, STOP | SET)
    no(client, REPORT | GET, struct.pack("=QQQ", BASE, SIZE, PAGE), 4096)


def test_ranges_are_given_back(client: Client) -> None:
    payload = start(client, PAGE, (BASE, SIZE), (0, PAGE))
    assert payload[8:] == struct.pack("=QIIQQQQ", PAGE, 2, 0, BASE, SIZE, 0, PAGE)


def test_what_cannot_be_logged(client: Client) -> None:
    for page in (0, 3, 4097):
        no(client, START | SET, struct.pack("=QII", page, 0, 0))
    no(client, START | SET, struct.pack("=QII", PAGE, 1, 0))
    no(client, START | SET, struct.pack("=QII", PAGE, 0, 0) + bytes(16))
    no(client, START | SET, struct.pack("=QII", PAGE, 0xFFFF_FFFF, 0))
    no(client, START | SET, bytes(15))
    no(client, START | SET, struct.pack("=QII", PAGE, 0, 0), 23)
    no(client, REPORT | GET, struct.pack("=QQQ", BASE, SIZE, PAGE), 4096)
    start(client)
    for page in (PAGE // 2, PAGE * 2):
        no(client, START | SET, struct.pack("=QII", page, 0, 0))
    for length, page in ((SIZE, 0), (SIZE, 3), (0, PAGE), ((1 << 64) - 1, 1), (1 << 63, PAGE)):
        no(client, REPORT | GET, struct.pack("=QQQ", BASE, length, page), 4096)
    no(client, REPORT | GET, bytes(23), 4096)
    no(client, REPORT | GET, struct.pack("=QQQ", BASE, SIZE, PAGE), 63)


def test_the_older_message(client: Client) -> None:
    def dirty(flags: int, data: bytes = b"", argsz: int = 64) -> bytes:
        return client.ask(vc.DIRTY_PAGES, struct.pack("=II", argsz, flags) + data).payload

    for flags in (0, 3, 8):
        with pytest.raises(Refused):
            dirty(flags)
    wanted = struct.pack("=QQQQ", BASE, 64 * PAGE, PAGE, 8)
    with pytest.raises(Refused):
        dirty(4, wanted)
    dirty(1)
    write(client, BASE + 3 * PAGE)
    assert dirty(4, wanted)[8:] == wanted + (1 << 3).to_bytes(8, "little")
    for bad in (
        struct.pack("=QQQQ", BASE, 64 * PAGE, PAGE, 7),
        struct.pack("=QQQQ", BASE, 64 * PAGE, PAGE, 1 << 40),
        struct.pack("=QQQQ", BASE, 64 * PAGE, 5, 8),
        wanted[:-1],
    ):
        with pytest.raises(Refused):
            dirty(4, bad)
    with pytest.raises(Refused):
        dirty(4, wanted, 47)
    dirty(2)


def test_an_unmap_gives_the_pages(client: Client) -> None:
    def unmap(size: int, page: int = PAGE, room: int = 32, argsz: int = 4096) -> bytes:
        payload = struct.pack("=IIQQQQ", argsz, 1, BASE, size, page, room)
        return client.ask(vc.DMA_UNMAP, payload).payload

    for bad in ((SIZE, PAGE, 31), (SIZE, 0, 32), (SIZE, PAGE, 1 << 62), (SIZE, PAGE, 32, 71)):
        with pytest.raises(Refused):
            unmap(*bad)
    with pytest.raises(Refused):
        unmap(SIZE)  # nothing is logged
    start(client)
    write(client, BASE + 9 * PAGE)
    payload = unmap(SIZE)
    assert payload[:24] == struct.pack("=IIQQ", 4096, 1, BASE, SIZE)
    assert payload[24:40] == struct.pack("=QQ", PAGE, 32)
    assert int.from_bytes(payload[40:], "little") == 1 << 9 and len(payload) == 72


def test_nothing_gets_out_without_bus_master_enable(tmp_path: Path) -> None:
    with (
        Engine(slow_step=None) as engine,
        serving(engine, tmp_path) as (server, client),
        SharedMemory(SIZE) as memory,
    ):
        client.map(BASE, SIZE, memory.fd)
        client.map(BASE + SIZE, PAGE)  # by messages
        for at in (BASE, BASE + SIZE):
            client.write32(0, 0x10, at)
            client.wait(lambda: server.function.device.state.value == "failed")
            client.reset()
        assert not any(memory.bytes[:64]) and not client.asked


# --- memory that is not to be mapped --------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
def test_memory_that_is_shared_and_not_mapped(engine: Engine, tmp_path: Path, mapped: bool) -> None:
    """Its bytes are asked for by messages; the client knows what it was asked to write, so no page
    of it is dirty here, whichever way that is asked."""

    def map_half(address: int, size: int) -> bool:
        asked.append((address, size))
        return address == BASE

    asked: list[tuple[int, int]] = []
    served: list[tuple[int, int]] = []
    device = Copier(engine.port(PciSlot()))
    how: Any = map_half if mapped else False
    server = VfioUserServer(engine, device, tmp_path / "s", mapped=how)
    with Client(tmp_path / "s", engine) as client, SharedMemory(2 * SIZE) as memory:
        client.negotiate()
        client.map(BASE, SIZE, memory.fd)
        client.map(BASE + SIZE, SIZE, memory.fd, SIZE)
        client.map(BASE + SIZE, SIZE, memory.fd, SIZE)  # the very same again
        with pytest.raises(Refused) as caught:
            client.map(BASE + SIZE, SIZE, memory.fd, 0)
        assert caught.value.errno == errno.EEXIST
        client.bus_master()

        def move(command: int, address: int, what: int | bytes) -> bytes:
            served.append((command, address))
            return bytes(what) if isinstance(what, int) else b""

        client.serve = move
        start(client)
        write(client, BASE)
        write(client, BASE + SIZE)
        there = [(vc.DMA_READ, BASE + SIZE), (vc.DMA_WRITE, BASE + SIZE + 8)]
        assert served[-2:] == there and len(served) == (2 if mapped else 4)
        assert report(client) == (1 if mapped else 0)
        assert report(client, address=BASE + SIZE) == 0
        payload = struct.pack("=IIQQQQ", 48, 1, BASE + SIZE, SIZE, PAGE, SIZE // PAGE // 8)
        payload = struct.pack("=I", 40 + SIZE // PAGE // 8) + payload[4:]
        bitmap = client.ask(vc.DMA_UNMAP, payload).payload[40:]
        assert bitmap == bytes(SIZE // PAGE // 8)
        if mapped:
            assert asked == [(BASE, SIZE), (BASE + SIZE, SIZE), (BASE + SIZE, SIZE)]
    run(engine, server.close)
