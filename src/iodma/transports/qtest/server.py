# SPDX-License-Identifier: Apache-2.0
"""The server: a socket that clients connect to, one at a time.

Invariant: all that is its own is what a session is opened with; the rest is `Listener`'s.
"""

from __future__ import annotations

import os
import socket

from iodma.engine import Engine
from iodma.errors import ArgumentError
from iodma.transports.listener import Listener
from iodma.transports.qtest.machine import Machine
from iodma.transports.qtest.session import Session, log
from iodma.transports.qtest.settle import DEADLINE_S

__all__ = ["QtestServer"]

MOST_LINGER_US = 10_000


class QtestServer(Listener[Session]):
    """Lets a program drive a machine: the server of QEMU's qtest protocol.

        async with QtestServer(engine, machine, "/run/board.sock") as server:
            await server.wait()

    It serves from now on, while the engine runs, until `close`. A client that goes away leaves the
    machine as it is.

    Args:
        machine: what is driven.
        path: where to listen. A socket there that nobody listens on is replaced.
        fd: instead of a path: a unix stream socket, which listens or is connected. The descriptor
            is duplicated.
        deadline_s: seconds after which a command is answered though the machine does not rest.
        linger_us: microseconds that the whole engine may wait for a client that asks again as soon
            as it is answered, up to 64 times in a row: commands are done nearly twice as fast then.
            It spins for the first 100 of them, and only for a client that was quick the last time.
            0: never; for an engine that has nothing else to do, 100.

    Attributes:
        machine: as it was given.
        path: as it was given, or None.
        session: the client that is connected, or None.
        sessions: how many there were.
        closed: nobody is served any more.

    Raises:
        ArgumentError: neither or both of path and fd; a path that is too long; a descriptor that
            is no unix stream socket; the machine has a clock, and it is not the engine's.
        BusyError: somebody listens at the path, or something else than a socket is there.
        OSError: the socket cannot be made there.
    """

    _peer = "client"

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        path: str | os.PathLike[str] | None = None,
        *,
        fd: int | None = None,
        deadline_s: float = DEADLINE_S,
        linger_us: float = 0,
    ) -> None:
        if machine.clock is not None and machine.clock is not engine.clock:
            raise ArgumentError(
                f"{machine.name}: its clock is not that of {engine.name}: Engine(clock=...) would"
                " be right"
            )
        if not 0 <= linger_us <= MOST_LINGER_US:
            raise ArgumentError(
                f"linger_us is {linger_us}; 0 to {MOST_LINGER_US} microseconds would be right"
            )
        super().__init__(engine, machine.name, log, path, fd)
        self.machine = machine
        self.deadline_s = deadline_s
        self.linger_us = linger_us
        self._serve()

    def _open(self, sock: socket.socket) -> Session:
        linger_s = self.linger_us / 1e6
        return Session(self.engine, self.machine, sock, self.deadline_s, linger_s, self._ended)
