# SPDX-License-Identifier: Apache-2.0
"""Stream sockets: TCP and unix.

Invariants
 - One request is in flight in each direction, so that two sends never interleave; others wait their
   turn, in order.
 - A read of a stream whose other end is gone ends with PEER_GONE, after what was received before.
"""

from __future__ import annotations

import os
import socket
from typing import Self

from iodma.endpoints.base import KIND_STREAM, Endpoint
from iodma.errors import ArgumentError, ArgumentTypeError
from iodma.types import Constraints

__all__ = ["Socket"]


def socket_descriptor(given: socket.socket | int, kinds: tuple[int, ...], what: str) -> int:
    """A duplicate of the socket's descriptor, which must be of one of the kinds."""
    if isinstance(given, socket.socket):
        number = given.fileno()
    elif isinstance(given, int):
        number = given
    else:
        raise ArgumentTypeError(f"{given!r} is not a socket and not a descriptor")
    fd = os.dup(number)
    try:
        probe = socket.socket(fileno=fd)
        try:
            kind = probe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        finally:
            probe.detach()
    except BaseException:
        os.close(fd)
        raise
    if kind not in kinds:
        os.close(fd)
        raise ArgumentError(f"{given!r} is not a {what} socket")
    return fd


class Socket(Endpoint):
    """A connected stream socket, which is duplicated.

    Args:
        sock: a `socket.socket` or a descriptor.
        zero_copy: send straight from guest memory, without a copy into the kernel.  A send then
            completes when the other end has acknowledged it, and holds its pages until then, also
            when it was cancelled; `abort` ends that.  Where the kernel cannot (unix sockets, the
            threads engine) it is a plain send.
    """

    def __new__(cls, sock: socket.socket | int, *, zero_copy: bool = False) -> Self:
        fd = socket_descriptor(sock, (socket.SOCK_STREAM,), "stream")
        try:
            return cls._make(
                KIND_STREAM,
                f"socket {fd}",
                Constraints(order="stream"),
                fd=fd,
                zero_copy=zero_copy,
            )
        except BaseException:
            os.close(fd)
            raise

    def abort(self) -> None:
        """Break the connection at once: what is in flight ends with PEER_GONE.

        A TCP peer gets a reset. What it has not acknowledged is dropped, so that pages of zero-copy
        sends are free even though the peer has stopped reading.
        """
        self._abort()
