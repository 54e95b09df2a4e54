"""The dirty pages of a vfio-user session's DMA regions."""

from __future__ import annotations

import errno
import random

import pytest

from iodma.testing import ScriptedEndpoint
from tests.unit.system import hold
from tests.unit.vfio_table import (  # noqa: F401
    PAGE,
    TOP,
    Session,
    session_fixture,
)


def bits(report: bytes) -> set[int]:
    value = int.from_bytes(report, "little")
    return {i for i in range(value.bit_length()) if value >> i & 1}


def test_dirty_pages_are_reported_once(session: Session) -> None:
    session.map(0x10000, 32 * PAGE, offset=2 * PAGE)
    session.table.start_logging(PAGE)
    session.table.start_logging(PAGE)
    session.map(0x100000, 4 * PAGE, offset=60 * PAGE)
    report = session.table.report

    async def main() -> None:
        await session.port.store_bytes(0x10000 + 3 * PAGE - 1, b"ab")
        await session.port.store_bytes(0x100000, b"c")
        await session.port.load_bytes(0x10000 + 8 * PAGE, 4)

    session.run(main())
    assert len(report(0x100000, PAGE, PAGE)) == 8
    assert bits(report(0x10000, 2 * PAGE, PAGE)) == set()
    assert bits(report(0x10000 + PAGE, 2 * PAGE, PAGE)) == {1}
    assert bits(report(0x10000, 32 * PAGE, PAGE)) == {3}
    assert bits(report(0x10000, 32 * PAGE, PAGE)) == set()
    session.run(main())
    assert bits(report(0x10000, 32 * PAGE, 2 * PAGE)) == {1}
    session.run(main())
    assert bits(report(0x10000, 32 * PAGE, PAGE // 2)) == {4, 5, 6, 7}
    session.run(main())
    assert bits(report(0, 0x200000, PAGE)) == {0x12, 0x13, 0x100}
    session.table.stop_logging()
    assert session.refused(0x10000, PAGE, PAGE, call=report) == errno.EINVAL


def test_pages_of_the_file_that_are_mapped_twice_are_reported_twice(session: Session) -> None:
    session.map(0, 4 * PAGE)
    session.map(0x10000, 4 * PAGE, offset=PAGE)
    session.table.start_logging(PAGE)

    async def main() -> None:
        await session.port.store_bytes(2 * PAGE, b"x")

    session.run(main())
    assert bits(session.table.report(0x10000, 4 * PAGE, PAGE)) == {1}
    assert bits(session.table.report(0, 4 * PAGE, PAGE)) == {2}


def test_what_cannot_be_reported(session: Session) -> None:
    table = session.table
    for page in (0, 3, 4095, -4096):
        assert session.refused(page, call=table.start_logging) == errno.EINVAL
    session.map(0, 4 * PAGE)
    session.map(0x10000, shared=False)
    assert session.refused(0, PAGE, PAGE, call=table.report) == errno.EINVAL
    table.start_logging(PAGE)
    assert session.refused(2 * PAGE, call=table.start_logging) == errno.EINVAL
    assert session.refused(0xDEADBEEF, PAGE, PAGE, call=table.report) == errno.ENOENT
    assert session.refused(0x10000, PAGE, PAGE, call=table.report) == errno.EINVAL
    for length, page in [(PAGE, 1 << 24), (PAGE, 0), (PAGE, 3000), (0, PAGE), (1 << 60, PAGE)]:
        assert session.refused(0, length, page, call=table.report) == errno.EINVAL
    assert session.refused(TOP - 1, PAGE, PAGE, call=table.report) == errno.EINVAL


def test_unmap_with_its_dirty_pages(session: Session) -> None:
    table = session.table
    session.map(0, 4 * PAGE)

    def refused(size: int, page: int, room: int) -> int:
        return session.refused(0, size, dirty=(page, room), call=table.unmap)

    assert refused(4 * PAGE, PAGE, 8) == errno.EINVAL
    table.start_logging(PAGE)
    assert refused(2 * PAGE, PAGE, 8) == errno.ENOENT
    assert refused(4 * PAGE, PAGE, 7) == errno.EINVAL
    assert refused(4 * PAGE, 100, 8) == errno.EINVAL
    session.map(0x10000)
    assert table.unmap(0x10000, PAGE, dirty=(PAGE, 16)) == bytes(16)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold, on_cancel="ignore") as slow:
            transfer = session.port.to_memory((PAGE, 2 * PAGE), source=slow)
            while not slow.waiting:
                await session.engine.sleep(0)
            wait = table.unmap(0, 4 * PAGE, dirty=(PAGE, 8))
            assert wait is not None and not isinstance(wait, bytes)
            slow.answer_all()
            assert bits(await wait or b"") == {1, 2}
            await transfer

    session.run(main())
    assert table.regions == 0


@pytest.mark.parametrize("unit", [512, PAGE, 4 * PAGE])
def test_reports_name_every_page_that_was_written_to(unit: int, rng: random.Random) -> None:
    """At any address and offset: nothing is missed, and little said too much."""
    session = Session(256)
    session.table.start_logging(unit)
    regions: list[tuple[int, int, int]] = []
    at = 0
    for _ in range(30):
        at += rng.choice([0, 1, 100, PAGE, 5000])
        at += -at % rng.choice([1, PAGE])
        size = rng.choice([1, 100, PAGE, 3 * PAGE, 20_000])
        offset = rng.randrange(256 * PAGE - size)
        offset -= offset % rng.choice([1, PAGE, PAGE])
        session.map(at, size, offset=offset)
        regions.append((at, size, offset))
        at += size
    for _ in range(20):
        written: set[int] = set()

        async def main(written: set[int] = written) -> None:
            for _ in range(rng.randrange(4)):
                address, size, offset = rng.choice(regions)
                first = rng.randrange(size)
                n = rng.randint(1, size - first)
                await session.port.store_bytes(address + first, bytes(n))
                written.update(range(offset + first, offset + first + n))

        session.run(main())
        wanted: set[int] = set()
        allowed: set[int] = set()
        pages = {byte // PAGE for byte in written}
        for address, size, offset in regions:
            for byte in range(offset, offset + size):
                if byte // PAGE in pages:
                    allowed.add((address + byte - offset) // unit)
                    if byte in written:
                        wanted.add((address + byte - offset) // unit)
        length = at + -at % unit
        got = bits(session.table.report(0, length, unit))
        assert wanted <= got <= allowed
        assert bits(session.table.report(0, length, unit)) == set()
    session.close()
