# SPDX-License-Identifier: Apache-2.0
"""Routes: chains that the core answers by itself; and what a queue does with its descriptors."""

from __future__ import annotations

import os
import socket
import struct

import pytest

import iodma
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit.ringdriver import (
    BUFFERS,
    SplitDriver,
    split_driver,
)


async def until_used(d: SplitDriver, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while len(found) < count:
        os.eventfd_write(d.kick, 1)
        await d.engine.sleep(0.0005)
        found += d.used()
    return sorted(found)


def test_a_route_takes_plain_requests_and_leaves_the_others() -> None:
    with split_driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
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
    with split_driver() as d, iodma.Ram(4096) as ram, iodma.Buffer(ram) as disk:
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
    with (
        split_driver() as d,
        ScriptedEndpoint(1 << 20, script=lambda request: Answer.hold()) as disk,
    ):
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
    with split_driver() as d, iodma.Null() as null:
        for _ in range(3):
            queue = d.queue()  # its port has room for one
            queue.route(null, to_memory=1)
            d.read(0, 0)
            del queue
            d.engine.pump()
        assert d.used() == []


def test_bad_routes() -> None:
    with split_driver() as d, iodma.Null() as null:
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
    with split_driver() as d:
        queue = d.queue()
        with pytest.raises(iodma.Error, match="has a queue already"):
            d.queue()
        queue.release()
        d.queue().release()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_kicks_over_a_pipe_or_a_socket_do_not_fill_it(kind: str) -> None:
    with split_driver() as d, iodma.Buffer(4096) as disk:
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
                    try:
                        os.write(theirs, bytes(8))
                    except BlockingIOError:  # full: it has room when the engine has been idle
                        await d.engine.sleep(0.0005)
                    else:
                        kicks += 1
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
    with split_driver() as d:
        queue = d.queue()
        for fd in (d.call, d.error):
            os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
            os.set_blocking(fd, True)
        d.read(0, 0)
        assert queue.pop(1) is not None
        queue.finish(0, 0, b"\0")
        assert d.used() == [(0, 1)]
        d.jump()
        assert queue.pop(1) is None and queue.broken is not None
        queue.release()
