"""Commands that have to wait: what waits behind them, what does not, and for how long."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iodma import Device, Doorbell, Engine, Register
from iodma.log import GuestLog
from iodma.pci import Pci, PciSlot
from iodma.testing import Answer, Clock, ScriptedEndpoint
from iodma.transports.vfio_user import VfioUserServer
from iodma.transports.vfio_user.session import Session
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import CONFIG, Client, SharedMemory
from tests.unit.vfio_kit import pump, run, serving, settle

BASE, SIZE, PAGE = 0x10_0000, 1 << 20, 4096


class Filler(Device):
    """Fills a page from its disk, at the address that is written to `go`."""

    pci = Pci(vendor=0xF1DA, device=2, bars={0: 4096}, msix=1)
    scratch = Register(0x00, 4)
    go = Doorbell(0x10, 8, run="fill", concurrent=True)

    disk: ScriptedEndpoint

    async def fill(self, at: int) -> None:
        self.results.append((await self.port.to_memory([(at, PAGE)], source=self.disk)).status.name)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.results: list[str] = []


class World:
    """A server of a `Filler`, a client with memory, and a disk that answers when it is told to."""

    def __init__(self, engine: Engine, server: VfioUserServer, client: Client, disk: Any) -> None:
        self.engine = engine
        self.server = server
        self.client = client
        self.disk = disk
        self.device: Any = server.function.device

    def fill(self, at: int) -> None:
        """Has a page filled, and waits until the disk was asked."""
        count = len(self.disk.waiting)
        self.client.write(0, 0x10, struct.pack("<Q", at))
        pump(self.engine, lambda: len(self.disk.waiting) > count)

    def unmap(self, at: int, size: int = PAGE, flags: int = 0) -> int:
        return self.client.post(vc.DMA_UNMAP, struct.pack("=IIQQ", 24, flags, at, size))

    def quiet(self) -> None:
        """What was sent has come to the server, and nothing comes from it."""
        settle(self.engine)
        assert not self.client._read() and not self.client._replies


engine = vfio_kit.still_engine


@pytest.fixture
def world(engine: Engine, tmp_path: Path) -> Iterator[World]:
    with ScriptedEndpoint(
        bytes(range(256)) * 16, script=lambda _: Answer.hold(), on_cancel="ignore"
    ) as disk:
        device = Filler(engine.port(PciSlot()), disk=disk)
        with serving(engine, tmp_path, device) as (server, client), SharedMemory(SIZE) as memory:
            client.bus_master()
            for page in range(8):
                client.map(BASE + page * PAGE, PAGE, memory.fd, page * PAGE)
            yield World(engine, server, client, disk)
            disk.answer_all()


def test_an_unmap_waits_for_the_transfer_that_has_the_region(world: World) -> None:
    world.fill(BASE)
    id = world.unmap(BASE)
    world.quiet()
    world.disk.answer_all()
    reply = world.client.reply()
    assert (reply.id, reply.flags) == (id, vc.REPLY)
    assert reply.payload == struct.pack("=IIQQ", 24, 0, BASE, PAGE)
    assert world.device.results == ["OK"]


def test_an_unmap_of_another_region_does_not_wait(world: World) -> None:
    world.fill(BASE)
    world.client.unmap(BASE + PAGE, PAGE)
    world.disk.answer_all()


def test_commands_behind_one_that_waits_are_done_after_it(world: World) -> None:
    world.client.write32(0, 0, 1)
    world.fill(BASE)
    ids = [world.unmap(BASE)]
    ids.append(world.client.post(vc.REGION_READ, struct.pack("=QII", 0, 0, 4)))
    ids.append(world.client.post(vc.REGION_WRITE, struct.pack("=QII", 0, 0, 4) + bytes(4)))
    ids.append(world.client.post(vc.REGION_READ, struct.pack("=QII", 0, 0, 4)))
    ids.append(world.client.post(99, b""))
    world.quiet()
    world.disk.answer_all()
    replies = [world.client.reply() for _ in ids]
    assert [each.id for each in replies] == ids
    assert [each.payload[16:] for each in replies[1:4]] == [b"\1\0\0\0", b"", bytes(4)]
    assert replies[4].errno == errno.EINVAL


def test_unmaps_wait_together_and_are_answered_in_order(world: World) -> None:
    for page in (0, 1, 2):
        world.fill(BASE + page * PAGE)
    ids = [world.unmap(BASE + page * PAGE) for page in (0, 1, 2, 3)]
    bad = world.unmap(BASE + 100 * PAGE)
    session = world.server.session
    assert session is not None and session.table is not None
    table = session.table
    pump(world.engine, lambda: table.regions == 4)  # all four are gone from the map already
    world.quiet()
    first, second, third = world.disk.waiting
    world.disk.answer(third)
    world.disk.answer(second)
    world.quiet()
    world.disk.answer(first)
    replies = [world.client.reply() for _ in range(5)]
    assert [each.id for each in replies] == [*ids, bad]
    assert [each.errno for each in replies] == [0, 0, 0, 0, errno.ENOENT]


def test_a_region_can_be_mapped_again_behind_its_unmap(world: World) -> None:
    world.fill(BASE)
    ids = [world.unmap(BASE)]
    with SharedMemory(PAGE) as other:
        payload = struct.pack("=IIQQQ", 32, 3, 0, BASE, PAGE)
        ids.append(world.client.post(vc.DMA_MAP, payload, [other.fd]))
        world.quiet()
        world.disk.answer_all()
        assert [world.client.reply().id for _ in ids] == ids
        world.fill(BASE)
        world.disk.answer_all()
        pump(world.engine, lambda: len(world.device.results) == 2)
        assert other.bytes[:4] == bytes(range(4))


def test_bus_master_enable_that_is_cleared_waits(world: World) -> None:
    world.fill(BASE)
    id = world.client.post(
        vc.REGION_WRITE, struct.pack("=QII", 4, CONFIG, 2) + struct.pack("<H", 2)
    )
    behind = world.client.post(vc.REGION_READ, struct.pack("=QII", 4, CONFIG, 2))
    world.quiet()
    world.disk.answer_all()
    assert world.client.reply().id == id
    reply = world.client.reply()
    assert reply.id == behind and reply.payload[16:] == b"\2\0"


def test_a_reset_waits_for_what_is_in_flight(world: World) -> None:
    world.client.write32(0, 0, 5)
    world.fill(BASE)
    id = world.client.post(vc.RESET)
    world.quiet()
    world.disk.answer_all()
    assert world.client.reply().id == id
    assert world.client.read32(0, 0) == 0
    assert world.client.read(CONFIG, 4, 2) == b"\0\0"


def test_no_reply_to_what_waits(world: World) -> None:
    world.fill(BASE)
    payload = struct.pack("=IIQQ", 24, 0, BASE, PAGE)
    world.client.post(vc.DMA_UNMAP, payload, flags=vc.NO_REPLY)
    id = world.client.post(vc.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0))
    world.quiet()
    world.disk.answer_all()
    assert world.client.reply().id == id


def holds_more(session: Session, than: int) -> bool:
    return len(session._held) > than


def test_a_client_that_sends_more_than_is_kept(world: World) -> None:
    """What is not kept stays in the socket, and comes when there is room again."""
    world.fill(BASE)
    world.unmap(BASE)
    payload = struct.pack("=QII", 0, CONFIG, 2)
    sock = world.client.sock
    session = world.server.session
    assert session is not None
    sock.setblocking(False)
    sent, full = 0, False
    while not full:
        message = vc.HEADER.pack(sent & 0xFFFF, vc.REGION_READ, 32, 0, 0) + payload
        try:
            assert sock.send(message) == len(message)
            sent += 1
        except BlockingIOError:
            held = len(session._held)
            full = held == 1024
            if not full:
                pump(world.engine, partial(holds_more, session, held))
    assert sent > 1024
    settle(world.engine)
    assert len(session._held) == 1024
    sock.setblocking(True)
    world.disk.answer_all()
    assert world.client.reply().command == vc.DMA_UNMAP
    assert [world.client.reply().id for _ in range(sent)] == [*range(sent)]


@pytest.mark.parametrize("what", ["unmap", "reset", "config", "held"])
def test_a_client_that_goes_while_something_waits(
    engine: Engine, tmp_path: Path, what: str
) -> None:
    with ScriptedEndpoint(bytes(PAGE), script=lambda _: Answer.hold(), on_cancel="ignore") as disk:
        device = Filler(engine.port(PciSlot()), disk=disk)
        with serving(engine, tmp_path, device) as (server, client), SharedMemory(SIZE) as memory:
            world = World(engine, server, client, disk)
            client.bus_master()
            client.map(BASE, SIZE, memory.fd)
            world.fill(BASE)
            if what == "reset":
                client.post(vc.RESET)
            elif what == "config":
                client.post(vc.REGION_WRITE, struct.pack("=QIIH", 4, CONFIG, 2, 2))
            else:
                world.unmap(BASE, SIZE)
            if what == "held":
                for _ in range(10):
                    fd = os.eventfd(0)
                    payload = struct.pack("=IIIII", 20, 36, 2, 0, 1)
                    client.post(vc.SET_IRQS, payload, [fd])
                    os.close(fd)
            settle(engine)
            client.close()
            pump(engine, lambda: disk.waiting[0].cancelled)
            assert server.session is not None
            disk.answer_all()
            pump(engine, lambda: server.session is None)
            assert device.results == [] and device.tasks == 0


def test_what_is_not_done_in_time_is_answered_all_the_same(tmp_path: Path) -> None:
    """A request that neither ends nor can be cancelled, and a client that gives up after 5 s."""
    clock = Clock()
    with (
        Engine(clock=clock, slow_step=None) as engine,
        ScriptedEndpoint(bytes(PAGE), script=lambda _: Answer.hold(), on_cancel="ignore") as disk,
    ):
        device = Filler(engine.port(PciSlot()), disk=disk)
        with serving(engine, tmp_path, device) as (server, client), SharedMemory(SIZE) as memory:
            world = World(engine, server, client, disk)
            client.bus_master()
            client.map(BASE, SIZE, memory.fd)
            world.fill(BASE)
            begun = clock.now
            id = world.unmap(BASE, SIZE)
            reply = client.reply(id)
            assert reply.errno == errno.EBUSY and clock.now - begun < 5
            begun = clock.now
            id = client.post(vc.RESET)
            reply = client.reply(id)
            assert reply.errno == errno.ETIMEDOUT and clock.now - begun < 5
            assert client.read32(0, 0) == 0xFFFF_FFFF  # the device is still in its reset
            begun = clock.now
            client.close()
            pump(engine, lambda: server.session is None)
            assert clock.now - begun < 10
            with Client(tmp_path / "s", engine) as second:
                second.negotiate()
                assert second.read(CONFIG, 0, 2) == b"\xda\xf1"
                disk.answer_all()
                second.wait(lambda: device.state.value == "running")


def test_a_server_that_closes_while_something_waits(world: World) -> None:
    world.fill(BASE)
    world.unmap(BASE)
    settle(world.engine)
    task = world.engine.start(world.server.close())
    pump(world.engine, lambda: world.disk.waiting[0].cancelled)
    world.disk.answer_all()
    pump(world.engine, lambda: task.done)
    assert select.select([world.client.sock], [], [], 0)[0]
    assert world.client.gone()


def test_one_client_after_the_other(
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other tests may have used up what this line may come in a few seconds.
    monkeypatch.setattr(world.server, "_log", GuestLog("iodma.vfio_user"))
    world.fill(BASE)
    with Client(tmp_path / "s", world.engine) as second:
        id = second.post(vc.VERSION, struct.pack("=HH", 0, 0))
        waits = "another client has connected, and waits until the one before is gone"
        pump(world.engine, lambda: waits in caplog.text)
        settle(world.engine)
        assert not second._read()
        assert caplog.text.count(waits) == 1
        world.client.close()
        pump(world.engine, lambda: world.disk.waiting[0].cancelled)
        assert not second._read()
        world.disk.answer_all()
        assert second.reply(id).flags == vc.REPLY
    run(world.engine, world.server.close)


def test_a_client_that_reads_later(engine: Engine, tmp_path: Path) -> None:
    """Answers that there is no room for are kept and come, in order; commands go on meanwhile."""
    with serving(engine, tmp_path, Filler(engine.port(PciSlot()))) as (server, client):
        payload = struct.pack("=QII", 0, CONFIG, 4096)
        ids = [client.post(vc.REGION_READ, payload) for _ in range(1500)]
        client.post(vc.REGION_WRITE, struct.pack("=QII", 0, 0, 4) + b"done", flags=vc.NO_REPLY)
        device = server.function.device
        pump(engine, lambda: device._values["scratch"] == int.from_bytes(b"done", "little"))
        session = server.session
        assert session is not None and session._channel._unread_bytes > 1 << 20
        assert [client.reply().id for _ in ids] == ids
        assert session._channel._unread_bytes == 0
        assert client.read(CONFIG, 0, 2) == b"\xda\xf1"


def test_a_client_that_goes_without_having_read(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, Filler(engine.port(PciSlot()))) as (server, client):
        payload = struct.pack("=QII", 0, CONFIG, 4096)
        for _ in range(500):
            client.post(vc.REGION_READ, payload)
        session = server.session
        assert session is not None
        pump(engine, lambda: session._channel._unread_bytes > 1 << 20)
        client.close()
        pump(engine, lambda: server.session is None)
