# SPDX-License-Identifier: Apache-2.0
"""Is the memory of a client that may not be looked at shared at all?

Where it can be looked at, `iodma.transports.sharing` says so at once. Else time tells: a client
whose memory is private (QEMU without `share=on`) sends descriptors all the same, and what its guest
writes never gets into their files: DMA reads zeros, and nobody sees what it writes. But what a
guest writes to takes room in the file, as pages of zeros: measured with QEMU 7.2, 20 MB of them
before a kernel begins, where memory that is shared has other bytes at once.

Invariants
 - Of each file that is watched a descriptor and a timer are here, or neither.
 - One file with anything but zeros in it ends the watch for all: that client shares.
 - A look reads a bounded number of bytes, and makes no file larger.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from iodma.engine import Engine
from iodma.engine.timers import Timer

__all__ = ["Unshared"]

#: Seconds until the first look at a file; each is followed by one after twice that time, up to:
PATIENCE_S, LAST_S = 1.0, 64.0
#: Bytes of zeros that tell; bytes that a look reads; files that are watched.
LEAST, MOST, MOST_FILES = 1 << 20, 8 << 20, 4
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)


class Unshared:
    """The files of a session that are watched.

    Args:
        tell: called at most once: they are not shared.
    """

    def __init__(self, engine: Engine, tell: Callable[[], None]) -> None:
        self._engine = engine
        self._tell = tell
        self._known = False
        self._watched: dict[int, Timer] = {}

    def watch(self, fd: int) -> None:
        """Watches a file that was mapped for the first time.

        Args:
            fd: of it; duplicated.
        """
        if self._known or len(self._watched) >= MOST_FILES:
            return
        self._wait(os.dup(fd), PATIENCE_S)

    def _wait(self, fd: int, seconds: float) -> None:
        self._watched[fd] = self._engine.call_later(seconds, lambda: self._look(fd, seconds))

    def _look(self, fd: int, seconds: float) -> None:
        zeros = zeros_of(fd)
        if zeros is None or zeros >= LEAST:
            self.close()
            if zeros is not None:
                self._tell()
        elif seconds < LAST_S:
            self._wait(fd, 2 * seconds)
        else:
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._watched.pop(fd).cancel()
        os.close(fd)

    def close(self) -> None:
        """Watches no more."""
        self._known = True
        for fd in [*self._watched]:
            self._forget(fd)


def zeros_of(fd: int) -> int | None:
    """How many bytes of a file take room and are zero, of the first `MOST` that do; None: they are
    not all zeros, or it is not a file whose holes are known.
    """
    seen, at = 0, 0
    try:
        while seen < MOST:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, at, os.SEEK_HOLE), at + MOST - seen)
            while at < end:
                data = os.pread(fd, min(_CHUNK, end - at), at)
                if not data:
                    return seen
                if data != _ZEROS[: len(data)]:
                    return None
                at += len(data)
                seen += len(data)
    except OSError as error:
        return seen if error.errno == errno.ENXIO else None  # no more data
    return seen
