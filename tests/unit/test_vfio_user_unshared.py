"""Memory that a client does not share is told apart from memory in which nothing is yet.

Invariants:

- Private memory is really private: written to through a private mapping of its file, as a VMM does.
- Time is a clock's, which jumps when there is nothing to do.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import iodma
from iodma.testing import Clock, strict_engine
from iodma.transports.vfio_user import session, unshared
from iodma.transports.vfio_user.unshared import MOST_FILES, Unshared
from tests.unit.vfio_kit import pump, serving

SIZE = 64 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("guest")
    os.ftruncate(made, SIZE)
    yield made
    os.close(made)


def written(fd: int, flags: int, length: int, byte: bytes = b"x") -> mmap.mmap:
    memory = mmap.mmap(fd, SIZE, flags)
    for at in range(0, length, 4096):
        memory[at + 5 : at + 6] = byte
    return memory


def told(fd: int, seconds: float = 200) -> int:
    """How often it is said of a file that is watched for so long."""
    descriptors = len(os.listdir("/proc/self/fd"))
    times: list[None] = []
    with strict_engine(clock=Clock()) as engine:
        watch = Unshared(engine, lambda: times.append(None))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2 * MOST_FILES):
            watch.watch(fd)
        assert len(os.listdir("/proc/self/fd")) == before + MOST_FILES

        async def main() -> None:
            await engine.sleep(seconds)
            watch.close()

        engine.run(main())
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return len(times)


def test_private_memory_is_told_once(fd: int) -> None:
    with written(fd, mmap.MAP_PRIVATE, 4 << 20) as memory:
        assert memory[5:6] == b"x" and os.pread(fd, 1, 5) == b"\0"
        assert told(fd) == 1


def test_shared_memory_is_not_told(fd: int) -> None:
    with written(fd, mmap.MAP_SHARED, 4 << 20):
        assert told(fd) == 0


def test_nor_is_memory_with_next_to_nothing_in_it(fd: int) -> None:
    assert told(fd) == 0
    with written(fd, mmap.MAP_PRIVATE, unshared.LEAST // 2):
        assert told(fd) == 0


def test_one_byte_that_is_shared_is_enough(fd: int) -> None:
    with written(fd, mmap.MAP_SHARED, 4 << 20, b"\0") as memory:
        memory[(3 << 20) + 17] = 1
        assert told(fd) == 0


def test_a_session_that_ends_leaves_no_watch(fd: int) -> None:
    with written(fd, mmap.MAP_PRIVATE, 4 << 20):
        assert told(fd, seconds=unshared.PATIENCE_S / 2) == 0


def test_how_much_is_looked_at(fd: int) -> None:
    assert unshared.zeros_of(fd) == 0
    with written(fd, mmap.MAP_PRIVATE, 4 << 20):
        # A kernel short of memory may take some back.
        looked_at = unshared.zeros_of(fd)
        assert looked_at is not None and 3 << 20 <= looked_at <= 4 << 20
    os.pwrite(fd, bytes(32 << 20), 16 << 20)
    assert unshared.zeros_of(fd) == unshared.MOST
    blocks = os.fstat(fd).st_blocks
    unshared.zeros_of(fd)
    assert os.fstat(fd).st_blocks <= blocks
    os.pwrite(fd, b"x", 100)
    assert unshared.zeros_of(fd) is None
    reader, writer = os.pipe()
    assert unshared.zeros_of(reader) is None
    os.close(reader)
    os.close(writer)


def test_a_session_whose_client_cannot_be_looked_at(
    fd: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "peer_of", lambda _: 0)
    clock = Clock()
    with (
        iodma.Engine(strict=True, slow_step=None, clock=clock) as engine,
        written(fd, mmap.MAP_PRIVATE, 4 << 20),
        caplog.at_level(logging.WARNING, "iodma"),
        serving(engine, tmp_path) as (_, client),
    ):
        client.map(0, SIZE, fd)
        clock.advance(2 * unshared.PATIENCE_S)
        pump(engine, lambda: "share=on" in caplog.text)
    assert caplog.text.count("all that DMA can reach is zeros") == 1
