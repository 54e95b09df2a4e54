"""The C loops that benchmarks compare with do the work that they count."""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iodma import _peer
from iodma.tools.bench.lists import memory_bytes, segment_table
from iodma.tools.facts import bare_ring

FILE_BYTES = 1 << 20

needs_uring = pytest.mark.skipif(
    bare_ring().error != 0, reason="io_uring is not allowed here, and is what the loop is for"
)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "data").write_bytes(os.urandom(FILE_BYTES))
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    yield fd
    os.close(fd)


@needs_uring
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("segments", "span"), [(1, (4096, 4096)), (8, (4096, 4096)), (64, (2, 128))]
)
def test_the_bytes_are_where_the_lists_say(
    file: int, segments: int, span: tuple[int, int], fixed: bool
) -> None:
    depth = 16
    lists = segment_table(depth, segments, *span)
    lengths = lists[:, 1].reshape(depth, segments).sum(axis=1).astype(int)
    unit = 8192 if segments == 64 else int(lengths[0])
    with mmap.mmap(-1, memory_bytes(depth, segments, span[1])) as memory:
        try:
            ns, requests, moved = _peer.uring_read_loop(
                file,
                memory,
                lists,
                segments=segments,
                file_bytes=FILE_BYTES,
                unit=unit,
                random=False,
                batch=4,
                complete_min=4,
                fixed_buffer=fixed,
                requests=1,
                seconds=5,
            )
        except OSError as error:
            if fixed and segments > 1 and error.errno == errno.EINVAL:
                pytest.skip("this kernel has no vectors in registered memory")
            raise
        assert ns > 0
        assert requests >= 1
        assert moved >= requests * lengths.min()
        expected = os.pread(file, FILE_BYTES, 0)
        # The first `depth` requests are one of each list, in order, and later ones are those of
        # lists that have finished: at least the last lists still hold their first read.
        for number in range(depth - 4, depth):
            rows = lists[number * segments : (number + 1) * segments].tolist()
            got = b"".join(memory[offset : offset + length] for offset, length in rows)
            position = number * unit
            assert got == expected[position : position + len(got)]


@needs_uring
def test_a_count_ends_the_loop_before_its_time(file: int) -> None:
    with mmap.mmap(-1, 1 << 17) as memory:
        ns, requests, moved = _peer.uring_read_loop(
            file,
            memory,
            segment_table(32, 1, 4096, 4096),
            file_bytes=FILE_BYTES,
            batch=16,
            requests=100,
            seconds=30,
        )
    assert 100 <= requests < 132
    assert moved == requests * 4096
    assert ns < 10e9


@needs_uring
def test_a_short_read_is_an_error_and_not_counted_as_work(file: int) -> None:
    with mmap.mmap(-1, 1 << 17) as memory, pytest.raises(OSError, match="short"):
        _peer.uring_read_loop(
            file, memory, segment_table(32, 1, 4096, 4096), file_bytes=FILE_BYTES * 4, batch=16
        )


@needs_uring
def test_a_bad_descriptor_is_an_error() -> None:
    with mmap.mmap(-1, 1 << 17) as memory, pytest.raises(OSError, match="Bad file descriptor"):
        _peer.uring_read_loop(
            -1, memory, segment_table(4, 1, 4096, 4096), file_bytes=FILE_BYTES, batch=1
        )


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"file_bytes": 0}, "file_bytes"),
        ({"unit": 0}, "unit"),
        ({"segments": 0}, "segments is 0"),
        ({"segments": 3}, "depth x 3"),
        ({"batch": 0}, "batch 0"),
        ({"batch": 5}, "batch 5"),
        ({"complete_min": 5}, "complete_min 5"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 1e9}, "seconds"),
    ],
)
def test_what_cannot_be_right_is_named(wrong: dict[str, float], text: str) -> None:
    arguments: dict[str, Any] = {"file_bytes": FILE_BYTES, "batch": 1, **wrong}
    with mmap.mmap(-1, 1 << 17) as memory, pytest.raises(ValueError, match=text):
        _peer.uring_read_loop(0, memory, segment_table(4, 1, 4096, 4096), **arguments)


@pytest.mark.parametrize("row", [(1 << 17, 1), (0, 0), (0, (1 << 17) + 1), (2**64 - 1, 2)])
def test_a_segment_outside_the_memory_is_refused(row: tuple[int, int]) -> None:
    lists = np.array([row], np.uint64)
    with mmap.mmap(-1, 1 << 17) as memory, pytest.raises(ValueError, match="segment 0"):
        _peer.uring_read_loop(0, memory, lists, file_bytes=FILE_BYTES, batch=1)


def test_copies_are_whole() -> None:
    source, target = bytearray(os.urandom(10_000)), bytearray(10_000)
    ns, copies, moved = _peer.memcpy_loop(target, source, 1000, seconds=1, copies=32)
    assert (copies, moved) == (32, 32_000)
    assert ns > 0
    assert target == source


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_copy_larger_than_the_buffers_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="bytes is"):
        _peer.memcpy_loop(bytearray(10), bytes(20), size)


@pytest.mark.parametrize("loop", [_peer.memcpy_loop])
def test_a_buffer_that_cannot_be_written_is_refused(loop: Callable[..., object]) -> None:
    with pytest.raises((TypeError, BufferError)):
        loop(bytes(10), bytes(10), 10)
