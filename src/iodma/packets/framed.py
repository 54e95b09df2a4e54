# SPDX-License-Identifier: Apache-2.0
"""Packets on a stream, each behind its length, as QEMU's `-netdev stream` and `socket` have them.

    with Framed(connected) as link:
        done = await port.to_memory([(header, 14), (payload, 1500)], source=link)

Invariants
 - To a device it is a packet endpoint: one transfer is one packet, in order; peek and drop work.
 - The header of four bytes is a piece of the request's vector; the payload goes straight from and
   to guest memory.
 - A length that the other end says is compared with the longest before it is used.
"""

from __future__ import annotations

import os
import socket
from typing import Self

from iodma.endpoints.base import KIND_PACKET, Endpoint
from iodma.endpoints.stream import socket_descriptor
from iodma.errors import ArgumentError, integer
from iodma.log import GuestLog
from iodma.types import Constraints

__all__ = ["Framed"]

log = GuestLog("iodma.packets")

#: What QEMU takes at most: 64 KiB with all headers.
LONGEST = 69632
_MOST_LONGEST = 1 << 24
#: Of a request's vector: there is a piece of our own in front, or behind, and what is left over.
_SEGMENTS = 1024 - 2


class Framed(Endpoint):
    """A connected stream socket, which is duplicated, with packets on it.

    How a transfer ends:

    - OK, IO_ERROR with EMSGSIZE: as with a `Datagram`.
    - IO_ERROR with EPROTO: the other end said that a packet is longer than `longest`. The
      connection is ended, and the log says so.
    - PEER_GONE: the connection is over.
    - CANCELLED: a send that was begun is finished from a copy of its rest, which
      ``stats().bounced.framed`` counts, in front of what is sent next; a packet whose receive was
      cancelled in its middle is lost.

    Args:
        sock: a `socket.socket` or a descriptor, of a unix or TCP stream socket.
        longest: bytes of the longest packet, either way.
    """

    longest: int

    def __new__(cls, sock: socket.socket | int, *, longest: int = LONGEST) -> Self:
        if not 1 <= integer(longest, "longest", "bytes") <= _MOST_LONGEST:
            raise ArgumentError(f"longest is {longest}; 1 to {_MOST_LONGEST} would be right")
        fd = socket_descriptor(sock, (socket.SOCK_STREAM,), "stream")
        try:
            constraints = Constraints(order="packet", max_segments=_SEGMENTS)
            name = f"framed socket {fd}"
            self = cls._make(KIND_PACKET, name, constraints, fd=fd, framing=longest)
        except BaseException:
            os.close(fd)
            raise
        self.longest = longest
        return self

    def _refused(self, length: int) -> None:
        """Called by the core when the connection is ended for that."""
        log.warning(
            "%s: a packet of %d bytes was announced, and %d are the most: the connection is ended",
            self.name,
            length,
            self.longest,
        )
