"""Batches with an end: whole units, none of them past it; and writes that go through, by turns."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import iodma
from iodma import ArgumentError, Batch, Status

UNIT = 512
LAST = (1 << 64) - 1


class System:
    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(64 * UNIT))
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(1 << 16)
        self.file = iodma.File(path)
        self.port = self.engine.port(iodma.Memory({0: self.ram}))

    def run(
        self, rows: list[tuple[int, list[tuple[int, int]]]], end: int | None, unit: int = UNIT
    ) -> list[tuple[Status, int, int]]:
        """Writes to the file; (status, errno, moved) of each, in their order."""
        batch = Batch(len(rows), sum(len(segments) for _, segments in rows) or 1)
        batch.n = len(rows)
        at = 0
        for i, (position, segments) in enumerate(rows):
            batch.id[i], batch.position[i] = i, position
            batch.first[i], batch.count[i] = at, len(segments)
            for address, length in segments:
                batch.address[at], batch.length[at] = address, length
                at += 1
        ended: dict[int, tuple[Status, int, int]] = {}

        async def main() -> None:
            self.port.submit(batch, self.file, unit=unit, end=end)
            async for done in self.port.completions():
                for i in range(len(done)):
                    ended[int(done.id[i])] = (
                        Status(done.status[i]),
                        int(done.error[i]),
                        int(done.moved[i]),
                    )

        self.engine.run(main())
        return [ended[i] for i in range(len(rows))]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path / "data")
    yield made
    made.engine.close()
    made.ram.close()
    made.file.close()


BEYOND = (Status.IO_ERROR, errno.ERANGE, 0)
CUT = (Status.IO_ERROR, errno.EINVAL, 0)


def test_what_reaches_past_the_end_moves_nothing(system: System) -> None:
    system.ram.view()[:] = b"\xff" * (1 << 16)
    end = 8 * UNIT
    got = system.run(
        [
            (0, [(0, 8 * UNIT)]),
            (7, [(0, 256), (4096, 256)]),
            (7, [(0, UNIT), (4096, UNIT)]),
            (8, [(0, UNIT)]),
            (8, []),
            (9, []),
            (1 << 55, [(0, UNIT)]),  # times 512 it is 2^64
            (LAST, [(0, UNIT)]),
            (0, [(0, LAST), (0, LAST)]),
            (1, [(0, 300)]),
            (1, [(0, 300), (512, 212)]),
        ],
        end,
    )
    assert got == [
        (Status.OK, 0, 8 * UNIT),
        (Status.OK, 0, UNIT),
        BEYOND,
        BEYOND,
        (Status.OK, 0, 0),
        BEYOND,
        BEYOND,
        BEYOND,
        BEYOND,
        CUT,
        (Status.OK, 0, UNIT),
    ]
    assert Path(system.file.name).read_bytes() == b"\xff" * end + bytes(56 * UNIT)


def test_random_requests_against_plain_arithmetic(system: System, rng: random.Random) -> None:
    """Whatever a guest says, with numbers of any size."""
    for _ in range(60):
        end = rng.choice((0, UNIT, 13 * UNIT + 5, 64 * UNIT))
        unit = rng.choice((1, 7, UNIT))
        rows = []
        for _ in range(rng.randrange(1, 12)):
            position = rng.choice((rng.randrange(80), rng.randrange(1 << 64)))
            lengths = [rng.choice((0, 1, 7, UNIT, rng.randrange(4096))) for _ in range(3)]
            rows.append((position, [(rng.randrange(1 << 12), n) for n in lengths]))
        for (position, segments), got in zip(rows, system.run(rows, end, unit), strict=True):
            total = sum(length for _, length in segments)
            if position * unit + total > end:
                assert got == BEYOND
            elif total % unit:
                assert got == CUT
            else:
                assert got == (Status.OK, 0, total)
    assert system.file.size == 64 * UNIT


def test_without_an_end_nothing_is_asked(system: System) -> None:
    assert system.run([(100, [(0, 300)])], None) == [(Status.OK, 0, 300)]
    assert system.file.size == 100 * UNIT + 300


def test_what_an_end_cannot_be(system: System) -> None:
    batch = Batch(1)
    for options in ({"end": -1}, {"end": 1 << 64}, {"end": 5, "unit": 0}):
        with pytest.raises(ArgumentError):
            system.port.submit(batch, system.file, **options)  # type: ignore[arg-type]
    assert system.port.outstanding == 0


def test_write_through_is_set_for_what_follows(system: System) -> None:
    assert not system.file.write_through
    for through in (True, False):
        system.file.write_through = through
        assert system.file.write_through is through
        assert system.run([(0, [(0, UNIT)])], None) == [(Status.OK, 0, UNIT)]
    with pytest.raises((AttributeError, TypeError)):
        del system.file._write_through
