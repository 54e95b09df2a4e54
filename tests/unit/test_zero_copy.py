"""Zero-copy sends: straight from guest pages, which stay held until the other end has them."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import iodma
from iodma import Status

SIZE = 4 << 20


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(10)
    return ours, theirs


class Link:
    def __init__(self, *, small: bool = False) -> None:
        ours, self.peer = tcp()
        if small:
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(SIZE)
        self.memory = iodma.Memory({0: self.ram})
        self.port = self.engine.port(self.memory)
        self.endpoint = iodma.Socket(ours, zero_copy=True)
        ours.close()

    @property
    def supported(self) -> bool:
        """Whether the kernel does it on this engine; found out by the first send."""
        return self.endpoint._zero_copy

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    def receive(self, total: int) -> bytes:
        data = bytearray()
        while len(data) < total:
            part = self.peer.recv(1 << 20)
            if not part:
                break
            data += part
        return bytes(data)

    def in_thread(self, total: int) -> tuple[threading.Thread, list[bytes]]:
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.append(self.receive(total)))
        thread.start()
        return thread, got

    def close(self) -> None:
        self.peer.close()
        self.engine.close()
        self.endpoint.close()
        self.ram.close()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


def test_what_is_sent_is_received(link: Link, rng: random.Random) -> None:
    data = rng.randbytes(SIZE)
    link.ram.view()[:] = data
    lists = [
        [(0, 100)],
        [(4096, 65536)],
        [(i * 8192, 4096) for i in range(64)],
        [(rng.randrange(SIZE - 9000), rng.randrange(1, 9000)) for _ in range(40)],
        [(i * 64, 32) for i in range(500)],
        [(0, SIZE)],
    ]
    expected = b"".join(data[a : a + n] for each in lists for a, n in each)
    thread, got = link.in_thread(len(expected))

    async def main() -> None:
        sending = [link.port.from_memory(each, to=link.endpoint) for each in lists]
        for each, segments in zip(sending, lists, strict=True):
            done = await each
            assert (done.status, done.moved) == (Status.OK, sum(n for _, n in segments))
        assert link.ram.leases == 0

    link.run(main())
    thread.join()
    assert got == [expected]


def test_pages_are_held_until_the_other_end_has_them() -> None:
    """The first completion says that it was sent; only the second one that its pages are free."""
    link = Link(small=True)
    try:
        link.ram.view()[:] = b"\x55" * SIZE

        async def main() -> None:
            sent = link.port.from_memory((0, 64), to=link.endpoint)
            await link.engine.sleep(0.01)
            assert link.peer.recv(64) == b"\x55" * 64
            assert (await sent).ok
            if not link.supported:
                pytest.skip("no zero-copy sends here")
            going = link.port.from_memory((0, SIZE), to=link.endpoint)
            await link.engine.sleep(0.05)
            assert not going.done and link.ram.leases > 0
            revocation = link.memory.remove(0)  # the guest takes the memory away
            await link.engine.sleep(0.02)
            assert not revocation.done  # the kernel still reads it
            received = 0
            while received < SIZE:
                link.peer.settimeout(0)
                try:
                    part = link.peer.recv(1 << 20)
                except BlockingIOError:
                    await link.engine.sleep(0.001)
                    continue
                assert part == b"\x55" * len(part)
                received += len(part)
            done = await going
            assert (done.status, done.moved) == (Status.OK, SIZE)
            assert await revocation
            assert link.ram.leases == 0

        link.run(main())
    finally:
        link.close()


@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_a_cancelled_send_ends_when_its_pages_are_free(how: str) -> None:
    link = Link(small=True)
    try:

        async def main() -> None:
            going = link.port.from_memory((0, SIZE), to=link.endpoint)
            await link.engine.sleep(0.05)
            assert not going.done
            if how == "cancel":
                going.cancel()
                waiting: Any = going
            else:
                waiting = link.port.reset()
            # What was sent is on its way, and its pages are the kernel's until it has arrived.
            total = 0
            link.peer.settimeout(0)
            while not all(each.done for each in (going, waiting)):
                try:
                    total += len(link.peer.recv(1 << 20))
                except BlockingIOError:
                    await link.engine.sleep(0.001)
            done = await going
            await waiting
            assert done.status in (Status.CANCELLED, Status.OK)
            link.endpoint.close()  # the last one that holds the connection
            link.peer.settimeout(10)
            total += len(link.receive(SIZE))
            assert total == done.moved  # nothing beyond what it said
            assert link.ram.leases == 0

        link.run(main())
    finally:
        link.close()


@pytest.mark.parametrize("abruptly", [True, False])
def test_a_peer_that_goes_frees_the_pages(abruptly: bool) -> None:
    link = Link(small=True)
    try:

        async def main() -> None:
            going = [link.port.from_memory((0, SIZE), to=link.endpoint) for _ in range(2)]
            await link.engine.sleep(0.05)
            if abruptly:
                link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            link.peer.close()
            for each in going:
                done = await each
                assert done.status is Status.PEER_GONE and done.moved < SIZE
            assert link.ram.leases == 0

        link.run(main())
    finally:
        link.close()


@pytest.mark.parametrize("cancelled", [True, False])
def test_abort_frees_pages_that_a_peer_does_not_take(cancelled: bool) -> None:
    link = Link(small=True)
    try:

        async def main() -> None:
            going = link.port.from_memory((0, SIZE), to=link.endpoint)
            waiting = link.port.from_memory((0, SIZE), to=link.endpoint)
            await link.engine.sleep(0.05)
            if cancelled:
                going.cancel()
                await link.engine.sleep(0.01)
            link.endpoint.abort()
            assert (await going).status in (Status.PEER_GONE, Status.CANCELLED)
            assert (await waiting).status is Status.PEER_GONE
            assert link.ram.leases == 0
            with pytest.raises(ConnectionResetError):
                link.receive(SIZE)

        link.run(main())
    finally:
        link.close()


def test_abort_of_a_unix_socket(link: Link) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, iodma.Socket(ours) as endpoint:

        async def main() -> None:
            going = link.port.to_memory((0, 10), source=endpoint)
            await link.engine.sleep(0.01)
            endpoint.abort()
            assert (await going).status is Status.PEER_GONE
            assert theirs.recv(1) == b""

        link.run(main())


def test_sends_keep_their_order(link: Link) -> None:
    count = 200
    for i in range(count):
        link.ram.view()[i * 4096 : (i + 1) * 4096] = bytes([i]) * 4096
    thread, got = link.in_thread(count * 4096)

    async def main() -> None:
        sending = [link.port.from_memory((i * 4096, 4096), to=link.endpoint) for i in range(count)]
        for each in sending:
            assert (await each).moved == 4096

    link.run(main())
    thread.join()
    assert got == [b"".join(bytes([i]) * 4096 for i in range(count))]


def test_a_unix_socket_gets_a_plain_send(link: Link) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, iodma.Socket(ours, zero_copy=True) as endpoint:
        link.ram.view()[:4] = b"data"

        async def main() -> None:
            for _ in range(2):
                done = await link.port.from_memory([(0, 2), (2, 2)], to=endpoint)
                assert (done.status, done.moved) == (Status.OK, 4)
                assert theirs.recv(10) == b"data"
            assert not endpoint._zero_copy

        link.run(main())


def test_byte_lanes_are_sent_from_the_arena(link: Link) -> None:
    link.ram.view()[:8] = b"12345678"
    port = link.engine.port(iodma.ByteLanes(link.memory, width=2), "swapped")

    async def main() -> None:
        done = await port.from_memory((0, 8), to=link.endpoint)
        assert done.moved == 8

    link.run(main())
    assert link.receive(8) == b"21436587"
    assert link.engine.stats().bounced.lanes == 8


def test_a_page_that_is_gone_is_a_fault_or_an_error(link: Link) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 20)
    with iodma.Ram.from_fd(fd) as ram:
        link.memory.add(0x1000_0000, ram)
        os.ftruncate(fd, 0)

        async def main() -> None:
            done = await link.port.from_memory((0x1000_0000, 65536), to=link.endpoint)
            assert done.status in (Status.FAULT, Status.IO_ERROR), done
            assert done.error in (0, errno.EFAULT)

        link.run(main())
        link.memory.remove(0x1000_0000)
    os.close(fd)
