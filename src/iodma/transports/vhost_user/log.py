# SPDX-License-Identifier: Apache-2.0
"""The dirty log that a front-end shares while it migrates its machine (specification: "Migration").

One bit stands for each page of 4096 bytes, from guest address 0 on. The core sets it before anyone
can see what was written there: payload, status and used rings alike.

Invariants
 - A log is large enough for every region that it is started for, or refused.
 - It stays mapped as long as a region needs it: also for what is in flight when it is replaced.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat

from iodma.errors import AddressRangeError
from iodma.memory import Ram
from iodma.transports.descriptors import Descriptor
from iodma.transports.vhost_user.messages import LogArea, Refusal

__all__ = ["DirtyLog"]

_PAGE = 4096


class DirtyLog:
    """The log that came with SET_LOG_BASE.

    Args:
        descriptor: of its file; the caller closes it.

    Raises:
        Refusal: it cannot be mapped.
    """

    def __init__(self, area: LogArea, descriptor: Descriptor) -> None:
        if not stat.S_ISREG(os.fstat(descriptor.fileno()).st_mode):
            raise Refusal("the log comes with a descriptor that is no file")
        if area.size == 0:
            raise Refusal("a log of no bytes")
        start = area.offset - area.offset % _PAGE
        first = area.offset - start
        try:
            self._map = mmap.mmap(descriptor.fileno(), first + area.size, offset=start)
        except (OSError, ValueError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refusal(
                f"a log of {area.size:#x} bytes at {area.offset:#x} of its file cannot be mapped:"
                f" {why}"
            ) from None
        self._bits = memoryview(self._map)[first:]

    def start(self, ram: Ram, guest: int, what: object) -> None:
        """Logs what is written to a region from now on.

        Args:
            guest: the guest address of its first byte.
            what: it is, in a refusal.

        Raises:
            Refusal: the log has no room for it, or no page of its begins where one of the log does.
        """
        if guest < 0 or guest % _PAGE:
            raise Refusal(f"{what} cannot be logged: its pages are not those of the log")
        try:
            ram.start_dirty_log(_PAGE, buffer=self._bits, first=guest // _PAGE)
        except AddressRangeError as error:
            raise Refusal(f"{what} is not in the log: {error}") from None

    def close(self) -> None:
        """Lets go of it; where a region still needs it, with that region."""
        with contextlib.suppress(BufferError):
            self._bits.release()
            self._map.close()
