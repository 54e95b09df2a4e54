"""The ESP and memory that refuses, that answers later, or that is the chip itself."""

from __future__ import annotations

from typing import Any

import pytest

import iodma
from iodma.devices.dma2 import csr
from tests.unit.espdisks import CONTENT, kit_fixture
from tests.unit.espkit import (
    BLOCK,
    BUSID,
    DATA,
    DIP,
    ICCS,
    INTR_BSERV,
    INTR_SR,
    INTRPT,
    MIP,
    PAGE,
    RC,
    RS,
    STATP,
    STATUS,
    TARGET,
    TI,
    TUR,
    OwnRegisters,
    System,
    go,
    read10,
    write10,
)

#: The fixtures.
__all__ = ["kit_fixture"]

# --- memory that refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("cdb", [read10(0, 16), write10(0, 16)])
def test_data_up_to_a_fault_is_moved(kit: System, cdb: bytes) -> None:
    """ESPDMA stands at the page that is refused; mapped, the transfer goes on."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.run(TUR)
        target = kit.where(DATA + PAGE)
        await kit.iommu.unmap(DATA + PAGE, PAGE)
        reads = (await kit.start(cdb))[0] & 7 == DIP
        kit.dma(DATA + 100, 8192, reads, TI)
        await kit.settle()
        assert not kit.raised() and not kit.esp.busy
        assert kit.espdma.bus_read(0, 4) & csr.ERR_PEND and kit.espdma.interrupt.level
        assert kit.espdma.bus_read(4, 4) == DATA + PAGE
        assert kit.esp.count == 8192 - (PAGE - 100)
        if reads:
            assert kit.peek(DATA + 100, PAGE - 100) == CONTENT[: PAGE - 100]
        kit.iommu.map(DATA + PAGE, target, PAGE)
        word = kit.espdma.bus_read(0, 4)
        kit.espdma.bus_write(0, 4, word | csr.INVALIDATE)
        status, _, why = await kit.interrupt()
        assert status & 7 == STATP and why == INTR_BSERV and await kit.finish() == 0
        if reads:
            assert kit.peek(DATA + 100, 8192) == CONTENT[:8192]

    go(kit, main())


@pytest.mark.parametrize("where", [0, 3, 10])
def test_a_command_that_cannot_be_fetched(kit: System, where: int) -> None:
    """A fault in the message or the CDB: nothing is sent, and a reset gets the chip out of it."""

    async def main() -> None:
        kit.write(BUSID, TARGET)
        kit.dma(BLOCK + PAGE - where, 11, False, 0x42)
        await kit.settle()
        assert kit.espdma.bus_read(0, 4) & csr.ERR_PEND and not kit.raised()
        assert not kit.esp.busy and kit.esp.bus and kit.esp.bus.request is None
        kit.command(RC)
        kit.clear_channel()
        assert await kit.run(TUR) == 2

    go(kit, main())


def test_a_status_that_cannot_be_stored(kit: System) -> None:
    async def main() -> None:
        await kit.start(TUR)
        kit.dma(BLOCK + PAGE - 1, 2, True, ICCS)
        await kit.settle()
        assert kit.espdma.bus_read(0, 4) & csr.ERR_PEND and not kit.raised()
        assert kit.peek(BLOCK + PAGE - 1, 1) == b"\2" and kit.esp.count == 1

    go(kit, main())


def test_the_channels_byte_counter_ends_and_goes_on(kit: System) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start(read10(0, 8))
        kit.espdma.bus_write(8, 4, 1000)
        word = kit.espdma.bus_read(0, 4)
        kit.espdma.bus_write(0, 4, word | csr.D_EN_CNT | csr.D_TCI_DIS)
        kit.dma(DATA, 4096, True, TI)
        await kit.settle()
        assert not kit.raised() and kit.esp.count == 3096
        assert kit.espdma.bus_read(0, 4) & csr.D_TC
        kit.espdma.bus_write(8, 4, 4000)
        assert (await kit.interrupt())[2] == INTR_BSERV and kit.espdma.bus_read(8, 4) == 904
        assert kit.peek(DATA, 4096) == CONTENT[:4096] and await kit.finish() == 0

    go(kit, main())


# --- memory that answers later --------------------------------------------------------------------


class Far:
    """Memory that somebody else has: what is read is answered when the test says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def read(self, offset: int, length: int, request: Any) -> None:
        self.asked.append(request)

    def write(self, offset: int, data: Any, request: Any) -> None:
        self.asked.append(request)


@pytest.mark.parametrize("how", ["done", "fail", "reset", "bus reset"])
@pytest.mark.parametrize("what", ["command", "status"])
def test_what_waits_for_memory(kit: System, how: str, what: str) -> None:
    """A CDB that is fetched, or a status that is stored, where memory takes its time."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        far = Far()
        kit.memory.add(1 << 40, iodma.RemoteMemory(far, PAGE))
        kit.iommu.map(0x6000_0000, 1 << 40, PAGE)
        if what == "command":
            kit.write(BUSID, TARGET)
            kit.dma(0x6000_0000, 7, False, 0x42)
        else:
            await kit.start(TUR)
            kit.dma(0x6000_0000, 2, True, ICCS)
        while not far.asked:
            await kit.engine.sleep(0)
        assert kit.esp.busy and not kit.raised()
        if how.endswith("reset"):
            kit.command(RC if how == "reset" else RS)
            assert kit.esp.bus is None and kit.esp.busy, "it drains"
        while kit.busy():
            for request in far.asked:
                if how == "fail":
                    request.fail()
                elif what == "command":
                    request.done(b"\x80" + TUR)
                else:
                    request.done()
            far.asked.clear()
            await kit.engine.sleep(0)
        if how == "done":
            status = kit.read(STATUS) & 7
            assert status == (STATP if what == "command" else MIP)
        elif how == "fail":
            assert kit.espdma.bus_read(0, 4) & csr.ERR_PEND and not kit.raised()
        else:
            assert kit.raised() == (how == "bus reset")
        await kit.end()
        await kit.memory.remove(1 << 40, cancel=True)
        kit.clear_channel()
        assert await kit.run(TUR) == 2 and await kit.run(TUR) == 0

    go(kit, main())


# --- re-entrancy ----------------------------------------------------------------------------------


def test_dma_that_hits_the_chips_own_registers(kit: System) -> None:
    """A sector of Reset Chip commands, read into the command register: it ends."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        window = iodma.DeviceWindow(OwnRegisters(kit), PAGE)
        kit.memory.add(1 << 40, window)
        try:
            kit.iommu.map(0x7000_0000, 1 << 40, PAGE)
            for command in (RC, RS, 0x90, 0x42, 0x11):
                kit.poke(DATA, bytes([command]) * 512)
                assert await kit.run(write10(9, 1), [(DATA, 512)]) in (0, 2)
                assert await kit.run(write10(9, 1), [(DATA, 512)]) == 0
                await kit.start_data(read10(9, 1), 0x7000_000C, 16, True)
                await kit.settle()
                kit.command(RC)
                await kit.settle()
                kit.command(RS)
                await kit.settle()
                assert kit.read(INTRPT) & INTR_SR
                kit.clear_channel()
                assert await kit.run(TUR) == 2
        finally:
            await kit.memory.remove(1 << 40, cancel=True)
            window.close()

    go(kit, main())
