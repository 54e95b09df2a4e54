# SPDX-License-Identifier: Apache-2.0
"""The same file without a device model: the copy to compare with, and the digest to expect.

Invariants
 - Nothing of iodma takes part.
 - The plain copy moves each byte as often as the device does: from the file into memory, and from
   there to the socket. It has it easier: one buffer in one piece, and nothing to translate.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["digest", "plain_copy"]

CHUNK = 1 << 20

Progress = Callable[[int], object]


def digest(path: Path, size: int, swap: int | None, progress: Progress) -> str:
    """SHA-256 of the first ``size`` bytes, each whole unit of ``swap`` bytes reversed."""
    sha = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while done < size and (chunk := file.read(min(CHUNK, size - done))):
            whole = len(chunk) // swap * swap if swap else 0
            if swap:
                sha.update(np.frombuffer(chunk[:whole], f"u{swap}").byteswap().tobytes())
            sha.update(chunk[whole:])
            done += len(chunk)
            progress(done)
    return sha.hexdigest()


def plain_copy(path: Path, size: int, direct: bool, to: socket.socket, progress: Progress) -> None:
    """Reads and sends, a buffer at a time.

    Raises:
        OSError: of the file, or of the receiver.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
    fd = os.open(path, flags)
    try:
        with mmap.mmap(-1, CHUNK) as pages, memoryview(pages) as buffer:
            done = 0
            while done < size and (count := os.preadv(fd, [buffer], done)):
                count = min(count, size - done)
                with buffer[:count] as part:
                    to.sendall(part)
                done += count
                progress(done)
    finally:
        os.close(fd)
