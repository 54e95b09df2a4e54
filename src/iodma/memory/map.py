# SPDX-License-Identifier: Apache-2.0
"""The physical address space: which region is where.

Invariants
 - Regions do not overlap.  Neighbours that lie side by side in one region are one piece to a
   transfer.
 - A region that is removed is revoked: what is in flight there ends first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from iodma._core import Region, Space
from iodma.errors import AddressRangeError, ArgumentTypeError
from iodma.lease import DEADLINE_S, Revocation, check_deadline, revoke
from iodma.memory.regions import Rom
from iodma.types import Access

__all__ = ["Memory"]

_MEMORY = 0

#: A whole region, or a part of one: (region, offset, length).
Placed = Region | tuple[Region, int, int]


class Memory(Space):
    """Regions at physical addresses: the end of every chain.

        memory = iodma.Memory({0x0: ram, 0xF000_0000: rom})

    Args:
        regions: base address -> a region, or (region, offset, length) for a part of one.
        name: what faults call it.

    Raises:
        AddressRangeError: a region reaches past 2^64 - 1 or overlaps another.
    """

    #: What is mapped at each base: a region that nobody else names lives as long as it is mapped.
    _regions: dict[int, Region]

    def __new__(cls, regions: Mapping[int, Placed] | None = None, *, name: str = "memory") -> Self:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name is {name!r}; a string would be right")
        if regions is not None and not isinstance(regions, Mapping):
            raise ArgumentTypeError(
                f"regions is {regions!r}; a dictionary of base address to region would be right"
            )
        self = super().__new__(cls, _MEMORY, None, name)
        self._regions = {}
        for base, placed in (regions or {}).items():
            if isinstance(placed, tuple):
                self.add(base, *placed)
            else:
                self.add(base, placed)
        return self

    def add(
        self,
        base: int,
        region: Region,
        offset: int = 0,
        length: int | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        """Put a region (or ``length`` bytes of it from ``offset``) at physical address ``base``."""
        if not isinstance(region, Region):
            raise ArgumentTypeError(
                f"{region!r} is not a region; a Ram, Rom or DeviceWindow would be right"
            )
        if length is None:
            length = region.size - offset
        access = Access.READ if read_only or isinstance(region, Rom) else Access.RW
        self._map(base, length, offset, region, access)
        self._regions[base] = region

    def remove(
        self, base: int, *, cancel: bool = False, deadline: float | None = DEADLINE_S
    ) -> Revocation:
        """Take away what was put at ``base``; await the result before the region's memory is used
        otherwise.

        Args:
            base: as it was given to `add`.
            cancel: ask the transfers in flight there to end.
            deadline: seconds until the revocation fails and the region is quarantined; None: never.

        Raises:
            AddressRangeError: nothing was put there.
        """
        check_deadline(deadline)
        found = self._find(base)
        if found is None or found[0] != base:
            raise AddressRangeError(f"{self.name}: no region begins at {base:#x}")
        length = found[1]
        self._unmap(base, length)
        self._regions.pop(base, None)
        return revoke(self, base, length, cancel=cancel, deadline=deadline)

    def __repr__(self) -> str:
        return f"<Memory {self.name}: {self._count} regions>"
