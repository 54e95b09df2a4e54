# SPDX-License-Identifier: Apache-2.0
"""Disk images, looked at from this side with e2fsprogs: no mount, no root.

Invariant: nothing here writes to an image, but `make_image`.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.peers.guests.root import find_program


def make_image(path: Path, size: int) -> Path:
    """An empty image without any block of its own."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def allocated(path: Path) -> int:
    """How many bytes of the image are not holes."""
    return path.stat().st_blocks * 512


def check_filesystem(image: Path) -> None:
    """The ext4 file system on it is clean, or AssertionError with what e2fsck says."""
    done = subprocess.run(
        [find_program("e2fsck"), "-fn", str(image)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def file_digest(image: Path, name: str, scratch: Path) -> str:
    """MD5 (what busybox prints in the guest) of a file on the image's ext4 file system.

    Args:
        image: The disk; nobody has the file system mounted.
        name: The file's path on it, without a blank.
        scratch: A folder for the copy that is taken.
    """
    copy = scratch / "dumped"
    done = subprocess.run(
        [find_program("debugfs"), "-R", f"dump {name} {copy}", str(image)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert copy.exists(), done.stdout + done.stderr
    with open(copy, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    copy.unlink()
    return digest
