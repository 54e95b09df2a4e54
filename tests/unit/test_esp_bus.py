"""The ESP and its targets on the bus: disconnection, tags, messages."""

from __future__ import annotations

import pytest

from iodma.testing import ScriptedEndpoint
from tests.unit.espdisks import asked, kit_fixture, say, slow_fixture
from tests.unit.espkit import (
    CFG1,
    DATA,
    DIP,
    ESEL,
    FDATA,
    FFLAGS,
    FLUSH,
    INTR_BSERV,
    INTR_DC,
    INTR_FDONE,
    INTR_RSEL,
    INTRPT,
    MIP,
    MOK,
    MOP,
    RATN,
    SATN,
    STAT_INT,
    STATP,
    STATUS,
    SYNC,
    TARGET,
    TI,
    TUR,
    System,
    go,
    read10,
)

#: The fixtures.
__all__ = ["kit_fixture", "slow_fixture"]

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


# --- messages (SCSI-2 6.6) ------------------------------------------------------------------------


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
