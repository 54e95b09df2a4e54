"""What tests of the core run on: an engine, memory with canaries, a port, and endpoints to hold up.

Invariants:

- The fixtures are imported by name, and close what they made.
- Nothing waits for real time: what a test waits for is a turn of the engine, or a request.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

import iodma
from iodma.testing import Answer, FakeMemory, Inject, Request, ScriptedEndpoint, strict_engine

#: The fixtures.
__all__ = ["file_fixture", "system_fixture"]

MIB = 1 << 20
WINDOW = 1 << 32

T = TypeVar("T")


class System:
    """An engine, memory and a port; ``options`` are the engine's."""

    def __init__(self, **options: Any) -> None:
        self.stack = ExitStack()
        self.engine = self.stack.enter_context(strict_engine(**options))
        self.memory = FakeMemory(8 * MIB)
        self.inject = Inject(self.memory)
        self.port: iodma.Port = self.engine.port(self.inject)
        self.ram = self.memory.ram(0)

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    async def turns(self, count: int = 5) -> None:
        for _ in range(count):
            await self.engine.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Turns, until it is so; a hang is the watchdog's."""
        while not condition():
            await self.engine.sleep(0)

    def state(self, transfer: Any) -> str:
        """Of a transfer that was not delivered."""
        return next(t.state for t in self.engine.transfers() if t.ticket == transfer.ticket)

    def use(self, endpoint: T) -> T:
        """Closed with the system, before the engine."""
        self.stack.enter_context(endpoint)  # type: ignore[arg-type]
        return endpoint

    def scripted(self, content: bytes | int = 4096, **options: Any) -> ScriptedEndpoint:
        return self.use(ScriptedEndpoint(content, **options))

    def held(self, on_cancel: Any = "ignore") -> ScriptedEndpoint:
        """An endpoint that answers when the test does."""
        return self.scripted(script=hold, on_cancel=on_cancel)

    def wire(self, kind: str = "unix", **options: Any) -> tuple[iodma.Socket, socket.socket]:
        """An endpoint, and the other end."""
        near, far = connection(kind)
        with near:
            return self.use(iodma.Socket(near, **options)), self.use(far)

    def full_wire(self) -> tuple[iodma.Socket, socket.socket]:
        """An endpoint that takes nothing before `drain`, and the other end."""
        near, far = full_connection()
        with near:
            return self.use(iodma.Socket(near)), self.use(far)

    def window(self, target: Any) -> None:
        """A device's registers at `WINDOW`."""
        self.memory.add(WINDOW, iodma.DeviceWindow(target, 4096))

    def close(self) -> None:
        self.stack.close()
        self.memory.close()


@pytest.fixture(name="system")
def system_fixture() -> Iterator[System]:
    made = System()
    yield made
    made.close()


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Iterator[iodma.File]:
    """A file of a MiB of random bytes."""
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(MIB))
    with iodma.File(tmp_path / "file") as made:
        yield made


class Registers:
    """A window's target: memory that notes every access, and refuses some, or all.

    Attributes:
        log: "r" or "w", the offset, the width.
        refused: offsets at which an access is a bus error; `refuse`: everywhere.
    """

    def __init__(self, data: bytes | int = 4096) -> None:
        self.data = bytearray(data)
        self.log: list[tuple[str, int, int]] = []
        self.refused: set[int] = set()
        self.refuse = False

    def read(self, offset: int, width: int) -> int | None:
        self.log.append(("r", offset, width))
        if self.refuse or offset in self.refused:
            return None
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> bool | None:
        self.log.append(("w", offset, width))
        if self.refuse or offset in self.refused:
            return False
        self.data[offset : offset + width] = value.to_bytes(width, "little")
        return None


def content(file: iodma.File) -> bytes:
    return Path(file.name).read_bytes()


def shuffled(count: int, size: int, seed: int = 1) -> list[tuple[int, int]]:
    """So many segments of ``size`` bytes, out of order and with gaps."""
    places = list(range(count))
    random.Random(seed).shuffle(places)
    return [(place * 2 * size, size) for place in places]


def connection(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets: "tcp" or "unix"."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def full_connection() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, of which the first has room for nothing more."""
    near, far = connection("unix")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(bytes(4096), socket.MSG_DONTWAIT)
    return near, far


def drain(far: socket.socket) -> bytes:
    """Take all that is there, and what comes meanwhile."""
    seen = b""
    with contextlib.suppress(BlockingIOError):
        while data := far.recv(1 << 16, socket.MSG_DONTWAIT):
            seen += data
    return seen


def hold(_: Request) -> Answer:
    return Answer.hold()
