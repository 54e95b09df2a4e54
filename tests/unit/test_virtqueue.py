# SPDX-License-Identifier: Apache-2.0
"""The core's virtqueue, driven by a ring that the test writes.

Each test is a driver: it writes descriptors, makes chains available, and looks at the used ring.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import iodma
from iodma import _core
from iodma.testing import Answer, ScriptedEndpoint
from iodma.virtio.chains import Chains
from iodma.virtio.queue import Virtqueue

SIZE = 8
BASE = 0x1000
TABLE, AVAILABLE, USED, BUFFERS = 0, 0x1000, 0x2000, 0x4000
NEXT, WRITE, INDIRECT = 1, 2, 4
EVENT_IDX, INDIRECT_DESC = 1, 2


class Driver:
    """A split ring in guest memory, written by hand."""

    def __init__(self, engine: iodma.Engine, ram: iodma.Ram, memory: iodma.Memory, flags: int):
        self.ram = ram
        self.view = ram.view()
        self.engine = engine
        self.flags = flags
        self.port = engine.port(memory)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.available = self.seen = 0

    def queue(self, **more: Any) -> Virtqueue:
        return Virtqueue(
            self.port,
            SIZE,
            BASE + TABLE,
            BASE + AVAILABLE,
            BASE + USED,
            **{"header": 16, "trailer": 1, "position_at": 8, **more},
            flags=self.flags,
            kick=self.kick,
            call=self.call,
            error=self.error,
            chains=lambda segments: Chains(16, segments, more.get("header", 16)),
        )

    def describe(
        self, index: int, address: int, length: int, flags: int = 0, next: int = 0
    ) -> None:
        struct.pack_into("<QIHH", self.view, TABLE + 16 * index, address, length, flags, next)

    def offer(self, head: int) -> None:
        struct.pack_into("<H", self.view, AVAILABLE + 4 + 2 * (self.available % SIZE), head)
        self.available = (self.available + 1) & 0xFFFF
        struct.pack_into("<H", self.view, AVAILABLE + 2, self.available)

    def read(self, slot: int, sector: int, length: int = 512) -> None:
        """A read as virtio-blk has it: header, buffer, status; three descriptors from 3 * slot."""
        at = BUFFERS + 0x1000 * slot
        struct.pack_into("<IIQ", self.view, at, 0, 0, sector)
        self.view[at + 16] = 0xFF
        first = 3 * slot
        self.describe(first, BASE + at, 16, NEXT, first + 1)
        self.describe(first + 1, BASE + at + 0x200, length, NEXT | WRITE, first + 2)
        self.describe(first + 2, BASE + at + 16, 1, WRITE)
        self.offer(first)

    def status(self, slot: int) -> int:
        return self.view[BUFFERS + 0x1000 * slot + 16]

    def used(self) -> list[tuple[int, int]]:
        """(head, length) of what was used since the last look."""
        (index,) = struct.unpack_from("<H", self.view, USED + 2)
        found = []
        while self.seen != index:
            found.append(struct.unpack_from("<II", self.view, USED + 4 + 8 * (self.seen % SIZE)))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def close(self) -> None:
        self.port.close()
        self.view.release()
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


@contextmanager
def driver(flags: int = 0) -> Iterator[Driver]:
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        made = Driver(engine, ram, iodma.Memory({BASE: ram}), flags)
        try:
            yield made
        finally:
            made.close()


def signalled(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def test_a_batch_of_chains() -> None:
    with driver() as d:
        queue = d.queue()
        d.read(0, 5, 1024)
        d.read(1, 7)
        chains = queue.pop(16)
        assert chains is not None
        assert (chains.n, chains.id.tolist(), chains.position.tolist()) == (2, [0, 3], [5, 7])
        assert chains.writable.tolist() == [1024, 512]
        assert chains.readable.tolist() == [0, 0]
        assert (chains.ops_to_memory, chains.ops_from_memory, chains.ops_other) == (1, 0, 0)
        assert bytes(chains.header[1]) == struct.pack("<IIQ", 0, 0, 7)
        assert chains.segments(0) == [(BASE + BUFFERS + 0x200, 1024)]
        assert queue.pop(16) is None
        assert queue.in_flight == 2 and queue.next == 2
        queue.finish(3, 100, b"\x02")
        queue.finish(0, 1024, b"")
        assert d.used() == [(3, 101), (0, 1025)]
        assert (d.status(0), d.status(1)) == (0, 2)
        assert signalled(d.call)
        queue.release()


def test_completions_answer_chains() -> None:
    with driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
        with ram.view() as view:
            view[:] = b"\xab" * 4096
        queue = d.queue()
        d.read(0, 1)
        d.read(1, 8)  # where the endpoint has no more

        async def main() -> None:
            chains = queue.pop(16)
            assert chains is not None
            d.port.submit(chains, disk, unit=512)
            async for done in d.port.completions():
                queue.push(done)

        d.engine.run(main())
        assert sorted(d.used()) == [(0, 513), (3, 1)]
        assert (d.status(0), d.status(1)) == (0, 1)
        assert bytes(d.view[BUFFERS + 0x200 : BUFFERS + 0x400]) == b"\xab" * 512
        queue.release()


def test_answers_that_nobody_waits_for() -> None:
    with driver() as d:
        queue = d.queue()
        d.read(0, 1)
        for wrong in (0, SIZE, 1 << 40):
            with pytest.raises(iodma.ArgumentError, match="no chain"):
                queue.finish(wrong, 0, b"")
        assert queue.pop(1) is not None
        queue.finish(0, 0, b"\0")
        with pytest.raises(iodma.ArgumentError, match="no chain 0"):
            queue.finish(0, 0, b"\0")
        with pytest.raises(iodma.ArgumentError, match="trailer of 2 bytes"):
            queue.finish(0, 0, b"\0\0")
        assert len(d.used()) == 1
        queue.release()
        with pytest.raises(iodma.ClosedError):
            queue.pop(1)


def outside(d: Driver) -> None:
    d.describe(1, 1 << 40, 512, NEXT | WRITE, 2)  # payload: the port's to refuse


def header_outside(d: Driver) -> None:
    d.describe(0, 1 << 40, 16, NEXT, 1)


def header_short(d: Driver) -> None:
    d.describe(0, BASE + BUFFERS, 15, NEXT, 1)


def readable_after_writable(d: Driver) -> None:
    d.describe(2, BASE + BUFFERS + 16, 1)


def loop(d: Driver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 512, NEXT | WRITE, 1)


def leads_outside(d: Driver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 512, NEXT | WRITE, SIZE)


def no_trailer(d: Driver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 0, NEXT, 2)
    d.describe(2, BASE + BUFFERS + 16, 1, 0)


def unannounced_indirect(d: Driver) -> None:
    d.describe(0, BASE + BUFFERS, 48, INDIRECT)


@pytest.mark.parametrize(
    ("spoil", "status", "length"),
    [
        (header_outside, 1, 1),
        (header_short, 1, 1),
        (readable_after_writable, 0xFF, 0),
        (loop, 0xFF, 0),
        (leads_outside, 0xFF, 0),
        (no_trailer, 0xFF, 0),
        (unannounced_indirect, 0xFF, 0),
    ],
)
def test_a_bad_chain_is_answered_and_stalls_no_other(spoil, status: int, length: int) -> None:
    with driver() as d:
        queue = d.queue()
        d.read(0, 1)
        spoil(d)
        d.read(1, 2)
        chains = queue.pop(16)
        assert chains is not None and chains.id.tolist() == [3]
        assert d.used() == [(0, length)]
        assert d.status(0) == status
        assert queue.malformed == 1 and queue.broken is None
        queue.release()


def test_payload_outside_memory_is_the_ports_to_refuse() -> None:
    with driver() as d, iodma.Null() as null:
        queue = d.queue()
        d.read(0, 1)
        outside(d)

        async def main() -> None:
            chains = queue.pop(1)
            assert chains is not None
            d.port.submit(chains, null)
            async for done in d.port.completions():
                assert done.status.tolist() == [iodma.Status.FAULT]
                queue.push(done)

        d.engine.run(main())
        assert d.used() == [(0, 1)] and d.status(0) == 1
        queue.release()


def test_a_trailer_outside_memory() -> None:
    with driver() as d:
        queue = d.queue()
        d.read(0, 1)
        d.describe(2, 1 << 40, 1, WRITE)
        chains = queue.pop(1)
        assert chains is not None
        queue.finish(0, 512, b"\0")
        assert d.used() == [(0, 0)]
        queue.release()


def jump(d: Driver) -> None:
    struct.pack_into("<H", d.view, AVAILABLE + 2, SIZE + 2)


def head_outside(d: Driver) -> None:
    d.offer(SIZE)


def twice(d: Driver) -> None:
    d.offer(0)


@pytest.mark.parametrize(
    ("spoil", "why"), [(jump, "more chains"), (head_outside, "outside"), (twice, "again")]
)
def test_a_ring_that_makes_no_sense_breaks_the_queue(spoil, why: str) -> None:
    with driver() as d:
        queue = d.queue()
        d.read(0, 1)
        first = queue.pop(1)
        assert first is not None and first.n == 1
        spoil(d)
        assert queue.pop(1) is None
        assert queue.broken is not None and why in queue.broken
        assert not queue.running and signalled(d.error)
        queue.release()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_rings_outside_memory(part: int) -> None:
    with driver() as d:
        places = [BASE + TABLE, BASE + AVAILABLE, BASE + USED]
        places[part] = 1 << 40
        queue = _core.Virtqueue(d.port, SIZE, *places, chains=lambda s: Chains(1, s, 0))
        assert queue.pop(1) is None
        assert queue.broken is not None and "not in memory" in queue.broken
        queue.release()


def indirect(
    d: Driver, entries: list[tuple[int, int, int, int]], length: int | None = None
) -> None:
    table = BUFFERS + 0x3000
    for i, entry in enumerate(entries):
        struct.pack_into("<QIHH", d.view, table + 16 * i, *entry)
    d.describe(0, BASE + table, 16 * len(entries) if length is None else length, INDIRECT)
    d.offer(0)


def test_indirect_tables() -> None:
    with driver(INDIRECT_DESC) as d:
        queue = d.queue()
        at = BASE + BUFFERS
        struct.pack_into("<IIQ", d.view, BUFFERS, 9, 0, 77)
        indirect(d, [(at, 16, NEXT, 2), (at + 600, 1, WRITE, 0), (at + 32, 64, NEXT | WRITE, 1)])
        chains = queue.pop(1)
        assert chains is not None
        assert chains.opcode.tolist() == [9] and chains.position.tolist() == [77]
        assert chains.segments(0) == [(at + 32, 64)]
        queue.finish(0, 64, b"\x05")
        assert d.used() == [(0, 65)] and d.view[BUFFERS + 600] == 5
        queue.release()


@pytest.mark.parametrize(
    ("entries", "length"),
    [
        ([(BASE, 16, INDIRECT, 0)], None),
        ([(BASE, 16, NEXT, 1)], None),
        ([(BASE, 16, NEXT, 0)], None),
        ([(BASE, 16, 0, 0)], 17),
        ([(BASE, 16, 0, 0)], 16 * 65535),
        ([(BASE, 16, 0, 0)], 0xFFFFFFF0),
    ],
    ids=["nested", "leads outside", "loop", "no whole entries", "65535 entries", "4 GiB"],
)
def test_bad_indirect_tables(entries: list[tuple[int, int, int, int]], length: int | None) -> None:
    with driver(INDIRECT_DESC) as d:
        queue = d.queue()
        indirect(d, entries, length)
        assert queue.pop(1) is None
        assert d.used() == [(0, 0)] and queue.malformed == 1 and queue.broken is None
        queue.release()


def test_headers_and_trailers_in_pieces() -> None:
    with driver() as d:
        queue = d.queue(trailer=4)
        at = BASE + BUFFERS
        d.view[BUFFERS : BUFFERS + 24] = bytes(range(24))
        d.describe(0, at, 7, NEXT, 1)
        d.describe(1, at + 7, 13, NEXT, 2)
        d.describe(2, at + 100, 50, NEXT | WRITE, 3)
        d.describe(3, at + 200, 1, NEXT | WRITE, 4)
        d.describe(4, at + 300, 2, WRITE)
        d.offer(0)
        chains = queue.pop(1)
        assert chains is not None
        assert bytes(chains.header[0]) == bytes(range(16))
        assert chains.segments(0) == [(at + 16, 4), (at + 100, 49)]
        assert (chains.readable[0], chains.writable[0], chains.ops_other) == (4, 49, 1 << 63)
        queue.finish(0, 49, b"\x11\x22\x33")
        assert d.used() == [(0, 53)]
        assert d.view[BUFFERS + 149] == 0x11 and d.view[BUFFERS + 200] == 0x22
        assert bytes(d.view[BUFFERS + 300 : BUFFERS + 302]) == b"\x33\x00"
        queue.release()


@pytest.mark.parametrize("flags", [0, EVENT_IDX])
def test_a_driver_that_kicks_when_it_was_asked_to(flags: int) -> None:
    """Every wake-up comes from the ring itself: the driver kicks only when the device wants it."""
    with driver(flags) as d:
        queue = d.queue()
        served: list[int] = []

        async def serve() -> None:
            async for chains in queue.batches(4):
                served.extend(chains.id.tolist())
                for head in chains.id.tolist():
                    queue.finish(head, 0, b"\0")

        def wants_kick(before: int) -> bool:
            if flags:
                (event,) = struct.unpack_from("<H", d.view, USED + 4 + 8 * SIZE)
                return int(d.available - event - 1) & 0xFFFF < (d.available - before) & 0xFFFF
            (ring_flags,) = struct.unpack_from("<H", d.view, USED)
            return not int(ring_flags) & 1

        async def main() -> None:
            task = d.engine.start(serve())
            for i in range(3000):
                while i - len(served) >= 2:
                    await d.engine.sleep(0.0001)
                    d.used()
                before = d.available
                d.read(i % 2, 0)
                if wants_kick(before):
                    os.eventfd_write(d.kick, 1)
                if i % 500 == 0:
                    await d.engine.sleep(0.002)  # long enough that the engine sleeps
            while len(served) < 3000:
                await d.engine.sleep(0.0001)
            queue.stop()
            await queue.drained()
            await task

        d.engine.run(main())
        assert len(served) == 3000 == queue.pushed
        queue.release()


def test_event_index_says_when_the_driver_is_told() -> None:
    with driver(EVENT_IDX) as d:
        queue = d.queue()

        def answer(slot: int) -> bool:
            d.read(slot, 0)
            assert queue.pop(1) is not None
            queue.finish(3 * slot, 0, b"\0")
            d.used()
            return signalled(d.call)

        def tell_at(index: int) -> None:
            struct.pack_into("<H", d.view, AVAILABLE + 4 + 2 * SIZE, index)

        answer(0)  # nothing is known of what it was told before
        tell_at(3)
        assert [answer(i % 2) for i in range(5)] == [False, False, True, False, False]
        queue.release()


def test_no_call_when_the_driver_wants_none() -> None:
    with driver() as d:
        queue = d.queue()
        struct.pack_into("<H", d.view, AVAILABLE, 1)
        d.read(0, 0)
        assert queue.pop(1) is not None
        queue.finish(0, 0, b"\0")
        assert d.used() and not signalled(d.call) and queue.calls == 0
        queue.release()


def test_answers_that_take_each_other_s_place_do_not_wait_for_ever() -> None:
    """Header and status share a page, and each answer maps it for what was asked alone."""
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        memory = iodma.Memory({BASE: ram})

        def walk(address: int, access: iodma.Access) -> iodma.Mapping:
            return iodma.Mapping(address, address, 4096, access)

        d = Driver(engine, ram, memory, 0)
        d.port = engine.port(iodma.Iommu(memory, walk=walk))
        queue = d.queue()

        async def serve() -> None:
            async for chains in queue.batches(4):
                for head in chains.id.tolist():
                    queue.finish(head, 0, b"\0")

        async def main() -> None:
            task = engine.start(serve())
            for head in range(2):
                d.read(head, 0)
                while not d.used():
                    await engine.sleep(0.0005)
                assert d.status(head) == 0
            queue.stop()
            await task

        engine.run(main())
        queue.release()
        d.close()


def test_misses_wait_and_consume_nothing() -> None:
    """A chain whose header, or a ring whose page, is not translated yet waits for it."""
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        memory = iodma.Memory({BASE: ram})
        asked: list[tuple[int, iodma.Access]] = []

        def walk(address: int, access: iodma.Access) -> None:
            asked.append((address, access))

        iommu = iodma.Iommu(memory, walk=walk)
        d = Driver(engine, ram, memory, 0)
        d.port = engine.port(iommu)
        queue = d.queue()
        got: list[int] = []

        async def serve() -> None:
            async for chains in queue.batches(4):
                got.extend(chains.id.tolist())
                for head in chains.id.tolist():
                    queue.finish(head, 0, b"\0")

        async def main() -> None:
            task = engine.start(serve())
            d.read(0, 0)
            answered = 0
            while not d.used():
                await engine.sleep(0.0005)
                for address, _ in asked[answered:]:
                    answered += 1
                    iommu.update(iodma.Mapping(address, address, 4096, iodma.Access.RW))
            # The three parts of the ring; the header to read; its page again, to write the status.
            assert sorted(asked) == [
                (BASE + TABLE, iodma.Access.READ),
                (BASE + AVAILABLE, iodma.Access.READ),
                (BASE + USED, iodma.Access.WRITE),
                (BASE + BUFFERS, iodma.Access.READ),
                (BASE + BUFFERS, iodma.Access.WRITE),
            ]
            queue.stop()
            await queue.drained()
            await task

        engine.run(main())
        assert got == [0]
        assert d.status(0) == 0
        queue.release()
        d.close()


def test_the_memory_of_the_ring_is_truncated() -> None:
    with iodma.Engine(strict=True) as engine:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(fd, 1 << 20)
        with iodma.Ram.from_fd(fd) as ram:
            d = Driver(engine, ram, iodma.Memory({BASE: ram}), 0)
            queue = d.queue()
            d.read(0, 0)
            os.ftruncate(fd, 0)
            assert queue.pop(1) is None
            assert queue.broken == "the memory of its ring is gone"
            queue.release()
            d.close()
        os.close(fd)


def test_an_idle_queue_is_let_go_with_its_engine() -> None:
    with driver() as d:
        queue = d.queue()

        async def serve() -> None:
            async for _ in queue.batches():
                pass

        d.engine.start(serve())
        d.engine.pump()
    assert not queue.running


INFLIGHT = 0x8000  # of the same memory, for once


def recorded(d: Driver) -> tuple[list[int], int]:
    """The heads that the area has in flight, and its used index."""
    heads = [i for i in range(SIZE) if d.view[INFLIGHT + 16 + 16 * i]]
    return heads, struct.unpack_from("<H", d.view, INFLIGHT + 14)[0]


def test_chains_in_flight_outlive_the_queue() -> None:
    with driver() as d:
        first = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        for slot in (1, 0):
            d.read(slot, slot)
        assert first.pop(1) is not None and first.pop(1) is not None
        assert recorded(d) == ([0, 3], 0)
        d.describe(6, BASE + BUFFERS, 16, NEXT, 7)
        d.describe(7, BASE + BUFFERS + 16, 1, WRITE)
        d.offer(6)
        assert first.pop(4) is not None
        first.finish(0, 512, b"\0")
        assert recorded(d) == ([3, 6], 1)
        first.release()  # as good as dead: two were not answered

        again = d.queue(inflight=d.ram, inflight_at=INFLIGHT, next=1)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [3, 6]  # in the order of old
        assert again.next == 3
        again.finish(6, 0, b"\0")
        again.finish(3, 512, b"\0")
        assert recorded(d) == ([], 3)
        assert d.used() == [(0, 513), (6, 1), (3, 513)]
        d.read(0, 0)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [0]
        again.release()


def test_death_between_the_used_index_and_the_marks() -> None:
    with driver() as d:
        first = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        d.read(0, 0)
        d.read(1, 1)
        assert first.pop(2) is not None
        first.finish(3, 512, b"\0")
        first.release()
        # As if it had died just before it took the mark off.
        d.view[INFLIGHT + 16 + 16 * 3] = 1
        struct.pack_into("<H", d.view, INFLIGHT + 14, 0)
        again = d.queue(inflight=d.ram, inflight_at=INFLIGHT, next=1)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [0]
        assert recorded(d) == ([0], 1)
        again.release()


@pytest.mark.parametrize("seed", range(20))
def test_an_area_full_of_nonsense(seed: int) -> None:
    rng = random.Random(seed)
    with driver() as d:
        area = bytearray(rng.randbytes(16 + 16 * SIZE))
        struct.pack_into("<HH", area, 8, 1, SIZE)
        d.view[INFLIGHT : INFLIGHT + len(area)] = area
        queue = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        d.read(0, 0)
        for _ in range(4):
            chains = queue.pop(SIZE)
            for head in [] if chains is None else chains.id.tolist():
                queue.finish(head, 0, b"\0")
        queue.release()


def test_an_area_that_is_too_small() -> None:
    with driver() as d:
        for at in (4, (1 << 20) - 16, 1 << 40):
            with pytest.raises(iodma.AddressRangeError, match="in flight"):
                d.queue(inflight=d.ram, inflight_at=at)


async def until_used(d: Driver, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while len(found) < count:
        os.eventfd_write(d.kick, 1)
        await d.engine.sleep(0.0005)
        found += d.used()
    return sorted(found)


def test_a_route_takes_plain_requests_and_leaves_the_others() -> None:
    with driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
        with ram.view() as view:
            view[:] = bytes(range(256)) * 16
        queue = d.queue()
        queue.route(disk, to_memory=1 << 0, unit=512, end=2048, ok=0, error=9)
        odd: list[tuple[int, int]] = []

        async def serve() -> None:
            async for chains in queue.batches():
                for row in range(chains.n):
                    odd.append((int(chains.id[row]), int(chains.opcode[row])))
                    assert chains.ops_to_memory == 1 << 5 and not chains.ops_other
                    queue.finish(int(chains.id[row]), 0, b"\3")

        async def main() -> None:
            task = d.engine.start(serve())
            d.read(0, 1)
            d.read(1, 0)
            struct.pack_into("<I", d.view, BUFFERS + 0x1000, 5)  # another opcode
            assert await until_used(d, 2) == [(0, 513), (3, 1)]
            assert (d.status(0), d.status(1)) == (0, 3)
            assert bytes(d.view[BUFFERS + 0x200 : BUFFERS + 0x400]) == bytes(range(256)) * 2
            d.read(0, 4)  # ends beyond the end
            d.read(1, 1 << 60)
            assert await until_used(d, 2) == [(0, 1), (3, 1)]
            assert (d.status(0), d.status(1)) == (9, 9)
            queue.route(disk, to_memory=1 << 0, unit=512, end=4096)
            d.read(0, 4)
            assert await until_used(d, 1) == [(0, 513)]
            disk.close()
            d.read(0, 1)
            assert await until_used(d, 1) == [(0, 1)] and d.status(0) == 1
            queue.stop()
            await queue.drained()
            await task

        d.engine.run(main())
        assert odd == [(3, 5)]
        queue.release()


def test_a_route_needs_no_reader() -> None:
    with driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
        queue = d.queue()
        queue.route(disk, to_memory=1 << 0, unit=512)

        async def main() -> None:
            for sector in range(50):
                d.read(sector % 2, sector % 8)
                assert await until_used(d, 1) == [(3 * (sector % 2), 513)]

        d.engine.run(main())
        assert queue.popped == queue.pushed == 50
        queue.release()


def test_what_a_reset_cancels_is_not_answered() -> None:
    with driver() as d, ScriptedEndpoint(1 << 20, script=lambda request: Answer.hold()) as disk:
        queue = d.queue()
        queue.route(disk, to_memory=1 << 0, unit=512)

        async def main() -> None:
            d.read(0, 0)
            os.eventfd_write(d.kick, 1)
            while not d.port.in_flight:
                await d.engine.sleep(0.0005)
            await d.port.reset()
            assert d.used() == [] and d.status(0) == 0xFF

        d.engine.run(main())
        queue.release()


def test_a_queue_that_nobody_keeps_is_gone() -> None:
    with driver() as d, iodma.Null() as null:
        for _ in range(3):
            queue = d.queue()  # its port has room for one
            queue.route(null, to_memory=1)
            d.read(0, 0)
            del queue
            d.engine.pump()
        assert d.used() == []


def test_bad_routes() -> None:
    with driver() as d, iodma.Null() as null:
        queue = d.queue()
        with pytest.raises(iodma.ArgumentTypeError, match="not an endpoint"):
            queue.route(7)  # type: ignore[arg-type]
        with pytest.raises(iodma.ArgumentError, match="unit is 0"):
            queue.route(null, unit=0)
        queue.route(None)
        queue.release()
        with pytest.raises(iodma.ClosedError):
            queue.route(null)


def test_one_port_for_one_queue() -> None:
    with driver() as d:
        queue = d.queue()
        with pytest.raises(iodma.Error, match="has a queue already"):
            d.queue()
        queue.release()
        d.queue().release()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_kicks_over_a_pipe_or_a_socket_do_not_fill_it(kind: str) -> None:
    with driver() as d, iodma.Buffer(4096) as disk:
        queue = d.queue()
        if kind == "pipe":
            ours, theirs = os.pipe()
        else:
            one, other = socket.socketpair()
            ours, theirs = one.detach(), other.detach()
        os.set_blocking(theirs, False)
        queue.set_kick(ours)
        queue.route(disk, to_memory=1 << 0, unit=512)

        async def main() -> None:
            kicks = 0
            while kicks < 20_000:  # each of 8 bytes: far more than either holds
                for _ in range(100):
                    os.write(theirs, bytes(8))
                kicks += 100
                d.read(0, 0)
                found: list[tuple[int, int]] = []
                while not found:
                    await d.engine.sleep(0.0005)
                    found = d.used()

        d.engine.run(main())
        queue.release()
        os.close(ours)
        os.close(theirs)


def test_a_notifier_that_is_full_and_blocks_holds_nothing_up() -> None:
    with driver() as d:
        queue = d.queue()
        for fd in (d.call, d.error):
            os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
            os.set_blocking(fd, True)
        d.read(0, 0)
        assert queue.pop(1) is not None
        queue.finish(0, 0, b"\0")
        assert d.used() == [(0, 1)]
        jump(d)
        assert queue.pop(1) is None and queue.broken is not None
        queue.release()
