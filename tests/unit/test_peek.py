"""Looking at a packet before it is received: it stays, its turn is kept, and a drop takes it."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator

import pytest

import iodma
from iodma import Status
from tests.unit.test_packets import KINDS, Link, frame, seqpackets, tap, udp, unix_datagrams

__all__ = ["tap"]  # a fixture


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(request.param) as made:
        yield made


def test_what_was_seen_is_what_is_received(link: Link, rng: random.Random) -> None:
    async def main() -> None:
        for length in (1, 5, 6, 14, 63, 64, 65, 1514, 9000):
            data = rng.randbytes(length)
            link.peer.send(data)
            for asked in (6, 64):
                seen = await link.port.peek(link.endpoint, asked)
                assert seen.ok and seen.done.moved == len(seen.head)
                assert (seen.head, seen.length) == (data[:asked], length)
            done = await link.port.to_memory((0, 16384), source=link.endpoint)
            assert (done.status, done.moved) == (Status.OK, length)
            assert bytes(link.ram.view(0, length)) == data
        assert link.engine.stats().bounced.total == 0

    link.run(main())


def test_a_drop_takes_one_packet_of_any_length(link: Link) -> None:
    async def main() -> None:
        for first in (b"", b"x", b"y" * 9000):
            link.peer.send(first)
            link.peer.send(b"next")
            done = await link.port.drop(link.endpoint)
            assert (done.status, done.moved) == (Status.OK, 0)
            assert (await link.port.peek(link.endpoint)).head == b"next"
            assert (await link.port.to_memory((0, 64), source=link.endpoint)).moved == 4

    link.run(main())


def test_looks_wait_in_the_order_of_receives(link: Link) -> None:
    async def main() -> None:
        port, endpoint = link.port, link.endpoint
        seen = port.peek(endpoint)
        first = port.to_memory((0, 64), source=endpoint)
        dropped = port.drop(endpoint)
        again = port.peek(endpoint, 2)
        last = port.to_memory((64, 64), source=endpoint)
        await link.engine.sleep(0)
        assert not any(each.done for each in (seen, first, dropped, again, last))
        for data in (b"one", b"two", b"three"):
            link.peer.send(data)
        assert (await last).moved == 5 and bytes(link.ram.view(64, 5)) == b"three"
        assert (await first).moved == 3 and bytes(link.ram.view(0, 3)) == b"one"
        assert ((await seen).head, (await again).head) == (b"one", b"th")
        assert (await again).length == 5 and (await dropped).ok

    link.run(main())


def test_looks_that_wait_are_cancelled_and_reset_and_take_nothing(link: Link) -> None:
    async def main() -> None:
        port, endpoint = link.port, link.endpoint
        for begin in (port.peek, port.drop):
            waiting = [begin(endpoint) for _ in range(2)]
            await link.engine.sleep(0)
            for each in reversed(waiting):
                assert each.cancel()
            results = [await each for each in waiting]
            for result in results:
                done = result.done if isinstance(result, iodma.Peek) else result
                assert done.status is Status.CANCELLED
                assert not isinstance(result, iodma.Peek) or result[1:] == (b"", 0)
            waiting = [begin(endpoint) for _ in range(2)]
            await link.engine.sleep(0)
            await port.reset()
            assert all(each.done for each in waiting)
            link.peer.send(b"still there")
            assert (await port.to_memory((0, 64), source=endpoint)).moved == 11

    link.run(main())


def test_an_empty_packet_can_be_seen(link: Link) -> None:
    async def main() -> None:
        link.peer.send(b"")
        seen = await link.port.peek(link.endpoint)
        assert seen.ok and (seen.head, seen.length) == (b"", 0)
        assert (await link.port.to_memory((0, 64), source=link.endpoint)).moved == 0

    link.run(main())


def test_a_socket_that_is_not_to_block_is_waited_for_all_the_same() -> None:
    for pair in (udp, unix_datagrams):
        with Link(pair, blocking=False) as link:

            async def main(link: Link = link) -> None:
                seen, dropped = link.port.peek(link.endpoint), link.port.drop(link.endpoint)
                await link.engine.sleep(0)
                link.peer.send(b"late")
                assert (await seen).head == b"late" and (await dropped).ok

            link.run(main())


def test_a_peer_that_is_gone() -> None:
    with Link(seqpackets) as link:

        async def main() -> None:
            link.peer.close()
            assert (await link.port.peek(link.endpoint)).done.status is Status.PEER_GONE
            assert (await link.port.drop(link.endpoint)).status is Status.PEER_GONE

        link.run(main())


def test_what_is_not_made_of_packets_cannot_be_looked_at() -> None:
    ours, peer = socket.socketpair()
    with (
        iodma.Engine(strict=True) as engine,
        ours,
        peer,
        iodma.Ram(4096) as ram,
        iodma.Socket(ours) as stream,
        iodma.Buffer(64) as buffer,
        iodma.Null() as null,
    ):
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            for endpoint in (stream, buffer, null):
                for done in ((await port.peek(endpoint)).done, await port.drop(endpoint)):
                    assert (done.status, done.error) == (Status.IO_ERROR, errno.EOPNOTSUPP)
            for length in (0, -1, 65, 1 << 70):
                with pytest.raises(iodma.ArgumentError, match="1 to 64"):
                    port.peek(stream, length)

        engine.run(main())


def test_a_receive_that_faults_leaves_what_was_seen(link: Link) -> None:
    async def main() -> None:
        link.peer.send(b"whole")
        assert (await link.port.peek(link.endpoint)).head == b"whole"
        done = await link.port.to_memory((1 << 40, 64), source=link.endpoint)
        assert done.status is Status.FAULT
        assert (await link.port.to_memory((0, 64), source=link.endpoint)).moved == 5

    link.run(main())


def test_a_frame_of_a_tap_is_copied_once_and_counted(
    tap: tuple[iodma.Tap, socket.socket],
    rng: random.Random,
) -> None:
    endpoint, host = tap
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 16) as ram:
        port = engine.port(iodma.Memory({0: ram}))

        async def next_of_ours() -> iodma.Peek:
            """A host says this and that on an interface that comes up."""
            while True:
                seen = await port.peek(endpoint)
                if seen.head[12:14] == b"\x88\xb5":
                    return seen
                assert (await port.drop(endpoint)).ok

        async def main() -> None:
            copied = 0
            for length in (46, 1500, 3000):
                data = frame(rng.randbytes(length))
                host.send(data)
                seen = await next_of_ours()
                assert (seen.head, seen.length) == (data[:64], len(data))
                assert (await port.peek(endpoint, 14)).head == data[:14]
                fault = await port.to_memory((1 << 40, 64), source=endpoint)
                assert fault.status is Status.FAULT
                done = await port.to_memory([(0, 14), (8192, 4096)], source=endpoint)
                assert (done.status, done.moved) == (Status.OK, len(data))
                assert bytes(ram.view(0, 14)) + bytes(ram.view(8192, length)) == data
                copied += len(data)
            assert engine.stats().bounced.peeked == copied
            # One that is too long for its list, and one that is dropped.
            host.send(frame(bytes(100)))
            host.send(frame(b"dropped" * 10))
            host.send(frame(b"last" * 20))
            await next_of_ours()
            done = await port.to_memory((0, 50), source=endpoint)
            assert (done.status, done.error, done.moved) == (Status.IO_ERROR, errno.EMSGSIZE, 50)
            assert (await next_of_ours()).head[14:21] == b"dropped"
            await port.drop(endpoint)
            assert (await next_of_ours()).head[14:18] == b"last"
            await port.drop(endpoint)

        engine.run(main())
