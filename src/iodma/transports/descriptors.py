# SPDX-License-Identifier: Apache-2.0
"""Descriptors that came with a message: each has one owner, who closes it.

Invariants
 - A descriptor is in exactly one `Descriptor` from the moment it was received, and `close` closes
   it once.
 - A notifier never blocks: it is an eventfd, a pipe or a socket, and non-blocking when it is
   taken.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import warnings
from collections.abc import Iterable
from typing import Self

from iodma.transports.refusal import Refusal

__all__ = ["Descriptor", "as_notifier", "close_all", "is_eventfd", "is_our_front_end"]


class Descriptor:
    """Owns one descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Its number; -1: it was closed."""
        return self._fd

    def detach(self) -> int:
        """Its number, for whoever owns it from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Closes it; again, nothing happens."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # what its file says at the end is not ours
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<Descriptor {self._fd}>"


def close_all(descriptors: Iterable[Descriptor | None]) -> None:
    """Closes those that there are."""
    for each in descriptors:
        if each is not None:
            each.close()


def is_our_front_end(fd: int, name: object) -> bool:
    """Whether a descriptor is the other end of the connection whose end here has that name.

    A front-end that sends its own end would keep its connection open here after it is gone.
    """
    if not name or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return bool(sock.getpeername() == name)
        except OSError:  # it is connected to nothing
            return False


def is_eventfd(descriptor: Descriptor) -> bool:
    """Whether it is one: never anything whose write could do something else than tell."""
    return os.readlink(f"/proc/self/fd/{descriptor.fileno()}") == "anon_inode:[eventfd]"


def as_notifier(descriptor: Descriptor, what: str) -> Descriptor:
    """The same descriptor, made fit for being read or written without ever blocking.

    Args:
        what: what it is for, in a refusal.

    Raises:
        Refusal: it is no eventfd, pipe or socket (User Mode Linux has one end of a pair); anything
            else could make a write wait, or do something else.
    """
    fd = descriptor.fileno()
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and not is_eventfd(descriptor):
        name = os.readlink(f"/proc/self/fd/{fd}")
        raise Refusal(f"{what} is {name}; an eventfd, a pipe or a socket would be right")
    os.set_blocking(fd, False)
    return descriptor
