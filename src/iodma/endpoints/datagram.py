# SPDX-License-Identifier: Apache-2.0
"""Packet sockets: UDP, unix datagrams and sequenced packets.

Invariants
 - One transfer is one packet, sent and received as one vector; order is kept in each direction.
 - A packet that is longer than the list it is received into is cut, and the transfer says so.
 - A socket that is full delays: nothing is dropped and nothing is copied to wait.
"""

from __future__ import annotations

import os
import socket
from typing import Self

from iodma.endpoints.base import KIND_PACKET, Endpoint
from iodma.endpoints.stream import socket_descriptor
from iodma.types import Constraints

__all__ = ["Datagram"]


class Datagram(Endpoint):
    """A connected packet socket, which is duplicated: UDP, unix datagram or seqpacket.

    How a transfer ends:

    - OK: one packet went, of all the list's bytes; or one came, of ``moved`` bytes, which may be 0.
    - IO_ERROR with EMSGSIZE: the packet does not fit. One that was sent is longer than the socket
      takes, and nothing went. One that was received is longer than the list: ``moved`` bytes of it
      are there, as many as fit, and the rest is lost.
    - PEER_GONE: the other end of a unix socket is closed; or nobody listens at a UDP port, which
      may be so just now only, and the socket goes on.
    """

    def __new__(cls, sock: socket.socket | int) -> Self:
        fd = socket_descriptor(sock, (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET), "packet")
        try:
            return cls._make(KIND_PACKET, f"packet socket {fd}", Constraints(order="packet"), fd=fd)
        except BaseException:
            os.close(fd)
            raise
