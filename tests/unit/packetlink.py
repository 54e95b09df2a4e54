"""A port, RAM, and an endpoint for packets whose other end is a plain socket.

Invariant: a link closes what it has made.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import iodma
from iodma.packets import Framed
from iodma.testing import strict_engine

Pair = tuple[socket.socket, socket.socket]
T = TypeVar("T", iodma.Datagram, Framed)


class PacketLink(Generic[T]):
    """Of a pair of sockets, the first is the endpoint's."""

    def __init__(
        self,
        pair: Callable[[], Pair],
        endpoint: Callable[[socket.socket], T],
        *,
        blocking: bool = True,
    ) -> None:
        ours, self.peer = pair()
        ours.setblocking(blocking)
        self.peer.settimeout(10)
        self.engine = strict_engine()
        self.ram = iodma.Ram(1 << 20)
        self.memory = iodma.Memory({0: self.ram})
        self.port = self.engine.port(self.memory)
        self.endpoint: T = endpoint(ours)
        ours.close()

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    def close(self) -> None:
        self.engine.close()
        self.endpoint.close()
        self.peer.close()
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def scattered(rng: random.Random, length: int, base: int = 0) -> list[tuple[int, int]]:
    """A list of that many bytes, with gaps."""
    segments, at = [], base + rng.randrange(64)
    while length:
        n = min(length, rng.choice((1, 7, 512, 1500, 4096)))
        segments.append((at, n))
        at += n + rng.randrange(1, 64)
        length -= n
    return segments
