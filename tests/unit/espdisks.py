"""Systems with an ESP whose disk has known content, or answers when the test says.

Invariants
 - The fixtures are imported by name, and close what they made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma.scsi import Disk
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit.engines import WatchedEngine
from tests.unit.espkit import (
    FDATA,
    MOP,
    TI,
    System,
    system,
)

#: The fixtures, and what tests of the bus do.
__all__ = ["CONTENT", "asked", "kit_fixture", "say", "slow_fixture"]

CONTENT = (bytes(range(251)) * 4200)[: 1 << 20]


@pytest.fixture(name="kit")
def kit_fixture(engine: WatchedEngine, tmp_path: Path) -> Iterator[System]:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with system(engine, path) as kit:
        yield kit


async def asked(kit: System, disk: ScriptedEndpoint) -> None:
    """Until the disk was asked for what it holds."""
    for _ in range(10_000):
        if disk.waiting:
            return
        await kit.engine.sleep(0)
    raise AssertionError("the disk was not asked")


@pytest.fixture(name="slow")
def slow_fixture(engine: WatchedEngine) -> Iterator[tuple[System, ScriptedEndpoint]]:
    """A system whose disk flushes when it is told to."""
    disk = ScriptedEndpoint(
        CONTENT[: 1 << 16],
        script=lambda request: Answer.hold() if request.kind == "flush" else Answer.all(),
    )
    with disk, system(engine, units=lambda _: {0: Disk(disk)}) as kit:
        yield kit, disk


async def say(kit: System, *messages: int) -> tuple[int, int, int]:
    """Selects, stops in message out, and sends IDENTIFY and more."""
    kit.stop_in_message_out()
    assert (await kit.interrupt())[0] & 7 == MOP
    for byte in messages:
        kit.write(FDATA, byte)
    kit.command(TI)
    return await kit.interrupt()
