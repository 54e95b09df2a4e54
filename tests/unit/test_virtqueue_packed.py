# SPDX-License-Identifier: Apache-2.0
"""The packed ring, driven by a driver that the test writes (virtio 1.3, section 2.8)."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import iodma
from iodma import _core
from iodma.virtio.chains import Chains

BASE = 0x1000
RING, DRIVER_EVENT, DEVICE_EVENT, BUFFERS = 0, 0x1000, 0x1800, 0x4000
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
EVENT_IDX, INDIRECT_DESC, PACKED = 1, 2, 4
ENABLE, DISABLE, DESC = 0, 1, 2


class Driver:
    """A packed ring in guest memory, written by hand."""

    def __init__(self, engine: iodma.Engine, ram: iodma.Ram, flags: int, size: int):
        self.ram = ram
        self.view = ram.view()
        self.engine, self.flags, self.size = engine, flags | PACKED, size
        self.port = engine.port(iodma.Memory({BASE: ram}))
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.at, self.lap = 0, True
        self.used_at, self.used_lap = 0, True
        self.lengths: dict[int, int] = {}

    def queue(self, **more: Any) -> _core.Virtqueue[Chains]:
        return _core.Virtqueue(
            self.port,
            self.size,
            BASE + RING,
            BASE + DRIVER_EVENT,
            BASE + DEVICE_EVENT,
            **{"header": 16, "trailer": 1, "position_at": 8, "next": 0x8000_8000, **more},
            flags=self.flags,
            kick=self.kick,
            call=self.call,
            error=self.error,
            chains=lambda segments: Chains(16, segments, more.get("header", 16)),
        )

    def offer(self, id: int, descriptors: list[tuple[int, int, int]]) -> None:
        """A chain of (address, length, flags); its first descriptor's flags are written last."""
        todo = []
        self.lengths[id] = len(descriptors)
        for i, (address, length, flags) in enumerate(descriptors):
            flags |= NEXT if i + 1 < len(descriptors) else 0
            flags |= AVAIL if self.lap else USED
            todo.append((self.at, address, length, flags))
            self.at += 1
            if self.at == self.size:
                self.at, self.lap = 0, not self.lap
        for at, address, length, flags in reversed(todo):
            struct.pack_into("<QIHH", self.view, RING + 16 * at, address, length, id, flags)

    def read(self, id: int, sector: int, length: int = 512) -> None:
        at = BUFFERS + 0x1000 * id
        struct.pack_into("<IIQ", self.view, at, 0, 0, sector)
        self.view[at + 16] = 0xFF
        where = BASE + at
        self.offer(id, [(where, 16, 0), (where + 0x200, length, WRITE), (where + 16, 1, WRITE)])

    def used(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while True:
            _, length, id, flags = struct.unpack_from("<QIHH", self.view, RING + 16 * self.used_at)
            if bool(flags & AVAIL) != self.used_lap or bool(flags & USED) != self.used_lap:
                return found
            found.append((id, length))
            self.used_at += self.lengths.pop(id)
            if self.used_at >= self.size:
                self.used_at, self.used_lap = self.used_at - self.size, not self.used_lap

    def signalled(self, fd: int) -> bool:
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.port.close()
        self.view.release()
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


@contextmanager
def driver(flags: int = 0, size: int = 8) -> Iterator[Driver]:
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        made = Driver(engine, ram, flags, size)
        try:
            yield made
        finally:
            made.close()


def test_chains_over_many_laps() -> None:
    """Chains of random length, answered out of order, in a ring whose size is no power of two."""
    rng = random.Random(7)
    with driver(size=11) as d:
        queue = d.queue()
        waiting: list[int] = []
        free = list(range(d.size))
        room = d.size
        for sector in range(3000):
            if room >= 3 and free and rng.random() < 0.6:
                id = free.pop(rng.randrange(len(free)))
                d.read(id, sector)
                room -= 3
                chains = queue.pop(16)
                assert chains is not None
                assert (chains.id.tolist(), chains.position.tolist()) == ([id], [sector])
                waiting.append(id)
            elif waiting:
                id = waiting.pop(rng.randrange(len(waiting)))
                queue.finish(id, 100, b"\3")
                assert d.used() == [(id, 101)]
                assert d.view[BUFFERS + 0x1000 * id + 16] == 3
                free.append(id)
                room += 3
        assert queue.in_flight == len(waiting) and queue.malformed == 0
        queue.release()


def test_it_goes_on_where_it_was_stopped() -> None:
    with driver(size=8) as d:
        queue = d.queue()
        for step in range(7):
            d.read(step % 2, step)
            assert queue.pop(1) is not None
            queue.finish(step % 2, 0, b"\0")
            assert d.used() == [(step % 2, 1)]
            where = queue.next
            queue.release()
            queue = d.queue(next=where)
        queue.release()


def test_several_that_are_used_together() -> None:
    with driver(size=16) as d, iodma.Ram(8192) as ram, iodma.Buffer(ram) as disk:
        queue = d.queue()

        async def main() -> None:
            for lap in range(5):
                for id in range(4):
                    d.read(id, id)
                chains = queue.pop(16)
                assert chains is not None and chains.n == 4
                d.port.submit(chains, disk, unit=512)
                async for done in d.port.completions(16, at_least=4):
                    queue.push(done)
                assert sorted(d.used()) == [(id, 513) for id in range(4)], lap

        d.engine.run(main())
        queue.release()


def test_indirect_tables_are_in_order() -> None:
    with driver(INDIRECT_DESC) as d:
        queue = d.queue()
        at = BASE + BUFFERS
        table = BUFFERS + 0x800
        struct.pack_into("<IIQ", d.view, BUFFERS, 9, 0, 77)
        for i, entry in enumerate(
            [(at, 16, 0, 0), (at + 32, 64, 0, WRITE), (at + 600, 1, 0, WRITE)]
        ):
            struct.pack_into("<QIHH", d.view, table + 16 * i, *entry)
        d.offer(5, [(BASE + table, 48, INDIRECT)])
        chains = queue.pop(1)
        assert chains is not None
        assert (chains.id.tolist(), chains.position.tolist()) == ([5], [77])
        assert chains.segments(0) == [(at + 32, 64)]
        queue.finish(5, 64, b"\x05")
        assert d.used() == [(5, 65)] and d.view[BUFFERS + 600] == 5
        queue.release()


def test_a_bad_chain_is_answered_and_stalls_no_other() -> None:
    with driver() as d:
        queue = d.queue()
        d.offer(3, [(BASE + BUFFERS, 4, 0), (BASE + BUFFERS + 16, 1, WRITE)])  # a short header
        d.read(1, 2)
        chains = queue.pop(16)
        assert chains is not None and chains.id.tolist() == [1]
        assert d.used() == [(3, 1)] and queue.malformed == 1
        queue.finish(1, 512, b"\0")
        assert d.used() == [(1, 513)]
        queue.release()


@pytest.mark.parametrize(
    ("descriptors", "id", "why"),
    [
        ([(BASE, 1, NEXT)] * 8, 0, "no end"),
        ([(BASE, 16, 0)], 8, "does not have"),
    ],
)
def test_a_ring_that_makes_no_sense(descriptors: Any, id: int, why: str) -> None:
    with driver() as d:
        queue = d.queue()
        d.offer(id, descriptors)
        assert queue.pop(1) is None
        assert queue.broken is not None and why in queue.broken and d.signalled(d.error)
        queue.release()


@pytest.mark.parametrize("flags", [0, EVENT_IDX])
def test_a_driver_that_kicks_when_it_was_asked_to(flags: int) -> None:
    with driver(flags) as d:
        queue = d.queue()
        served: list[int] = []

        async def serve() -> None:
            async for chains in queue.batches(4):
                served.extend(chains.id.tolist())
                for id in chains.id.tolist():
                    queue.finish(id, 0, b"\0")

        def wants_kick(before: int) -> bool:
            desc, how = struct.unpack_from("<HH", d.view, DEVICE_EVENT)
            if how != DESC:
                return bool(how == ENABLE)
            event = int(desc) & 0x7FFF
            if bool(desc & 0x8000) != d.lap:
                event -= d.size
            before -= d.size if before > d.at else 0
            return (d.at - event - 1) & 0xFFFF < (d.at - before) & 0xFFFF

        async def main() -> None:
            task = d.engine.start(serve())
            for i in range(2000):
                while i - len(served) >= 2 or len(d.lengths) >= 2:
                    d.used()
                    await d.engine.sleep(0.0001)
                before = d.at
                d.read(i % 2, 0)
                if wants_kick(before):
                    os.eventfd_write(d.kick, 1)
                if i % 500 == 0:
                    await d.engine.sleep(0.002)  # long enough that the engine sleeps
            while len(served) < 2000:
                await d.engine.sleep(0.0001)
            queue.stop()
            await queue.drained()
            await task

        d.engine.run(main())
        assert queue.pushed == 2000
        queue.release()


def test_the_driver_is_told_at_the_descriptor_that_it_named() -> None:
    with driver(EVENT_IDX, size=9) as d:
        queue = d.queue()

        def answer(id: int) -> bool:
            d.read(id, 0)
            assert queue.pop(1) is not None
            queue.finish(id, 0, b"\0")
            d.used()
            return d.signalled(d.call)

        def tell_at(offset: int, lap: bool) -> None:
            struct.pack_into("<HH", d.view, DRIVER_EVENT, offset | lap << 15, DESC)

        answer(0)  # nothing is known of what it was told before; now at 3 of 9
        tell_at(0, False)  # the third from here ends the lap; the fourth crosses it
        assert [answer(i % 2) for i in range(3)] == [False, False, True]
        struct.pack_into("<HH", d.view, DRIVER_EVENT, 0, DISABLE)
        assert not answer(0)
        struct.pack_into("<HH", d.view, DRIVER_EVENT, 0, ENABLE)
        assert answer(0)
        queue.release()
