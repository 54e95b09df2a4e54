"""DMA regions of a vfio-user session that are unmapped: what is in flight there ends before."""

from __future__ import annotations

import errno
import logging

import pytest

import iodma
from iodma import Status
from iodma._core import Wait
from iodma.testing import ScriptedEndpoint
from iodma.transports.vfio_user import dma
from iodma.transports.vfio_user.messages import Refusal
from tests.unit.system import hold
from tests.unit.vfio_table import (  # noqa: F401
    PAGE,
    TOP,
    Session,
    mapped,
    session_fixture,
)


def test_what_cannot_be_unmapped(session: Session) -> None:
    unmap = session.table.unmap
    assert session.refused(0, PAGE, call=unmap) == errno.ENOENT
    session.map(0x10000, 4 * PAGE)
    for address, size in [
        (0, PAGE),
        (0x10000, PAGE),
        (0x11000, PAGE),
        (0x10000, 0),
        (0, 0x10001),
        (0x13000, 16 * PAGE),
        (TOP - 1, TOP - 1),
    ]:
        assert session.refused(address, size, call=unmap) == errno.ENOENT
    assert session.refused(0x10000, 4 * PAGE, call=unmap, all=True) == errno.EINVAL
    assert unmap(0x10000, 4 * PAGE) is None
    assert session.refused(0x10000, 4 * PAGE, call=unmap) == errno.ENOENT


def test_an_unmap_that_cuts_no_region_takes_all_that_it_holds(session: Session) -> None:
    for page in (1, 2, 5, 9):
        session.map(page * PAGE, shared=page != 5)
    assert session.table.unmap(PAGE, 8 * PAGE) is None
    assert session.table.regions == 1 and session.where(9 * PAGE) == 0
    assert session.table.unmap(0, TOP - 1) is None
    assert session.table.regions == 0


def test_nothing_but_the_tables_own_is_taken_away(session: Session) -> None:
    with iodma.Ram(PAGE) as ram:
        session.memory.add(0x100000, ram)
        assert session.refused(0x100000) == errno.EEXIST
        session.map(0)
        session.table.unmap(0, 0, all=True)
        assert session.where(0x100000) == 0
        session.memory.remove(0x100000)


def test_unmap_waits_for_what_is_in_flight_there_and_for_nothing_else(session: Session) -> None:
    session.map(0, 4 * PAGE)
    session.map(0x10000, offset=8 * PAGE)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold, on_cancel="ignore") as slow:
            here = session.port.to_memory((PAGE, 64), source=slow)
            there = session.port.to_memory((0x10000, 64), source=slow)
            while len(slow.waiting) < 2:
                await session.engine.sleep(0)
            wait = session.table.unmap(0, 4 * PAGE)
            assert isinstance(wait, Wait) and not wait.done
            assert (await session.port.copy((0, 8), (8, 8))).status is Status.FAULT
            session.map(0, offset=16 * PAGE)  # another one there is no matter
            slow.answer(slow.waiting[0])
            await wait
            assert here.done and not there.done
            slow.answer_all()
            assert (await there).ok

    session.run(main())


def test_unmap_of_all_waits_for_all(session: Session) -> None:
    for page in range(10):
        session.map(2 * page * PAGE, offset=page * PAGE)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold, on_cancel="ignore") as slow:
            for page in (1, 4, 7):
                session.port.to_memory((2 * page * PAGE, 64), source=slow)
            while len(slow.waiting) < 3:
                await session.engine.sleep(0)
            wait = session.table.unmap(0, 0, all=True)
            assert isinstance(wait, Wait)
            for left in (2, 1, 0):
                assert not wait.done
                slow.answer()
                assert len(slow.waiting) == left
                await session.engine.sleep(0)
                await session.engine.sleep(0)
            assert wait.done
            await wait

    session.run(main())


def test_what_does_not_end_by_itself_is_cancelled(session: Session) -> None:
    session.map(0)
    session.map(PAGE)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold) as slow:
            transfer = session.port.to_memory((0, 64), source=slow)
            while not slow.waiting:
                await session.engine.sleep(0)
            wait = session.table.unmap(0, PAGE)
            assert isinstance(wait, Wait)
            session.map(0)  # those who come through here are not meant
            other = session.port.to_memory((0, 64), source=slow)
            while len(slow.waiting) < 2:
                await session.engine.sleep(0)
            session.clock.advance(dma.PATIENCE_S)
            await wait
            assert (await transfer).status is Status.CANCELLED
            slow.answer_all()
            assert (await other).ok

    session.run(main())


def test_what_cannot_be_cancelled_makes_the_unmap_fail_and_keeps_its_bytes(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.map(0, 4 * PAGE)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold, on_cancel="ignore") as slow:
            transfer = session.port.to_memory((0, 64), source=slow)
            while not slow.waiting:
                await session.engine.sleep(0)
            wait = session.table.unmap(0, 4 * PAGE)
            assert isinstance(wait, Wait)
            session.clock.advance(dma.DEADLINE_S)
            with caplog.at_level(logging.ERROR, "iodma"), pytest.raises(Refusal) as caught:
                await wait
            assert caught.value.errno == errno.EBUSY
            assert f"by transfer {transfer.ticket:#x}" in caplog.text
            # Its bytes are nobody's, wherever they are mapped; all others of the file are.
            assert session.refused(0x40000, PAGE, offset=3 * PAGE) == errno.EBUSY
            session.map(0, offset=4 * PAGE)
            assert (await session.port.copy((0, 8), (8, 8))).ok
            slow.answer_all()
            await transfer
            session.map(0x40000, offset=3 * PAGE)

    session.run(main())


def test_close_cancels_and_waits() -> None:
    session = Session()
    session.map(0)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20, script=hold) as slow:
            transfer = session.port.to_memory((0, 64), source=slow)
            while not slow.waiting:
                await session.engine.sleep(0)
            assert await session.table.close()
            assert (await transfer).status is Status.CANCELLED

    session.run(main())
    session.close()
    assert mapped() == 0
