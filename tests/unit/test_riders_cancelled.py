# SPDX-License-Identifier: Apache-2.0
"""A stage that cancels while sends board another's request: nothing waits for a second cancel.

Invariants:

- What a request would send is cancelled before it is handed over, or once it is: never forgotten.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import iodma
from iodma import _core
from tests.unit.system import System, drain, full_connection

OK, CANCELLED = iodma.Status.OK, iodma.Status.CANCELLED
_HOOK, _PASS = 4, 0


class Sends(System):
    """Four sends, of 8 bytes at 0x0, 0x1000, ...: the first is stuck, the others wait behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = _core.Space(_HOOK, self.memory, "stage")
        self.at(-1, None)
        self.sends = self.engine.port(self.stage, "sends")
        near, far = full_connection()
        self.near, self.far = self.use(near), self.use(far)
        self.stream = self.use(iodma.Socket(near))
        for i in range(4):
            self.memory.write(i << 12, bytes([i]) * 8)

    async def begin(self) -> list[Any]:
        transfers = [self.sends.from_memory((i << 12, 8), to=self.stream) for i in range(4)]
        await self.turns()
        states = [self.state(each) for each in transfers]
        assert states == ["IN_FLIGHT", "WAITING", "WAITING", "WAITING"]
        return transfers

    def fill(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.near.send(b"\xff", socket.MSG_DONTWAIT)

    def at(self, address: int, then: Callable[[], object] | None) -> None:
        """Call it when that address is translated."""

        def hook(asked: int, length: int, access: int) -> int:
            if asked == address and then is not None:
                then()
            return _PASS

        self.stage._set_hook(hook, False)


@pytest.fixture
def system() -> Iterator[Sends]:
    made = Sends()
    yield made
    made.close()


def test_the_host_is_cancelled_while_others_board(system: Sends) -> None:
    async def main() -> None:
        transfers = await system.begin()
        system.at(0x2000, transfers[1].cancel)
        got = drain(system.far)  # of which the first may be a part already
        assert [(await each).status for each in transfers] == [OK, CANCELLED, OK, OK]
        got += drain(system.far)
        assert got.endswith(b"".join(bytes([i]) * 8 for i in (0, 2, 3)))

    system.run(main())


def test_who_has_boarded_is_cancelled_while_others_board(system: Sends) -> None:
    """The request is stuck then: the one that is cancelled does not wait for the peer."""

    async def main() -> None:
        transfers = await system.begin()

        def full_and_cancelled() -> None:
            system.fill()
            transfers[2].cancel()

        system.at(0x3000, full_and_cancelled)
        drain(system.far)
        assert (await transfers[2]).status is CANCELLED
        assert not transfers[1].done and not transfers[3].done
        system.at(-1, None)
        got = drain(system.far)
        assert [(await transfers[i]).status for i in (0, 1, 3)] == [OK] * 3
        got += drain(system.far)
        assert got.endswith(b"".join(bytes([i]) * 8 for i in (1, 3)))

    system.run(main())
