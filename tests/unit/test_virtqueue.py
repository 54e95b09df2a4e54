# SPDX-License-Identifier: Apache-2.0
"""The core's virtqueue, driven by a ring that the test writes: chains, notifications, misses."""

from __future__ import annotations

import os
import struct

import pytest

import iodma
from iodma import _core
from iodma.virtio.chains import Chains
from tests.unit.ringdriver import (
    BASE,
    BUFFERS,
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    WRITE,
    SplitDriver,
    kicks_when_asked,
    signalled,
    split_driver,
)


def test_a_batch_of_chains() -> None:
    with split_driver() as d:
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
    with split_driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
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
    with split_driver() as d:
        queue = d.queue()
        d.read(0, 1)
        for wrong in (0, d.size, 1 << 40):
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


def outside(d: SplitDriver) -> None:
    d.describe(1, 1 << 40, 512, NEXT | WRITE, 2)  # payload: the port's to refuse


def header_outside(d: SplitDriver) -> None:
    d.describe(0, 1 << 40, 16, NEXT, 1)


def header_short(d: SplitDriver) -> None:
    d.describe(0, BASE + BUFFERS, 15, NEXT, 1)


def readable_after_writable(d: SplitDriver) -> None:
    d.describe(2, BASE + BUFFERS + 16, 1)


def loop(d: SplitDriver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 512, NEXT | WRITE, 1)


def leads_outside(d: SplitDriver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 512, NEXT | WRITE, d.size)


def no_trailer(d: SplitDriver) -> None:
    d.describe(1, BASE + BUFFERS + 0x200, 0, NEXT, 2)
    d.describe(2, BASE + BUFFERS + 16, 1, 0)


def unannounced_indirect(d: SplitDriver) -> None:
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
    with split_driver() as d:
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
    with split_driver() as d, iodma.Null() as null:
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
    with split_driver() as d:
        queue = d.queue()
        d.read(0, 1)
        d.describe(2, 1 << 40, 1, WRITE)
        chains = queue.pop(1)
        assert chains is not None
        queue.finish(0, 512, b"\0")
        assert d.used() == [(0, 0)]
        queue.release()


def head_outside(d: SplitDriver) -> None:
    d.offer(d.size)


def twice(d: SplitDriver) -> None:
    d.offer(0)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(SplitDriver.jump, "more chains"), (head_outside, "outside"), (twice, "again")],
)
def test_a_ring_that_makes_no_sense_breaks_the_queue(spoil, why: str) -> None:
    with split_driver() as d:
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
    with split_driver() as d:
        places = [BASE + SplitDriver.TABLE, BASE + SplitDriver.AVAILABLE, BASE + SplitDriver.USED]
        places[part] = 1 << 40
        queue = _core.Virtqueue(d.port, d.size, *places, chains=lambda s: Chains(1, s, 0))
        assert queue.pop(1) is None
        assert queue.broken is not None and "not in memory" in queue.broken
        queue.release()


def indirect(
    d: SplitDriver, entries: list[tuple[int, int, int, int]], length: int | None = None
) -> None:
    table = BUFFERS + 0x3000
    for i, entry in enumerate(entries):
        struct.pack_into("<QIHH", d.view, table + 16 * i, *entry)
    d.describe(0, BASE + table, 16 * len(entries) if length is None else length, INDIRECT)
    d.offer(0)


def test_indirect_tables() -> None:
    with split_driver(INDIRECT_DESC) as d:
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
    with split_driver(INDIRECT_DESC) as d:
        queue = d.queue()
        indirect(d, entries, length)
        assert queue.pop(1) is None
        assert d.used() == [(0, 0)] and queue.malformed == 1 and queue.broken is None
        queue.release()


def test_headers_and_trailers_in_pieces() -> None:
    with split_driver() as d:
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
    with split_driver(flags) as d:
        kicks_when_asked(d, 3000)


def test_event_index_says_when_the_driver_is_told() -> None:
    with split_driver(EVENT_IDX) as d:
        queue = d.queue()

        def answer(slot: int) -> bool:
            d.read(slot, 0)
            assert queue.pop(1) is not None
            queue.finish(3 * slot, 0, b"\0")
            d.used()
            return signalled(d.call)

        def tell_at(index: int) -> None:
            struct.pack_into("<H", d.view, SplitDriver.AVAILABLE + 4 + 2 * d.size, index)

        answer(0)  # nothing is known of what it was told before
        tell_at(3)
        assert [answer(i % 2) for i in range(5)] == [False, False, True, False, False]
        queue.release()


def test_no_call_when_the_driver_wants_none() -> None:
    with split_driver() as d:
        queue = d.queue()
        struct.pack_into("<H", d.view, SplitDriver.AVAILABLE, 1)
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

        d = SplitDriver(engine, ram, memory, 0)
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
        d = SplitDriver(engine, ram, memory, 0)
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
                (BASE + SplitDriver.TABLE, iodma.Access.READ),
                (BASE + SplitDriver.AVAILABLE, iodma.Access.READ),
                (BASE + SplitDriver.USED, iodma.Access.WRITE),
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
            d = SplitDriver(engine, ram, iodma.Memory({BASE: ram}), 0)
            queue = d.queue()
            d.read(0, 0)
            os.ftruncate(fd, 0)
            assert queue.pop(1) is None
            assert queue.broken == "the memory of its ring is gone"
            queue.release()
            d.close()
        os.close(fd)


def test_an_idle_queue_is_let_go_with_its_engine() -> None:
    with split_driver() as d:
        queue = d.queue()

        async def serve() -> None:
            async for _ in queue.batches():
                pass

        d.engine.start(serve())
        d.engine.pump()
    assert not queue.running
