# SPDX-License-Identifier: Apache-2.0
"""Guest memory as the front-end shares it: regions, each with a guest address, the front-end's own
("user") address and a place in a file.

The guest addresses make an `iodma.Memory`, which rings and buffers are in. User addresses are only
what the front-end calls the same bytes; they lead to guest addresses and nowhere else.

Invariants
 - Every region was checked before it is mapped: neither end of it wraps, no other region has its
   guest addresses, and its user addresses have one meaning.
 - A region leaves the map first; its mapping goes when the last transfer there has let go.
 - A table that replaces another keeps the regions that are in both, mapping and all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iodma.errors import AddressRangeError, ArgumentError
from iodma.lease import Revocation
from iodma.memory import Memory, Ram
from iodma.transports.descriptors import Descriptor
from iodma.transports.sharing import SHARE
from iodma.transports.vhost_user.log import DirtyLog
from iodma.transports.vhost_user.messages import LEAST_SLOTS, MemoryRegion, Refusal

__all__ = ["MOST_SLOTS", "MemoryTable"]

#: Regions that ADD_MEM_REG can make: as many as there are slots for memory in other back-ends.
MOST_SLOTS = 509
_PAGE = 4096
_TOP = 1 << 64
#: Device and inode.
_File = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Slot:
    """A region that is mapped, and the file that it is a part of."""

    region: MemoryRegion
    ram: Ram
    file: _File


class MemoryTable:
    """The regions of one session.

    Attributes:
        memory: them, at their guest addresses.
    """

    def __init__(self, name: str = "guest memory") -> None:
        self.memory = Memory(name=name)
        self._slots: dict[int, _Slot] = {}
        self._log: DirtyLog | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def regions(self) -> list[MemoryRegion]:
        """By guest address."""
        return sorted(slot.region for slot in self._slots.values())

    # --- changes ----------------------------------------------------------------------------------

    def add(self, region: MemoryRegion, descriptor: Descriptor | None) -> None:
        """Maps one more region.

        Args:
            descriptor: of its file; the caller closes it.

        Raises:
            Refusal: it cannot be.
        """
        if len(self._slots) >= MOST_SLOTS:
            raise Refusal(f"{region} is one more than {MOST_SLOTS} regions")
        if descriptor is None:
            raise Refusal(f"{region} comes without a descriptor: {SHARE}")
        file = _check(region, descriptor)
        self._check_against(region, file, [(s.region, s.file) for s in self._slots.values()])
        self._map(region, descriptor, file)

    def remove(self, region: MemoryRegion) -> Revocation:
        """Takes a region away: await `let_go` of the result.

        It is the one with that guest address, user address and size, wherever in its file.

        Raises:
            Refusal: there is none.
        """
        slot = self._slots.get(region.guest)
        if slot is None or slot.region[:3] != region[:3]:
            raise Refusal(f"{region}, user address {region.user:#x}, is not there")
        return self._unmap(slot)

    def must_stop(self, regions: Sequence[MemoryRegion]) -> bool:
        """Whether a table cannot replace this one while rings run.

        That is so where a region has the addresses of another that goes: until the one is in the
        other's place, a driver's buffers there are nowhere.
        """
        stay = set(regions)
        return any(
            slot.region not in stay and _overlap(each, slot.region)
            for slot in self._slots.values()
            for each in regions
        )

    async def replace(
        self, regions: Sequence[MemoryRegion], descriptors: Sequence[Descriptor]
    ) -> None:
        """Makes these regions all that there are.

        Args:
            descriptors: of their files, in their order; the caller closes them.

        Raises:
            Refusal: they cannot be; or transfers did not let go of a region that is not in the
                table any more.
        """
        if len(regions) > LEAST_SLOTS:
            raise Refusal(f"{len(regions)} regions; {LEAST_SLOTS} are the most")
        if len(descriptors) != len(regions):
            raise Refusal(f"{len(descriptors)} descriptors for {len(regions)} regions: {SHARE}")
        files: list[tuple[MemoryRegion, _File]] = []
        for region, descriptor in zip(regions, descriptors, strict=True):
            file = _check(region, descriptor)
            self._check_against(region, file, files)
            files.append((region, file))
        going = [s for s in self._slots.values() if (s.region, s.file) not in files]
        new = [
            (region, descriptor, file)
            for (region, file), descriptor in zip(files, descriptors, strict=True)
            if not self._has(region, file)
        ]
        in_the_way = [s for s in going if any(_overlap(s.region, region) for region, _, _ in new)]
        await self.let_go([self._unmap(slot) for slot in in_the_way])
        for region, descriptor, file in new:
            self._map(region, descriptor, file)
        await self.let_go([self._unmap(slot) for slot in going if slot not in in_the_way])

    async def close(self, deadline: float = 4.0) -> bool:
        """Takes all away; what is in flight there is cancelled.

        Returns:
            Whether all let go before the deadline, in seconds. What did not stays mapped.
        """
        slots = [*self._slots.values()]
        revocations = [self._unmap(slot, cancel=True, deadline=deadline) for slot in slots]
        done = [await each for each in revocations]
        for slot, ok in zip(slots, done, strict=True):
            if ok:
                slot.ram.stop_dirty_log()
        return all(done)

    def _has(self, region: MemoryRegion, file: _File) -> bool:
        slot = self._slots.get(region.guest)
        return slot is not None and (slot.region, slot.file) == (region, file)

    @staticmethod
    async def let_go(revocations: Iterable[Revocation]) -> None:
        """Waits until nothing is in flight in what was taken away.

        Raises:
            Refusal: that did not come before the deadline.
        """
        # All of them, also after one has failed: each has its deadline.
        if not all([await each for each in revocations]):
            raise Refusal("a region that was taken away is still in use by transfers")

    def _map(self, region: MemoryRegion, descriptor: Descriptor, file: _File) -> None:
        fd = descriptor.fileno()
        held = os.fstat(fd)
        start = region.offset - region.offset % _PAGE
        end = region.offset + region.size
        if stat.S_ISREG(held.st_mode) and end > held.st_size:
            raise Refusal(f"{region} is at {region.offset:#x} of a file of {held.st_size:#x} bytes")
        try:
            ram = Ram.from_fd(fd, start, end - start)
        except (OSError, ArgumentError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refusal(f"{region} cannot be mapped: {why}") from None
        try:
            self.memory.add(region.guest, ram, region.offset - start, region.size)
        except AddressRangeError as error:
            ram.close()
            raise Refusal(f"{region}: {error}") from None
        slot = self._slots[region.guest] = _Slot(region, ram, file)
        if self._log is not None:
            self._start_log(slot, self._log)

    def start_log(self, log: DirtyLog) -> None:
        """Logs what is written to any region, also those that come.

        Raises:
            Refusal: the log has no room for one of them.
        """
        self._log = log
        for slot in self._slots.values():
            self._start_log(slot, log)

    def stop_log(self) -> None:
        """Logs no more."""
        self._log = None
        for slot in self._slots.values():
            slot.ram.stop_dirty_log()

    @staticmethod
    def _start_log(slot: _Slot, log: DirtyLog) -> None:
        # The mapping begins with a page of the file, the region perhaps not.
        first = slot.region.guest - slot.region.offset % _PAGE
        log.start(slot.ram, first, slot.region)

    def _unmap(
        self, slot: _Slot, *, cancel: bool = False, deadline: float | None = 4.0
    ) -> Revocation:
        del self._slots[slot.region.guest]
        revocation = self.memory.remove(slot.region.guest, cancel=cancel, deadline=deadline)
        slot.ram.close()  # the mapping itself goes with the last transfer that has it
        return revocation

    # --- checks -----------------------------------------------------------------------------------

    @staticmethod
    def _check_against(
        region: MemoryRegion, file: _File, others: Iterable[tuple[MemoryRegion, _File]]
    ) -> None:
        for other, its_file in others:
            if _overlap(region, other):
                raise Refusal(f"{region} overlaps {other}")
            if region.user < other.user + other.size and other.user < region.user + region.size:
                # The same bytes at two guest addresses are no contradiction.
                here, there = region.user - region.offset, other.user - other.offset
                if file != its_file or here != there:
                    raise Refusal(f"{region} has user addresses of {other}")

    # --- addresses --------------------------------------------------------------------------------

    def guest_address(self, user: int, length: int, what: str) -> int:
        """Where in guest memory `length` bytes at a user address are.

        Args:
            what: they are, in a refusal.

        Raises:
            Refusal: they are not all in the table, or not in one piece.
        """
        (first, size), *others = self.pieces(user, length, what)
        for guest, more in others:
            if guest != first + size:
                raise Refusal(
                    f"{what}, {length} bytes at user address {user:#x}, is in two pieces of guest"
                    " memory"
                )
            size += more
        return first

    def pieces(self, user: int, length: int, what: str) -> list[tuple[int, int]]:
        """(guest address, bytes) of what `length` bytes, at least one, at a user address are.

        Raises:
            Refusal: they are not all in the table.
        """
        found = []
        at, left = user, length
        while left > 0:
            region = self._find(at)
            if region is None:
                hint = "" if self._slots else f"; there is no memory at all: {SHARE}"
                raise Refusal(
                    f"{what}, {length} bytes at user address {user:#x}, is outside of guest"
                    f" memory{hint}"
                )
            step = min(left, region.user + region.size - at)
            found.append((region.guest + (at - region.user), step))
            at, left = at + step, left - step
        return found

    def _find(self, user: int) -> MemoryRegion | None:
        for slot in self._slots.values():
            if 0 <= user - slot.region.user < slot.region.size:
                return slot.region
        return None


def _overlap(one: MemoryRegion, other: MemoryRegion) -> bool:
    return one.guest < other.guest + other.size and other.guest < one.guest + one.size


def _check(region: MemoryRegion, descriptor: Descriptor) -> _File:
    """What can be said of a region by itself; gives its file."""
    if region.size == 0:
        raise Refusal(f"the region at guest address {region.guest:#x} has no bytes")
    for what, start in (
        ("guest address", region.guest),
        ("user address", region.user),
        ("mmap offset", region.offset),
    ):
        if start + region.size > _TOP:
            raise Refusal(f"{region}: {what} {start:#x} and its size reach past 2^64")
    held = os.fstat(descriptor.fileno())
    if not (stat.S_ISREG(held.st_mode) or stat.S_ISCHR(held.st_mode)):
        raise Refusal(f"{region} comes with a descriptor that is no file: {SHARE}")
    return held.st_dev, held.st_ino
