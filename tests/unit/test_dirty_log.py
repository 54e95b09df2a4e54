"""The dirty log: all that could have been written, whatever the status, before anybody is told."""

from __future__ import annotations

import mmap
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status

PAGE = 4096
PAGES = 64
BASE = 0x1_0000_0000


def pages_of(log: bytes, first: int = 0, count: int = PAGES) -> set[int]:
    """The pages whose bit is set."""
    return {
        bit - first
        for bit in range(first, first + count)
        if log[bit // 8] >> bit % 8 & 1
    }  # fmt: skip


def touched(segments: list[tuple[int, int]], base: int = BASE) -> set[int]:
    """The pages that a list lies in: the model."""
    return {
        page
        for address, length in segments
        if length
        for page in range((address - base) // PAGE, (address - base + length - 1) // PAGE + 1)
    }


class System:
    def __init__(self, path: Path) -> None:
        path.write_bytes(os.urandom(PAGES * PAGE))
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(PAGES * PAGE)
        self.iommu = iodma.Iommu(iodma.Memory({BASE: self.ram}))
        self.iommu.map(BASE, BASE, PAGES * PAGE)
        self.port = self.engine.port(self.iommu)
        self.file = iodma.File(path)
        self.direct = iodma.File(path, direct=True)
        self.null = iodma.Null()

    def run(self, awaitable: Any) -> Any:
        async def main() -> Any:
            return await awaitable

        return self.engine.run(main())

    def taken(self) -> set[int]:
        return pages_of(self.ram.take_dirty_log())

    def close(self) -> None:
        self.engine.close()
        self.file.close()
        self.direct.close()
        self.ram.close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path / "data")
    yield made
    made.close()


def a_list(rng: random.Random, most: int = 6) -> list[tuple[int, int]]:
    segments = []
    for _ in range(rng.randrange(1, most)):
        start = rng.randrange(PAGES * PAGE - 1)
        segments.append((BASE + start, rng.randrange(1, min(4 * PAGE, PAGES * PAGE - start) + 1)))
    return segments


def test_random_transfers_against_a_model(system: System, rng: random.Random) -> None:
    port, ram = system.port, system.ram
    ram.start_dirty_log()
    assert system.taken() == set()
    with iodma.Buffer(PAGES * PAGE) as buffer:
        for _ in range(300):
            segments = a_list(rng)
            total = sum(length for _, length in segments)
            kind = rng.randrange(8)
            expected = touched(segments)
            if kind == 0:
                system.run(port.to_memory(segments, source=system.file))
            elif kind == 1:
                system.run(port.to_memory(segments, source=system.direct, offset=rng.randrange(99)))
            elif kind == 2:
                system.run(port.to_memory(segments, source=buffer))
            elif kind == 3:
                system.run(port.from_memory(segments, to=system.null))
                expected = set()
            elif kind == 4:
                source = (BASE, total)
                if total > PAGES * PAGE:
                    continue
                system.run(port.copy(source, segments))
            elif kind == 5:
                address, length = segments[0]
                system.run(port.store_bytes(address, bytes(length)))
                expected = touched(segments[:1])
            elif kind == 6:
                system.run(port.load_bytes(*segments[0]))
                expected = set()
            else:  # behind the end of the file: nothing arrives, but it could have
                system.run(port.to_memory(segments, source=system.file, offset=1 << 30))
            assert system.taken() == expected
        assert system.taken() == set()


def test_what_faults_before_it_began_marks_nothing(system: System) -> None:
    system.ram.start_dirty_log()
    done = system.run(system.port.to_memory([(BASE, PAGE), (0, PAGE)], source=system.null))
    assert done.status is Status.FAULT
    assert system.taken() == set()


def test_a_cancelled_receive_marks_all_that_it_could_have_written(system: System) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, iodma.Socket(ours) as endpoint:

        async def main() -> None:
            going = system.port.to_memory((BASE + 100, 3 * PAGE), source=endpoint)
            await system.engine.sleep(0.01)
            system.ram.take_dirty_log()
            going.cancel()
            assert (await going).status is Status.CANCELLED
            assert system.taken() == {0, 1, 2, 3}

        system.ram.start_dirty_log()
        system.engine.run(main())


def test_a_peer_that_goes_and_a_failing_endpoint_mark_too(system: System) -> None:
    ours, theirs = socket.socketpair()
    with ours, iodma.Socket(ours) as endpoint:
        system.ram.start_dirty_log()
        theirs.sendall(b"x" * 10)
        theirs.close()
        done = system.run(system.port.to_memory((BASE, 2 * PAGE), source=endpoint))
        assert (done.status, done.moved) == (Status.PEER_GONE, 10)
        assert system.taken() == {0, 1}


def test_pages_are_marked_before_the_completion_is_seen(system: System) -> None:
    async def main() -> None:
        for page in range(32):
            await system.port.to_memory((BASE + page * PAGE, 1), source=system.file)
            assert system.taken() == {page}

    system.ram.start_dirty_log()
    system.engine.run(main())


def test_a_memory_endpoint_of_guest_ram_is_marked(system: System) -> None:
    system.ram.start_dirty_log()
    with iodma.Buffer(system.ram) as endpoint:
        done = system.run(
            system.port.from_memory((BASE, 2 * PAGE), to=endpoint, offset=5 * PAGE + 1)
        )
        assert done.ok
        assert system.taken() == {5, 6, 7}


@pytest.mark.parametrize("page", [512, 4096, 65536])
def test_other_page_sizes(system: System, page: int) -> None:
    system.ram.start_dirty_log(page)
    system.run(system.port.store_bytes(BASE + 60_000, bytes(10_000)))
    log = system.ram.take_dirty_log()
    expected = set(range(60_000 // page, 69_999 // page + 1))
    assert pages_of(log, count=PAGES * PAGE // page) == expected


def test_what_the_program_writes_it_marks_itself(system: System) -> None:
    system.ram.mark_dirty(0, PAGE)  # nothing is logged yet
    system.ram.start_dirty_log()
    system.ram.view()[3 * PAGE] = 1
    system.ram.mark_dirty(3 * PAGE, 1)
    system.ram.mark_dirty(5 * PAGE, 0)
    assert system.taken() == {3}
    with pytest.raises(iodma.AddressRangeError, match="of a region of"):
        system.ram.mark_dirty(PAGES * PAGE, 1)


# --- a log that somebody else keeps ---------------------------------------------------------------


def test_a_log_that_a_vmm_shares(system: System, rng: random.Random) -> None:
    """One bitmap for all of guest memory, in a memory file, as vhost-user has it."""
    first = BASE // PAGE
    fd = os.memfd_create("log")
    os.ftruncate(fd, (first + PAGES) // 8)
    with mmap.mmap(fd, 0) as ours, mmap.mmap(fd, 0) as theirs:
        system.ram.start_dirty_log(buffer=ours, first=first)
        model: set[int] = set()
        for _ in range(50):
            segments = a_list(rng)
            system.run(system.port.to_memory(segments, source=system.file))
            model |= touched(segments)
            assert pages_of(theirs[first // 8 :], first % 8) == model
        with pytest.raises(iodma.Error, match="buffer that it was given"):
            system.ram.take_dirty_log()
        with pytest.raises(BufferError):
            ours.close()  # it is held
        assert not any(theirs[: first // 8])
        system.ram.stop_dirty_log()
    os.close(fd)


def test_no_bit_outside_the_pages_is_set(system: System) -> None:
    log = bytearray(PAGES // 8 + 2)
    system.ram.start_dirty_log(buffer=log, first=5)
    system.run(system.port.store_bytes(BASE, bytes(PAGES * PAGE)))
    assert pages_of(bytes(log), 0, len(log) * 8) == set(range(5, 5 + PAGES))
    system.ram.stop_dirty_log()
    log.clear()  # it is ours again


def test_a_shared_log_that_is_truncated_takes_nothing_down(system: System) -> None:
    fd = os.memfd_create("log")
    os.ftruncate(fd, PAGE)
    log = mmap.mmap(fd, PAGE)
    system.ram.start_dirty_log(buffer=log)
    os.ftruncate(fd, 0)
    assert system.run(system.port.store_bytes(BASE, bytes(PAGE))).ok
    assert system.run(system.port.to_memory((BASE, PAGE), source=system.file)).ok
    system.ram.stop_dirty_log()
    log.close()
    os.close(fd)


def test_a_log_may_end_while_a_transfer_is_in_flight(system: System) -> None:
    ours, theirs = socket.socketpair()
    log = bytearray(PAGES // 8)
    with ours, theirs, iodma.Socket(ours) as endpoint:

        async def main() -> None:
            system.ram.start_dirty_log(buffer=log)
            going = system.port.to_memory((BASE, PAGE), source=endpoint)
            await system.engine.sleep(0.01)
            for _ in range(3):
                system.ram.stop_dirty_log()
                system.ram.start_dirty_log()
            theirs.sendall(bytes(PAGE))
            assert (await going).ok
            assert system.taken() == {0}
            system.ram.stop_dirty_log()
            log.clear()  # let go of

        system.engine.run(main())


def test_misuse_is_told(system: System) -> None:
    with pytest.raises(iodma.Error, match="no dirty log was started"):
        system.ram.take_dirty_log()
    with pytest.raises(iodma.AddressRangeError, match="64 pages from bit 1 on do not fit"):
        system.ram.start_dirty_log(buffer=bytearray(PAGES // 8), first=1)
    with pytest.raises(iodma.AddressRangeError, match="do not fit"):
        system.ram.start_dirty_log(buffer=bytearray(8), first=(1 << 64) - 1)
    with pytest.raises(iodma.ArgumentError, match="power of two"):
        system.ram.start_dirty_log(1000)
    with pytest.raises(BufferError):
        system.ram.start_dirty_log(buffer=bytes(PAGES // 8))  # type: ignore[arg-type]
