# SPDX-License-Identifier: Apache-2.0
"""Drivers that write a ring by hand, right or wrong, into guest memory that the test owns.

    with split_driver() as d:
        queue = d.queue()
        d.read(0, sector)

`guestring` and `guestpacked` are drivers that do everything as they should; these do what a test
tells them.

Invariant: a driver closes what it has made; the queue is released by who made it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import iodma
from iodma.virtio.chains import Chains
from iodma.virtio.queue import Virtqueue

#: Where the memory begins for the device, and where in it the buffers do.
BASE, BUFFERS = 0x1000, 0x4000
#: Of descriptors.
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
#: What the parts for events of a packed ring say.
ENABLE, DISABLE, DESC = 0, 1, 2
#: Of queues.
EVENT_IDX, INDIRECT_DESC, PACKED = 1, 2, 4


def signalled(fd: int) -> bool:
    """Whether an eventfd was written since the last look."""
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


class RingDriver:
    """What both formats have in common.

    Attributes:
        parts: where the three parts of the ring are in memory.
        first: the position at which a queue begins.
    """

    parts: ClassVar[tuple[int, int, int]]
    first: ClassVar[int]

    def __init__(
        self, engine: iodma.Engine, ram: iodma.Ram, memory: iodma.Memory, flags: int, size: int
    ) -> None:
        self.ram = ram
        self.view = ram.view()
        self.engine, self.flags, self.size = engine, flags, size
        self.port = engine.port(memory)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def queue(self, **more: Any) -> Virtqueue:
        """The device's side; `more`: arguments that are to differ."""
        return Virtqueue(
            self.port,
            self.size,
            *(BASE + part for part in self.parts),
            **{"header": 16, "trailer": 1, "position_at": 8, "next": self.first, **more},
            flags=self.flags,
            kick=self.kick,
            call=self.call,
            error=self.error,
            chains=lambda segments: Chains(16, segments, more.get("header", 16)),
        )

    def request(self, slot: int, sector: int) -> int:
        """Writes the header of a read from a disk, and no status yet; where it is in memory."""
        at = BUFFERS + 0x1000 * slot
        struct.pack_into("<IIQ", self.view, at, 0, 0, sector)
        self.view[at + 16] = 0xFF
        return at

    def status(self, slot: int) -> int:
        return self.view[BUFFERS + 0x1000 * slot + 16]

    @property
    def outstanding(self) -> int:
        """Chains that were not seen to be used."""
        raise NotImplementedError

    @property
    def position(self) -> int:
        """Where the next chain is made available."""
        raise NotImplementedError

    def wants_kick(self, before: int) -> bool:
        """Whether the device asked to be kicked for what came since that position."""
        raise NotImplementedError

    def read(self, slot: int, sector: int, length: int = 512) -> None:
        """Makes a read of a disk available."""
        raise NotImplementedError

    def used(self) -> list[tuple[int, int]]:
        """(head or id, length) of what was used since the last look."""
        raise NotImplementedError

    def close(self) -> None:
        self.port.close()
        self.view.release()
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


class SplitDriver(RingDriver):
    """A split ring (virtio 1.3, section 2.7)."""

    TABLE, AVAILABLE, USED = parts = 0, 0x1000, 0x2000
    first = 0

    def __init__(
        self, engine: iodma.Engine, ram: iodma.Ram, memory: iodma.Memory, flags: int = 0
    ) -> None:
        super().__init__(engine, ram, memory, flags, 8)
        self.available = self.seen = 0

    def describe(
        self, index: int, address: int, length: int, flags: int = 0, next: int = 0
    ) -> None:
        struct.pack_into("<QIHH", self.view, self.TABLE + 16 * index, address, length, flags, next)

    def offer(self, head: int) -> None:
        slot = self.AVAILABLE + 4 + 2 * (self.available % self.size)
        struct.pack_into("<H", self.view, slot, head)
        self.available = (self.available + 1) & 0xFFFF
        struct.pack_into("<H", self.view, self.AVAILABLE + 2, self.available)

    @property
    def outstanding(self) -> int:
        return (self.available - self.seen) & 0xFFFF

    @property
    def position(self) -> int:
        return self.available

    def wants_kick(self, before: int) -> bool:
        if self.flags & EVENT_IDX:
            (event,) = struct.unpack_from("<H", self.view, self.USED + 4 + 8 * self.size)
            return int(self.available - event - 1) & 0xFFFF < (self.available - before) & 0xFFFF
        (flags,) = struct.unpack_from("<H", self.view, self.USED)
        return not int(flags) & 1

    def jump(self) -> None:
        """More chains are available, if that were true, than the ring holds."""
        struct.pack_into("<H", self.view, self.AVAILABLE + 2, self.size + 2)

    def read(self, slot: int, sector: int, length: int = 512) -> None:
        """A read as virtio-blk has it: header, buffer, status; three descriptors from 3 * slot."""
        at = self.request(slot, sector)
        first = 3 * slot
        self.describe(first, BASE + at, 16, NEXT, first + 1)
        self.describe(first + 1, BASE + at + 0x200, length, NEXT | WRITE, first + 2)
        self.describe(first + 2, BASE + at + 16, 1, WRITE)
        self.offer(first)

    def used(self) -> list[tuple[int, int]]:
        """(head, length) of what was used since the last look."""
        (index,) = struct.unpack_from("<H", self.view, self.USED + 2)
        found = []
        while self.seen != index:
            at = self.USED + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack_from("<II", self.view, at))
            self.seen = (self.seen + 1) & 0xFFFF
        return found


class PackedDriver(RingDriver):
    """A packed ring (virtio 1.3, section 2.8)."""

    RING, DRIVER_EVENT, DEVICE_EVENT = parts = 0, 0x1000, 0x1800
    first = 0x8000_8000

    def __init__(
        self, engine: iodma.Engine, ram: iodma.Ram, memory: iodma.Memory, flags: int, size: int
    ) -> None:
        super().__init__(engine, ram, memory, flags | PACKED, size)
        self.at, self.lap = 0, True
        self.used_at, self.used_lap = 0, True
        self.lengths: dict[int, int] = {}

    @property
    def outstanding(self) -> int:
        return len(self.lengths)

    @property
    def position(self) -> int:
        return self.at

    def wants_kick(self, before: int) -> bool:
        desc, how = struct.unpack_from("<HH", self.view, self.DEVICE_EVENT)
        if how != DESC:
            return bool(how == ENABLE)
        event = int(desc) & 0x7FFF
        if bool(desc & 0x8000) != self.lap:
            event -= self.size
        before -= self.size if before > self.at else 0
        return (self.at - event - 1) & 0xFFFF < (self.at - before) & 0xFFFF

    def offer(self, id: int, descriptors: list[tuple[int, int, int]]) -> None:
        """A chain of (address, length, flags); its first descriptor's flags are written last."""
        todo = []
        self.lengths[id] = len(descriptors)
        for i, (address, length, flags) in enumerate(descriptors):
            flags |= NEXT if i + 1 < len(descriptors) else 0
            flags |= AVAIL if self.lap else USED
            todo.append((self.at, address, length, flags))
            self.at += 1
            if self.at == self.size:
                self.at, self.lap = 0, not self.lap
        for at, address, length, flags in reversed(todo):
            struct.pack_into("<QIHH", self.view, self.RING + 16 * at, address, length, id, flags)

    def read(self, id: int, sector: int, length: int = 512) -> None:
        where = BASE + self.request(id, sector)
        self.offer(id, [(where, 16, 0), (where + 0x200, length, WRITE), (where + 16, 1, WRITE)])

    def used(self) -> list[tuple[int, int]]:
        """(id, length) of what was used since the last look."""
        found: list[tuple[int, int]] = []
        while True:
            at = self.RING + 16 * self.used_at
            _, length, id, flags = struct.unpack_from("<QIHH", self.view, at)
            if bool(flags & AVAIL) != self.used_lap or bool(flags & USED) != self.used_lap:
                return found
            found.append((id, length))
            self.used_at += self.lengths.pop(id)
            if self.used_at >= self.size:
                self.used_at, self.used_lap = self.used_at - self.size, not self.used_lap


def kicks_when_asked(d: RingDriver, count: int) -> None:
    """So many reads are answered by a device that sleeps in between, though nobody kicks it but
    when it asked for that: every wake-up comes from the ring itself."""
    queue = d.queue()
    served: list[int] = []

    async def serve() -> None:
        async for chains in queue.batches(4):
            served.extend(chains.id.tolist())
            for id in chains.id.tolist():
                queue.finish(id, 0, b"\0")

    async def main() -> None:
        task = d.engine.start(serve())
        for i in range(count):
            while d.outstanding >= 2:
                d.used()
                await d.engine.sleep(0.0001)
            before = d.position
            d.read(i % 2, 0)
            if d.wants_kick(before):
                os.eventfd_write(d.kick, 1)
            if i % 500 == 0:
                await d.engine.sleep(0.002)  # long enough that the engine sleeps
        while len(served) < count:
            await d.engine.sleep(0.0001)
        queue.stop()
        await queue.drained()
        await task

    d.engine.run(main())
    assert len(served) == count == queue.pushed
    queue.release()


@contextmanager
def split_driver(flags: int = 0) -> Iterator[SplitDriver]:
    """A split ring of 8 entries, on an engine and a MiB of memory of its own."""
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        made = SplitDriver(engine, ram, iodma.Memory({BASE: ram}), flags)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def packed_driver(flags: int = 0, size: int = 8) -> Iterator[PackedDriver]:
    """A packed ring, on an engine and a MiB of memory of its own."""
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram:
        made = PackedDriver(engine, ram, iodma.Memory({BASE: ram}), flags, size)
        try:
            yield made
        finally:
            made.close()
