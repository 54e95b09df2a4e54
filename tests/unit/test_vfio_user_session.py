"""A vfio-user session from its first message to its end: what every client does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iodma import Engine, PciSlot
from tests.unit import vfio_kit
from tests.unit.vfio_client import (
    CONFIG,
    INTX,
    MSI,
    MSIX,
    REQ,
    Client,
    SharedMemory,
)
from tests.unit.vfio_kit import Copier, pump, serving

engine = vfio_kit.engine


def test_a_device_says_what_it_is(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (_, client):
        assert client.info() == (16, 3, 9, 5)
        sizes = [client.region_info(index).size for index in range(9)]
        assert sizes == [4096, 4096, 0, 0, 0, 0, 0, 4096, 0]
        assert [client.irq_info(index)[3] for index in range(5)] == [1, 4, 3, 1, 1]
        assert client.irq_info(INTX)[1] == 7  # eventfd, maskable, masks itself
        assert client.irq_info(MSI)[1] == client.irq_info(MSIX)[1] == 3
        assert client.irq_info(REQ)[1] == 1
        assert client.read(CONFIG, 0, 4) == bytes.fromhex("daf10100")


@pytest.mark.parametrize("width", [1, 2, 4, 8, 3, 5])
def test_registers(engine: Engine, tmp_path: Path, width: int) -> None:
    with serving(engine, tmp_path) as (server, client):
        client.write32(0, 0, 0x11223344)
        assert client.read32(0, 0) == 0x11223344
        client.write(0, 8, bytes(range(8)))
        assert client.read(0, 8, 8) == bytes(range(8))
        assert len(client.read(0, 1, width)) == width
        client.write(0, 1, bytes(width))
        assert server.function.device.counts.failures == 0


def test_a_doorbell_moves_memory_and_interrupts(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (_, client), SharedMemory(1 << 20) as memory:
        client.map(0x10000, memory.size, memory.fd)
        client.bus_master()
        fd = client.eventfd(MSIX)
        memory.bytes[0x100:0x108] = (41).to_bytes(8, "little")
        client.write32(0, 0x10, 0x10100)
        assert client.interrupted(fd) == 1
        assert memory.bytes[0x108:0x110] == (42).to_bytes(8, "little")
        assert client.read32(0, 0x14) == 1
        client.unmap(0x10000, memory.size)
        os.close(fd)


def test_nothing_is_left_for_the_next_client(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (server, client), SharedMemory(1 << 20) as memory:
        client.map(0x10000, memory.size, memory.fd)
        client.write32(0, 0, 5)
        client.bus_master()
        client.close()
        with Client(tmp_path / "s", engine) as second:
            second.negotiate()
            assert server.sessions == 2
            assert second.read32(0, 0) == 0
            assert second.read(CONFIG, 4, 2) == b"\0\0"
            second.map(0x10000, memory.size, memory.fd)
            assert server.session is not None and server.session.table is not None
            assert server.session.table.regions == 1


def test_a_reset_is_acknowledged(engine: Engine, tmp_path: Path) -> None:
    device = Copier()
    with serving(engine, tmp_path, device) as (_, client):
        client.write32(0, 0, 5)
        client.reset()
        assert client.read32(0, 0) == 0 and device.counts.resets == 1


def test_a_server_that_closes_ends_the_session(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path) as (server, client):
        session = server.session
        assert session is not None
        task = engine.start(server.close())
        pump(engine, lambda: task.done)
        assert client.gone()
        assert not (tmp_path / "s").exists()


def test_a_device_is_served_by_one_server_after_the_other(engine: Engine, tmp_path: Path) -> None:
    device = Copier(engine.port(PciSlot()))
    for _ in range(2):
        with serving(engine, tmp_path, device) as (server, client):
            client.bus_master()
            fd = client.eventfd(MSIX)
            device.interrupt.pulse()
            assert os.eventfd_read(fd) == 1
            os.close(fd)
        slot = server.function.slot
        assert slot is not None and not slot.bus_master
    device.interrupt.set(True)
    assert not server.function.interrupts.level
