"""Requests of a batch submitted again by what finished, and one with a plain position."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import iodma
from iodma import ArgumentError, Batch, Direction

BLOCK = 512
DEPTH = 8


class System:
    """A buffer that is read block by block, each request into its own place."""

    def __init__(self) -> None:
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(DEPTH * 4096)
        self.source = iodma.Buffer(64 * BLOCK)
        with self.source.view() as view:
            for block in range(64):
                view[block * BLOCK : (block + 1) * BLOCK] = bytes([block]) * BLOCK
        self.port = self.engine.port(iodma.Memory({0: self.ram}))
        self.batch = Batch(DEPTH)
        self.batch.n = DEPTH
        self.batch.direction[:] = Direction.TO_MEMORY
        for row in range(DEPTH):
            self.batch.id[row] = self.batch.first[row] = row
            self.batch.count[row] = 1
            self.batch.address[row], self.batch.length[row] = row * 4096, BLOCK
            self.batch.position[row] = row * BLOCK

    def block_in(self, row: int) -> int:
        """Which block lies where request `row` moves it, and all of it."""
        with self.ram.view() as view:
            got = bytes(view[row * 4096 : row * 4096 + BLOCK])
        assert got == got[:1] * BLOCK
        return got[0]


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    made.engine.close()
    made.source.close()
    made.ram.close()


def test_what_finished_is_submitted_again_by_its_ids(system: System) -> None:
    seen: list[int] = []

    async def main() -> None:
        system.port.submit(system.batch, system.source)
        async for done in system.port.completions(limit=3):
            rows = done.id.tolist()
            assert done.all_ok and 1 <= len(rows) <= 3
            seen.extend(rows)
            if len(seen) <= 2 * DEPTH:
                again = [10 + row for row in rows]
                for row, block in zip(rows, again, strict=True):
                    system.batch.position[row] = block * BLOCK
                system.port.submit(system.batch, system.source, rows=done)

    system.engine.run(main())
    assert set(seen) == set(range(DEPTH)) and len(seen) > 2 * DEPTH
    assert [system.block_in(row) for row in range(DEPTH)] == [10 + row for row in range(DEPTH)]


def test_ids_that_are_no_rows_are_refused_and_nothing_is_submitted(system: System) -> None:
    async def main() -> None:
        system.batch.id[:] = 1 << 40
        system.port.submit(system.batch, system.source)
        async for done in system.port.completions(limit=DEPTH, at_least=DEPTH):
            with pytest.raises(ArgumentError, match="1099511627776"):
                system.port.submit(system.batch, system.source, rows=done)
            assert system.port.outstanding == 0

    system.engine.run(main())


@pytest.mark.parametrize("row", [0, 5])
def test_one_request_takes_a_plain_position(system: System, row: int) -> None:
    async def main() -> None:
        system.batch.n = 1
        system.port.submit(system.batch, system.source, 33 * BLOCK)
        async for done in system.port.completions(limit=1):
            assert done.all_ok
        system.batch.id[0] = row
        system.port.submit(system.batch, system.source, 2 * BLOCK)
        async for done in system.port.completions(limit=1):
            system.port.submit(system.batch, system.source, 40, unit=BLOCK, rows=done)
            break
        async for done in system.port.completions(limit=1):
            assert done.all_ok

    system.engine.run(main())
    assert system.block_in(row) == 40
    assert row == 0 or system.block_in(0) == 2


@pytest.mark.parametrize(("rows", "position", "text"), [(2, 7, "2 requests"), (1, -1, "position")])
def test_a_plain_position_that_cannot_be_right(
    system: System, rows: int, position: int, text: str
) -> None:
    system.batch.n = rows
    with pytest.raises(ArgumentError, match=text):
        system.port.submit(system.batch, system.source, position)
    assert system.port.outstanding == 0
