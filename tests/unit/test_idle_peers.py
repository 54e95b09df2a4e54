# SPDX-License-Identifier: Apache-2.0
"""Transfers that wait for a peer keep nobody else from the arena.

Invariants:

- A bounced receive holds a piece of the arena only while there is something to receive, a bounced
  send only while the peer takes it.
- What is received or sent in the end is whole and in order all the same.
- What came out of a device window is the exception: it cannot be read again, and keeps its piece.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from tests.unit.system import WINDOW, Registers, System, drain, full_connection

OK, CANCELLED = iodma.Status.OK, iodma.Status.CANCELLED
SIZE = 64 << 10
COUNT = 6


class Swapped(System):
    """Whose port has byte lanes, so that all that it moves is bounced, a page at a time."""

    def __init__(self) -> None:
        super().__init__(bounce_bytes=16 << 10)
        self.lanes = iodma.ByteLanes(self.memory, 2)
        self.swapped: iodma.Port = self.engine.port(self.lanes, "swapped")

    @property
    def used(self) -> int:
        """Bytes of the arena."""
        return self.engine.stats().arena[1]

    def read_file(self, path: Path) -> Any:
        path.write_bytes(bytes(range(256)) * 16)
        file = self.use(iodma.File(path))
        return self.swapped.to_memory((COUNT * SIZE, 4096), source=file)

    async def polls(self, transfers: list[Any]) -> None:
        """All of them are in flight, and nothing is in the arena."""
        while self.used or any(self.state(each) != "IN_FLIGHT" for each in transfers):
            await self.engine.sleep(0)


@pytest.fixture
def system() -> Iterator[Swapped]:
    made = Swapped()
    yield made
    made.close()


def swap(data: bytes) -> bytes:
    return b"".join(data[i : i + 2][::-1] for i in range(0, len(data), 2))


@pytest.mark.parametrize("begun", [False, True], ids=["idle", "begun"])
def test_a_file_is_read_while_receives_wait(system: Swapped, begun: bool, tmp_path: Path) -> None:
    data = [bytes([i]) * 7 + bytes(range(249)) for i in range(COUNT)]

    async def main() -> None:
        pairs = [system.wire() for _ in range(COUNT)]
        idle = [
            system.swapped.to_memory((i * SIZE, SIZE), source=wire)
            for i, (wire, _) in enumerate(pairs)
        ]
        await system.polls(idle)
        if begun:
            for i, (_, far) in enumerate(pairs):
                far.send(data[i][:100])
            await system.until(lambda: all(t.moved == 100 for t in system.engine.transfers()))
            await system.polls(idle)
        done = await system.read_file(tmp_path / "file")
        assert (done.status, done.moved) == (OK, 4096)
        for i, (_, far) in enumerate(pairs):
            whole = data[i] * (SIZE // 256)
            far.setblocking(False)
            at = 100 * begun
            while at < SIZE:
                try:
                    at += far.send(whole[at:])
                except BlockingIOError:
                    await system.engine.sleep(0)
            done = await idle[i]
            assert (done.status, done.moved) == (OK, SIZE)
            assert system.memory.read(i * SIZE, SIZE) == swap(whole)

    system.run(main())
    assert system.used == 0


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seq"])
def test_packets_are_received_whole_in_order(system: Swapped, kind: int, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours:
        wire = system.use(iodma.Datagram(ours))
    system.use(theirs)

    async def main() -> None:
        idle = [system.swapped.to_memory((i * 256, 256), source=wire) for i in range(3)]
        await system.until(lambda: system.state(idle[0]) == "IN_FLIGHT" and not system.used)
        assert (await system.read_file(tmp_path / "file")).ok
        for i in range(3):
            theirs.send(bytes([i, 9]) * 50)
        for i, each in enumerate(idle):
            done = await each
            assert (done.status, done.moved) == (OK, 100)
            assert system.memory.read(i * 256, 100) == bytes([9, i]) * 50

    system.run(main())


def test_a_file_is_read_while_sends_wait(system: Swapped, tmp_path: Path) -> None:
    far: list[socket.socket] = []
    whole = bytes(range(256)) * (SIZE // 256)
    system.memory.write(0, whole)

    def send() -> Any:
        near, other = full_connection()
        far.append(system.use(other))
        with near:
            return system.swapped.from_memory((0, SIZE), to=system.use(iodma.Socket(near)))

    async def main() -> None:
        stuck = [send() for _ in range(COUNT)]
        await system.polls(stuck)
        assert (await system.read_file(tmp_path / "file")).ok
        for each, peer in zip(stuck, far, strict=True):
            got = bytearray(drain(peer))  # what filled it, and perhaps more already
            while not each.done:
                await system.engine.sleep(0)
                got += drain(peer)
            done = await each
            assert (done.status, done.moved) == (OK, SIZE)
            got += drain(peer)
            assert got.endswith(swap(whole))

    system.run(main())
    assert system.used == 0


def test_a_cancel_and_a_reset_end_those_that_wait(system: Swapped) -> None:
    async def main() -> None:
        wires = [system.wire()[0] for _ in range(COUNT)]
        idle = [system.swapped.to_memory((i * SIZE, SIZE), source=w) for i, w in enumerate(wires)]
        await system.polls(idle)
        idle[0].cancel()
        assert (await idle[0]).status is CANCELLED
        again = system.port.to_memory((0, SIZE), source=wires[0])
        await system.swapped.reset()
        assert [(await each).status for each in idle] == [CANCELLED] * COUNT
        again.cancel()
        assert (await again).status is CANCELLED

    system.run(main())
    assert system.ram.leases == 0 and system.used == 0


def test_what_a_device_window_gave_is_kept(system: Swapped) -> None:
    class Counting(Registers):
        reads = 0

        def read(self, offset: int, width: int) -> int:
            self.reads += 1
            return self.reads

    counting = Counting()
    system.window(counting)
    wire, far = system.full_wire()

    async def main() -> None:
        transfer = system.port.from_memory((WINDOW, 32), to=wire)
        await system.turns()
        assert system.used == 4096 and counting.reads == 4
        got = drain(far)
        assert (await transfer).ok
        got += drain(far)
        assert got.endswith(b"".join(i.to_bytes(8, "little") for i in range(1, 5)))

    system.run(main())
    assert system.used == 0 and counting.reads == 4
