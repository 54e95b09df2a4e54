"""The DMA regions of a vfio-user session: what may be mapped, one mapping a file."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Access, Status
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user import mappings
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.messages import MOST_REGIONS
from tests.unit.vfio_client import DMA_READ, DMA_UNMAP, DMA_WRITE, Client, SharedMemory
from tests.unit.vfio_kit import Copier, pump, serving
from tests.unit.vfio_table import (  # noqa: F401
    FILE_IO,
    MMAP,
    PAGE,
    READ,
    RW,
    TOP,
    WRITE,
    Session,
    mapped,
    session_fixture,
)

# --- what may be mapped ---------------------------------------------------------------------------


def test_regions_are_parts_of_one_mapping(session: Session) -> None:
    session.map(0x10000, 2 * PAGE, offset=PAGE)
    session.map(0x20010, 100, offset=5000)
    session.map(TOP - PAGE, offset=0)
    assert (session.table.regions, session.table.mappings) == (3, 1)
    assert session.where(0x10000) == PAGE and session.where(0x10000 + 2 * PAGE - 1) == 3 * PAGE - 1
    assert session.where(0x10000 + 2 * PAGE) is None and session.where(0xFFFF) is None
    assert session.where(0x20010) == 5000 and session.where(0x2000F) is None
    assert session.where(TOP - 1) == PAGE - 1


def test_bytes_are_those_of_the_file(session: Session) -> None:
    os.pwrite(session.fd, b"from the guest", 3 * PAGE + 5)
    session.map(0x1000, 4 * PAGE)

    async def main() -> None:
        assert await session.port.load_bytes(0x1000 + 3 * PAGE + 5, 14) == b"from the guest"
        await session.port.store_bytes(0x1000 + PAGE - 2, b"to it")

    session.run(main())
    assert os.pread(session.fd, 5, PAGE - 2) == b"to it"


@pytest.mark.parametrize("flags", [0, READ, WRITE, RW])
def test_rights(session: Session, flags: int) -> None:
    session.map(0, flags=flags)
    for access in (Access.READ, Access.WRITE):
        assert (session.where(0, access) is not None) == bool(flags & access)
    assert session.refused(PAGE, flags=flags | 16) == errno.EINVAL
    session.map(PAGE, flags=flags | MMAP)
    session.map(2 * PAGE, flags=flags | FILE_IO)


@pytest.mark.parametrize(
    ("address", "size", "error"),
    [
        (0, 0, errno.EINVAL),
        (TOP - PAGE, PAGE + 1, errno.EINVAL),
        (TOP - 1, TOP - 1, errno.EINVAL),
        (0, mappings.MOST_BYTES + PAGE, errno.ENOSPC),
    ],
)
def test_sizes_that_cannot_be(session: Session, address: int, size: int, error: int) -> None:
    assert session.refused(address, size) == error
    assert session.refused(address, size, shared=False) == error


@pytest.mark.parametrize("offset", [TOP - 1, (1 << 63) - 1, (1 << 63) - PAGE])
def test_offsets_that_cannot_be(session: Session, offset: int) -> None:
    assert session.refused(0, offset=offset) == errno.EINVAL


def test_flags_that_want_a_descriptor(session: Session) -> None:
    for flags in (MMAP, FILE_IO):
        assert session.refused(0, flags=RW | flags, shared=False) == errno.EINVAL


def test_descriptors_that_cannot_be_mapped(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    near, far = socket.socketpair()
    with near, far:
        assert session.refused(0, fd=near.fileno()) == errno.ENODEV
    reader, writer = os.pipe()
    assert session.refused(0, flags=READ, fd=reader) == errno.ENODEV
    os.close(reader)
    os.close(writer)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert session.refused(0, flags=READ, fd=fd) == errno.ENODEV
    os.close(fd)
    for how in (os.O_WRONLY, os.O_PATH):
        fd = os.open(tmp_path / "file", how)
        assert session.refused(0, flags=READ, fd=fd) in (errno.EACCES, errno.EBADF)
        os.close(fd)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    assert session.refused(0, fd=fd) == errno.EACCES
    session.map(0, flags=READ, fd=fd)
    os.close(fd)
    assert session.table.mappings == 1 and session.where(0) == 0


def test_a_read_only_mapping_does_not_stand_in_the_way(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"r" * 2 * PAGE)
    with path.open("rb") as reader, path.open("r+b") as writer:
        session.map(0, flags=READ, fd=reader.fileno())
        session.map(PAGE, fd=writer.fileno(), offset=PAGE)
        session.map(2 * PAGE, flags=READ, fd=reader.fileno(), offset=PAGE)
    assert session.table.mappings == 2

    async def main() -> None:
        await session.port.store_bytes(PAGE, b"w")
        assert await session.port.load_bytes(2 * PAGE, 2) == b"wr"
        with pytest.raises(iodma.DmaFault):
            await session.port.store_bytes(2 * PAGE, b"x")

    session.run(main())
    assert path.read_bytes()[PAGE : PAGE + 2] == b"wr"


def test_the_same_region_again_is_nothing_and_another_over_it_is_refused(session: Session) -> None:
    session.map(0x10000, 4 * PAGE, offset=PAGE)
    session.map(0x10000, 4 * PAGE, offset=PAGE)
    assert session.table.regions == 1
    other = session.file(64 * PAGE)
    over: list[dict[str, Any]] = [
        {"offset": 0},
        {"offset": PAGE, "flags": READ},
        {"offset": PAGE, "fd": other},
        {"shared": False},
    ]
    for each in over:
        assert session.refused(0x10000, 4 * PAGE, **each) == errno.EEXIST
    for address, size in [
        (0x10000, PAGE),
        (0x10000, 8 * PAGE),
        (0xF000, 2 * PAGE),
        (0x13FFF, 1),
        (0xF000, 64 * PAGE),
        (0x11000, PAGE),
    ]:
        assert session.refused(address, size) == errno.EEXIST
        assert session.refused(address, size, shared=False) == errno.EEXIST
    session.map(0xF000)
    session.map(0x14000)
    session.map(0x50000, shared=False)
    session.map(0x50000, shared=False)
    assert session.refused(0x50000, offset=0) == errno.EEXIST
    assert session.table.regions == 4


def test_no_more_regions_than_there_may_be(session: Session) -> None:
    assert DmaTable(session.engine, iodma.Memory(), session.remote)._most == MOST_REGIONS
    session.table._most = 10
    for i in range(10):
        session.map(i * PAGE, shared=bool(i % 2))
    assert session.refused(10 * PAGE) == errno.EINVAL
    session.table.unmap(3 * PAGE, PAGE)
    session.map(10 * PAGE)


# --- one mapping a file ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_ten_thousand_regions_are_one_mapping(order: str, rng: random.Random) -> None:
    session = Session(10_000)
    pages = list(range(10_000))
    if order == "down":
        pages.reverse()
    elif order == "random":
        rng.shuffle(pages)
    with Descriptor(os.dup(session.fd)) as descriptor:
        for page in pages:
            session.table.map(page * 2 * PAGE, PAGE, RW, descriptor, page * PAGE)
    assert session.table.regions == 10_000 and session.table.mappings == 1 and mapped() == 1
    for page in rng.sample(pages, 300):
        assert session.where(page * 2 * PAGE + 7) == page * PAGE + 7
        assert session.where(page * 2 * PAGE + PAGE) is None
    if order == "random":
        rng.shuffle(pages)
    for page in pages[: len(pages) // 2]:
        assert session.table.unmap(page * 2 * PAGE, PAGE) is None
    assert session.table.regions == 5000
    for page in rng.sample(pages, 300):
        gone = page in set(pages[: len(pages) // 2])
        assert session.where(page * 2 * PAGE) == (None if gone else page * PAGE)
    assert session.table.unmap(0, 0, all=True) is None
    assert session.table.regions == 0 and session.memory._count == 0
    session.close()
    assert mapped() == 0


def test_a_file_that_grows_is_mapped_again_a_few_times(session: Session) -> None:
    for page in range(64, 2048):
        os.ftruncate(session.fd, (page + 1) * PAGE)
        session.map(page * PAGE, offset=page * PAGE)
    assert session.table.mappings <= 6
    for page in range(64, 2048):
        assert session.where(page * PAGE) == page * PAGE


def test_a_region_may_pass_the_end_of_its_file_and_dma_there_faults(session: Session) -> None:
    session.map(0, 128 * PAGE)

    async def main() -> None:
        await session.port.store_bytes(63 * PAGE, b"there")
        done = await session.port.copy((0, 8), (64 * PAGE, 8))
        assert done.status is Status.FAULT and done.fault is not None
        assert done.fault.reason == "the memory behind it is gone"

    session.run(main())


def test_bytes_far_into_a_file(session: Session) -> None:
    """Where all of it is too much to map, only those are."""
    os.ftruncate(session.fd, 1 << 60)
    far = (1 << 60) - 3 * PAGE
    os.pwrite(session.fd, b"far", far + 5)
    session.map(0, 2 * PAGE - 5, offset=far + 5)
    session.map(0x10000, offset=0)
    assert session.table.mappings == 2

    async def main() -> None:
        assert await session.port.load_bytes(0, 3) == b"far"
        await session.port.store_bytes(0x10000, b"near")

    session.run(main())
    assert os.pread(session.fd, 4, 0) == b"near"


def test_a_mapping_without_regions_is_kept_for_a_moment(session: Session) -> None:
    session.map(0)
    session.table.unmap(0, PAGE)
    assert (session.table.regions, session.table.mappings) == (0, 1)
    session.map(0)
    session.table.unmap(0, PAGE)
    assert mapped() == 1

    async def wait(seconds: float) -> None:
        session.clock.advance(seconds)
        await session.engine.sleep(0)
        await session.engine.sleep(0)

    session.run(wait(mappings.HOLD_S))
    session.map(0)
    session.run(wait(mappings.HOLD_S))
    session.run(wait(mappings.HOLD_S))
    assert session.where(0) == 0 and mapped() == 1
    session.table.unmap(0, PAGE)
    for _ in range(3):
        session.run(wait(mappings.HOLD_S))
    assert session.table.mappings == 0 and mapped() == 0


def test_few_mappings_are_kept(session: Session) -> None:
    for i in range(20):
        session.map(0, fd=session.file(PAGE))
        session.table.unmap(0, PAGE)
        assert session.table.mappings <= mappings.MOST_IDLE
        assert i >= 20 or session.table.regions == 0


def test_a_file_that_is_cut_off_is_a_fault(session: Session) -> None:
    session.map(0, 64 * PAGE)
    os.ftruncate(session.fd, PAGE)

    async def main() -> None:
        done = await session.port.copy((0, 8), (2 * PAGE, 8))
        assert done.fault is not None and "gone" in done.fault.reason

    session.run(main())


# --- unmap ----------------------------------------------------------------------------------------
# --- dirty pages ----------------------------------------------------------------------------------
# --- memory that the client moves -----------------------------------------------------------------


class Theirs:
    """A client's memory, that it does not share."""

    def __init__(self, client: Client, base: int, size: int) -> None:
        self.data = bytearray(size)
        self.base = base
        self.log: list[tuple[int, int, int]] = []
        client.serve = self.serve

    def serve(self, command: int, address: int, what: Any) -> bytes | int:
        at = address - self.base
        if command == DMA_READ:
            self.log.append((command, address, what))
            return bytes(self.data[at : at + what])
        self.log.append((command, address, len(what)))
        self.data[at : at + len(what)] = what
        return b""


@pytest.mark.parametrize("twin", [False, True])
def test_dma_to_memory_that_is_not_shared_is_messages(tmp_path: Path, twin: bool) -> None:
    with iodma.Engine(strict=True, slow_step=None) as engine:
        device = Copier(engine.port(iodma.PciSlot()))
        how: dict[str, Any] = {"twin_socket": {"supported": True}} if twin else {}
        with serving(engine, tmp_path, device, **how) as (_, client):
            assert (client.twin is not None) == twin
            theirs = Theirs(client, 0x10000, 2 * PAGE)
            client.map(0x10000, 2 * PAGE)
            client.bus_master()
            theirs.data[8:16] = (41).to_bytes(8, "little")
            client.write32(0, 0x10, 0x10008)
            client.wait(lambda: client.read32(0, 0x14) == 1)
            assert theirs.data[16:24] == (42).to_bytes(8, "little")
            assert theirs.log == [(DMA_READ, 0x10008, 8), (DMA_WRITE, 0x10010, 8)]
            client.bus_master(False)
            client.unmap(0x10000, 2 * PAGE)


def test_lists_of_shared_and_unshared_memory_and_what_the_client_refuses(tmp_path: Path) -> None:
    with iodma.Engine(strict=True, slow_step=None) as engine:
        slot = iodma.PciSlot()
        port = engine.port(slot)
        with (
            serving(engine, tmp_path, Copier(port), max_data_xfer_size=1000) as (_, client),
            SharedMemory(4 * PAGE) as shared,
        ):
            theirs = Theirs(client, 0x10000, 8 * PAGE)
            client.map(0x10000, 8 * PAGE)
            client.map(0, 4 * PAGE, shared.fd)
            client.map(0x40000, PAGE, flags=READ)
            client.bus_master()
            theirs.data[:] = bytes(range(256)) * (8 * PAGE // 256)

            def run_one(transfer: Any) -> Any:
                client.wait(lambda: transfer.done)
                return transfer.result

            done = run_one(
                port.copy([(0x10000, 5000), (0, 10)], [(100, 3000), (0x10000 + 6000, 2010)])
            )
            assert done.ok
            assert shared.bytes[100:3100] == bytes(k & 255 for k in range(3000))
            assert theirs.data[6000:8000] == bytes(k & 255 for k in range(3000, 5000))
            assert max(length for _, _, length in theirs.log) == 1000
            done = run_one(port.copy((0, 8), (0x40000, 8)))
            assert done.fault.reason == "the mapping does not permit it"
            client.serve = lambda command, address, what: errno.EFAULT
            done = run_one(port.copy((0x10000, 8), (0, 8)))
            assert done.status is Status.FAULT and done.fault.address == 0x10000


def test_an_unmap_waits_for_answers_and_the_end_for_none(tmp_path: Path) -> None:
    with iodma.Engine(strict=True, slow_step=None) as engine:
        port = engine.port(iodma.PciSlot())
        with serving(engine, tmp_path, Copier(port)) as (_, client):
            client.map(0x10000, PAGE)
            client.map(0x20000, PAGE)
            client.bus_master()
            here, there = port.load_bytes(0x10000, 8), port.load_bytes(0x20000, 8)
            client.wait(lambda: len(client.asked) == 2)
            unmap = client.post(DMA_UNMAP, struct.pack("=IIQQ", 24, 0, 0x10000, PAGE))
            theirs = Theirs(client, 0x10000, PAGE)
            client.answer(client.asked[0])
            assert client.reply(unmap).errno == 0 and here.done
            assert theirs.log == [(DMA_READ, 0x10000, 8)] and not there.done
            client.close()
            pump(engine, lambda: there.done)
            with pytest.raises(iodma.DmaFault):
                there.result  # noqa: B018
