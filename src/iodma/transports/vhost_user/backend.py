# SPDX-License-Identifier: Apache-2.0
"""The back-end's own channel: requests that go to the front-end (specification: "Back-end
communication").

Invariants
 - Nothing is waited for. A miss asks for an acknowledgement, where the protocol has those: it is
   how a front-end says that there is no translation.
 - Acknowledgements come in the order of what they are for.
 - A front-end that closes the channel, does not read it, or says there what is no answer, loses the
   channel and nothing else: misses are refused from then on.
"""

from __future__ import annotations

import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from iodma.engine import Engine
from iodma.transports.descriptors import Descriptor, is_our_front_end
from iodma.transports.vhost_user.channel import Channel, EndOfStream
from iodma.transports.vhost_user.messages import (
    NEED_REPLY,
    IotlbMessage,
    Refusal,
    iotlb,
    pack,
    parse_u64,
)
from iodma.types import Access

__all__ = ["BackendChannel", "BackendRequest"]

#: Bytes: misses of all that a device can have in flight.
MOST_UNREAD = 4 << 20
_MISS = 1


class BackendRequest(IntEnum):
    """The numbers of the messages that a back-end sends."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2


class BackendChannel:
    """The channel that came with SET_BACKEND_REQ_FD.

    Args:
        descriptor: the channel's from now on, whatever happens.
        name: of this end of the front-end's connection, whose other end cannot be its channel.
        done: called with a page, an access, and whether the front-end has no translation for them,
            when it is done with a miss.
        lost: called when the front-end has closed the channel.

    Raises:
        Refusal: it is no stream socket, or that one.
    """

    def __init__(
        self,
        engine: Engine,
        descriptor: Descriptor,
        name: object = None,
        done: Callable[[int, Access, bool], None] = lambda address, access, failed: None,
        lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        with descriptor:
            if not stat.S_ISSOCK(os.fstat(descriptor.fileno()).st_mode):
                raise Refusal("a descriptor that is no socket")
            if is_our_front_end(descriptor.fileno(), name):
                raise Refusal("a connection to this server")
            sock = socket.socket(fileno=descriptor.detach())
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            sock.close()
            raise Refusal(f"a socket of {sock.family!r}, {sock.type!r}; a unix stream is right")
        self._done = done
        self._lost = lost
        #: What acknowledgements are awaited for.
        self._asked: deque[tuple[int, Access]] = deque()
        self._channel = Channel(engine, sock, self._read, self._lose, most_unread=MOST_UNREAD)

    def _read(self) -> None:
        try:
            while not self.closed and (reply := self._channel.read_reply()) is not None:
                self._take(*reply)
        except (EndOfStream, Refusal) as why:
            self._lose(str(why))

    def _take(self, request: int, payload: bytes) -> None:
        if request != BackendRequest.IOTLB_MSG or len(payload) != 8 or not self._asked:
            raise Refusal(f"an answer to message {request}, which was not asked for")
        address, access = self._asked.popleft()
        self._done(address, access, bool(parse_u64(payload)))

    def _lose(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._lost(why)

    def config_changed(self) -> None:
        """Says that the device's configuration space has changed."""
        self._channel.send(pack(BackendRequest.CONFIG_CHANGE_MSG, b"", 0))

    def miss(self, address: int, access: Access, size: int, *, acknowledged: bool) -> bool:
        """Asks for a translation.

        Args:
            size: bytes, of the page.
            acknowledged: the front-end says when it is done with it.

        Returns:
            False: the channel is closed.
        """
        if self.closed:
            return False
        if acknowledged:
            self._asked.append((address, access))
        message = IotlbMessage(address, size, 0, access, _MISS)
        flags = NEED_REPLY if acknowledged else 0
        self._channel.send(pack(BackendRequest.IOTLB_MSG, iotlb(message), flags))
        return not self.closed

    @property
    def closed(self) -> bool:
        """Nothing can be said any more."""
        return self._channel.closed

    def close(self) -> None:
        """Lets go of it."""
        self._channel.close()
