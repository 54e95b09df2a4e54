# SPDX-License-Identifier: Apache-2.0
"""Packet sockets: UDP, unix datagrams and sequenced packets.

Invariants
 - One transfer is one packet, sent as one vector; order is kept.
 - A packet that is longer than the list it is received into is cut, as the kernel cuts it.
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
    """A connected packet socket, which is duplicated: UDP, unix datagram or seqpacket."""

    def __new__(cls, sock: socket.socket | int) -> Self:
        fd = socket_descriptor(sock, (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET), "packet")
        try:
            return cls._make(KIND_PACKET, f"packet socket {fd}", Constraints(order="packet"), fd=fd)
        except BaseException:
            os.close(fd)
            raise
