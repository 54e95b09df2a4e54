# SPDX-License-Identifier: Apache-2.0
"""Sends of one stream go out in order, one request at a time, and small ones share a request."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import iodma

SIZE = 1 << 18


@contextmanager
def reader(sock: socket.socket, rng: random.Random) -> Iterator[bytearray]:
    """Reads, a few bytes or many at a time, until the other end closes."""
    got = bytearray()
    sizes = [rng.randint(1, 70_000) for _ in range(64)]

    def run() -> None:
        while data := sock.recv(sizes[len(got) % 64]):
            got.extend(data)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield got
    finally:
        thread.join()


@pytest.mark.parametrize("small", [(0, 0), None])
def test_what_arrives_is_the_prefixes_in_order(
    rng: random.Random, small: tuple[int, int] | None
) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = os.urandom(SIZE)
    with (
        ours,
        theirs,
        iodma.Engine(strict=True, small=small) as engine,
        iodma.Ram(SIZE) as ram,
        iodma.Socket(ours) as stream,
        reader(theirs, rng) as got,
    ):
        with ram.view() as view:
            view[:] = data
        memory = iodma.Memory({0: ram})
        ports = [engine.port(memory, "a"), engine.port(memory, "b")]

        async def main() -> bytes:
            sent = []
            for _ in range(300):
                length = rng.choice([1, 10, 100, 5000, 20000])
                segments = [
                    (rng.randrange(SIZE - length), length) for _ in range(rng.randint(1, 5))
                ]
                transfer = rng.choice(ports).from_memory(segments, to=stream)
                sent.append((transfer, b"".join(data[a : a + n] for a, n in segments)))
                if rng.random() < 0.1:
                    rng.choice(sent)[0].cancel()
                if rng.random() < 0.2:
                    await engine.sleep(0)
            wanted = bytearray()
            for transfer, payload in sent:
                done = await transfer
                assert done.status in (iodma.Status.OK, iodma.Status.CANCELLED)
                assert done.moved == len(payload) or not done.ok
                wanted += payload[: done.moved]
            return bytes(wanted)

        wanted = engine.run(main())
        ours.shutdown(socket.SHUT_RDWR)
    assert bytes(got) == wanted


def test_small_sends_share_a_request() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        iodma.Engine(strict=True) as engine,
        iodma.Ram(4096) as ram,
        iodma.Socket(ours) as stream,
    ):
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            transfers = [port.from_memory((0, 10), to=stream) for _ in range(100)]
            for transfer in transfers:
                assert (await transfer).ok

        engine.run(main())
        stats = engine.stats()
        assert stats.coalesced + stats.requests == 100
        assert stats.requests < 10
        assert theirs.recv(4096) == bytes(1000)
