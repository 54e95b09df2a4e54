# SPDX-License-Identifier: Apache-2.0
"""Files and block devices: random access at a position.

Invariants
 - A read that ends early has reached the end of the file; a write never makes the file longer than
   its last byte.
 - With ``direct`` the page cache is passed by; what the alignment forbids goes through the bounce
   arena, the last partial block of a file through the page cache.
 - A read with ``direct`` that meets the end of the file may leave zeroes in the rest of its list:
   the kernel reads whole blocks. `moved` says where the file ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Self

from iodma._core import dio_alignment
from iodma.endpoints.base import KIND_FILE, Endpoint
from iodma.errors import ArgumentError, ArgumentTypeError, BusyError, UnsupportedError
from iodma.types import Constraints

__all__ = ["File"]

_BLKGETSIZE64 = 0x80081272
#: Where the lock of the second descriptor of a direct file begins: two open files of one process
#: exclude each other as any others do.
_SECOND = 1 << 62
_BLKSSZGET = 0x1268


class File(Endpoint):
    """A regular file or a block device.

        with iodma.File("disk.img", direct=True) as disk: ...

    Args:
        file: a path, or a descriptor (duplicated).
        read_only: open it for reading only; writes then end with IO_ERROR (EROFS).
        direct: pass by the page cache (O_DIRECT).
        write_through: a write has reached the medium when it completes (RWF_DSYNC).
        create: make the file with this many bytes if it is not there; None: it must be there.

    Raises:
        OSError: it cannot be opened so.
        ArgumentError: it is neither a regular file nor a block device.
    """

    read_only: bool
    direct: bool
    _buffered_fd: int

    def __new__(
        cls,
        file: str | os.PathLike[str] | int,
        *,
        read_only: bool = False,
        direct: bool = False,
        write_through: bool = False,
        create: int | None = None,
    ) -> Self:
        access = os.O_RDONLY if read_only else os.O_RDWR
        if isinstance(file, int):
            name, path = f"fd {file}", f"/proc/self/fd/{file}"
            if not read_only and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise ArgumentError(
                    f"descriptor {file} is open for reading only: say read_only=True"
                )
            buffered = os.dup(file)
        elif isinstance(file, str | os.PathLike):
            name = path = os.fspath(file)
            flags = access | os.O_CLOEXEC
            if create is not None and not read_only:
                flags |= os.O_CREAT
            buffered = _open(path, flags)
        else:
            raise ArgumentTypeError(f"{file!r} is not a path and not a descriptor")
        fd = -1
        try:
            info = os.fstat(buffered)
            block = stat.S_ISBLK(info.st_mode)
            if not block and not stat.S_ISREG(info.st_mode):
                raise ArgumentError(
                    f"{name} is neither a regular file nor a block device;"
                    " a Socket or Datagram may be what it wants"
                )
            if create is not None and not block and info.st_size < create:
                os.ftruncate(buffered, create)
            constraints = Constraints()
            if direct:
                fd = os.open(path, access | os.O_DIRECT | os.O_CLOEXEC)
                constraints = _direct_constraints(fd, block)
            else:
                fd, buffered = buffered, -1
            self = cls._make(
                KIND_FILE,
                name,
                constraints,
                fd=fd,
                buffered_fd=buffered,
                read_only=read_only,
                direct=direct,
                write_through=write_through,
            )
        except BaseException:
            for each in (fd, buffered):
                if each >= 0:
                    os.close(each)
            raise
        self.read_only = read_only
        self.direct = direct
        self._buffered_fd = buffered
        return self

    @property
    def write_through(self) -> bool:
        """Whether a write has reached the medium when it completes (RWF_DSYNC).

        Set, it is for requests that are handed to the kernel from then on.
        """
        return self._write_through

    @write_through.setter
    def write_through(self, value: bool) -> None:
        self._write_through = value

    @property
    def size(self) -> int:
        """Bytes, now."""
        info = os.fstat(self._fd)
        if stat.S_ISBLK(info.st_mode):
            raw = fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8))
            return int(struct.unpack("Q", raw)[0])
        return info.st_size

    def lock(self, *, shared: bool = False) -> None:
        """See that no other program has it open with such a lock; until it is closed.

        The lock (fcntl, F_OFD_SETLK) belongs to the open file: it stays until the kernel has ended
        the last request on it, also when this process is killed before.

        Args:
            shared: others may have shared locks on it too: for readers. An exclusive lock excludes
                also those that QEMU puts on images.

        Raises:
            BusyError: another open file has one that excludes it.
            ArgumentError: an exclusive one, of a file that was opened for reading only.
            OSError: the file system has no such locks.
        """
        if not shared and self.read_only:
            raise ArgumentError(f"{self.name} was opened for reading only: say shared=True")
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        whole = _SECOND if not shared else 1
        for fd, first in ((self._fd, 0), (self._buffered_fd, _SECOND)):
            if fd < 0:
                continue
            flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, first, whole, 0)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise OSError(error.errno, error.strerror, self.name) from None
                raise BusyError(f"{self.name} is in use: another program has locked it") from None

    def grow(self, size: int) -> None:
        """Make a regular file at least ``size`` bytes long; what is new reads as zeroes.

        Raises:
            UnsupportedError: it is a block device, or was opened for reading only.
            OSError: the file system refused.
        """
        info = os.fstat(self._fd)
        if stat.S_ISBLK(info.st_mode):
            raise UnsupportedError(f"{self.name} is a block device: it has the size that it has")
        if self.read_only:
            raise UnsupportedError(f"{self.name} was opened for reading only")
        if size > info.st_size:
            os.ftruncate(self._fd, size)


def _open(path: str | bytes, flags: int) -> int:
    """Without a note in the inode that it was read, where that is ours to say (open(2))."""
    try:
        return os.open(path, flags | os.O_NOATIME, 0o666)
    except PermissionError:
        return os.open(path, flags, 0o666)


def _direct_constraints(fd: int, block: bool) -> Constraints:
    try:
        memory, offset = dio_alignment(fd)
    except OSError:  # a kernel before 5.17
        memory = offset = 0
    if not memory or not offset:
        # The kernel does not say: a block device's logical block, else what every file system
        # takes.
        size = 4096
        if block:
            size = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
        memory = offset = size
    return Constraints(memory_alignment=memory, offset_alignment=offset)
