"""What tests of the SCSI layer share: an initiator with memory of its own, and a disk in a file.

Invariants:

- `Initiator` moves data phases in pieces of any sizes, scattered over its memory, and checks that
  a request that is over says so in every way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iodma import Engine, File, Memory, Port, Ram, Status
from iodma.scsi import DataDirection, Disk, LogicalUnit, Request, ScsiStatus, State, Target
from iodma.scsi.cdb import Command
from iodma.testing import strict_engine

GOOD, CHECK = ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION
#: Bytes of an initiator's memory.
MEMORY = 1 << 22


def state_of(request: Request) -> State:
    """Its state now: what the type checker does not think to know already."""
    return request.state


class Initiator:
    """Sends commands, and moves their data between its memory and the target."""

    def __init__(self, engine: Engine, target: Target, ram: Ram, name: object = 7) -> None:
        self.engine = engine
        self.target = target
        self.ram = ram
        self.name = name
        self.port: Port = engine.port(Memory({0: ram}), f"initiator {name}")

    def send(self, cdb: bytes | str, *, lun: int = 0, **options: Any) -> Request:
        data = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        options.setdefault("initiator", self.name)
        return self.target.request(lun, data, **options)

    async def move(
        self, request: Request, out: bytes = b"", pieces: Sequence[int] = (4096,), at: int = 0
    ) -> bytes:
        """The data phase, `pieces` bytes at a time over and over, in every other page; what came.

        An `out` that is shorter than wanted ends the phase early.
        """
        await request.ready
        came, turn = b"", 0
        while request.left:
            length = min(pieces[turn % len(pieces)], request.left)
            if request.direction is DataDirection.OUT:
                gone = request.expected - request.left
                part = out[gone : gone + length]
                if not part:
                    request.end_data()
                    break
                length = len(part)
                self.ram.view(at, length)[:] = part
            turn += 1
            half = length // 2
            segments = [(at, half), (at + half, length - half)]
            done = await request.transfer(self.port, segments)
            if done.status is not Status.OK:
                break
            assert done.moved == length
            if request.direction is DataDirection.IN:
                came += bytes(self.ram.view(at, length))
        return came

    async def command(
        self, cdb: bytes | str, out: bytes = b"", pieces: Sequence[int] = (4096,), **options: Any
    ) -> tuple[Request, bytes]:
        """A command from its CDB to its status, and what it read."""
        request = self.send(cdb, **options)
        came = await self.move(request, out, pieces)
        status = await request.finished
        assert request.over and request.status is status and request.ready.done
        assert request.state is (State.CANCELLED if status is None else State.COMPLETED)
        assert (request.sense is not None) == (status is CHECK)
        return request, came

    async def settle(self) -> None:
        """Hears of the unit attentions that are there."""
        while (await self.command("000000000000"))[0].status is CHECK:
            pass

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """A coroutine to its end, after the unit attentions that there are."""

        async def whole() -> Any:
            await self.settle()
            return await main()

        return self.engine.run(whole())


def cdb_of(command: Command, **fields: int) -> bytes:
    """A CDB of a command, its fields by their names with underscores."""
    value = command.opcode << (command.length - 1) * 8
    if command.service_action is not None:
        value |= command.service_action << (command.length - 2) * 8
    places = {name.replace(" ", "_"): place for name, place in command.places.items()}
    for name, number in fields.items():
        place = places[name]
        shift = command.length * 8 - (place.byte * 8 + 7 - place.bit) - place.bits
        value |= (number & (1 << place.bits) - 1) << shift
    return value.to_bytes(command.length, "big")


COMMANDS = {each.name: each for each in Disk.commands.all}


def cdb(name: str, **fields: int) -> bytes:
    """`cdb("READ (10)", LOGICAL_BLOCK_ADDRESS=5, TRANSFER_LENGTH=1)`."""
    return cdb_of(COMMANDS[name], **fields)


@contextmanager
def on_disk(path: Path, engine: Engine | None = None, **options: Any) -> Iterator[Initiator]:
    """An initiator with a disk at LUN 0, in a file."""
    with File(path) as file, on_unit(Disk(file, **options), engine) as initiator:
        yield initiator


@contextmanager
def on_unit(unit: LogicalUnit, engine: Engine | None = None) -> Iterator[Initiator]:
    made = engine if engine is not None else strict_engine()
    try:
        with Ram(MEMORY) as ram:
            target = Target(made, unit)
            initiator = Initiator(made, target, ram)
            yield initiator
            assert not len(unit.tasks), "commands that never ended"
            target.close()
            initiator.port.close()
    finally:
        if engine is None:
            made.close()
