# SPDX-License-Identifier: Apache-2.0
"""The server: a socket that front-ends connect to, one at a time.

Invariant: all that is its own is what a session is opened with; the rest is `Listener`'s.
"""

from __future__ import annotations

import os
import socket

from iodma.engine import Engine
from iodma.errors import ArgumentTypeError
from iodma.log import GuestLog
from iodma.transports.listener import Listener
from iodma.transports.vhost_user.session import Session
from iodma.virtio import VirtioDevice

__all__ = ["VhostUserServer"]

log = GuestLog("iodma.vhost_user")


class VhostUserServer(Listener[Session]):
    """Serves a virtio device to a VMM: the back-end of the vhost-user protocol.

        server = VhostUserServer(engine, disk, "/run/disk.sock")

    It serves from now on, while the engine runs, until `close`. A front-end that goes away ends its
    session: what it had in flight is drained, the device is reset, its memory unmapped; then the
    next one is accepted.

    Args:
        device: attached to the engine if it is not yet.
        path: where to listen. A socket there that nobody listens on is replaced.
        fd: instead of a path: a unix stream socket, which listens or is connected. The descriptor
            is duplicated.

    Attributes:
        path: as it was given, or None.
        session: the front-end that is connected, or None.
        sessions: how many there were.
        closed: nobody is served any more.

    Raises:
        ArgumentError: neither or both of path and fd; a path that is too long; a descriptor that
            is no unix stream socket.
        BusyError: somebody listens at the path, or something else than a socket is there.
        OSError: the socket cannot be made there.
    """

    _peer = "front-end"

    def __init__(
        self,
        engine: Engine,
        device: VirtioDevice,
        path: str | os.PathLike[str] | None = None,
        *,
        fd: int | None = None,
    ) -> None:
        if not isinstance(device, VirtioDevice):
            raise ArgumentTypeError(f"{device!r} is not a VirtioDevice")
        super().__init__(engine, device.name, log, path, fd)
        self.device = device
        engine.attach(device)
        self._serve()

    def _open(self, sock: socket.socket) -> Session:
        return Session(self.engine, self.device, sock, self.device.name, self._ended)
