# SPDX-License-Identifier: Apache-2.0
"""An IOMMU: pages of bus addresses, mapped by the program, or by a walk of page tables.

Invariants
 - Mappings do not overlap.  One that is taken away is revoked: what is in flight through it ends
   first.
 - With a walker, the mappings are a translation cache: a miss makes a transfer *pending*, and it
   starts again from its bus addresses when the walker, or whoever it asked, has answered.
 - The walker runs in a turn of the engine, never inside a submit; see `misses`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from iodma._core import Space
from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError, integer
from iodma.lease import DEADLINE_S, Revocation, check_deadline, revoke
from iodma.stages.misses import Key, Mapping, Misses, Walk
from iodma.types import Access

__all__ = ["Iommu", "Mapping", "Walk"]

_IOMMU = 2


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
    _asked: Misses | None

    def __new__(
        cls, next: Space, page: int = 4096, *, walk: Walk | None = None, name: str = "iommu"
    ) -> Self:
        page = integer(page, "page", "bytes")
        if page < 8 or page & (page - 1):
            raise ArgumentError(f"page is {page} bytes; a power of two from 8 would be right")
        if walk is not None and not callable(walk):
            raise ArgumentTypeError(f"{walk!r} cannot be called with an address and an access")
        self = super().__new__(cls, _IOMMU, next, name)
        self.page = page
        self._asked = None
        if walk is not None:
            self._asked = Misses(self, walk)
            self._set_hook(self._asked.miss, True)
        return self

    def _check(self, **values: int) -> None:
        for what, value in values.items():
            if integer(value, what) % self.page:
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
        if not isinstance(access, int) or not Access.NONE < access <= Access.RW:
            raise ArgumentError(f"access is {access!r}; READ, WRITE or both would be right")
        self._map(address, length, target, None, access)
        if self._asked is not None:
            self._asked.answered(address, length, access)

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
        check_deadline(deadline)
        self._check(address=address, length=length)
        if length <= 0:
            raise AddressRangeError(f"{self.name}: length is {length}; it must be at least a page")
        self._unmap(address, length)
        if self._asked is not None:
            self._asked.invalidated(address, length)
        return revoke(self, address, length, cancel=cancel, deadline=deadline)

    def invalidate(
        self,
        address: int = 0,
        length: int | None = None,
        *,
        cancel: bool = False,
        deadline: float | None = DEADLINE_S,
    ) -> Revocation:
        """Forget cached translations of a range, or all of them: the next access asks again.

        Await the result before the pages are used otherwise. Pages that a walker is looking for
        just now are asked for again.

        Args:
            address: where the range begins; its pages are those that it touches.
            length: bytes; None: to the end of the address space.
        """
        check_deadline(deadline)
        if length is not None and length <= 0:
            raise AddressRangeError(f"{self.name}: length is {length}; it must be 1 or more")
        start = address - address % self.page
        if length is not None:
            end = address + length
            length = end + -end % self.page - start
            if start + length >= 1 << 64:
                length = None
        self._unmap(start, length or 0)  # for the core, 0 is: to the end of the address space
        if self._asked is not None:
            self._asked.invalidated(start, length)
        return revoke(self, start, length or 0, cancel=cancel, deadline=deadline)

    # -- answers to misses ----------------------------------------------------

    @property
    def misses(self) -> tuple[Key, ...]:
        """The pages that were asked for and not answered: (address, access)."""
        return () if self._asked is None else tuple(self._asked.asked)

    def update(self, mapping: Mapping) -> Revocation | None:
        """Answer a miss, or put a translation into the cache before it is asked for.

        What asked for more than ``mapping.access`` is refused.  Where something else was mapped
        there before, that is revoked, and the revocation returned.  An answer to what was asked for
        before an invalidation of its range changes nothing: the walker is asked again.

        Raises:
            AddressRangeError: it is not made of pages, or runs past 2^64 - 1.
        """
        self._check_owner()
        self._check_mapping(mapping)
        if self._asked is not None and self._asked.outdated(mapping.address, mapping.length):
            return None
        return self._install(mapping)

    def _check_mapping(self, mapping: Mapping) -> None:
        address, length, target = mapping.address, mapping.length, mapping.target
        self._check(address=address, target=target, length=length)
        for what, start in (("address", address), ("target", target)):
            if start < 0 or length <= 0 or start + length > 1 << 64:
                raise AddressRangeError(
                    f"{self.name}: {length:#x} bytes at {what} {start:#x} do not fit 64 bits"
                )

    def _install(
        self, mapping: Mapping, key: Key | None = None, *, alone: bool = True
    ) -> Revocation | None:
        """As `update`, with what was checked, and is newer than any invalidation.

        Args:
            key: what it answers.
            alone: it answers all that was asked for in its range.  False: one question; what asked
                for other rights has its own answer to come, and rights add up.
        """
        address, length, target = mapping.address, mapping.length, mapping.target
        if self._asked is not None:
            self._asked.answered(address, length, mapping.access, key, alone=alone)
        if not mapping.access:
            self._resume()
            return None
        if not alone:
            mapping = self._with_rights_there(mapping)
        more = self._only_gains(mapping)
        replaced = self._unmap(address, length)
        revocation = None
        if replaced and not more:
            revocation = revoke(self, address, length, cancel=False, deadline=DEADLINE_S)
        self._map(address, length, target, None, mapping.access)
        return revocation

    def _with_rights_there(self, mapping: Mapping) -> Mapping:
        """With the rights that the same target has there already: nobody has taken them back."""
        found = self._find(mapping.address)
        if found is None:
            return mapping
        first, length, target, access = found
        at = mapping.address - first
        if at + mapping.length > length or target + at != mapping.target:
            return mapping
        return replace(mapping, access=mapping.access | Access(access))

    def _only_gains(self, mapping: Mapping) -> bool:
        """Whether what is mapped there stays valid: the same target, and no right less."""
        found = self._find(mapping.address)
        if found is None:
            return False
        first, length, target, access = found
        return (
            mapping.address + mapping.length <= first + length
            and target + (mapping.address - first) == mapping.target
            and Access(access) in mapping.access
        )

    def refuse(self, address: int, access: Access) -> None:
        """Answer a miss with a fault; as with `update`, not one from before an invalidation."""
        self._check_owner()
        if self._asked is not None:
            self._asked.refuse((address - address % self.page, access))

    def __repr__(self) -> str:
        return f"<Iommu {self.name}: {self._count} mappings>"
