"""The ESP's registers and commands, by the datasheet's sections (NCR 53C90A, 53C94, FAS100A)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma.devices.dma2 import csr
from tests.unit.engines import WatchedEngine
from tests.unit.espkit import (
    BLOCK,
    BUSID,
    CFG1,
    CFG2,
    CFG3,
    CMD,
    CMDP,
    DATA,
    DIP,
    DMA,
    DOP,
    ESEL,
    FDATA,
    FFLAGS,
    FLUSH,
    ICCS,
    INTR_BSERV,
    INTR_DC,
    INTR_FDONE,
    INTR_IC,
    INTR_SR,
    INTRPT,
    MIP,
    MOK,
    MOP,
    NOP,
    RATN,
    RC,
    RS,
    SATN,
    SELA,
    SSTEP,
    STAT_GE,
    STAT_INT,
    STAT_TC,
    STATP,
    STATUS,
    TARGET,
    TCHI,
    TCLOW,
    TCMED,
    TI,
    TPAD,
    TUR,
    System,
    go,
    read10,
    system,
    write10,
)

INQUIRY = b"\x12\0\0\0\x24\0"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes((bytes(range(251)) * 4200)[: 1 << 20])
    return path


@pytest.fixture
def kit(engine: WatchedEngine, disk: Path) -> Iterator[System]:
    with system(engine, disk) as kit:
        yield kit


# --- registers ------------------------------------------------------------------------------------


def test_power_on(kit: System) -> None:
    values = [kit.read(register) for register in range(16)]
    assert values == [0] * 8 + [7] + [0] * 5 + [4, 0], "own ID 7; TC HIGH is a FAS100A's ID"
    assert not kit.esp.busy and not kit.raised()


def test_registers_are_a_byte_four_apart(kit: System) -> None:
    assert kit.esp.bus_read(0x20, 1) == 7
    assert [kit.esp.bus_read(at, 1) for at in (0x21, 0x22, 0x23, 0x40)] == [0xFF] * 4


def test_configuration_registers_keep_what_is_written(kit: System) -> None:
    for register in (CFG1, CFG2, CFG3):
        kit.write(register, 0xA5)
        assert kit.read(register) == 0xA5
    kit.command(RC)
    assert [kit.read(each) for each in (CFG1, CFG2, CFG3)] == [7, 0, 0]


def test_the_counter_is_loaded_by_a_command_with_dma(kit: System) -> None:
    kit.write(TCLOW, 0x34)
    kit.write(TCMED, 0x12)
    assert kit.read(TCLOW) == 0 and kit.read(TCMED) == 0
    kit.command(NOP)
    assert kit.read(TCLOW) == 0
    kit.command(NOP | DMA)
    assert kit.read(TCLOW) == 0x34 and kit.read(TCMED) == 0x12
    assert kit.read(TCHI) == 4, "the ID, until it is written"
    kit.write(TCHI, 0x56)
    kit.command(NOP | DMA)
    assert kit.read(TCHI) == 0 and kit.esp.count == 0x1234, "16 bits without features"
    kit.write(CFG2, 0x40)
    kit.command(NOP | DMA)
    assert kit.read(TCHI) == 0x56 and kit.esp.count == 0x561234


def test_a_count_of_0_is_the_most(kit: System) -> None:
    kit.command(NOP | DMA)
    assert kit.esp.count == 1 << 16
    kit.write(CFG2, 0x40)
    kit.command(NOP | DMA)
    assert kit.esp.count == 1 << 24


def test_the_fifo_has_16_bytes(kit: System) -> None:
    for value in range(16):
        kit.write(FDATA, value)
        assert kit.read(FFLAGS) == value + 1
    assert not kit.read(STATUS) & STAT_GE
    kit.write(FDATA, 0xEE)
    assert kit.read(FFLAGS) == 16 and kit.read(STATUS) & STAT_GE, "its top was overwritten"
    assert [kit.read(FDATA) for _ in range(17)] == [*range(15), 0xEE, 0]
    kit.write(FDATA, 1)
    kit.command(FLUSH)
    assert kit.read(FFLAGS) == 0


def test_reading_the_interrupt_register_clears(kit: System) -> None:
    async def main() -> None:
        for _ in range(17):
            kit.write(FDATA, 0xC0)
        kit.command(RS)
        assert kit.read(STATUS) == STAT_INT | STAT_GE and kit.raised()
        assert kit.read(INTRPT) == INTR_SR
        assert kit.read(STATUS) == 0 and not kit.raised() and kit.read(INTRPT) == 0

    go(kit, main())


# --- commands, by mode ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [TI, ICCS, MOK, TPAD, SATN, RATN, 0x20, 0x2B, 0x04, 0x50, 0x7F])
def test_a_command_of_another_mode_is_illegal(kit: System, code: int) -> None:
    for command in (code, code | DMA):
        kit.command(command)
        assert kit.read(STATUS) == STAT_INT
        assert kit.read(INTRPT) == INTR_IC and not kit.esp.busy
        assert kit.read(CMD) == command


@pytest.mark.parametrize("code", [0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47])
def test_a_connected_chip_selects_nobody(kit: System, code: int) -> None:
    async def main() -> None:
        status, _, _ = await kit.start(TUR)
        kit.command(code)
        assert kit.read(INTRPT) == INTR_IC and kit.read(STATUS) == status & ~STAT_INT

    go(kit, main())


def test_disable_selection(kit: System) -> None:
    kit.command(ESEL)
    assert not kit.read(STATUS) & STAT_INT
    kit.command(0x45)
    assert kit.read(INTRPT) == INTR_FDONE


# --- selection ------------------------------------------------------------------------------------


def test_a_selection_that_nobody_answers_times_out(kit: System) -> None:
    async def main() -> None:
        for target in (1, 7):  # nobody, and itself
            for by_dma in (False, True):
                status, step, why = await kit.start(TUR, target=target, by_dma=by_dma)
                assert (status, step, why) == (STAT_INT, 0, INTR_DC)
                kit.command(FLUSH)

    go(kit, main())


@pytest.mark.parametrize("by_dma", [False, True])
def test_select_with_atn_sends_a_command(kit: System, by_dma: bool) -> None:
    async def main() -> None:
        status, step, why = await kit.start(INQUIRY, by_dma=by_dma)
        assert status & 7 == DIP and step == 4 and why == INTR_BSERV | INTR_FDONE
        assert bool(status & STAT_TC) is by_dma
        assert kit.read(SSTEP) == 0, "read clears"
        assert kit.read(FFLAGS) == 0

    go(kit, main())


def test_select_without_atn_sends_a_command(kit: System) -> None:
    async def main() -> None:
        for byte in INQUIRY:
            kit.write(FDATA, byte)
        kit.write(BUSID, TARGET)
        kit.command(0x41)
        assert await kit.interrupt() == (STAT_INT | DIP, 4, INTR_BSERV | INTR_FDONE)

    go(kit, main())


def test_select_with_atn3_sends_a_tag(kit: System) -> None:
    async def main() -> None:
        status, step, why = await kit.start(INQUIRY, tag=0x42)
        assert status & 7 == DIP and step == 4 and why == INTR_BSERV | INTR_FDONE
        assert kit.esp.bus and kit.esp.bus.request and kit.esp.bus.request.tag == 0x42

    go(kit, main())


def test_select_and_stop_leaves_the_target_in_message_out(kit: System) -> None:
    async def main() -> None:
        kit.stop_in_message_out()
        assert await kit.interrupt() == (STAT_INT | MOP, 1, INTR_BSERV | INTR_FDONE)
        for byte in (0x20, 9):
            kit.write(FDATA, byte)
        kit.command(TI)
        assert await kit.interrupt() == (STAT_INT | CMDP, 0, INTR_BSERV)
        for byte in INQUIRY[:4]:
            kit.write(FDATA, byte)
        kit.command(TI)
        assert await kit.interrupt() == (STAT_INT | CMDP, 0, INTR_BSERV)
        kit.poke(BLOCK, INQUIRY[4:])
        kit.dma(BLOCK, 2, False, TI)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | DIP, 0, INTR_BSERV)
        assert kit.esp.bus and kit.esp.bus.request and kit.esp.bus.request.tag == 9

    go(kit, main())


def test_what_the_target_does_not_take_stays_in_the_fifo(kit: System) -> None:
    async def main() -> None:
        status, step, _ = await kit.start(INQUIRY + b"\xaa\xbb")
        assert status & 7 == DIP and step == 3
        assert kit.read(FFLAGS) == 2 and kit.read(FDATA) == 0xAA

    go(kit, main())


def test_a_selection_waits_for_its_channel(kit: System) -> None:
    async def main() -> None:
        kit.write(TCLOW, 7)
        kit.write(BUSID, TARGET)
        kit.poke(BLOCK, b"\x80" + INQUIRY)
        kit.espdma.bus_write(4, 4, BLOCK)
        kit.command(SELA | DMA)
        await kit.settle()
        assert kit.read(STATUS) & STAT_INT == 0
        kit.espdma.bus_write(0, 4, csr.D_EN_DMA)
        assert kit.esp.busy
        assert await kit.interrupt() == (STAT_INT | STAT_TC | DIP, 4, INTR_BSERV | INTR_FDONE)
        assert kit.espdma.bus_read(4, 4) == BLOCK + 7

    go(kit, main())


# --- information transfer -------------------------------------------------------------------------


def test_status_and_message(kit: System) -> None:
    async def main() -> None:
        status, _, _ = await kit.start(TUR)
        assert status & 7 == STATP
        kit.command(ICCS)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | MIP, 0, INTR_FDONE)
        assert kit.read(FFLAGS) == 2
        assert (kit.read(FDATA), kit.read(FDATA)) == (2, 0), "CHECK CONDITION: POWER ON"
        kit.command(MOK)
        assert await kit.interrupt() == (STAT_INT | STAT_TC, 0, INTR_DC)
        assert kit.esp.bus is None

    go(kit, main())


def test_status_and_message_by_dma(kit: System) -> None:
    async def main() -> None:
        await kit.start(TUR)
        kit.poke(BLOCK, b"\xff" * 4)
        kit.dma(BLOCK, 2, True, ICCS)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | MIP, 0, INTR_FDONE)
        assert kit.peek(BLOCK, 4) == b"\2\0\xff\xff" and kit.read(FFLAGS) == 0

    go(kit, main())


def test_status_and_message_one_by_one(kit: System) -> None:
    async def main() -> None:
        await kit.start(TUR)
        kit.command(TI)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | MIP, 0, INTR_BSERV)
        assert kit.read(FDATA) == 2
        kit.command(TI)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | MIP, 0, INTR_FDONE)
        assert kit.read(FDATA) == 0
        kit.command(MOK)
        assert (await kit.interrupt())[2] == INTR_DC

    go(kit, main())


def test_a_read_goes_straight_to_scattered_pages(kit: System, disk: Path) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        before = kit.engine.stats()
        pieces = [(DATA + 0x100, 0xF000), (DATA + 0xF100, 0x1000)]
        assert await kit.run(read10(5, 128), pieces) == 0
        after = kit.engine.stats()
        assert after.copied == before.copied and after.bounced.total == before.bounced.total
        assert kit.peek(DATA + 0x100, 0x10000) == disk.read_bytes()[2560 : 2560 + 0x10000]

    go(kit, main())


def test_a_write_goes_straight_to_the_file(kit: System, disk: Path) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        data = bytes(range(256)) * 64
        kit.poke(DATA, data)
        before = kit.engine.stats()
        assert await kit.run(write10(3, 32), [(DATA, 0x1800), (DATA + 0x1800, 0x2800)]) == 0
        after = kit.engine.stats()
        assert after.copied == before.copied and after.bounced.total == before.bounced.total
        assert disk.read_bytes()[1536 : 1536 + len(data)] == data

    go(kit, main())


def test_the_counter_ends_a_transfer_in_the_data_phase(kit: System, disk: Path) -> None:
    async def main() -> None:
        await kit.run(TUR)
        await kit.start_data(read10(0, 2), DATA, 1000, True)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | DIP, 0, INTR_BSERV)
        assert kit.espdma.bus_read(4, 4) == DATA + 1000
        kit.dma(DATA + 1000, 100, True, TI)
        status, _, why = await kit.interrupt()
        assert status == STAT_INT | STATP and why == INTR_BSERV, "the target had only 24 more"
        assert kit.read(TCLOW) == 76 and kit.peek(DATA, 1024) == disk.read_bytes()[:1024]
        assert await kit.finish() == 0

    go(kit, main())


def test_data_without_dma_goes_through_the_fifo(kit: System, disk: Path) -> None:
    async def main() -> None:
        await kit.run(TUR)
        await kit.start(read10(7, 1), by_dma=False)
        got = bytearray()
        for _ in range(512):
            kit.command(TI)
            status, _, why = await kit.interrupt()
            assert why == INTR_BSERV
            got.append(kit.read(FDATA))
        assert status & 7 == STATP and got == disk.read_bytes()[3584 : 3584 + 512]
        assert await kit.finish() == 0
        await kit.start(write10(7, 1), by_dma=False)
        for at in range(0, 512, 16):
            for byte in range(at, at + 16):
                kit.write(FDATA, byte & 0xFF)
            kit.command(TI)
            status, _, why = await kit.interrupt()
            assert why == INTR_BSERV and kit.read(FFLAGS) == 0
        assert status & 7 == STATP and await kit.finish() == 0
        assert disk.read_bytes()[3584 : 3584 + 512] == bytes(range(256)) * 2

    go(kit, main())


@pytest.mark.parametrize(("cdb", "phase"), [(read10(7, 3), DIP), (write10(7, 3), DOP)])
def test_transfer_pad(kit: System, disk: Path, cdb: bytes, phase: int) -> None:
    """The rest of a data phase is padded: zeroes to the target, or what it gives dropped."""
    content = disk.read_bytes()

    async def main() -> None:
        await kit.run(TUR)
        kit.poke(DATA, b"\xee" * 4096)
        assert (await kit.start(cdb))[0] & 7 == phase
        kit.dma(DATA, 1000, phase == DIP, TI)
        assert (await kit.interrupt())[0] == STAT_INT | STAT_TC | phase
        kit.write(TCLOW, 0)
        kit.write(TCMED, 0xFF)
        kit.command(TPAD | DMA)
        assert await kit.interrupt() == (STAT_INT | STATP, 0, INTR_BSERV)
        assert kit.esp.count == 0xFF00 - 536
        assert await kit.finish() == 0
        if phase == DIP:
            assert kit.peek(DATA, 1001) == content[3584 : 3584 + 1000] + b"\xee"
        else:
            assert disk.read_bytes()[3584 : 3584 + 1536] == b"\xee" * 1000 + bytes(536)

    go(kit, main())


def test_an_error_of_the_medium_ends_the_data_phase(kit: System) -> None:
    async def main() -> None:
        await kit.run(TUR)
        status, _, _ = await kit.start(read10(1 << 20, 1))
        assert status & 7 == STATP and await kit.finish() == 2
        assert await kit.run(b"\3\0\0\0\x12\0", [(DATA, 18)]) == 0
        assert kit.peek(DATA, 14)[2] == 5 and kit.peek(DATA, 14)[12] == 0x21, "LBA OUT OF RANGE"

    go(kit, main())


# --- commands in phases that they are not for -----------------------------------------------------


@pytest.mark.parametrize("code", [0x40, 0x47])
def test_a_reselection_finds_no_initiator(kit: System, code: int) -> None:
    async def main() -> None:
        kit.command(code)
        assert await kit.interrupt() == (STAT_INT, 0, INTR_DC)

    go(kit, main())


@pytest.mark.parametrize("code", [ICCS, MOK])
def test_in_a_data_phase_they_only_ask_for_service(kit: System, code: int) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start(read10(0, 1))
        kit.command(code)
        assert await kit.interrupt() == (STAT_INT | STAT_TC | DIP, 0, INTR_BSERV)
        assert kit.read(FFLAGS) == 0 and kit.esp.bus and kit.esp.bus.request
        assert kit.esp.bus.request.left == 512

    go(kit, main())


@pytest.mark.parametrize("code", [TPAD, TPAD | DMA])
def test_in_status_phase_nothing_is_padded(kit: System, code: int) -> None:
    async def main() -> None:
        await kit.start(TUR)
        kit.command(code)
        assert (await kit.interrupt())[2] == INTR_BSERV and kit.read(STATUS) & 7 == STATP
        assert await kit.finish() == 2

    go(kit, main())


def test_a_message_by_dma_is_as_long_as_it_is(kit: System) -> None:
    """The counter asks for more bytes than COMMAND COMPLETE has."""

    async def main() -> None:
        await kit.start(TUR)
        kit.dma(BLOCK, 100, True, TI)
        assert await kit.interrupt() == (STAT_INT | MIP, 0, INTR_BSERV)
        kit.dma(BLOCK + 1, 100, True, TI)
        assert await kit.interrupt() == (STAT_INT | MIP, 0, INTR_FDONE)
        assert kit.peek(BLOCK, 2) == b"\2\0" and kit.esp.count == 99
        kit.command(MOK)
        assert (await kit.interrupt())[2] == INTR_DC

    go(kit, main())


def test_a_wrong_direction_is_not_answered(kit: System) -> None:
    """Until D_WRITE is changed; the manual does not say what would move."""

    async def main() -> None:
        assert await kit.run(TUR) == 2
        await kit.start_data(read10(0, 1), DATA, 512, False)
        await kit.settle()
        assert not kit.raised() and kit.esp.count == 512
        kit.espdma.bus_write(0, 4, csr.INT_EN | csr.D_EN_DMA | csr.D_WRITE)
        assert (await kit.interrupt())[2] == INTR_BSERV and await kit.finish() == 0

    go(kit, main())


@pytest.mark.parametrize("first", [0x60, 0xC0, 0xE0])
def test_commands_of_other_groups_have_six_bytes(kit: System, first: int) -> None:
    async def main() -> None:
        assert await kit.run(TUR) == 2
        status, step, _ = await kit.start(bytes([first, 0, 0, 0, 0, 0]))
        assert status & 7 == STATP and step == 4 and await kit.finish() == 2

    go(kit, main())


# --- a stacked command ----------------------------------------------------------------------------


def test_a_third_command_is_a_gross_error(kit: System) -> None:
    async def main() -> None:
        kit.write(BUSID, TARGET)
        kit.command(SELA | DMA)  # waits for its channel
        kit.command(NOP)
        assert not kit.read(STATUS) & STAT_GE
        kit.command(SATN)
        assert kit.read(STATUS) & STAT_GE
        kit.command(RC)
        assert kit.read(STATUS) == 0
        await kit.settle()

    go(kit, main())
