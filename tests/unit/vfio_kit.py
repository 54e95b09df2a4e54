"""Devices for tests of vfio-user, engines, and how a session is set up and taken down.

Invariant: a session that a test leaves is closed, and its server with it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iodma import Device, Doorbell, Engine, Register
from iodma.pci import Pci, PciSlot
from iodma.testing import strict_engine
from iodma.transports.vfio_user import VfioUserServer
from tests.unit.vfio_client import PATIENCE, Client


class StillClock:
    """A clock that stands still: no deadline passes, however slow the machine is."""

    def now_ns(self) -> int:
        return 0

    def idle_until(self, when_ns: int) -> None:
        pass


class Copier(Device):
    """Copies a word to the one behind it, plus one; the interrupt tells."""

    pci = Pci(vendor=0xF1DA, device=1, class_code=0x088000, bars={0: 4096}, msi=4, msix=3)
    scratch = Register(0x00, 4)
    wide = Register(0x08, 8)
    go = Doorbell(0x10, run="copy", eventfd=0)
    status = Register(0x14, 4, access="ro")
    line = Register(0x18, 4, write="drive")
    doorbell = Doorbell(0x20, run="note", eventfd=7, concurrent=True)
    pulse = Register(0x24, 4, access="wo", write="pulse_line")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.second = self.interrupt_line("second")
        self.noted: list[int] = []
        self.faults = 0

    def drive(self, value: int) -> None:
        self.interrupt.set(bool(value & 1))

    def pulse_line(self, value: int) -> None:
        (self.second if value & 1 else self.interrupt).pulse()

    async def note(self, value: int) -> None:
        self.noted.append(value)

    async def copy(self, at: int) -> None:
        (word,) = await self.port.load("<Q", at)
        await self.port.store("<Q", at + 8, word + 1)
        self.status = 1
        self.interrupt.pulse()


def run(engine: Engine, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Pumps until a coroutine is over; gives its result."""
    task = engine.start(make())
    pump(engine, lambda: task.done)
    return task.result


def pump(engine: Engine, until: Callable[[], Any]) -> None:
    """Pumps until something is true."""
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, until
        if not engine.pump():
            select.select([engine], [], [], 0.05)


def settle(engine: Engine) -> None:
    """Pumps until nothing more happens by itself: also what was sent to it has come."""
    end = time.monotonic() + PATIENCE
    while engine.pump() or select.select([engine], [], [], 0)[0]:
        assert time.monotonic() < end, "it never comes to rest"


@contextmanager
def serving(
    engine: Engine, path: Path, device: Device | None = None, **how: Any
) -> Iterator[tuple[VfioUserServer, Client]]:
    """A server, and a client that has agreed on a version with it."""
    device = Copier(engine.port(PciSlot())) if device is None else device
    server = VfioUserServer(engine, device, path / "s")
    try:
        with Client(path / "s", engine) as client:
            client.negotiate(**how)
            yield server, client
    finally:
        run(engine, server.close)


# A module of tests has them by an assignment: engine = vfio_kit.engine.


@pytest.fixture
def engine() -> Iterator[Engine]:
    with strict_engine(slow_step=None) as engine:
        yield engine


@pytest.fixture
def still_engine() -> Iterator[Engine]:
    """No deadline passes."""
    with strict_engine(slow_step=None, clock=StillClock()) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[Client]:
    """Of a `Copier`."""
    with serving(engine, tmp_path) as (_, client):
        yield client
