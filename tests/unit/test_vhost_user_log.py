"""The dirty log: every page that the device writes to is in it, and no other."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import vhost_front as fe
from tests.unit.vhost_front import PAGE, USER
from tests.unit.vhost_guest import BUFFER, IN, MEMORY, OUT, SECTOR, Guest, machine, pattern


class Log:
    """The front-end's side: a file with a bit for each page."""

    def __init__(self, guest: Guest, size: int, offset: int = 0) -> None:
        self.fd = guest.front.own(os.memfd_create("log", os.MFD_CLOEXEC))
        os.ftruncate(self.fd, offset + size)
        self.size, self.offset = size, offset
        payload = struct.pack("=QQ", size, offset)
        assert guest.front.ask(fe.SET_LOG_BASE, payload, [self.fd]) == fe.u64(0)

    def take(self) -> set[int]:
        """Pages that were written to since the last look."""
        data = os.pread(self.fd, self.size, self.offset)
        os.pwrite(self.fd, bytes(self.size), self.offset)
        return {8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with machine(tmp_path) as guest:
        guest.boot()
        yield guest


def log(guest: Guest, on: bool) -> None:
    features = fe.VERSION_1 | fe.PROTOCOL | (fe.LOG_ALL if on else 0)
    assert guest.front.tell(fe.SET_FEATURES, fe.u64(features)) == 0


def pages(guest: Guest, *addresses: int) -> set[int]:
    """Theirs, and that of the used ring."""
    return {at // PAGE for at in (*addresses, guest.rings[0].used_ring)}


def test_what_a_device_writes_is_logged_while_that_is_wanted(guest: Guest) -> None:
    log_file = Log(guest, MEMORY // PAGE // 8)
    assert guest.request(IN, 0, into=SECTOR)[0] == 0
    assert log_file.take() == set()
    log(guest, True)
    there = BUFFER + 16 * PAGE
    status, _ = guest.add(IN, 0, into=2 * PAGE, at=there + 0x800)
    guest.wait(1)
    assert log_file.take() == pages(guest, status, there, there + PAGE, there + 2 * PAGE)
    status, _ = guest.add(OUT, 0, b"x" * SECTOR)
    guest.wait(1)
    assert log_file.take() == pages(guest, status), "what it only reads is not"
    log(guest, False)
    assert guest.request(IN, 0, into=SECTOR)[0] == 0
    assert log_file.take() == set()


def test_another_log_takes_its_place(guest: Guest) -> None:
    first = Log(guest, MEMORY // PAGE // 8)
    log(guest, True)
    second = Log(guest, 4096, offset=8192 + 64)
    status, data = guest.add(IN, 0, into=SECTOR)
    guest.wait(1)
    assert second.take() == pages(guest, status, data)
    assert first.take() == set()


def test_memory_that_comes_is_logged_too(guest: Guest) -> None:
    there = 1 << 30
    log_file = Log(guest, (there + MEMORY) // PAGE // 8)
    log(guest, True)
    extra = guest.front.own(os.memfd_create("dimm", os.MFD_CLOEXEC))
    os.ftruncate(extra, MEMORY + PAGE)
    slot = fe.single(there, MEMORY, USER + there, PAGE)
    assert guest.front.tell(fe.ADD_MEM_REG, slot, [extra]) == 0
    status, _ = guest.add(IN, 0, into=SECTOR, at=there + 5 * PAGE)
    guest.wait(1)
    assert log_file.take() == pages(guest, status, there + 5 * PAGE)
    assert os.pread(extra, SECTOR, 6 * PAGE) == pattern()
    assert guest.front.tell(fe.REM_MEM_REG, slot) == 0
    # One that has no room in it is refused.
    slot = fe.single(there + MEMORY, MEMORY, USER + there, 0)
    guest.front.refused(fe.ADD_MEM_REG, slot, [extra])


def test_pages_that_are_not_the_log_s_are_refused(guest: Guest) -> None:
    Log(guest, 1 << 20)
    log(guest, True)
    slot = fe.single((1 << 30) + 512, PAGE, USER + (1 << 30), 0)
    guest.front.refused(fe.ADD_MEM_REG, slot, [guest.front.memory])


def test_a_log_that_is_cut_off_kills_nobody(guest: Guest) -> None:
    log_file = Log(guest, 4096)
    log(guest, True)
    os.ftruncate(log_file.fd, 0)
    guest.add(IN, 0, into=SECTOR)
    guest.wait(1)
    guest.front.ask(fe.GET_QUEUE_NUM)


def test_something_to_be_told_by_is_taken(guest: Guest) -> None:
    assert guest.front.tell(fe.SET_LOG_FD, b"", [guest.front.notifier()]) == 0
