"""A listener for `Connection`s on the loopback.

Invariants:

- At most `MOST` connections are served at a time; one more is closed.
- An initiator that logs in again ends its session from before (RFC 7143 section 6.3.5).
"""

from __future__ import annotations

import socket
from typing import Any

from iodma import Engine, Event
from iodma.scsi import Target
from tests.peers.iscsi.connection import NAME, Connection

MOST = 8


class Server:
    """Serves a target on a port of the loopback until `close`.

    Attributes:
        somebody: set when somebody has connected.
    """

    def __init__(self, engine: Engine, target: Target) -> None:
        self.engine = engine
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self.connections: list[Connection] = []
        self.somebody = Event(engine)
        self._tasks: list[Any] = []
        engine.add_reader(self._listener.fileno(), self._accept)

    def url(self, lun: int) -> str:
        return f"iscsi://127.0.0.1:{self.port}/{NAME}/{lun}"

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        self.somebody.set()
        if len(self.connections) >= MOST:
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            connection = Connection(self.engine, self.target, sock, self.port)
        connection.reinstated = self._reinstated
        self.connections.append(connection)
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self.engine.start(self._serve(connection)))

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
            await connection.ended()
        finally:
            self.connections.remove(connection)

    def _reinstated(self, connection: Connection) -> None:
        for other in self.connections:
            if other is not connection and other.initiator == connection.initiator:
                other.close()

    def close(self) -> None:
        """Takes nobody any more, and ends who is there."""
        self.engine.remove_reader(self._listener.fileno())
        self._listener.close()
        for connection in tuple(self.connections):
            connection.close()

    async def ended(self) -> None:
        """Waits, after `close`, until nobody is there any more."""
        for task in tuple(self._tasks):
            if not task.done:
                await task
