"""Packets that wait for the same endpoint go by one call: in order, each answered by itself."""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import Inject
from tests.unit.packetlink import Pair
from tests.unit.system import Registers
from tests.unit.test_packets import (
    KINDS,
    Link,
    frame,
    seqpackets,
    tap,
    udp,
    unix_datagrams,
)

__all__ = ["tap"]  # a fixture

COUNT = 64


def small(pair: Pair) -> Pair:
    """One that is full after a few packets."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    return pair


def small_datagrams() -> Pair:
    return small(unix_datagrams())


def small_seqpackets() -> Pair:
    return small(seqpackets())


QUEUED = [small_datagrams, small_seqpackets]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(request.param) as made:
        yield made


@pytest.fixture(params=QUEUED, ids=lambda kind: kind.__name__)
def queued(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(request.param) as made:
        made.peer.setblocking(False)
        yield made


def numbered(link: Link, count: int = COUNT, size: int = 1514) -> list[tuple[int, int]]:
    """One place a packet, each with its number in front."""
    for i in range(count):
        link.ram.view(i * 2048, 2)[:] = struct.pack("<H", i)
    return [(i * 2048, size) for i in range(count)]


def number(packet: bytes) -> int:
    return int(struct.unpack_from("<H", packet)[0])


async def receive(link: Link) -> bytes:
    """What the peer gets next; the sender goes on meanwhile."""
    while True:
        try:
            return link.peer.recv(65536)
        except BlockingIOError:
            await link.engine.sleep(0)


async def drained(link: Link) -> list[int]:
    """The numbers of all that is there now."""
    found = []
    while True:
        try:
            found.append(number(link.peer.recv(65536)))
        except BlockingIOError:
            return found


def test_what_is_submitted_together_goes_with_few_calls() -> None:
    with Link(udp) as link:
        link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        places = numbered(link)

        async def main() -> None:
            before = link.engine.stats()
            sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
            for each in sending:
                assert (await each).moved == 1514
            after = link.engine.stats()
            assert after.requests - before.requests == 1
            assert after.coalesced - before.coalesced == COUNT - 1
            assert after.copied == 0
            assert [number(link.peer.recv(65536)) for _ in range(COUNT)] == list(range(COUNT))
            # And back: those that are there already come together.
            for i in range(COUNT):
                link.peer.send(struct.pack("<H", i) + bytes(i))
            before = after
            coming = [link.port.to_memory(place, source=link.endpoint) for place in places]
            for i, each in enumerate(coming):
                assert (await each).moved == 2 + i
                assert number(bytes(link.ram.view(i * 2048, 2))) == i
            after = link.engine.stats()
            assert after.requests - before.requests < COUNT / 4

        link.run(main())


def test_a_batch_has_its_order_and_its_answers(link: Link, rng: random.Random) -> None:
    batch = iodma.Batch(COUNT, 3 * COUNT)
    sizes = [rng.choice((0, 1, 14, 60, 1514)) for _ in range(COUNT)]
    for i, size in enumerate(sizes):
        cuts = sorted(rng.randrange(size + 1) for _ in range(2))
        batch.first[i], batch.count[i], batch.direction[i], batch.id[i] = 3 * i, 3, 0, 1000 + i
        for k, (begin, end) in enumerate(zip((0, *cuts), (*cuts, size), strict=True)):
            batch.address[3 * i + k], batch.length[3 * i + k] = i * 4096 + begin, end - begin
        link.ram.view(i * 4096, 2048)[:] = rng.randbytes(2048)
    batch.n = COUNT

    async def main() -> None:
        link.peer.setblocking(False)
        link.port.submit(batch, link.endpoint)
        for i, size in enumerate(sizes):
            assert await receive(link) == bytes(link.ram.view(i * 4096, size))
        ids: list[int] = []
        async for done in link.port.completions(limit=COUNT):
            assert done.all_ok
            assert list(done.moved) == [sizes[k - 1000] for k in done.id]
            ids += [int(each) for each in done.id]
        assert ids == list(range(1000, 1000 + COUNT))

    link.run(main())


@pytest.mark.parametrize("lanes", [False, True])
def test_a_socket_that_is_full_in_the_middle_delays_and_loses_nothing(
    queued: Link, lanes: bool
) -> None:
    link = queued
    port = link.port
    if lanes:
        port = link.engine.port(iodma.ByteLanes(link.memory, width=2), "swapped")
    places = numbered(link)

    async def main() -> None:
        sending = [port.from_memory(place, to=link.endpoint) for place in places]
        await link.engine.sleep(0.005)
        stuck = [each.done for each in sending]
        assert stuck == sorted(stuck, reverse=True) and not all(stuck), "a prefix went"
        assert link.engine.stats().arena[1] == 0, "who waits for a peer keeps no copy"
        got = [await receive(link) for _ in range(COUNT)]
        if lanes:
            got = [bytes((each[1], each[0])) for each in got]
        assert [number(each) for each in got] == list(range(COUNT))
        assert all([(await each).moved == 1514 for each in sending])
        if not lanes:
            assert link.engine.stats().copied == 0

    link.run(main())


def test_one_that_is_too_long_in_the_middle_is_its_own_trouble(link: Link) -> None:
    places: list[tuple[int, int]] = numbered(link, 8)
    places[3] = places[6] = (0, 1 << 20)

    async def main() -> None:
        sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
        results = [await each for each in sending]
        for i, done in enumerate(results):
            if i in (3, 6):
                assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)
                assert done.moved == 0
            else:
                assert (done.status, done.moved) == (Status.OK, 1514)
        assert [number(link.peer.recv(65536)) for _ in range(6)] == [0, 1, 2, 4, 5, 7]

    link.run(main())


def test_one_whose_memory_is_refused_in_the_middle_is_its_own_trouble(link: Link) -> None:
    places: list[tuple[int, int]] = numbered(link, 8)
    places[2] = places[5] = (1 << 40, 10)

    async def main() -> None:
        sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
        statuses = [(await each).status for each in sending]
        expected = [Status.FAULT if i in (2, 5) else Status.OK for i in range(8)]
        assert statuses == expected
        assert [number(link.peer.recv(65536)) for _ in range(6)] == [0, 1, 3, 4, 6, 7]
        # And of receives: the packet that one could not take is the next one's.
        for i in range(6):
            link.peer.send(bytes([i]) * 10)
        coming = [link.port.to_memory(place, source=link.endpoint) for place in places]
        statuses = [(await each).status for each in coming]
        assert statuses == expected
        taken = [link.ram.view(i * 2048, 1)[0] for i in range(8) if i not in (2, 5)]
        assert taken == list(range(6))

    link.run(main())


def test_packets_that_come_together_are_cut_and_empty_each_by_itself(link: Link) -> None:
    async def main() -> None:
        packets = [b"a" * 10, b"", b"b" * 200, b"c", b"", b"d" * 100]
        for packet in packets:
            link.peer.send(packet)
        coming = [link.port.to_memory((i * 4096, 100), source=link.endpoint) for i in range(6)]
        for i, (each, packet) in enumerate(zip(coming, packets, strict=True)):
            done = await each
            assert done.moved == min(100, len(packet))
            assert bytes(link.ram.view(i * 4096, done.moved)) == packet[:100]
            cut = (Status.IO_ERROR, errno.EMSGSIZE)
            assert (done.status, done.error) == (cut if len(packet) > 100 else (Status.OK, 0))

    link.run(main())


@pytest.mark.parametrize("pair", QUEUED, ids=lambda kind: kind.__name__)
def test_a_peer_that_goes_in_the_middle(pair: Callable[[], Pair]) -> None:
    with Link(pair) as link:
        link.peer.setblocking(False)
        places = numbered(link)

        async def main() -> None:
            sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
            await link.engine.sleep(0.005)
            got = await drained(link)
            assert got == list(range(len(got)))
            await link.engine.sleep(0)
            link.peer.close()
            statuses = [(await each).status for each in sending]
            went = statuses.index(Status.PEER_GONE)
            assert went >= len(got)
            assert statuses == [Status.OK] * went + [Status.PEER_GONE] * (COUNT - went)

        link.run(main())


def test_packets_of_a_sequenced_peer_that_is_gone_still_come() -> None:
    with Link(seqpackets) as link:

        async def main() -> None:
            for packet in (b"one", b"", b"three"):
                link.peer.send(packet)
            link.peer.close()
            coming = [link.port.to_memory((i * 64, 64), source=link.endpoint) for i in range(6)]
            results = [await each for each in coming]
            assert [(done.status, done.moved) for done in results[:3]] == [
                (Status.OK, 3),
                (Status.OK, 0),
                (Status.OK, 5),
            ]
            assert all(done.status is Status.PEER_GONE for done in results[3:])

        link.run(main())


def test_those_behind_a_full_socket_are_cancelled_at_once_and_leave_no_gap(queued: Link) -> None:
    link = queued
    places = numbered(link)

    async def main() -> None:
        sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
        await link.engine.sleep(0.005)
        stuck = [i for i, each in enumerate(sending) if not each.done]
        gone = {stuck[0], stuck[1], stuck[5], stuck[-1]}
        for i in gone:
            assert sending[i].cancel()
        results = {i: await sending[i] for i in gone}
        assert all(done.status is Status.CANCELLED for done in results.values())
        left = [i for i in range(COUNT) if i not in gone]
        assert [number(await receive(link)) for _ in left] == left
        assert all([(await sending[i]).ok for i in left])

    link.run(main())


def test_a_reset_ends_those_that_wait_and_no_others(queued: Link) -> None:
    link = queued
    other = link.engine.port(link.memory, "other")
    places = numbered(link)

    async def main() -> None:
        sending = [
            (other if i % 2 else link.port).from_memory(place, to=link.endpoint)
            for i, place in enumerate(places)
        ]
        await link.engine.sleep(0.005)
        went = {i for i, each in enumerate(sending) if each.done}
        await link.port.reset()
        assert all(each.done for each in sending[::2])
        expected = [i for i in range(COUNT) if i in went or i % 2]
        assert [number(await receive(link)) for _ in expected] == expected
        for i, each in enumerate(sending):
            assert (await each).ok == (i in expected)
        assert await drained(link) == []

    link.run(main())


def test_those_that_ride_are_cancelled_before_their_call(link: Link) -> None:
    """By a register that another transfer of the turn writes: after planning, before the call."""
    others: list[Any] = []

    class Bell(Registers):
        def write(self, offset: int, width: int, value: int) -> bool | None:
            for each in others:
                each.cancel()
            return super().write(offset, width, value)

    link.memory.add(1 << 32, iodma.DeviceWindow(Bell(), 4096))
    places = numbered(link, 8)

    async def main() -> None:
        for which in ([3], [0], [0, 1, 2], [7], list(range(8))):
            others.clear()
            sending = [link.port.from_memory(place, to=link.endpoint) for place in places]
            others.extend(sending[i] for i in which)
            poke = link.port.copy((0, 4), (1 << 32, 4))
            for i, each in enumerate(sending):
                assert (await each).status is (Status.CANCELLED if i in which else Status.OK)
            assert (await poke).ok
            left = [i for i in range(8) if i not in which]
            assert [number(link.peer.recv(65536)) for _ in left] == left

    link.run(main())


def test_looks_and_receives_in_one_queue(link: Link) -> None:
    async def main() -> None:
        port, endpoint = link.port, link.endpoint
        for i in range(6):
            link.peer.send(bytes([i]) * (i + 1))
        first = [port.to_memory((i * 64, 64), source=endpoint) for i in range(2)]
        seen = port.peek(endpoint, 1)
        dropped = port.drop(endpoint)
        rest = [port.to_memory((1024 + i * 64, 64), source=endpoint) for i in range(3)]
        assert [(await each).moved for each in first] == [1, 2]
        assert (await seen)[1:] == (b"\2", 3) and (await dropped).ok
        assert [(await each).moved for each in rest] == [4, 5, 6]

    link.run(main())


def test_receives_that_wait_get_what_comes_one_by_one_and_in_bursts(
    link: Link, rng: random.Random
) -> None:
    async def main() -> None:
        coming = [link.port.to_memory((i * 64, 64), source=link.endpoint) for i in range(200)]
        sent = 0
        while sent < len(coming):
            for _ in range(min(rng.choice((1, 1, 2, 8)), len(coming) - sent)):
                link.peer.send(struct.pack("<H", sent))
                sent += 1
            assert (await coming[sent - 1]).moved == 2
        for i, each in enumerate(coming):
            assert (await each).ok and number(bytes(link.ram.view(i * 64, 2))) == i

    link.run(main())


def test_lanes_are_swapped_for_each_packet_of_a_batch(link: Link, rng: random.Random) -> None:
    swapped = link.engine.port(iodma.ByteLanes(link.memory, width=2), "swapped")
    data = rng.randbytes(8 * 2048)
    link.ram.view(0, len(data))[:] = data

    async def main() -> None:
        sending = [swapped.from_memory((i * 2048, 1514), to=link.endpoint) for i in range(8)]
        for i, each in enumerate(sending):
            assert (await each).moved == 1514
            packet = link.peer.recv(65536)
            mine = data[i * 2048 : i * 2048 + 1514]
            assert packet[::2] == mine[1::2] and packet[1::2] == mine[::2]
            link.peer.send(packet)
        assert link.engine.stats().bounced.lanes == 8 * 1514
        coming = [swapped.to_memory((i * 2048, 2048), source=link.endpoint) for i in range(8)]
        assert [(await each).moved for each in coming] == [1514] * 8
        assert bytes(link.ram.view(0, len(data))) == data

    link.run(main())


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("waits", [True, False], ids=["while they wait", "before"])
def test_linked_packets_do_not_pass_one_that_cannot_be_read(
    queued: Link, linked: bool, waits: bool
) -> None:
    """Its memory goes before they are submitted, or while the host takes no more."""
    places = numbered(queued, 32)
    batch = iodma.Batch(32, 32)
    for i, (address, length) in enumerate(places):
        batch.first[i], batch.count[i], batch.direction[i], batch.id[i] = i, 1, 0, i
        batch.address[i], batch.length[i] = address, length
    batch.n = 32
    hidden = Inject(queued.memory)
    port = queued.engine.port(hidden)

    async def main() -> tuple[dict[int, int], list[int]]:
        if not waits:
            hidden.fault(places[20][0], 1514)
        port.submit(batch, queued.endpoint, linked=linked)
        for _ in range(20):
            await queued.engine.sleep(0)
        hidden.fault(places[20][0], 1514)
        found: dict[int, int] = {}
        came: list[int] = []
        while len(found) < 32:
            came += await drained(queued)
            async for done in port.completions(limit=32):
                found |= dict(zip(done.id.tolist(), done.status.tolist(), strict=True))
                break
        return found, came + await drained(queued)

    found, came = queued.run(main())
    last = Status.CANCELLED if linked else Status.OK
    want = [Status.OK] * 20 + [Status.FAULT] + [last] * 11
    assert [found[i] for i in range(32)] == want
    assert came == [i for i in range(32) if want[i] is Status.OK]


def test_a_cancelled_packet_leaves_the_linked_ones_alone(queued: Link) -> None:
    places = numbered(queued, 16)
    batch = iodma.Batch(32, 32)
    for i, (address, length) in enumerate([*places, *places]):
        batch.first[i], batch.count[i], batch.direction[i], batch.id[i] = i, 1, 0, i
        batch.address[i], batch.length[i] = address, length
    batch.n = 32

    async def main() -> list[int]:
        tickets = queued.port.submit(batch, queued.endpoint, linked=True)
        other = queued.port.from_memory(places[3], to=queued.endpoint)
        for _ in range(20):
            await queued.engine.sleep(0)
        assert queued.port.cancel(int(tickets[29]))
        found: list[int] = []
        while len(found) < 32:
            found += await drained(queued)
            await queued.engine.sleep(0)
        assert (await other).ok, "which is linked to nothing"
        return found + await drained(queued)

    assert queued.run(main()) == [*range(16), *range(13), 14, 15, 3]


def test_frames_of_a_tap_go_together(
    tap: tuple[iodma.Tap, socket.socket], rng: random.Random
) -> None:
    endpoint, host = tap
    frames = [frame(struct.pack("<H", i) + rng.randbytes(100)) for i in range(COUNT)]
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            for i, data in enumerate(frames):
                ram.view(i * 2048, len(data))[:] = data
            before = engine.stats().requests
            sending = [
                port.from_memory((i * 2048, len(data)), to=endpoint)
                for i, data in enumerate(frames)
            ]
            assert [(await each).moved for each in sending] == [len(data) for data in frames]
            assert engine.stats().requests - before == 1
            assert [host.recv(65536) for _ in frames] == frames
            for data in frames:
                host.send(data)
            mine: list[bytes] = []
            while len(mine) < COUNT:
                coming = [port.to_memory((i * 2048, 2048), source=endpoint) for i in range(COUNT)]
                for i, each in enumerate(coming):
                    if len(mine) == COUNT:
                        each.cancel()
                    done = await each
                    data = bytes(ram.view(i * 2048, done.moved))
                    if done.ok and data[12:14] == b"\x88\xb5":
                        mine.append(data)
            assert mine == frames

        engine.run(main())
