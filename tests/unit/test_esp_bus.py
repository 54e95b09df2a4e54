"""The ESP and its targets on the bus: disconnection, tags, messages, faults of memory, resets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma.devices.dma2 import csr
from iodma.scsi import Disk, LogicalUnit
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit.engines import WatchedEngine
from tests.unit.espkit import (
    BLOCK,
    BUSID,
    CFG1,
    DATA,
    DIP,
    ESEL,
    FDATA,
    FFLAGS,
    FLUSH,
    ICCS,
    INTR_BSERV,
    INTR_DC,
    INTR_FDONE,
    INTR_RSEL,
    INTR_SR,
    INTRPT,
    MIP,
    MOK,
    MOP,
    PAGE,
    RATN,
    RC,
    RS,
    SATN,
    STAT_INT,
    STATP,
    STATUS,
    SYNC,
    TARGET,
    TI,
    TUR,
    OwnRegisters,
    System,
    go,
    read10,
    system,
    write10,
)

CONTENT = (bytes(range(251)) * 4200)[: 1 << 20]


@pytest.fixture
def kit(engine: WatchedEngine, tmp_path: Path) -> Iterator[System]:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with system(engine, path) as kit:
        yield kit


class Slow:
    """A disk that answers when the test says: `hold` is a kind of request, such as "flush"."""

    def __init__(self, hold: str) -> None:
        self.endpoint = ScriptedEndpoint(
            CONTENT[: 1 << 16],
            script=lambda request: Answer.hold() if request.kind == hold else Answer.all(),
        )

    def units(self, _: Any) -> dict[int, LogicalUnit]:
        return {0: Disk(self.endpoint)}


async def asked(kit: System, disk: ScriptedEndpoint) -> None:
    """Until the disk was asked for what it holds."""
    for _ in range(10_000):
        if disk.waiting:
            return
        await kit.engine.sleep(0)
    raise AssertionError("the disk was not asked")


@pytest.fixture
def slow(engine: WatchedEngine) -> Iterator[tuple[System, ScriptedEndpoint]]:
    """A system whose disk flushes when it is told to."""
    slow = Slow("flush")
    with slow.endpoint, system(engine, units=slow.units) as kit:
        yield kit, slow.endpoint


# --- disconnection (SCSI-2 6.1.4.2, 6.6.6) --------------------------------------------------------


@pytest.mark.parametrize("tag", [None, 0x55])
def test_a_target_at_work_disconnects_and_comes_back(
    slow: tuple[System, ScriptedEndpoint], tag: int | None
) -> None:
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        status, step, why = await kit.start(SYNC, disconnect=True, tag=tag)
        assert status & 7 == MIP and step == 4 and why == INTR_BSERV | INTR_FDONE
        kit.command(TI)
        assert (await kit.interrupt(settled=False))[2] == INTR_FDONE
        assert kit.read(FDATA) == 4, "DISCONNECT"
        assert kit.esp.busy, "the disk works"
        kit.command(MOK)
        while not kit.raised():
            await kit.engine.sleep(0)
        assert kit.read(STATUS) & 7 == 0 and kit.read(INTRPT) == INTR_DC
        assert kit.esp.bus is None and len(kit.esp.away) == 1 and kit.esp.busy
        # The bus is free: another command runs meanwhile, of another LUN.
        assert await kit.start(TUR, lun=1, settled=False) is not None
        assert await kit.finish(settled=False) == 2
        await asked(kit, disk)
        disk.answer_all()
        await kit.settle()
        assert not kit.raised(), "it waits until the chip may be selected"
        kit.command(ESEL)
        status, why = await kit.reconnected()
        assert status & 7 == STATP and await kit.finish() == 0

    go(kit, main())


def test_without_the_privilege_it_stays(slow: tuple[System, ScriptedEndpoint]) -> None:
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        kit.select(SYNC)
        await asked(kit, disk)
        assert kit.esp.busy and not kit.raised() and kit.read(STATUS) & 7 == 0
        disk.answer_all()
        assert (await kit.interrupt())[0] & 7 == STATP and await kit.finish() == 0

    go(kit, main())


def test_several_tags_come_back_in_the_order_they_end(
    slow: tuple[System, ScriptedEndpoint],
) -> None:
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        for tag in (1, 2, 3):
            assert (await kit.start(SYNC, disconnect=True, tag=tag, settled=False))[0] & 7 == MIP
            await kit.take_disconnect()
        assert len(kit.esp.away) == 3
        await asked(kit, disk)
        disk.answer_all()
        for _ in (1, 2, 3):
            while kit.engine.stats().in_flight or disk.waiting:
                disk.answer_all()
                await kit.engine.sleep(0)
            kit.command(ESEL)
            status, _ = await kit.reconnected()
            assert status & 7 == STATP and await kit.finish(settled=False) == 0
        assert not kit.esp.away and not kit.esp.busy

    go(kit, main())


def test_a_disconnect_can_be_rejected(slow: tuple[System, ScriptedEndpoint]) -> None:
    """SCSI-2 6.6.14: ATN before ACK goes, then MESSAGE REJECT: the target stays."""
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start(SYNC, disconnect=True)
        kit.command(TI)
        await kit.interrupt(settled=False)
        kit.command(FLUSH)
        kit.command(SATN)
        kit.command(MOK)
        assert (await kit.interrupt(settled=False))[0] & 7 == MOP
        kit.write(FDATA, 7)
        kit.command(TI)
        await asked(kit, disk)
        disk.answer_all()
        assert (await kit.interrupt())[0] & 7 == STATP and await kit.finish() == 0

    go(kit, main())


# --- messages (SCSI-2 6.6) ------------------------------------------------------------------------


async def say(kit: System, *messages: int) -> tuple[int, int, int]:
    """Selects, stops in message out, and sends IDENTIFY and more."""
    kit.stop_in_message_out()
    assert (await kit.interrupt())[0] & 7 == MOP
    for byte in messages:
        kit.write(FDATA, byte)
    kit.command(TI)
    return await kit.interrupt()


def test_synchronous_transfer_is_agreed(kit: System) -> None:
    async def main() -> None:
        status, _, _ = await say(kit, 1, 3, 1, 12, 99)
        assert status & 7 == MIP
        got = []
        while status & 7 == MIP:
            kit.command(TI)
            assert (await kit.interrupt())[2] == INTR_FDONE
            got.append(kit.read(FDATA))
            kit.command(MOK)
            status, _, why = await kit.interrupt()
            assert why == INTR_BSERV
        assert got == [1, 3, 1, 25, 15] and status & 7 == 2

    go(kit, main())


@pytest.mark.parametrize("message", [(1, 2, 3, 1), (0x0F,), (0x02,), (1, 0, *[9] * 14)])
def test_what_a_target_does_not_know_it_rejects(kit: System, message: tuple[int, ...]) -> None:
    async def main() -> None:
        status, _, _ = await say(kit, *message)
        if message[1:2] == (0,):
            assert status & 7 == 2, "cut: 256 more bytes would belong to it"
            return
        assert status & 7 == MIP
        kit.command(TI)
        await kit.interrupt()
        assert kit.read(FDATA) == 7
        kit.command(MOK)
        assert (await kit.interrupt())[0] & 7 == 2

    go(kit, main())


@pytest.mark.parametrize("message", [0x06, 0x0C, 0x0D, 0x0E])
def test_an_abort_frees_the_bus(kit: System, message: int) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        status, step, why = await say(kit, message)
        assert (status & 0x87, step, why) == (STAT_INT, 0, INTR_DC)
        assert kit.esp.bus is None
        assert await kit.run(TUR) == (2 if message == 0x0C else 0), "a reset is a unit attention"

    go(kit, main())


def test_an_abort_in_the_data_phase(kit: System) -> None:
    """What esp_scsi.c does to abort a command that is connected."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start_data(read10(0, 8), DATA, 100, True)
        await kit.interrupt()
        assert kit.esp.bus
        request = kit.esp.bus.request
        kit.command(SATN)
        assert kit.read(STATUS) & 7 == MOP
        kit.command(RATN)
        assert kit.read(STATUS) & 7 == DIP
        kit.command(SATN)
        kit.write(FDATA, 6)
        kit.command(TI)
        assert (await kit.interrupt())[2] == INTR_DC
        assert request and request.over and request.status is None
        assert await kit.run(TUR) == 0

    go(kit, main())


def test_an_abort_of_what_has_disconnected(slow: tuple[System, ScriptedEndpoint]) -> None:
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start(SYNC, disconnect=True)
        await kit.take_disconnect()
        await asked(kit, disk)
        kit.stop_in_message_out()
        await kit.interrupt(settled=False)
        kit.write(FDATA, 6)
        kit.command(TI)
        disk.answer_all()
        assert (await kit.interrupt())[2] == INTR_DC
        kit.command(ESEL)
        await kit.settle()
        assert not kit.raised(), "nobody comes back"

    go(kit, main())


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


# --- resets, in every phase -----------------------------------------------------------------------


async def to_selection(kit: System, disk: ScriptedEndpoint) -> None:
    kit.write(BUSID, TARGET)
    kit.write(0, 11)
    kit.command(0x42 | 0x80)  # its channel does not answer
    await kit.settle()


async def to_message_out(kit: System, disk: ScriptedEndpoint) -> None:
    assert (await say(kit, 8, 8))[0] & 7 == 2


async def to_command(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(b"\x28\0\0", by_dma=False)


async def to_work(kit: System, disk: ScriptedEndpoint) -> None:
    kit.select(SYNC)
    await asked(kit, disk)


async def to_away(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(SYNC, disconnect=True)
    await kit.take_disconnect()
    kit.command(ESEL)
    await asked(kit, disk)


async def to_data(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(read10(0, 2))


async def to_data_under_way(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start_data(read10(0, 2), DATA, 1024, True)
    await asked(kit, disk)


async def to_data_out_under_way(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start_data(write10(64, 2), DATA, 1024, False)
    await asked(kit, disk)


async def to_status(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(TUR)


async def to_status_under_way(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(TUR)
    kit.write(0, 2)
    kit.command(ICCS | 0x80)
    await kit.settle()


async def to_message_in(kit: System, disk: ScriptedEndpoint) -> None:
    await kit.start(TUR)
    kit.command(ICCS)
    await kit.interrupt()


PHASES = {
    "selection": (to_selection, ""),
    "message out": (to_message_out, ""),
    "command": (to_command, ""),
    "at work": (to_work, "flush"),
    "disconnected": (to_away, "flush"),
    "data": (to_data, ""),
    "data in under way": (to_data_under_way, "transfer"),
    "data out under way": (to_data_out_under_way, "transfer"),
    "status": (to_status, ""),
    "status under way": (to_status_under_way, ""),
    "message in": (to_message_in, ""),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["chip", "bus", "dma", "machine"])
def test_a_reset_in_every_phase(engine: WatchedEngine, phase: str, how: str) -> None:
    """It takes effect at once; what was in flight ends first; then everything works again."""
    get_there, hold = PHASES[phase]
    held = {"on": False}
    disk = ScriptedEndpoint(
        CONTENT[: 1 << 16],
        script=lambda request: (
            Answer.hold() if held["on"] and request.kind == hold else Answer.all()
        ),
    )

    with disk, system(engine, units=lambda _: {0: Disk(disk)}) as kit:

        async def main() -> None:
            assert await kit.run(TUR) == 2
            kit.write(CFG1, 0x17)
            kit.poke(DATA, bytes(2048))
            held["on"] = True
            await get_there(kit, disk)
            held["on"] = False
            if how == "machine":
                ended = kit.esp.request_reset()
                assert kit.esp.busy
                if disk.waiting:
                    disk.answer_all()
                await ended
            else:
                if how == "dma":
                    kit.espdma.bus_write(0, 4, csr.INT_EN | csr.RESET)
                else:
                    kit.command(RC if how == "chip" else RS)
                assert kit.esp.bus is None
                assert kit.read(CFG1) == (0x17 if how == "bus" else 7)
                assert kit.raised() == (how == "bus")
                assert kit.read(INTRPT) & INTR_SR == (INTR_SR if how == "bus" else 0)
                await kit.settle_by(disk)
            assert not kit.esp.busy
            before = kit.peek(DATA, 2048)
            kit.clear_channel()
            kit.command(FLUSH)
            if phase == "disconnected" and how in ("chip", "dma"):
                kit.command(ESEL)
                status, _ = await kit.reconnected()
                assert status & 7 == STATP and await kit.finish() == 0
            status_byte = await kit.run(TUR)
            assert status_byte == (2 if how == "bus" else 0)
            assert await kit.run(read10(1, 4), [(DATA + PAGE, 2048)]) == 0
            assert kit.peek(DATA + PAGE, 2048) == CONTENT[512 : 512 + 2048]
            assert kit.peek(DATA, 2048) == before, "nothing came later"

        go(kit, main())


def test_a_reset_of_the_bus_need_not_be_told(kit: System) -> None:
    async def main() -> None:
        kit.write(CFG1, 0x47)
        kit.command(RS)
        await kit.settle()
        assert kit.read(STATUS) == 0 and kit.read(INTRPT) == 0

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


def test_a_reselection_has_both_ids(slow: tuple[System, ScriptedEndpoint]) -> None:
    kit, disk = slow

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start(SYNC, disconnect=True)
        await kit.take_disconnect()
        kit.write(CFG1, 5)
        kit.command(ESEL)
        await asked(kit, disk)
        disk.answer_all()
        assert await kit.interrupt() == (STAT_INT | 0x10 | MIP, 0, INTR_RSEL | INTR_FDONE)
        assert kit.read(FFLAGS) & 0x1F == 2
        assert (kit.read(FDATA), kit.read(FDATA)) == (1 << 5 | 1 << TARGET, 0x80)

    go(kit, main())
