"""A block device over vhost-user, real rings and all, in one process.

The front-end has guest memory in a memory file of its own, makes requests as a driver does, and
knows nothing of the device but what goes over the socket.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iodma import Engine, File
from iodma.devices.virtio_blk import VirtioBlk
from iodma.testing import strict_engine
from iodma.transports.vhost_user import VhostUserServer
from tests.unit import vhost_front as fe
from tests.unit.guestring import GuestRing
from tests.unit.vhost_front import USER, FrontEnd

IN, OUT, FLUSH = 0, 1, 4
SECTOR = 512
MEMORY = 1 << 20
#: Beside the rings.
BUFFER = 0x40000


class Guest:
    """A VMM with one disk: a front-end, and the driver in its guest."""

    def __init__(self, engine: Engine, path: str, queues: int = 1) -> None:
        self.engine = engine
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.front = FrontEnd(engine, sock)
        self.map = mmap.mmap(self.front.memory, MEMORY)
        self.view = memoryview(self.map)
        self.rings = [GuestRing(self.view, 0x1000 + 0x4000 * at, 16) for at in range(queues)]
        self.free = BUFFER

    def boot(self) -> None:
        """As a VMM starts a device, and a driver its queues."""
        front = self.front
        front.negotiate((fe.MQ, fe.REPLY_ACK, fe.CONFIG, fe.MEM_SLOTS, fe.STATUS), bits=0)
        table = fe.regions((0, MEMORY, USER, 0))
        assert front.tell(fe.SET_MEM_TABLE, table, [front.memory]) == 0
        for index in range(len(self.rings)):
            self.start(index)
        front.tell(fe.SET_STATUS, fe.u64(15))

    def start(self, index: int = 0) -> None:
        front, ring = self.front, self.rings[index]
        front.tell(fe.SET_VRING_NUM, fe.state(index, ring.size))
        front.tell(fe.SET_VRING_BASE, fe.state(index, ring.seen))
        parts = (USER + ring.base, USER + ring.used_ring, USER + ring.available)
        front.tell(fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", index, 0, *parts, 0))
        front.tell(fe.SET_VRING_ERR, fe.u64(index), [ring.error_fd])
        front.tell(fe.SET_VRING_CALL, fe.u64(index), [ring.call_fd])
        front.tell(fe.SET_VRING_KICK, fe.u64(index), [ring.kick_fd])
        assert front.tell(fe.SET_VRING_ENABLE, fe.state(index, 1)) == 0

    def add(
        self, type: int, sector: int, out: bytes = b"", into: int = 0, at: int = 0, index: int = 0
    ) -> tuple[int, int]:
        """Makes a request; where its status will be, and its data."""
        header, status, data = self.free, self.free + 16, at or self.free + 64
        self.free += 64 + (0 if at else max(len(out), into))
        self.view[header : header + 17] = struct.pack("<IIQB", type, 0, sector, 0xEE)
        if not at:
            self.view[data : data + len(out)] = out
        size = len(out) or into
        payload = [(data, size)] if size else []
        readable = [(header, 16), *(payload if out else [])]
        writable = [*(payload if into else []), (status, 1)]
        self.rings[index].add(readable, writable)
        self.rings[index].kick()
        return status, data

    def request(
        self, type: int, sector: int, out: bytes = b"", into: int = 0, index: int = 0
    ) -> tuple[int, bytes]:
        """A request and its answer: the status, and what was read."""
        status, data = self.add(type, sector, out, into, index=index)
        self.wait(1, index)
        return self.view[status], bytes(self.view[data : data + into])

    def wait(self, count: int, index: int = 0) -> None:
        """Until so many requests were given back, and the driver was told."""
        ring, back = self.rings[index], 0

        def all_back() -> bool:
            nonlocal back
            back += sum(1 for _ in ring.used())
            return back >= count

        fe.drive(self.engine, all_back)
        assert os.eventfd_read(ring.call_fd) > 0

    def close(self) -> None:
        self.front.close()
        while self.rings:
            self.rings.pop().close()
        self.view.release()
        self.map.close()


@contextmanager
def machine(folder: Path, queues: int = 1) -> Iterator[Guest]:
    image = folder / "image"
    image.write_bytes(bytes(range(256)) * 512)
    with strict_engine(slow_step=None) as engine, File(image) as disk:
        device = VirtioBlk(disk, queues=queues)
        server = VhostUserServer(engine, device, folder / "vhost.sock")
        guest = Guest(engine, str(folder / "vhost.sock"), queues)
        try:
            yield guest
        finally:
            guest.close()
            fe.finish(engine, server.close)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with machine(tmp_path) as guest:
        guest.boot()
        yield guest


def pattern(sector: int, count: int = 1) -> bytes:
    return bytes(range(256)) * 2 * count


def test_what_is_written_is_read(guest: Guest, tmp_path: Path) -> None:
    assert guest.request(IN, 3, into=1024) == (0, pattern(3, 2))
    data = os.urandom(SECTOR)
    assert guest.request(OUT, 7, data)[0] == 0
    assert guest.request(IN, 7, into=SECTOR) == (0, data)
    assert guest.request(FLUSH, 0)[0] == 0
    assert (tmp_path / "image").read_bytes()[7 * SECTOR :][:SECTOR] == data


def test_the_capacity_is_the_image_s(guest: Guest) -> None:
    # The front-end asks for what the newest device would have.
    answer = guest.front.ask(fe.GET_CONFIG, fe.config(0, 60))
    assert struct.unpack_from("<Q", answer, 12)[0] == 256 * 512 // SECTOR


def test_many_requests_in_many_batches(guest: Guest) -> None:
    for _ in range(30):
        where = [guest.add(IN, sector, into=SECTOR) for sector in range(5)]
        guest.wait(5)
        for status, data in where:
            assert guest.view[status] == 0 and guest.view[data : data + SECTOR] == pattern(0)
        guest.free = BUFFER


def test_a_ring_stops_and_goes_on_where_it_was(guest: Guest) -> None:
    for _ in range(20):
        assert guest.request(IN, 1, into=SECTOR)[0] == 0
        ring = guest.rings[0]
        assert guest.front.ask(fe.GET_VRING_BASE, fe.state(0, 0)) == fe.state(0, ring.index)
        guest.add(IN, 2, into=SECTOR)  # while nobody looks
        guest.start()
        guest.wait(1)
        guest.free = BUFFER


def test_memory_that_comes_and_goes(guest: Guest) -> None:
    front = guest.front
    there = 1 << 30
    extra = front.own(os.memfd_create("dimm", os.MFD_CLOEXEC))
    os.ftruncate(extra, 1 << 20)
    slot = fe.single(there, 1 << 20, USER + there)
    for _ in range(3):
        status, _ = guest.add(IN, 0, into=SECTOR, at=there)
        guest.wait(1)
        assert guest.view[status] == 1, "there is no memory yet"
        assert front.tell(fe.ADD_MEM_REG, slot, [extra]) == 0
        status, _ = guest.add(IN, 0, into=SECTOR, at=there)
        guest.wait(1)
        assert guest.view[status] == 0
        assert os.pread(extra, SECTOR, 0) == pattern(0)
        assert front.tell(fe.REM_MEM_REG, slot) == 0
    assert guest.request(IN, 1, into=SECTOR)[0] == 0


def restart(guest: Guest) -> None:
    """Its driver resets the device and sets it up anew."""
    front = guest.front
    assert front.tell(fe.SET_STATUS, fe.u64(0)) == 0
    assert fe.u64_of(front.ask(fe.GET_STATUS)) == 0
    guest.rings[0].close()
    guest.rings[0] = GuestRing(guest.view, 0x8000, 16)
    front.tell(fe.SET_FEATURES, fe.u64(fe.VERSION_1 | fe.PROTOCOL))
    guest.start()
    assert guest.request(IN, 1, into=SECTOR) == (0, pattern(1))


def test_a_guest_that_restarts(guest: Guest) -> None:
    assert guest.request(IN, 1, into=SECTOR)[0] == 0
    guest.front.ask(fe.GET_VRING_BASE, fe.state(0, 0))
    restart(guest)
    guest.add(IN, 1, into=SECTOR)
    restart(guest)


def test_queues_serve_side_by_side(tmp_path: Path) -> None:
    with machine(tmp_path, queues=4) as guest:
        guest.boot()
        for index in (3, 0, 2, 1, 3):
            assert guest.request(IN, 1, into=SECTOR, index=index) == (0, pattern(1))


def test_a_front_end_that_goes_under_load(guest: Guest, tmp_path: Path) -> None:
    one = guest
    for _ in range(5):
        for sector in range(5):
            one.add(IN, sector, into=SECTOR)
        one.close()
        one = Guest(guest.engine, str(tmp_path / "vhost.sock"))
        one.boot()
    assert one.request(IN, 1, into=SECTOR) == (0, pattern(1))
    one.close()


def test_a_driver_that_breaks_its_ring_is_told(guest: Guest) -> None:
    ring = guest.rings[0]
    struct.pack_into("<H", guest.view, ring.available + 2, 1000)
    os.eventfd_write(ring.kick_fd, 1)
    fe.drive(guest.engine, ring.broken)
    status = fe.u64_of(guest.front.ask(fe.GET_STATUS))
    assert status == 15 | 64, "DEVICE_NEEDS_RESET"
    # The ring can be stopped all the same, and another one started after a reset.
    guest.front.ask(fe.GET_VRING_BASE, fe.state(0, 0))
    restart(guest)
