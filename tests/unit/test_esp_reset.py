"""The ESP and its resets, in every phase."""

from __future__ import annotations

import pytest

from iodma.devices.dma2 import csr
from iodma.scsi import Disk
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit.engines import WatchedEngine
from tests.unit.espdisks import CONTENT, asked, kit_fixture, say
from tests.unit.espkit import (
    BUSID,
    CFG1,
    DATA,
    ESEL,
    FLUSH,
    ICCS,
    INTR_SR,
    INTRPT,
    PAGE,
    RC,
    RS,
    STATP,
    STATUS,
    SYNC,
    TARGET,
    TUR,
    System,
    go,
    read10,
    system,
    write10,
)

#: The fixtures.
__all__ = ["kit_fixture"]


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
