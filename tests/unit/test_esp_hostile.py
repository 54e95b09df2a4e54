"""The ESP and a guest that does what no driver would: nothing spins, and nothing grows for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma.devices.dma2 import csr
from iodma.devices.esp.connection import MOST_ANSWERS
from tests.unit.engines import WatchedEngine
from tests.unit.espkit import (
    DATA,
    FDATA,
    INTRPT,
    MIP,
    MOK,
    PAGE,
    PAGES,
    RS,
    SATN,
    STATP,
    STATUS,
    TI,
    TUR,
    System,
    go,
    read10,
    system,
)


@pytest.fixture
def kit(engine: WatchedEngine, tmp_path: Path) -> Iterator[System]:
    with system(engine, tmp_path / "disk") as kit:
        yield kit


def test_a_medium_that_fails_in_front_of_a_fault_ends_the_data_phase(
    kit: System, tmp_path: Path
) -> None:
    """The bytes before the page that is refused cannot be read either: once the channel answers
    again there is nothing left to move, whatever the counter says."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        os.truncate(tmp_path / "disk", 0)
        await kit.start(read10(0, 2))
        kit.invalidate()
        kit.dma(DATA + PAGES * PAGE - 512, 1024, True, TI)
        await kit.settle()
        assert kit.espdma.bus_read(0, 4) & csr.ERR_PEND and kit.esp.count
        kit.invalidate()
        kit.espdma.bus_write(4, 4, DATA)
        kit.espdma.bus_write(0, 4, csr.D_EN_DMA | csr.D_WRITE | csr.INT_EN)
        assert (await kit.interrupt())[0] & 7 == STATP
        assert await kit.finish() == 2

    go(kit, main())


def test_resets_of_the_bus_over_and_over_leave_nothing(kit: System) -> None:
    async def main() -> None:
        for _ in range(50):
            kit.command(RS)
            await kit.settle()
            kit.read(INTRPT)
        assert len(kit.esp._drains) <= 2

    go(kit, main())


def test_answers_to_messages_that_nobody_takes_are_bounded(kit: System) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        kit.stop_in_message_out()
        await kit.interrupt()
        kit.poke(DATA, b"\x0b" * PAGE)
        for _ in range(3):
            kit.command(SATN)
            kit.dma(DATA, PAGE, False, TI)
            await kit.interrupt()
        bus = kit.esp.bus
        assert bus is not None and len(bus.messages) == MOST_ANSWERS
        for _ in range(MOST_ANSWERS):
            assert kit.read(STATUS) & 7 == MIP
            kit.command(TI)
            await kit.interrupt()
            assert kit.read(FDATA) == 7
            kit.command(MOK)
            await kit.interrupt()
        assert kit.read(STATUS) & 7 == 2, "the command comes next"

    go(kit, main())
