"""Files with and without O_DIRECT give what plain pread and pwrite give, whatever is unaligned.

Invariants:

- A write changes the bytes it names and the file's size as `pwrite` does, no block more.
- A read that ends at the end of the file says so with `moved`; what lies in memory outside the list
  is never touched.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from tests.unit.flight import DIRECT_DIRECTORY, difference

BASE = 0x10_0000
RAM = 1 << 20


@pytest.fixture(params=[False, True], ids=["buffered", "direct"])
def path(request: pytest.FixtureRequest) -> Iterator[tuple[Path, bool]]:
    if request.param and DIRECT_DIRECTORY is None:
        pytest.skip("no directory here takes O_DIRECT")
    with tempfile.TemporaryDirectory(prefix="iodma-", dir=DIRECT_DIRECTORY) as folder:
        yield Path(folder) / "file", request.param


@pytest.fixture(params=[(0, 0), None], ids=["vector", "gather"])
def small(request: pytest.FixtureRequest) -> Any:
    return request.param


def edge(rng: random.Random, most: int) -> int:
    """A number at or beside a multiple of 512 or 4096, or any."""
    at = rng.choice([0, 512 * rng.randrange(1 + most // 512), rng.randrange(most + 1)])
    return min(most, max(0, at + rng.choice([0, 0, 1, -1, 100])))


def scattered(rng: random.Random, n: int) -> list[tuple[int, int]]:
    """`n` bytes in segments that do not overlap, some aligned like the file, most not."""
    segments, at = [], BASE + rng.choice([0, 0, 1, 512, 777])
    while n:
        length = min(n, rng.choice([n, 1, 7, 100, 512, 1000, 4096, 8192, rng.randint(1, 20_000)]))
        segments.append((at, length))
        n -= length
        at += length + rng.choice([0, 1, 3, 511, 512, 4096])
    rng.shuffle(segments)
    return segments


def test_any_offset_and_length(
    path: tuple[Path, bool], small: tuple[int, int] | None, rng: random.Random
) -> None:
    place, direct = path
    content = bytearray(rng.randbytes(edge(rng, 20_000)))
    place.write_bytes(content)
    with (
        iodma.Engine(strict=True, bounce_bytes=64 << 10, small=small) as engine,
        iodma.Ram(RAM) as ram,
        iodma.File(place, direct=direct) as file,
    ):
        port = engine.port(iodma.Memory({BASE: ram}))
        memory = bytearray(rng.randbytes(RAM))
        ram.view()[:] = memory

        async def writes(position: int, segments: list[tuple[int, int]]) -> None:
            data = b"".join(memory[a - BASE : a - BASE + n] for a, n in segments)
            done = await port.from_memory(segments, to=file, offset=position)
            assert (done.status, done.moved) == (Status.OK, len(data))
            if data:
                content.extend(bytes(max(0, position - len(content))))
                content[position : position + len(data)] = data
            got = place.read_bytes()
            assert len(got) == len(content), (position, segments)
            assert got == content, (position, segments, difference(got, content))

        async def reads(position: int, segments: list[tuple[int, int]]) -> None:
            data = bytes(content[position : position + sum(n for _, n in segments)])
            done = await port.to_memory(segments, source=file, offset=position)
            assert (done.status, done.moved) == (Status.OK, len(data)), (position, segments)
            got = bytes(ram.view())
            at = 0
            for address, n in segments:
                i = address - BASE
                part = data[at : at + n]
                memory[i : i + len(part)] = part
                if direct:  # behind the end of the file a block has zeroes
                    rest = slice(i + len(part), i + n)
                    assert all(
                        new in (0, old) for new, old in zip(got[rest], memory[rest], strict=True)
                    )
                    memory[rest] = got[rest]
                at += n
            assert got == memory, (position, segments, difference(got, memory))

        async def main() -> None:
            for _ in range(120):
                position = edge(rng, len(content) + 5000)
                act = rng.choice([reads, writes])
                await act(position, scattered(rng, edge(rng, 30_000)))

        engine.run(main())


def test_more_segments_than_a_request_takes(
    path: tuple[Path, bool], small: tuple[int, int] | None, rng: random.Random
) -> None:
    place, direct = path
    data = rng.randbytes(3000 * 32)
    place.write_bytes(data)
    with (
        iodma.Engine(strict=True, bounce_bytes=64 << 10, small=small) as engine,
        iodma.Ram(RAM) as ram,
        iodma.File(place, direct=direct) as file,
    ):
        port = engine.port(iodma.Memory({BASE: ram}))
        slots = rng.sample(range(RAM // 64), 3000)
        segments = [(BASE + 64 * slot + 5, 32) for slot in slots]

        async def main() -> None:
            done = await port.to_memory(segments, source=file)
            assert (done.status, done.moved) == (Status.OK, len(data))
            wanted = bytearray(RAM)
            for k, slot in enumerate(slots):
                wanted[64 * slot + 5 : 64 * slot + 37] = data[32 * k : 32 * k + 32]
            assert bytes(ram.view()) == wanted
            done = await port.from_memory(segments, to=file, offset=1)
            assert (done.status, done.moved) == (Status.OK, len(data))

        engine.run(main())
    assert place.read_bytes() == data[:1] + data


def test_many_bounces_share_a_small_arena(path: tuple[Path, bool], rng: random.Random) -> None:
    """Requests that need more of the arena than there is wait their turn, and all are served."""
    place, direct = path
    data = rng.randbytes(40_000)
    place.write_bytes(data)
    with (
        iodma.Engine(strict=True, bounce_bytes=64 << 10) as engine,
        iodma.Ram(4 << 20) as ram,
        iodma.File(place, direct=direct) as file,
    ):
        lanes = iodma.ByteLanes(iodma.Memory({0: ram}), 2)
        port = engine.port(lanes)
        step = 64 << 10

        async def main() -> None:
            moves = [port.to_memory((i * step, len(data)), source=file) for i in range(40)]
            for move in moves[5::7]:
                move.cancel()
            done = [await move for move in moves]
            swapped = bytearray(data)
            swapped[::2], swapped[1::2] = data[1::2], data[::2]
            for i, each in enumerate(done):
                if each.status == Status.OK:
                    assert bytes(ram.view(i * step, len(data))) == swapped
                else:
                    assert i % 7 == 5 and each.status == Status.CANCELLED
                assert not any(ram.view(i * step + len(data), step - len(data)))

        engine.run(main())
        stats = engine.stats()
        assert stats.waited["budget"] > 0
        assert 0 < stats.arena[2] <= 64 << 10 and stats.arena[1] == 0


def test_what_is_near_in_one_block_does_not_undo_each_other(
    path: tuple[Path, bool], rng: random.Random
) -> None:
    """Unaligned writes, zeroes and discards in the same blocks, all at once."""
    place, direct = path
    with (
        iodma.Engine(strict=True) as engine,
        iodma.Ram(RAM) as ram,
        iodma.File(place, direct=direct, create=8192) as file,
    ):
        port = engine.port(iodma.Memory({BASE: ram}))
        old, new = bytes([1]) * 8192, bytes([2]) * RAM
        ram.view()[:] = new

        async def main() -> None:
            for _ in range(120):
                place.write_bytes(old)
                content = bytearray(old)
                cuts = sorted(rng.sample(range(1, 8192), 12))
                moves = []
                for first, last in itertools.pairwise(cuts):
                    n, act = last - first, rng.randrange(4)
                    if act == 0:
                        continue
                    if act == 1:
                        moves.append(port.write_zeroes(file, first, n))
                    elif act == 2:
                        moves.append(port.discard(file, first, n))
                    else:
                        moves.append(port.from_memory((BASE + first, n), to=file, offset=first))
                    content[first:last] = bytes([2 if act == 3 else 0]) * n
                done = [await move for move in moves]
                if any(each.error == 95 for each in done):
                    pytest.skip("this file system cannot write zeroes")
                assert all(each.ok for each in done)
                got = place.read_bytes()
                assert got == content, difference(got, content)

        engine.run(main())
    assert os.path.getsize(place) == 8192


def test_a_file_grows_while_what_is_before_its_end_is_written(
    path: tuple[Path, bool], rng: random.Random
) -> None:
    """What ends in a part of a block goes through the page cache, and as the file grows by it the
    kernel fills the block that was the last there, too."""
    place, direct = path
    with (
        iodma.Engine(strict=True) as engine,
        iodma.Ram(1 << 16) as ram,
        iodma.File(place, direct=direct, create=4096) as file,
    ):
        port = engine.port(iodma.Memory({BASE: ram}))
        ram.view()[:] = rng.randbytes(ram.size)

        async def main() -> None:
            for _ in range(40):
                content = bytearray(rng.randbytes(rng.randrange(2100, 4000)))
                place.write_bytes(content)
                content += bytes(8192 - len(content))
                last = rng.choice([4097 + rng.randrange(1, 3000), 4608, 8192])
                pieces = [(0, 1024), (1024, 2048), (rng.choice([4096, 4097]), last)]
                moves = []
                for first, end in pieces:
                    content[first:end] = ram.view(first, end - first)
                    moves.append(
                        port.from_memory((BASE + first, end - first), to=file, offset=first)
                    )
                assert all([(await move).ok for move in moves])
                assert (await port.flush(file)).ok
                got = place.read_bytes()
                assert got == content[:last], difference(got, content[:last])

        engine.run(main())
