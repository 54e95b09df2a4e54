# SPDX-License-Identifier: Apache-2.0
"""Which backend an engine gets.

Invariants
 - What the caller asks for is what it gets, or an error that says why not; only "auto" chooses.
 - `IODMA_ENGINE` decides for "auto" alone.
 - "auto" falls back silently where the host has no io_uring, and with a warning where it has.
"""

from __future__ import annotations

import errno
import logging
import os

from iodma._core import uring_probe
from iodma.errors import ArgumentError, UnsupportedError
from iodma.ratelimit import RateLimit

__all__ = ["choose", "fall_back"]

_told = RateLimit(logging.getLogger("iodma.engine"), burst=1, seconds=60)

KINDS = ("uring", "threads")


def choose(kind: str) -> str:
    """ "uring" or "threads", for "auto", "uring" or "threads".

    Raises:
        ArgumentError: another name.
        UnsupportedError: io_uring was asked for and is not to be had here.
    """
    where = "kind"
    if kind == "auto":
        kind = os.environ.get("IODMA_ENGINE") or "auto"
        where = "IODMA_ENGINE"
    if kind not in ("auto", *KINDS):
        raise ArgumentError(f"{where} is {kind!r}; auto, uring or threads would be right")
    if kind == "threads":
        return kind
    error = uring_probe()["error"]
    if error in (0, errno.ENOMEM):  # for want of memory this very moment: the ring itself will tell
        return "uring"
    if kind == "uring":
        name = errno.errorcode.get(error, str(error))
        raise UnsupportedError(
            f"io_uring cannot be used here ({name}: {os.strerror(error)}); `iodma doctor` says"
            " more, and the threads engine does the same work"
        )
    return "threads"


def fall_back(kind: str, error: OSError) -> str:
    """What takes the place of a ring that could not be made though io_uring is there.

    Most likely RLIMIT_MEMLOCK is too low for it: that is counted over all processes of a user. The
    host has io_uring and the user meant to have it, so this is a warning.

    Args:
        kind: as it was asked for.
        error: why there is no ring.

    Raises:
        UnsupportedError: nothing but io_uring was asked for.
    """
    if kind == "auto":
        kind = os.environ.get("IODMA_ENGINE") or "auto"
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    why = f"a ring of io_uring could not be made ({name}: {error.strerror})"
    if error.errno == errno.ENOMEM:
        why += "; the limit on locked memory is too low for one more (`ulimit -l`)"
    if kind != "auto":
        raise UnsupportedError(f"{why}; the threads engine does the same work") from error
    _told.log(logging.WARNING, "%s: worker threads take its place", why)
    return "threads"
