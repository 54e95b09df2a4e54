"""Regions that a client maps, and doorbells that it rings by an eventfd."""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
from pathlib import Path
from typing import Any

import pytest

from iodma import Bar, Device, Doorbell, Engine, Ram, Register
from iodma.pci import BarInfo, Function, Pci, PciSlot
from iodma.transports.vfio_user import VfioUserServer
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import CONFIG, ROM, Client
from tests.unit.vfio_kit import Copier, run, serving, settle

engine = vfio_kit.engine


class Framebuffer(Device):
    """Registers in one BAR, memory in another, a ROM."""

    pci = Pci(
        vendor=1,
        device=1,
        bars={0: 4096, 2: Bar(1 << 16, kind="memory64", prefetchable=True, ram="pixels")},
        rom=b"\x55\xaa" + bytes(100),
    )
    mode = Register(0)

    def __init__(self) -> None:
        super().__init__()
        self.pixels = Ram(1 << 16)


def test_memory_behind_a_bar_is_mapped(engine: Engine, tmp_path: Path) -> None:
    device = Framebuffer()
    with device.pixels, serving(engine, tmp_path, device) as (_, client):
        info = client.region_info(2)
        # No room for the list of what can be mapped, and so no descriptor.
        assert (info.argsz, info.flags, info.areas, info.fds) == (64, 7, [], [])
        info = client.region_info(2, info.argsz)
        assert (info.flags, info.size, info.offset) == (15, 1 << 16, 0)
        assert info.areas == [(0, 1 << 16)]
        (fd,) = info.fds
        with mmap.mmap(fd, info.size, offset=info.offset) as mapped:
            os.close(fd)
            mapped[0x123] = 7
            assert client.read(2, 0x123, 1) == b"\7"
            client.write(2, 0x200, b"pixels")
            assert mapped[0x200:0x206] == b"pixels"
            with device.pixels.view() as view:
                assert view[0x123] == 7
        assert client.region_info(3).size == 0
        assert client.region_info(0).fds == []


def test_a_rom_is_read(engine: Engine, tmp_path: Path) -> None:
    device = Framebuffer()
    with device.pixels, serving(engine, tmp_path, device) as (_, client):
        info = client.region_info(ROM)
        assert info.size == 2048 and info.flags == 1
        assert client.read(ROM, 0, 4) == b"\x55\xaa\0\0"
        with pytest.raises(vc.Refused):
            client.read(ROM, 2047, 2)


def test_parts_of_a_bar_that_can_be_mapped(engine: Engine, tmp_path: Path) -> None:
    """A function that lets parts of a region be mapped: the capability comes if there is room."""

    class Parts(Function):
        def __init__(self, device: Framebuffer) -> None:
            super().__init__(device)
            whole = self.bars[2]
            self.bars[2] = BarInfo(
                whole.index,
                whole.size,
                whole.io,
                whole.wide,
                whole.prefetchable,
                whole.read_only,
                whole.ram,
                ((0x2000, 0x1000), (0x4000, 0x2000)),
            )

    device = Framebuffer()
    with device.pixels:
        server = VfioUserServer(engine, Parts(device), tmp_path / "s")
        with Client(tmp_path / "s", engine) as client:
            client.negotiate()
            info = client.region_info(2)
            assert (info.argsz, info.flags, info.cap_offset, info.fds) == (80, 7, 0, [])
            info = client.region_info(2, 79)
            assert (info.argsz, info.flags, info.cap_offset, info.fds) == (80, 7, 0, [])
            info = client.region_info(2, 80)
            assert (info.argsz, info.flags, info.cap_offset) == (80, 15, 32)
            assert info.areas == [(0x2000, 0x1000), (0x4000, 0x2000)]
            (fd,) = info.fds
            os.close(fd)
        run(engine, server.close)


# --- doorbells ------------------------------------------------------------------------------------


def io_fds(client: Client, index: int, argsz: int) -> tuple[tuple[int, ...], list[Any], list[int]]:
    reply = client.ask(vc.GET_REGION_IO_FDS, struct.pack("=IIII", argsz, 0, index, 0))
    areas = [*struct.iter_unpack("=QQIIIIQ", reply.payload[16:])]
    return struct.unpack_from("=IIII", reply.payload), areas, reply.fds


def test_a_doorbell_is_rung_by_an_eventfd(engine: Engine, tmp_path: Path) -> None:
    device = Copier(engine.port(PciSlot()))
    with serving(engine, tmp_path, device) as (_, client):
        head, areas, fds = io_fds(client, 0, 16)
        assert (head, areas, fds) == ((96, 0, 0, 2), [], [])  # no room
        assert io_fds(client, 0, 95)[1:] == ([], [])
        head, areas, fds = io_fds(client, 0, 4096)
        assert head == (96, 0, 0, 2)
        assert areas == [(0x10, 4, 0, 0, 0, 0, 0), (0x20, 4, 1, 0, 0, 0, 0)]
        assert len(fds) == 2
        os.eventfd_write(fds[1], 1)
        client.wait(lambda: device.noted == [7])
        os.eventfd_write(fds[1], 3)
        client.wait(lambda: device.noted == [7] * 4)
        again = io_fds(client, 0, 4096)[2]
        os.eventfd_write(again[1], 1)
        client.wait(lambda: device.noted == [7] * 5)
        assert io_fds(client, CONFIG, 4096) == ((16, 0, CONFIG, 0), [], [])
        assert io_fds(client, 1, 4096) == ((16, 0, 1, 0), [], [])
        for fd in fds + again:
            os.close(fd)


def test_more_signals_than_a_doorbell_can_hold(engine: Engine, tmp_path: Path) -> None:
    device = Copier(engine.port(PciSlot()))
    with serving(engine, tmp_path, device) as (_, client):
        fds = io_fds(client, 0, 4096)[2]
        os.eventfd_write(fds[1], (1 << 64) - 2)
        client.wait(lambda: len(device.noted) == 256)
        assert device.counts.doorbells_dropped == 1
        assert client.read32(0, 0) == 0
        for fd in fds:
            os.close(fd)


def test_a_client_that_takes_few_descriptors(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path, max_msg_fds=1) as (_, client):
        head, areas, fds = io_fds(client, 0, 4096)
        assert head == (56, 0, 0, 1) and len(areas) == len(fds) == 1
        os.close(fds[0])
    with serving(engine, tmp_path, max_msg_fds=0, twin_socket={"supported": True}) as (_, client):
        assert io_fds(client, 0, 4096) == ((16, 0, 0, 0), [], [])
        assert client.twin is None


def test_eventfds_of_doorbells_end_with_the_session(engine: Engine, tmp_path: Path) -> None:
    device = Copier(engine.port(PciSlot()))
    with serving(engine, tmp_path, device) as (_, client):
        fds = io_fds(client, 0, 4096)[2]
        client.close()
        with Client(tmp_path / "s", engine) as second:
            second.negotiate()
            os.eventfd_write(fds[1], 1)
            assert second.read32(0, 0) == 0
            settle(engine)
            assert device.noted == []
            assert select.select([fds[1]], [], [], 0)[0]  # nobody has read it
            mine = io_fds(second, 0, 4096)[2]
            os.eventfd_write(mine[1], 1)
            second.wait(lambda: device.noted == [7])
            for fd in mine:
                os.close(fd)
        for fd in fds:
            os.close(fd)


def test_a_doorbell_whose_value_matters_has_no_eventfd(engine: Engine, tmp_path: Path) -> None:
    class Plain(Device):
        pci = Pci(vendor=1, device=1, bars={0: 64})
        go = Doorbell(0, run="work")

        async def work(self, value: int) -> None:
            pass

    with serving(engine, tmp_path, Plain()) as (_, client):
        assert io_fds(client, 0, 4096) == ((16, 0, 0, 0), [], [])
        with pytest.raises(vc.Refused) as caught:
            io_fds(client, 3, 4096)
        assert caught.value.errno == errno.EINVAL
