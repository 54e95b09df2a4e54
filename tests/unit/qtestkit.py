"""A small machine behind a qtest server, and its client, all in one thread.

Invariants
 - The fixture is imported by name, and closes what it made.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from iodma import Bus, Device, Engine, Interrupt, Ram, Register
from iodma.testing import strict_engine
from iodma.transports.qtest import Machine, PhysicalSpace, Pins, QtestServer, SteppedClock
from tests.qtest import Qtest

#: The fixture, and what it is made of.
__all__ = ["RAM_BYTES", "WINDOW", "Rig", "opened", "rig_fixture"]

RAM_BYTES = 1 << 16
WINDOW = 0x1000_0000


class Chip(Device):
    """Two words, and a byte that only takes bytes."""

    first = Register(0, doc="any")
    second = Register(4, write="written")
    byte = Register(8, 1)

    def written(self, value: int) -> None:
        self.interrupt.set(value & 1 != 0)


@dataclass
class Rig:
    """A big-endian machine, a server, and a client, all in this thread."""

    engine: Engine
    ram: Ram
    chip: Chip
    clock: SteppedClock
    server: QtestServer
    client: Qtest
    input: Interrupt
    busy: list[bool] = field(default_factory=lambda: [False])
    resets: list[int] = field(default_factory=list)

    def __call__(self, line: str | bytes) -> str:
        data = line.encode() if isinstance(line, str) else line
        return self.client.ask(data + b"\n")

    def turn(self) -> None:
        self.engine.pump()


def make(engine: Engine, ram: Ram, view: memoryview, clock: SteppedClock, **more: Any) -> Rig:
    chip, bus, line = Chip(name="chip"), Bus(), Interrupt("input")
    engine.attach(chip)
    window = bus.attach(chip, WINDOW, 0x10)
    space = PhysicalSpace("big")
    space.add_memory(0, view)
    space.add_window(WINDOW, 0x8, window, least=4, most=4)
    space.add_window(WINDOW + 8, 0x8, window_at(window, 8), most=1)
    busy, resets = [False], [0]

    async def reset() -> None:
        await engine.sleep(0)
        await chip.request_reset()
        resets[0] += 1

    pins = {
        "/machine/chip": Pins([None, line], {"sysbus-irq": [chip.interrupt], None: []}),
        "/machine/none": Pins(),
    }
    machine = Machine(space, "board", pins, lambda: busy[0], reset, clock)
    ours, theirs = socket.socketpair()
    with theirs:
        server = QtestServer(engine, machine, fd=theirs.fileno(), **more)
    client = Qtest(ours, engine.pump)
    return Rig(engine, ram, chip, clock, server, client, line, busy, resets)


def window_at(window: Any, offset: int) -> Any:
    class Part:
        def read(self, at: int, width: int) -> int:
            return int(window.read(offset + at, width))

        def write(self, at: int, width: int, value: int) -> None:
            window.write(offset + at, width, value)

    return Part()


def opened(**more: Any) -> Iterator[Rig]:
    clock = SteppedClock()
    with (
        strict_engine(slow_step=None, clock=clock) as engine,
        Ram(RAM_BYTES) as ram,
        ram.view() as view,
    ):
        rig = make(engine, ram, view, clock, **more)
        yield rig
        rig.client.close()
        task = engine.start(rig.server.close())
        while not task.done:
            engine.pump()


@pytest.fixture(name="rig")
def rig_fixture() -> Iterator[Rig]:
    yield from opened()
