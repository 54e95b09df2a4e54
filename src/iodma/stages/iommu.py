# SPDX-License-Identifier: Apache-2.0
"""An IOMMU: pages of bus addresses, mapped by the program, or by a walk of page tables.

Invariants
 - Mappings do not overlap.  One that is taken away is revoked: what is in flight through it ends
   first.
 - With a walker, the mappings are a translation cache: a miss makes a transfer *pending*, and it
   starts again from its bus addresses when the walker, or whoever it asked, has answered.  Each
   missing page is asked for once.
 - The walker runs in a turn of the engine, never inside a submit.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from iodma._core import Space
from iodma.errors import AddressRangeError, ArgumentError
from iodma.lease import DEADLINE_S, Revocation, revoke
from iodma.types import Access

__all__ = ["Iommu", "Mapping", "Walk"]

log = logging.getLogger("iodma.stages.iommu")

_IOMMU = 2
_PASS, _REFUSE, _PENDING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Mapping:
    """What a walk found: ``length`` bytes at ``address`` are at ``target`` of the next space."""

    address: int
    target: int
    length: int
    access: Access


#: Asked with (address, access) on a miss.  A `Mapping` answers; False refuses (a fault); None: the
#: answer comes later, with `Iommu.update` or `Iommu.refuse`.
Walk = Callable[[int, Access], "Mapping | bool | None"]


class Iommu(Space):
    """Maps pages of bus addresses to the next space, with permissions.

        iommu = iodma.Iommu(memory)
        iommu.map(0x1000, 0x8000, 4096, iodma.Access.READ)

    Args:
        next: the space below.
        page: bytes; addresses, targets and lengths must be multiples of it.
        walk: asked on a miss; None: a miss is a fault.
    """

    page: int
    _walk: Walk | None
    _asked: set[tuple[int, Access]]
    _queue: list[tuple[int, Access]]
    _refused: set[tuple[int, Access]]

    def __new__(
        cls, next: Space, page: int = 4096, *, walk: Walk | None = None, name: str = "iommu"
    ) -> Self:
        if page < 8 or page & (page - 1):
            raise ArgumentError(f"page is {page} bytes; a power of two from 8 would be right")
        self = super().__new__(cls, _IOMMU, next, name)
        self.page = page
        self._walk = walk
        self._asked = set()
        self._queue = []
        self._refused = set()
        if walk is not None:
            # The core's references cannot be followed by the garbage collector: it must not hold this object.
            weak = weakref.ref(self)

            def missed(address: int, length: int, access: int) -> int:
                stage = weak()
                return _REFUSE if stage is None else stage._miss(address, length, access)

            self._set_hook(missed, True)
        return self

    def _check(self, **values: int) -> None:
        for what, value in values.items():
            if value % self.page:
                raise AddressRangeError(
                    f"{self.name}: {what} {value:#x} is not a multiple of the page, {self.page:#x}"
                )

    def map(self, address: int, target: int, length: int, access: Access = Access.RW) -> None:
        """Map ``length`` bytes at bus address ``address`` to ``target`` of the next space.

        Raises:
            AddressRangeError: it overlaps what is mapped, is not made of pages, or runs past
                2^64 - 1.
        """
        self._check(address=address, target=target, length=length)
        if not Access.NONE < access <= Access.RW:
            raise ArgumentError(f"access is {access!r}; READ, WRITE or both would be right")
        self._map(address, length, target, None, access)

    def unmap(
        self,
        address: int,
        length: int,
        *,
        cancel: bool = False,
        deadline: float | None = DEADLINE_S,
    ) -> Revocation:
        """Take away what is mapped in the range; await the result before it is used otherwise.

        Holes in the range are allowed.
        """
        self._check(address=address, length=length)
        if length <= 0:
            raise AddressRangeError(f"{self.name}: length is {length}; it must be at least a page")
        self._unmap(address, length)
        return revoke(self, address, length, cancel=cancel, deadline=deadline)

    def invalidate(
        self,
        address: int = 0,
        length: int | None = None,
        *,
        cancel: bool = False,
        deadline: float | None = DEADLINE_S,
    ) -> Revocation:
        """Forget cached translations of a range, or all of them: the next access asks again."""
        start = address - address % self.page
        # For the core, 0 is: to the end of the address space.
        length = 0 if length is None else length + (address - start)
        self._refused.clear()
        self._unmap(start, length)
        return revoke(self, start, length, cancel=cancel, deadline=deadline)

    # -- misses ---------------------------------------------------------------

    def _miss(self, address: int, length: int, access: int) -> int:
        """Called by the core, in the middle of a walk: note the miss, change nothing."""
        key = (address - address % self.page, Access(access))
        if key in self._refused:
            self._refused.discard(key)
            return _REFUSE
        if key not in self._asked:
            self._asked.add(key)
            self._queue.append(key)
            self._engine_soon()
        return _PENDING

    def _engine_soon(self) -> None:
        engine = self._engine
        if engine is None:  # `translate` without an engine: nobody could answer
            self._queue.clear()
            self._asked.clear()
            return
        if len(self._queue) == 1:
            engine.call_soon(self._ask)

    def _ask(self) -> None:
        queue, self._queue = self._queue, []
        walk = self._walk
        for key in queue:
            try:
                found = None if walk is None else walk(*key)
            except Exception:
                log.exception("%s: the walk for %#x failed", self.name, key[0])
                found = False
            if isinstance(found, Mapping):
                self.update(found)
            elif found is False:
                self.refuse(*key)

    @property
    def misses(self) -> tuple[tuple[int, Access], ...]:
        """The pages that were asked for and not answered: (address, access)."""
        return tuple(self._asked)

    def update(self, mapping: Mapping) -> Revocation | None:
        """Answer a miss, or put a translation into the cache before it is asked for.

        A miss that asked for more than ``mapping.access`` is refused.  Where something else was
        mapped there before, that is revoked, and the revocation returned.
        """
        self._check(address=mapping.address, target=mapping.target, length=mapping.length)
        end = mapping.address + mapping.length
        for key in [key for key in self._asked if mapping.address <= key[0] < end]:
            self._asked.discard(key)
            if key[1] not in mapping.access:
                self._refused.add(key)
        replaced = self._unmap(mapping.address, mapping.length)
        revocation = None
        if replaced:
            revocation = revoke(
                self, mapping.address, mapping.length, cancel=False, deadline=DEADLINE_S
            )
        self._map(mapping.address, mapping.length, mapping.target, None, mapping.access)
        return revocation

    def refuse(self, address: int, access: Access) -> None:
        """Answer a miss with a fault."""
        key = (address - address % self.page, access)
        if key in self._asked:
            self._asked.discard(key)
            self._refused.add(key)
            self._resume()

    def __repr__(self) -> str:
        return f"<Iommu {self.name}: {self._count} mappings>"
