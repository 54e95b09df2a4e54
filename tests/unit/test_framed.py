"""Packets on a stream, each behind its length: whole, in order, and bounded."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

import iodma
from iodma import Status
from iodma.log import GuestLog
from iodma.packets import Framed
from tests.unit.packetlink import PacketLink, Pair, scattered
from tests.unit.system import Registers


def unix() -> Pair:
    return socket.socketpair()


def tcp() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


class Link(PacketLink[Framed]):
    """A link of packets on a stream."""

    def __init__(self, pair: Callable[[], Pair], *, blocking: bool = True) -> None:
        super().__init__(pair, Framed, blocking=blocking)

    def send(self, *packets: bytes) -> None:
        self.peer.sendall(b"".join(struct.pack(">I", len(each)) + each for each in packets))

    def exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.peer.recv(length - len(data))
            assert more
            data += more
        return data

    def packet(self) -> bytes:
        return self.exactly(struct.unpack(">I", self.exactly(4))[0])


@pytest.fixture(params=[unix, tcp], ids=lambda kind: kind.__name__)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(request.param) as made:
        yield made


def test_packets_of_any_shape_go_and_come_whole(link: Link, rng: random.Random) -> None:
    lengths = [rng.choice((0, 1, 3, 4, 5, 60, 1514, 9000, 65535)) for _ in range(60)]

    async def main() -> None:
        for length in lengths:
            out = scattered(rng, length)
            data = rng.randbytes(length)
            at = 0
            for address, n in out:
                link.ram.view()[address : address + n] = data[at : at + n]
                at += n
            sending = link.port.from_memory(out, to=link.endpoint)
            done = await sending
            assert (done.status, done.moved) == (Status.OK, length)
            assert link.packet() == data
            back = scattered(rng, length, 1 << 19)
            receiving = link.port.to_memory([*back, (1 << 18, 9)], source=link.endpoint)
            link.send(data)
            done = await receiving
            assert (done.status, done.moved) == (Status.OK, length)
            assert b"".join(bytes(link.ram.view(a, n)) for a, n in back) == data

    link.run(main())


def test_many_packets_keep_their_bounds_and_their_order(link: Link, rng: random.Random) -> None:
    packets = [rng.randbytes(rng.choice((0, 1, 60, 1514))) for _ in range(200)]

    async def main() -> None:
        link.send(*packets[:100])
        coming = [link.port.to_memory((i * 2048, 2048), source=link.endpoint) for i in range(200)]
        await link.engine.sleep(0)
        # A byte at a time, and in pieces that end anywhere.
        data = b"".join(struct.pack(">I", len(each)) + each for each in packets[100:])
        link.peer.setblocking(False)
        while data:
            n = rng.choice((1, 1, 2, 3, 5, 100, 4096))
            with contextlib.suppress(BlockingIOError):
                data = data[link.peer.send(data[:n]) :]
            await link.engine.sleep(0)
        link.peer.settimeout(10)
        for i, (each, packet) in enumerate(zip(coming, packets, strict=True)):
            done = await each
            assert (done.status, done.moved) == (Status.OK, len(packet))
            assert bytes(link.ram.view(i * 2048, len(packet))) == packet
        assert link.engine.stats().copied == 0
        sending = [
            link.port.from_memory((i * 2048, len(each)), to=link.endpoint)
            for i, each in enumerate(packets)
        ]
        for each, packet in zip(sending, packets, strict=True):
            assert (await each).ok
            assert link.packet() == packet

    link.run(main())


@pytest.mark.parametrize("blocking", [True, False])
def test_a_peer_that_does_not_read_delays(blocking: bool, rng: random.Random) -> None:
    with Link(unix, blocking=blocking) as link:
        data = rng.randbytes(60000)
        link.ram.view(0, len(data))[:] = data

        async def main() -> None:
            sending = [link.port.from_memory((i, 60000 - i), to=link.endpoint) for i in range(40)]
            await link.engine.sleep(0.005)
            assert not all(each.done for each in sending)
            link.peer.setblocking(False)
            got = b""
            while not all(each.done for each in sending) or len(got) < 40 * 60004 - 780:
                try:
                    got += link.peer.recv(1 << 20)
                except BlockingIOError:
                    await link.engine.sleep(0)
            for i in range(40):
                assert got[:4] == struct.pack(">I", 60000 - i)
                assert got[4 : 60004 - i] == data[i:]
                got = got[60004 - i :]
            assert got == b"" and link.engine.stats().copied == 0

        link.run(main())


def test_one_that_does_not_fit_is_cut_and_said_to_be(link: Link) -> None:
    async def main() -> None:
        for list in ([(0, 100)], [(0, 60), (4096, 40)], [(i * 64, 4) for i in range(25)], []):
            room = sum(n for _, n in list)
            link.send(bytes(range(200)), b"next")
            done = await link.port.to_memory(list, source=link.endpoint)
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)
            assert done.moved == room
            assert b"".join(bytes(link.ram.view(a, n)) for a, n in list) == bytes(range(room))
            done = await link.port.to_memory((0, 100), source=link.endpoint)
            assert (done.status, done.moved) == (Status.OK, 4)
        done = await link.port.from_memory((0, 69633), to=link.endpoint)
        assert (done.status, done.error, done.moved) == (Status.IO_ERROR, errno.EMSGSIZE, 0)
        assert (await link.port.from_memory((0, 69632), to=link.endpoint)).ok
        assert len(link.packet()) == 69632

    link.run(main())


def test_peek_and_drop(link: Link, rng: random.Random) -> None:
    async def main() -> None:
        port, endpoint = link.port, link.endpoint
        for length in (0, 1, 5, 63, 64, 65, 1514):
            data = rng.randbytes(length)
            link.send(data, b"dropped" * length, data)
            for asked in (6, 64):
                seen = await port.peek(endpoint, asked)
                assert seen.ok and (seen.head, seen.length) == (data[:asked], length)
            done = await port.to_memory([(0, 10), (4096, 4096)], source=endpoint)
            assert (done.status, done.moved) == (Status.OK, length)
            assert bytes(link.ram.view(0, 10)) + bytes(link.ram.view(4096, 4096)) >= data[:0]
            assert bytes(link.ram.view(0, min(10, length))) == data[:10]
            assert bytes(link.ram.view(4096, max(0, length - 10))) == data[10:]
            assert (await port.peek(endpoint, 3)).length == 7 * length
            assert (await port.drop(endpoint)).ok
            assert (await port.peek(endpoint, 64)).head == data[:64]
            done = await port.to_memory((0, 3), source=endpoint)
            assert done.moved == min(3, length) and done.ok == (length <= 3)
        assert link.engine.stats().bounced.peeked <= 64 * 14

    link.run(main())


@pytest.mark.parametrize("length", [69633, 1 << 31, 0xFFFF_FFFF])
@pytest.mark.parametrize("first", [0, 1])
def test_a_length_that_nobody_may_say_ends_the_connection(
    link: Link,
    length: int,
    first: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iodma.packets.framed.log", GuestLog("iodma.packets"))

    async def main() -> None:
        coming = [link.port.to_memory((0, 4096), source=link.endpoint) for _ in range(3 + first)]
        link.peer.sendall((b"\0\0\0\5right") * first + struct.pack(">I", length) + bytes(8192))
        with caplog.at_level(logging.WARNING, "iodma"):
            results = [await each for each in coming]
        assert all(done.ok for done in results[:first])
        bad, *rest = results[first:]
        assert (bad.status, bad.error, bad.moved) == (Status.IO_ERROR, errno.EPROTO, 0)
        assert all(done.status is Status.PEER_GONE for done in rest)
        done = await link.port.from_memory((0, 4), to=link.endpoint)
        assert done.status is Status.PEER_GONE

    link.run(main())
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"a packet of {length} bytes was announced" in line and "69632 are the most" in line


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\x09", b"\0\0\0\x09part"])
def test_a_peer_that_goes(link: Link, sent: bytes) -> None:
    async def main() -> None:
        coming = [link.port.to_memory((0, 100), source=link.endpoint) for _ in range(2)]
        seen = link.port.peek(link.endpoint)
        link.peer.sendall(sent)
        link.peer.close()
        assert [(await each).status for each in coming] == [Status.PEER_GONE] * 2
        assert (await seen).done.status is Status.PEER_GONE

    link.run(main())


def test_a_receive_that_is_cancelled_in_its_middle_costs_its_packet_alone(link: Link) -> None:
    async def main() -> None:
        for part in (b"", b"\0\0", b"\0\0\0\x0a", b"\0\0\0\x0ahalf"):
            coming = link.port.to_memory((0, 100), source=link.endpoint)
            link.peer.sendall(part)
            await link.engine.sleep(0.002)
            coming.cancel()
            assert (await coming).status is Status.CANCELLED
            link.peer.sendall(b"\0\0\0\x0a0123456789"[len(part) :])
            link.send(b"next")
            done = await link.port.to_memory((0, 100), source=link.endpoint)
            if len(part) < 4:
                assert done.moved == 10
                done = await link.port.to_memory((0, 100), source=link.endpoint)
            elif done.moved == 10:  # the cancel came before it had begun
                done = await link.port.to_memory((0, 100), source=link.endpoint)
            assert done.ok and bytes(link.ram.view(0, done.moved)) == b"next"

    link.run(main())


@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_a_send_that_is_cancelled_in_its_middle_leaves_whole_packets(
    how: str, rng: random.Random
) -> None:
    with Link(unix) as link:
        data = rng.randbytes(1 << 16)
        link.ram.view(0, len(data))[:] = data

        async def main() -> None:
            sending = [link.port.from_memory((i, 60000), to=link.endpoint) for i in range(20)]
            await link.engine.sleep(0.005)
            stuck = [i for i, each in enumerate(sending) if not each.done]
            if how == "reset":
                await link.port.reset()
            else:
                for i in stuck:
                    sending[i].cancel()
            for i in stuck:
                assert (await sending[i]).status is Status.CANCELLED
            link.ram.view(0, len(data))[:] = bytes(len(data))  # the memory is the guest's again
            link.ram.view(0, 4)[:] = b"last"
            last = link.port.from_memory((0, 4), to=link.endpoint)
            link.peer.setblocking(False)
            got = b""
            while not last.done or not got.endswith(b"\0\0\0\4last"):
                try:
                    got += link.peer.recv(1 << 20)
                except BlockingIOError:
                    await link.engine.sleep(0)
            packets = []
            while got:
                length = struct.unpack(">I", got[:4])[0]
                packets.append(got[4 : 4 + length])
                got = got[4 + length :]
            assert packets[-1] == b"last"
            assert packets[:-1] == [data[i : i + 60000] for i in range(len(packets) - 1)]
            assert len(packets) - 1 in (stuck[0], stuck[0] + 1)
            assert link.engine.stats().bounced.framed < 60004

        link.run(main())


def test_through_byte_lanes_and_registers(link: Link, rng: random.Random) -> None:
    registers = Registers(64)
    link.memory.add(0x1000_0000, iodma.DeviceWindow(registers, 64))
    swapped = link.engine.port(iodma.ByteLanes(link.memory, width=2), "swapped")

    async def main() -> None:
        data = rng.randbytes(96)
        parts = [(0, 32), (0x1000_0000, 32), (4096, 64)]
        link.send(data)
        done = await link.port.to_memory(parts, source=link.endpoint)
        assert done.moved == 96
        assert bytes(link.ram.view(0, 32)) + bytes(registers.data[:32]) == data[:64]
        assert (await link.port.from_memory([*parts[:2], (4096, 32)], to=link.endpoint)).ok
        assert link.packet() == data
        # One that ends before the first piece does leaves the next one where it is.
        link.send(data[:20], b"next")
        assert (await link.port.to_memory(parts, source=link.endpoint)).moved == 20
        assert (await link.port.to_memory(parts, source=link.endpoint)).moved == 4
        link.send(data[:20], b"next")
        many = [(i * 64, 1) for i in range(2000)]
        assert (await link.port.to_memory(many, source=link.endpoint)).moved == 20
        assert (await link.port.to_memory(many, source=link.endpoint)).moved == 4
        link.send(data)
        await swapped.peek(link.endpoint, 7)
        assert (await swapped.to_memory((8192, 96), source=link.endpoint)).moved == 96
        assert (await swapped.from_memory((8192, 96), to=link.endpoint)).ok
        assert link.packet() == data

    link.run(main())


def test_what_is_no_stream_is_refused() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, two, pytest.raises(iodma.ArgumentError, match="not a stream socket"):
        Framed(one)
    one, two = socket.socketpair()
    for longest in (0, -1, (1 << 24) + 1):
        with pytest.raises(iodma.ArgumentError, match="longest is"):
            Framed(one, longest=longest)
    one.close()
    two.close()
