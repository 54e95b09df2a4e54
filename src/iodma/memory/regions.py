# SPDX-License-Identifier: Apache-2.0
"""Regions: what a memory is made of.

Invariants
 - A region owns its descriptor (one passed in is duplicated) and its mapping.
 - `close` lets nothing new reach it; the mapping goes when no transfer, map or view needs it any
   more, and not before.
 - A view is a lease: as long as it exists, the mapping does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import warnings
from typing import Protocol, Self

from iodma._core import Region
from iodma.errors import (
    AddressRangeError,
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    integer,
)

__all__ = ["DeviceWindow", "Ram", "Rom", "WindowTarget"]

_RAM, _ROM, _DEVICE = 0, 1, 2


class _Mapped(Region):
    """What RAM and ROM share."""

    _fd: int = -1

    @property
    def fd(self) -> int:
        """The memory file's descriptor, which stays the region's."""
        if self._fd < 0:
            raise ClosedError(f"{self!r} has no descriptor")
        return self._fd

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """``length`` bytes at ``offset`` (None: to the end): a lease until it is released."""
        offset = integer(offset, "offset", "bytes")
        length = self.size - offset if length is None else integer(length, "length", "bytes")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise AddressRangeError(
                f"{length} bytes at offset {offset} of a region of {self.size} bytes"
            )
        return memoryview(self)[offset : offset + length]

    def close(self) -> None:
        """Let go of it.  Transfers in flight and views end first; nothing new begins."""
        self._close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else " quarantined" if self.quarantined else ""
        return f"<{type(self).__name__} of {self.size} bytes{state}>"


class Ram(_Mapped):
    """RAM in a new memory file of ``size`` bytes, all zero, which nobody can make shorter.

    Raises:
        ArgumentError: the size is not 1 to 2^63 - 1.
        OSError: the kernel refused.
    """

    def __new__(cls, size: int) -> Self:
        size = integer(size, "size", "bytes")
        if not 0 < size < 1 << 63:
            raise ArgumentError(f"size is {size} bytes; it must be 1 to 2^63 - 1")
        fd = os.memfd_create("iodma-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # Whoever is given it cannot take away what others touch.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls._map(fd, 0, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _map(cls, fd: int, offset: int, size: int) -> Self:
        self = super().__new__(cls, _RAM, fd, offset, size)
        self._fd = fd
        return self

    @classmethod
    def from_fd(cls, fd: int, offset: int = 0, size: int | None = None) -> Self:
        """RAM that somebody else made: ``size`` bytes at ``offset`` (a multiple of 4096) of a
        memory file.

        The descriptor is duplicated.  The size is checked against the file's; a file that shrinks
        later makes accesses to what is gone fault.

        Raises:
            AddressRangeError: the file is smaller than that.
            OSError: the descriptor cannot be mapped.
        """
        offset = integer(offset, "offset", "bytes")
        size = None if size is None else integer(size, "size", "bytes")
        own = os.dup(integer(fd, "fd"))
        try:
            held = os.fstat(own)
            if stat.S_ISREG(held.st_mode):
                if size is None:
                    size = held.st_size - offset
                if offset < 0 or size <= 0 or offset + size > held.st_size:
                    raise AddressRangeError(
                        f"{size} bytes at offset {offset} of a memory file of {held.st_size} bytes"
                    )
            elif size is None:
                raise ArgumentError(f"descriptor {fd} has no size of its own: say one")
            return cls._map(own, offset, size)
        except BaseException:
            os.close(own)
            raise

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], offset: int = 0, size: int | None = None
    ) -> Self:
        """RAM in the file at ``path``, which must be there and large enough."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls.from_fd(fd, offset, size)
        finally:
            os.close(fd)

    def start_dirty_log(
        self,
        page: int = 4096,
        *,
        buffer: bytearray | memoryview | mmap.mmap | None = None,
        first: int = 0,
    ) -> None:
        """Begin to log which pages of ``page`` bytes DMA may have written to.

        A page is marked before the completion of what wrote there can be seen, whatever its status.
        What the program writes through a `view` it marks itself, with `mark_dirty`.

        Args:
            page: a power of two from 512.
            buffer: where the log is kept, memory that a VMM shares for instance; bits are set there
                atomically and never cleared. None: here, to be had with `take_dirty_log`.
            first: the bit in ``buffer`` that stands for the first page.

        Raises:
            AddressRangeError: ``buffer`` is too small.
        """
        self._start_dirty(page, buffer, first)

    def mark_dirty(self, offset: int, length: int) -> None:
        """Mark the pages of a range in the log, if one is kept."""
        self._mark_dirty(offset, length)

    def take_dirty_log(self) -> bytes:
        """The log since it was last taken: bit ``i`` of byte ``j`` stands for page ``8 j + i``.

        Raises:
            Error: none was started, or it is in a buffer that was given.
        """
        return self._take_dirty()

    def stop_dirty_log(self) -> None:
        """Log no more."""
        self._stop_dirty()


class Rom(_Mapped):
    """Memory that devices may only read, with ``data`` in it."""

    def __new__(cls, data: bytes) -> Self:
        try:
            data = bytes(memoryview(data))
        except TypeError:
            raise ArgumentTypeError(f"data is {data!r}; bytes would be right") from None
        if not data:
            raise ArgumentError("a Rom of no bytes; at least one is needed")
        self = super().__new__(cls, _ROM, -1, 0, len(data))
        self._poke(0, data)
        return self


class WindowTarget(Protocol):
    """What a device window leads to."""

    def read(self, offset: int, width: int) -> int | None:
        """A register read of ``width`` bytes, naturally aligned; None is a bus error."""

    def write(self, offset: int, width: int, value: int) -> bool | None:
        """A register write; False is a bus error."""


class DeviceWindow(Region):
    """A window of ``size`` bytes onto a device's registers: DMA to it is messages, not a copy.

    A transfer's bytes that lie here become register accesses: each once, in ascending order after
    the pieces before them in the list, naturally aligned, 1 to 8 bytes wide, never merged or
    retried. The target's methods are plain functions. What they start by DMA comes in a later turn;
    a chain of 8 messages that each caused the next one ends in a bus error.

    A target that raises makes the transfer fault there; the error is logged, or leaves `run` when
    the engine is strict.
    """

    def __new__(cls, target: WindowTarget, size: int) -> Self:
        for method in ("read", "write"):
            if not callable(getattr(target, method, None)):
                raise ArgumentTypeError(f"{target!r} has no method {method}: it cannot be a window")
        return super().__new__(cls, _DEVICE, -1, 0, size, target)

    def close(self) -> None:
        """Let nothing new reach it."""
        self._close()

    def __repr__(self) -> str:
        return f"<DeviceWindow of {self.size} bytes>"
