# SPDX-License-Identifier: Apache-2.0
"""The packed ring, driven by a driver that the test writes (virtio 1.3, section 2.8)."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

import iodma
from tests.unit.ringdriver import (
    BASE,
    BUFFERS,
    DESC,
    DISABLE,
    ENABLE,
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    WRITE,
    PackedDriver,
    kicks_when_asked,
    packed_driver,
    signalled,
)


def test_chains_over_many_laps() -> None:
    """Chains of random length, answered out of order, in a ring whose size is no power of two."""
    rng = random.Random(7)
    with packed_driver(size=11) as d:
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
    with packed_driver(size=8) as d:
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
    with packed_driver(size=16) as d, iodma.Ram(8192) as ram, iodma.Buffer(ram) as disk:
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
    with packed_driver(INDIRECT_DESC) as d:
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
    with packed_driver() as d:
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
    with packed_driver() as d:
        queue = d.queue()
        d.offer(id, descriptors)
        assert queue.pop(1) is None
        assert queue.broken is not None and why in queue.broken and signalled(d.error)
        queue.release()


@pytest.mark.parametrize("flags", [0, EVENT_IDX])
def test_a_driver_that_kicks_when_it_was_asked_to(flags: int) -> None:
    with packed_driver(flags) as d:
        kicks_when_asked(d, 2000)


def test_the_driver_is_told_at_the_descriptor_that_it_named() -> None:
    with packed_driver(EVENT_IDX, size=9) as d:
        queue = d.queue()

        def answer(id: int) -> bool:
            d.read(id, 0)
            assert queue.pop(1) is not None
            queue.finish(id, 0, b"\0")
            d.used()
            return signalled(d.call)

        def tell_at(offset: int, lap: bool) -> None:
            struct.pack_into("<HH", d.view, PackedDriver.DRIVER_EVENT, offset | lap << 15, DESC)

        answer(0)  # nothing is known of what it was told before; now at 3 of 9
        tell_at(0, False)  # the third from here ends the lap; the fourth crosses it
        assert [answer(i % 2) for i in range(3)] == [False, False, True]
        struct.pack_into("<HH", d.view, PackedDriver.DRIVER_EVENT, 0, DISABLE)
        assert not answer(0)
        struct.pack_into("<HH", d.view, PackedDriver.DRIVER_EVENT, 0, ENABLE)
        assert answer(0)
        queue.release()
