# SPDX-License-Identifier: Apache-2.0
"""The file that is read and the memory that it is read into: made once, and gone afterwards.

Invariants
 - It is on a file system that has a disk under it: a tmpfs would make O_DIRECT a copy.
 - The room for it is checked first; nothing is left behind, whatever happens.
 - Its blocks are allocated and on the disk (no holes, nothing dirty), and in the page cache.
 - The memory is one memfd that both sides of a row map: the very same pages. Which pages a process
   happens to get moves reads of 1 MiB by 15 %, in caches that see physical addresses.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iodma.tools.bench.harness import BenchError
from iodma.tools.machine import available_memory, filesystem_of

__all__ = ["PIECE", "DataFile", "data_file", "shared_memory"]

#: File systems that are memory.
MEMORY_FILESYSTEMS = {"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"}
PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read."""

    path: Path
    size: int
    filesystem: str

    def warm(self) -> None:
        """Reads it through, so that it is in the page cache."""
        buffer = bytearray(PIECE)
        with open(self.path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def unsuitable(directory: Path, size: int) -> str:
    """Why the file cannot be there; empty when it can."""
    try:
        filesystem = filesystem_of(directory)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return error.strerror or str(error)
    if filesystem in MEMORY_FILESYSTEMS:
        return f"it is memory ({filesystem}), and O_DIRECT needs a disk"
    if free < 2 * size:
        return f"{free >> 20} MiB are free, {2 * size >> 20} MiB are asked for"
    if not os.access(directory, os.W_OK):
        return "it cannot be written to"
    return ""


def choose_directory(wanted: Path | None, size: int) -> Path:
    """The directory asked for, or the first that will do.

    Raises:
        BenchError: there is none; says why of each.
    """
    candidates = [wanted] if wanted else [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    reasons = []
    for directory in dict.fromkeys(candidates):
        reason = unsuitable(directory, size)
        if not reason:
            return directory
        reasons.append(f"{directory}: {reason}")
    raise BenchError(f"no directory for the file to read ({'; '.join(reasons)}); give --dir")


@contextmanager
def data_file(wanted: Path | None, size: int, *, piece: int = PIECE) -> Iterator[DataFile]:
    """Makes the file, and removes it at the end.

    Args:
        wanted: the directory; default: the first that will do.
        size: of the file.
        piece: bytes that are written at once. The page cache keeps what was written at once
            together, as far as the file system lets it, and some then pay for all of it when a
            page of it is written: 4 KiB writes to ext4 cost 58 us in pieces of 4 MiB, 4 us in
            pieces of 4 KiB.

    Raises:
        BenchError: no directory will do, or there is too little memory to keep it in the cache.
        OSError: it could not be written.
    """
    memory = available_memory()
    if memory is not None and memory < 2 * size:
        raise BenchError(
            f"{memory >> 20} MiB of memory are available, and keeping a file of {size >> 20} MiB"
            " in the page cache asks for twice that"
        )
    parent = choose_directory(wanted, size)
    with tempfile.TemporaryDirectory(prefix="iodma-bench-", dir=parent) as directory:
        path = Path(directory) / "data"
        with open(path, "wb", buffering=0) as file:
            for start in range(0, size, PIECE):
                data = memoryview(os.urandom(min(PIECE, size - start)))
                for at in range(0, len(data), piece):
                    file.write(data[at : at + piece])
            os.fsync(file.fileno())
        made = DataFile(path, size, filesystem_of(path))
        made.warm()
        yield made


@contextmanager
def shared_memory(size: int) -> Iterator[str]:
    """Memory of `size` bytes, as a path that any process of this user can open and map.

    Raises:
        OSError: there is none.
    """
    fd = os.memfd_create("iodma-bench", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)
