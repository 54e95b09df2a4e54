"""Packet endpoints: one transfer one packet, in order, whole or said to be cut, never dropped."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest

import iodma
from iodma import Status
from tests.unit.packetlink import PacketLink, Pair, scattered
from tests.unit.system import Registers


def udp() -> Pair:
    one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("127.0.0.1", 0))
    two.bind(("127.0.0.1", 0))
    one.connect(two.getsockname())
    two.connect(one.getsockname())
    return one, two


def unix_datagrams() -> Pair:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def seqpackets() -> Pair:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


KINDS = [udp, unix_datagrams, seqpackets]


class Link(PacketLink[iodma.Datagram]):
    """A link of packets."""

    def __init__(self, pair: Callable[[], Pair], *, blocking: bool = True) -> None:
        super().__init__(pair, iodma.Datagram, blocking=blocking)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    with Link(request.param) as made:
        yield made


def test_packets_keep_their_bounds_and_their_order(link: Link, rng: random.Random) -> None:
    packets = [rng.randbytes(rng.choice((1, 14, 60, 1500, 9000))) for _ in range(60)]

    async def main() -> None:
        # Received into scattered memory ...
        pending = []
        for i in range(len(packets)):
            pending.append(link.port.to_memory((i * 16384, 9000), source=link.endpoint))
        for i, packet in enumerate(packets):
            link.peer.send(packet)
            done = await pending[i]
            assert (done.status, done.moved) == (Status.OK, len(packet))
            assert link.ram.view(i * 16384, len(packet)) == packet
        # ... and sent from it, all at once.
        for i in range(0, len(packets), 5):
            sending = [
                link.port.from_memory([(k * 16384, 1), (k * 16384 + 1, len(packets[k]) - 1)],
                                      to=link.endpoint)
                for k in range(i, i + 5)
            ]  # fmt: skip
            for k, each in enumerate(sending, i):
                assert (await each).moved == len(packets[k])
                assert link.peer.recv(65536) == packets[k]

    link.run(main())


def test_lists_of_any_shape_are_one_packet(link: Link, rng: random.Random) -> None:
    async def main() -> None:
        for _ in range(50):
            length = rng.randrange(1, 9000)
            out = scattered(rng, length)
            data = rng.randbytes(length)
            at = 0
            for address, n in out:
                link.ram.view()[address : address + n] = data[at : at + n]
                at += n
            assert (await link.port.from_memory(out, to=link.endpoint)).moved == length
            assert link.peer.recv(65536) == data
            back = [(address + (1 << 19), n) for address, n in scattered(rng, length)]
            link.peer.send(data)
            assert (await link.port.to_memory(back, source=link.endpoint)).moved == length
            assert b"".join(bytes(link.ram.view(a, n)) for a, n in back) == data

    link.run(main())


def test_a_packet_that_is_too_long_is_said_to_be_cut(link: Link) -> None:
    async def main() -> None:
        for lists in ([(0, 100)], [(0, 60), (4096, 40)], [(i * 8192, 4) for i in range(25)]):
            link.peer.send(bytes(range(200)))
            link.peer.send(b"next")
            done = await link.port.to_memory(lists, source=link.endpoint)
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)
            assert done.moved == 100
            assert b"".join(bytes(link.ram.view(a, n)) for a, n in lists) == bytes(range(100))
            done = await link.port.to_memory((0, 100), source=link.endpoint)
            assert (done.status, done.moved) == (Status.OK, 4)  # the rest did not come as another
        link.peer.send(bytes(100))
        done = await link.port.to_memory((0, 100), source=link.endpoint)
        assert (done.status, done.moved) == (Status.OK, 100)  # a full list is not a cut packet

    link.run(main())


def test_empty_packets(link: Link) -> None:
    async def main() -> None:
        assert (await link.port.from_memory([], to=link.endpoint)).ok
        assert link.peer.recv(100) == b""
        link.peer.send(b"")
        link.peer.send(b"not empty")
        for moved in (0, 9):
            done = await link.port.to_memory((0, 100), source=link.endpoint)
            assert (done.status, done.moved) == (Status.OK, moved)
        link.peer.send(b"to nowhere")
        done = await link.port.to_memory([], source=link.endpoint)
        assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)

    link.run(main())


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("pair", [unix_datagrams, seqpackets], ids=lambda kind: kind.__name__)
def test_a_full_socket_delays(pair: Callable[[], Pair], blocking: bool) -> None:
    with Link(pair, blocking=blocking) as link:
        count, size = 400, 8192

        async def main() -> None:
            sending = []
            for i in range(count):
                link.ram.view()[i * 2 : i * 2 + 2] = struct.pack("<H", i)
                sending.append(
                    link.port.from_memory([(i * 2, 2), (65536, size - 2)], to=link.endpoint)
                )
            await link.engine.sleep(0.02)
            stuck = sum(not each.done for each in sending)
            assert stuck > 0
            copied = link.engine.stats().copied
            for i in range(count):
                while True:
                    try:
                        link.peer.settimeout(0)
                        data = link.peer.recv(65536)
                        break
                    except BlockingIOError:
                        await link.engine.sleep(0)
                assert (len(data), struct.unpack("<H", data[:2])) == (size, (i,))
            for each in sending:
                assert (await each).moved == size
            assert link.engine.stats().copied == copied == 0

        link.run(main())


def test_a_send_that_waits_can_be_cancelled_and_reset(link: Link) -> None:
    async def main() -> None:
        waiting = [link.port.to_memory((0, 100), source=link.endpoint) for _ in range(3)]
        await link.engine.sleep(0.005)
        waiting[1].cancel()
        assert (await waiting[1]).status is Status.CANCELLED
        link.peer.send(b"one")
        assert (await waiting[0]).moved == 3
        await link.port.reset()
        assert (await waiting[2]).status is Status.CANCELLED
        link.peer.send(b"two")
        assert (await link.port.to_memory((0, 100), source=link.endpoint)).moved == 3

    link.run(main())


def test_a_packet_longer_than_the_socket_takes(link: Link) -> None:
    async def main() -> None:
        done = await link.port.from_memory((0, 1 << 20), to=link.endpoint)
        assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)
        assert done.moved == 0
        assert (await link.port.from_memory((0, 10), to=link.endpoint)).ok

    link.run(main())


def test_a_sequenced_socket_whose_peer_is_gone() -> None:
    with Link(seqpackets) as link:

        async def main() -> None:
            link.peer.send(b"last")
            link.peer.close()
            assert (await link.port.to_memory((0, 100), source=link.endpoint)).moved == 4
            done = await link.port.to_memory((0, 100), source=link.endpoint)
            assert done.status is Status.PEER_GONE
            done = await link.port.from_memory((0, 100), to=link.endpoint)
            assert done.status is Status.PEER_GONE

        link.run(main())


def test_a_udp_port_that_nobody_listens_at() -> None:
    with Link(udp) as link:
        address = link.peer.getsockname()
        back = link.peer.getpeername()

        async def main() -> None:
            link.peer.close()
            results = [(await link.port.from_memory((0, 10), to=link.endpoint)) for _ in range(3)]
            assert Status.PEER_GONE in {each.status for each in results}
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                again.bind(address)
                again.connect(back)
                again.settimeout(5)
                for _ in range(2):
                    await link.port.from_memory((0, 10), to=link.endpoint)
                assert len(again.recv(100)) == 10

        link.run(main())


def test_packets_through_byte_lanes_and_to_registers(link: Link, rng: random.Random) -> None:
    registers = Registers(64)
    link.memory.add(0x1000_0000, iodma.DeviceWindow(registers, 64))
    swapped = link.engine.port(iodma.ByteLanes(link.memory, width=2), "swapped")

    async def main() -> None:
        data = rng.randbytes(64)
        link.peer.send(data)
        done = await link.port.to_memory([(0, 32), (0x1000_0000, 32)], source=link.endpoint)
        assert done.moved == 64
        assert bytes(link.ram.view(0, 32)) + bytes(registers.data[:32]) == data
        done = await link.port.from_memory([(0, 32), (0x1000_0000, 32)], to=link.endpoint)
        assert done.moved == 64 and link.peer.recv(100) == data
        link.peer.send(data)
        assert (await swapped.to_memory((4096, 64), source=link.endpoint)).moved == 64
        pairs = zip(data[1::2], data[::2], strict=True)
        assert link.ram.view(4096, 64) == bytes(byte for pair in pairs for byte in pair)
        link.peer.send(data)
        done = await swapped.to_memory((4096, 32), source=link.endpoint)
        assert (done.error, done.moved) == (errno.EMSGSIZE, 32)

    link.run(main())


def test_a_stream_is_no_packet_socket() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        pytest.raises(iodma.ArgumentError, match="not a packet socket"),
    ):
        iodma.Datagram(stream)


# --- tap ------------------------------------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[tuple[iodma.Tap, socket.socket]]:
    """A tap interface that is up, and a packet socket on the host's side of it."""
    try:
        endpoint = iodma.Tap("iodma-t%d")
    except OSError as error:
        pytest.skip(f"no tap interface to be had here: {error}")
    with endpoint:
        set_up = subprocess.run(
            ["ip", "link", "set", endpoint.interface, "mtu", "4000", "up"], check=False
        )
        if set_up.returncode:
            pytest.skip("the interface cannot be brought up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as host:
            host.bind((endpoint.interface, 0x88B5))
            host.settimeout(5)
            yield endpoint, host


def frame(payload: bytes) -> bytes:
    """An Ethernet frame of the type that is for experiments."""
    return b"\xff" * 6 + b"\x02\0\0\0\0\1" + struct.pack(">H", 0x88B5) + payload


def test_frames_to_and_from_a_tap(tap: tuple[iodma.Tap, socket.socket], rng: random.Random) -> None:
    endpoint, host = tap
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        port = engine.port(iodma.Memory({0: ram}))

        async def received(*list: tuple[int, int]) -> iodma.Completion:
            """The next one of ours: a host says this and that on an interface that comes up."""
            while True:
                done = await port.to_memory(list, source=endpoint)
                if bytes(ram.view(list[0][0] + 12, 2)) == b"\x88\xb5":
                    return done

        async def main() -> None:
            for length in (46, 100, 1500, 3000):
                data = frame(rng.randbytes(length))
                host.send(data)
                done = await received((0, 14), (8192, 4096))
                assert (done.status, done.moved) == (Status.OK, len(data))
                assert bytes(ram.view(0, 14)) + bytes(ram.view(8192, length)) == data
                done = await port.from_memory([(0, 14), (8192, length)], to=endpoint)
                assert (done.status, done.moved) == (Status.OK, len(data))
                assert host.recv(65536) == data
            # One that fits exactly, and one that is a byte too long, whole or in small pieces.
            for pieces in (1, 50):
                list = [(i * 8192, 14 if pieces == 1 else 2) for i in range(pieces - 1)]
                list = [(0, 14), *[(8192 + i * 64, 86 // pieces) for i in range(pieces)]]
                room = sum(n for _, n in list)
                host.send(frame(bytes(range(room - 14))))
                assert (await received(*list)).status is Status.OK
                host.send(frame(bytes(range(room - 13))))
                done = await received(*list)
                assert (done.status, done.error) == (Status.IO_ERROR, errno.EMSGSIZE)
                assert done.moved == room
            waiting = port.to_memory((0, 2000), source=endpoint)
            waiting.cancel()
            assert (await waiting).status is Status.CANCELLED
            blocked = port.to_memory((0, 2000), source=endpoint)
            await engine.sleep(0.005)
            blocked.cancel()
            assert (await blocked).status in (Status.CANCELLED, Status.OK)

        engine.run(main())


def test_a_tap_that_somebody_else_opened(tap: tuple[iodma.Tap, socket.socket]) -> None:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with pytest.raises(iodma.ArgumentError, match="no tap interface attached"):
            iodma.Tap(fd)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"iodma-u%d", 0x0001 | 0x1000))
        with iodma.Tap(fd) as given:
            assert given.interface.startswith("iodma-u")
    finally:
        os.close(fd)
    with pytest.raises(iodma.ArgumentError, match="longer than"):
        iodma.Tap("a-name-of-sixteen")
