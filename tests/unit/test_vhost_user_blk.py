"""A block device over vhost-user, real rings and all, in one process."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import vhost_front as fe
from tests.unit.guestring import GuestRing
from tests.unit.vhost_front import USER
from tests.unit.vhost_guest import BUFFER, FLUSH, IN, OUT, SECTOR, Guest, machine, pattern


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with machine(tmp_path) as guest:
        guest.boot()
        yield guest


def test_what_is_written_is_read(guest: Guest, tmp_path: Path) -> None:
    assert guest.request(IN, 3, into=1024) == (0, pattern(2))
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
            assert guest.view[status] == 0 and guest.view[data : data + SECTOR] == pattern()
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
        assert os.pread(extra, SECTOR, 0) == pattern()
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
    assert guest.request(IN, 1, into=SECTOR) == (0, pattern())


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
            assert guest.request(IN, 1, into=SECTOR, index=index) == (0, pattern())


def test_a_front_end_that_goes_under_load(guest: Guest, tmp_path: Path) -> None:
    one = guest
    for _ in range(5):
        for sector in range(5):
            one.add(IN, sector, into=SECTOR)
        one.close()
        one = Guest(guest.engine, str(tmp_path / "vhost.sock"))
        one.boot()
    assert one.request(IN, 1, into=SECTOR) == (0, pattern())
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
