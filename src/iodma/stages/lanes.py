# SPDX-License-Identifier: Apache-2.0
"""Byte lanes: a bus whose bytes are wired in another order.

Invariants
 - Only the payload's bytes change places, never an address: the byte that the device sees at bus
   address ``a`` is the memory's at ``a ^ (width - 1)``.
 - The swap is lazy: two stages that undo each other cost nothing, and only what really moves is
   swapped.
 - A unit of ``width`` bytes that a segment's end cuts is moved as it is, so that no byte outside
   the list is touched.
"""

from __future__ import annotations

from typing import Self

from iodma._core import Space
from iodma.errors import ArgumentError, ArgumentTypeError

__all__ = ["ByteLanes"]

_LANES = 3


class ByteLanes(Space):
    """Swap the bytes of every ``width``-byte unit: 2, 4 or 8.

        bus = iodma.ByteLanes(iommu, width=2)     # a 16-bit device of the other byte order

    Raises:
        ArgumentError: another width, or a stage below that is not aligned to 8 bytes.
    """

    def __new__(cls, next: Space, width: int = 2, *, name: str = "lanes") -> Self:
        if width not in (2, 4, 8):
            raise ArgumentError(f"width is {width}; 2, 4 or 8 bytes would be right")
        if not isinstance(next, Space):
            raise ArgumentTypeError(
                f"{next!r} is not an address space; a Memory or a stage would be right"
            )
        below: Space | None = next
        while below is not None:
            if below._offset % 8:
                raise ArgumentError(
                    f"{below.name} moves addresses by {below._offset:#x}, which is not a multiple"
                    " of 8: byte lanes above it would not be those of a bus"
                )
            below = below.next
        return super().__new__(cls, _LANES, next, name, lanes=width - 1)

    def __repr__(self) -> str:
        return f"<ByteLanes {self.name} of {self.next!r}>"
