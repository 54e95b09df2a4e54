# SPDX-License-Identifier: Apache-2.0
"""Tap and tun: a network interface of the host whose other end is a device model.

Invariants
 - One transfer is one frame (tap) or one IP packet (tun), as one vector; order is kept.
 - A packet that is longer than the list it is received into is cut, and the transfer says so.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Self

from iodma.endpoints.base import KIND_PACKET, Endpoint
from iodma.errors import ArgumentError
from iodma.types import Constraints

__all__ = ["Tap"]

_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000
_IFNAMSIZ = 16


class Tap(Endpoint):
    """A tap interface (Ethernet frames), or a tun interface (IP packets).

        with iodma.Tap("tap0") as tap:      # needs CAP_NET_ADMIN, unless tap0 is there and ours
            done = await port.to_memory((buffer, 2048), source=tap)

    Args:
        interface: its name, a pattern like "tap%d", or "" for any; or a descriptor that somebody
            opened for us (duplicated), of /dev/net/tun, with its interface attached and without
            packet information.
        tun: make it a tun interface.

    Attributes:
        interface: the name that the interface has.

    Raises:
        OSError: there is no /dev/net/tun, or no right to the interface.
        ArgumentError: the name is too long, or the descriptor is not what it should be.
    """

    interface: str

    def __new__(cls, interface: str | int = "tap%d", *, tun: bool = False) -> Self:
        if isinstance(interface, int):
            fd = os.dup(interface)
        else:
            if len(interface.encode()) >= _IFNAMSIZ:
                raise ArgumentError(f"{interface!r} is longer than an interface's 15 bytes")
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            if isinstance(interface, str):
                flags = (_IFF_TUN if tun else _IFF_TAP) | _IFF_NO_PI
                request = struct.pack("16sH22x", interface.encode(), flags)
                name = cls._made(fd, interface, request)
            else:
                name = cls._attached(fd, interface)
            # Otherwise a read that finds nothing would hold a worker of the threads engine.
            os.set_blocking(fd, False)
            text = name.rstrip(b"\0").decode()
            self = cls._make(
                KIND_PACKET, f"tap {text}", Constraints(order="packet"), fd=fd, plain_io=True
            )
        except BaseException:
            os.close(fd)
            raise
        self.interface = text
        return self

    @staticmethod
    def _made(fd: int, interface: str, request: bytes) -> bytes:
        try:
            return fcntl.ioctl(fd, _TUNSETIFF, request)[:_IFNAMSIZ]
        except PermissionError as error:
            why = f"{error.strerror}: CAP_NET_ADMIN is needed, or an interface made for this user"
            raise PermissionError(error.errno, why, interface) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, interface) from None

    @staticmethod
    def _attached(fd: int, given: int) -> bytes:
        try:
            answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
        except OSError as error:
            raise ArgumentError(
                f"descriptor {given} has no tap interface attached: {error.strerror}"
            ) from None
        if not struct.unpack_from("H", answer, _IFNAMSIZ)[0] & _IFF_NO_PI:
            raise ArgumentError(
                f"descriptor {given}: its packets have packet information in front; open it with"
                " IFF_NO_PI"
            )
        return answer[:_IFNAMSIZ]
