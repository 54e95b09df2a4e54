"""A driver's side of a packed virtqueue, in guest memory that the test owns (virtio 1.2, 2.8).

Invariants:

- As in `guestring`: the device is told only when it asked to be, and the driver asks before it
  waits.
- Descriptors of a chain stand one behind the other; the first one's flags are written last.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

from iodma.virtio import Feature, QueueSetup
from tests.unit.guestring import INDIRECT, NEXT, WRITE, Buffers, GuestRing

AVAIL, USED, LAP = 1 << 7, 1 << 15, 1 << 15
ENABLE, DESC = 0, 2


class PackedGuestRing(GuestRing):
    """One packed ring; the driver's event suppression stands behind it, then the device's."""

    def __init__(
        self,
        view: memoryview,
        base: int,
        size: int,
        *,
        event_idx: bool = False,
        arena: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(view, base, size, event_idx=event_idx, arena=arena)
        view[base : self.end] = bytes(self.end - base)
        self.driver_event = self.available = base + 16 * size
        self.device_event = self.used_ring = self.driver_event + 4
        self.at = self.used_at = 0
        self.lap = self.used_lap = True
        self.slots = size
        self.counts: dict[int, int] = {}
        self.added = 0  # descriptors since the last kick

    @property
    def features(self) -> int:
        return super().features | Feature.RING_PACKED

    def setup(self, index: int = 0) -> QueueSetup:
        here = self.used_at | LAP * self.used_lap
        return QueueSetup(
            index,
            self.size,
            self.base,
            self.driver_event,
            self.device_event,
            next=here | here << 16,
            call=self.call_fd,
            kick=self.kick_fd,
            error=self.error_fd,
        )

    def room(self) -> int:
        return self.slots

    def add(self, readable: Buffers, writable: Buffers, indirect: bool = False) -> int:
        buffers = [(*each, 0) for each in readable] + [(*each, WRITE) for each in writable]
        id = self.free.pop()
        entries: Sequence[tuple[int, int, int]] = buffers
        if indirect:
            assert self.arena is not None
            room = self.arena[1] // self.size
            table = self.arena[0] + room * id
            for k, (address, length, flags) in enumerate(buffers):
                self._put("<QIHH", table + 16 * k, address, length, 0, flags)
            entries = [(table, 16 * len(buffers), INDIRECT)]
        assert len(entries) <= self.slots
        self.slots -= len(entries)
        self.counts[id] = len(entries)
        first = 0, 0
        for k, (address, length, flags) in enumerate(entries):
            flags |= AVAIL if self.lap else USED
            if k + 1 < len(entries):
                flags |= NEXT
            at = self.base + 16 * self.at
            self._put("<QIH", at, address, length, id)
            if k == 0:
                first = at + 14, flags
            else:
                self._put("<H", at + 14, flags)
            self.at += 1
            if self.at == self.size:
                self.at, self.lap = 0, not self.lap
        self._put("<H", *first)
        self.added += len(entries)
        return id

    def kick(self) -> None:
        event, flags = struct.unpack_from("<HH", self.view, self.device_event)
        tell = flags == ENABLE
        if flags == DESC:
            wants = (event & (LAP - 1)) - (0 if bool(event & LAP) == self.lap else self.size)
            tell = (self.at - wants - 1) & 0xFFFF < self.added
        self.added = 0
        if tell:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)

    def pending(self) -> bool:
        flags = self._get(self.base + 16 * self.used_at + 14)
        return bool(flags & AVAIL) == bool(flags & USED) == self.used_lap

    def used(self) -> Iterator[tuple[int, int]]:
        while self.pending():
            _, length, id = struct.unpack_from("<QIH", self.view, self.base + 16 * self.used_at)
            count = self.counts.pop(id)
            self.used_at += count
            if self.used_at >= self.size:
                self.used_at, self.used_lap = self.used_at - self.size, not self.used_lap
            self.slots += count
            self.free.append(id)
            yield id, length

    def _ask(self) -> None:
        here = self.used_at | LAP * self.used_lap
        self._put("<HH", self.driver_event, here, DESC if self.event_idx else ENABLE)
