# SPDX-License-Identifier: Apache-2.0
"""The back-end's own channel: requests that go to the front-end (specification: "Back-end
communication").

Invariants
 - Nothing is waited for: a request is sent without asking for an acknowledgement, and what comes
   back is read and dropped.
 - A front-end that closes the channel, or does not read it, loses the channel and nothing else.
"""

from __future__ import annotations

import os
import socket
import stat
from enum import IntEnum

from iodma.engine import Engine
from iodma.transports.vhost_user.channel import Channel
from iodma.transports.vhost_user.descriptors import Descriptor
from iodma.transports.vhost_user.messages import Refusal, pack

__all__ = ["BackendChannel", "BackendRequest"]


class BackendRequest(IntEnum):
    """The numbers of the messages that a back-end sends."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2


class BackendChannel:
    """The channel that came with SET_BACKEND_REQ_FD.

    Args:
        descriptor: the channel's from now on, whatever happens.
        name: of this end of the front-end's connection. A front-end's own end of it cannot be its
            channel: while that is kept open here, its connection would never end.

    Raises:
        Refusal: it is no stream socket, or that one.
    """

    def __init__(self, engine: Engine, descriptor: Descriptor, name: object = None) -> None:
        with descriptor:
            if not stat.S_ISSOCK(os.fstat(descriptor.fileno()).st_mode):
                raise Refusal("a descriptor that is no socket")
            sock = socket.socket(fileno=descriptor.detach())
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.close()
            raise Refusal(f"a socket of {sock.family!r}, {sock.type!r}; a unix stream is right")
        if name and _peer(sock) == name:
            sock.close()
            raise Refusal("a connection to this server")
        self._channel = Channel(engine, sock, self._drop, lambda why: self.close())

    def _drop(self) -> None:
        if not self._channel.discard():
            self.close()

    def config_changed(self) -> None:
        """Says that the device's configuration space has changed."""
        self._channel.send(pack(BackendRequest.CONFIG_CHANGE_MSG, b"", 0))

    @property
    def closed(self) -> bool:
        """Nothing can be said any more."""
        return self._channel.closed

    def close(self) -> None:
        """Lets go of it."""
        self._channel.close()


def _peer(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:  # it is connected to nothing
        return None
