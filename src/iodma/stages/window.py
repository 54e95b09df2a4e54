# SPDX-License-Identifier: Apache-2.0
"""A bus window: an offset and a limit.

Invariants
 - Bus address ``a`` with ``a < limit`` is address ``a + offset`` of the next space; all others
   fault.
 - A window that is moved changes what is translated from then on. What is in flight keeps where it
   was translated to: a latch of address bits does no more, so nothing is revoked.
"""

from __future__ import annotations

from typing import Self

from iodma._core import Space
from iodma.errors import AddressRangeError, integer

__all__ = ["Window"]

_WINDOW = 1


class Window(Space):
    """A window of ``limit`` bytes onto ``next``, ``offset`` bytes in.

        bus = iodma.Window(memory, offset=0x8000_0000, limit=16 << 20)

    Args:
        next: the space below.
        offset: added to every address.
        limit: bytes that the window is wide; None: to the end of the address space.

    Raises:
        AddressRangeError: the window reaches past 2^64 - 1.
    """

    def __new__(
        cls, next: Space, offset: int = 0, limit: int | None = None, *, name: str = "window"
    ) -> Self:
        offset = integer(offset, "offset", "bytes")
        limit = None if limit is None else integer(limit, "limit", "bytes")
        if not 0 <= offset < 1 << 64:
            raise AddressRangeError(f"offset is {offset:#x}; it must be 0 to 2^64 - 1")
        if limit is None:
            limit = (1 << 64) - offset
        if not 0 < limit <= (1 << 64) - offset:
            raise AddressRangeError(
                f"a window of {limit:#x} bytes at {offset:#x};"
                f" 1 to {(1 << 64) - offset:#x} fit there"
            )
        return super().__new__(cls, _WINDOW, next, name, offset=offset, last=limit - 1)

    def move(self, offset: int) -> None:
        """Put the window elsewhere: what an address latch of a bus bridge does when it is written.

        Transfers in flight go on where they are; those that wait for a translation below, and all
        that come, use the new offset.

        Args:
            offset: added to every address from now on; a multiple of 8 more or less than before,
                so that byte lanes above keep their places.

        Raises:
            AddressRangeError: the window would reach past 2^64 - 1, or another distance.
        """
        offset = integer(offset, "offset", "bytes")
        if not 0 <= offset < 1 << 64 or (offset - self._offset) % 8:
            raise AddressRangeError(
                f"{self.name}: a move from {self._offset:#x} to {offset:#x}; a multiple of 8 within"
                " 0 to 2^64 - 1 would be right"
            )
        self._set_offset(offset)

    def __repr__(self) -> str:
        return f"<Window {self.name} at {self._offset:#x} of {self.next!r}>"
