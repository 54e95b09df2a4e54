"""A driver's side of a split virtqueue, in guest memory that the test owns (virtio 1.2, 2.7).

    ring = GuestRing(ram, base=0x1000, size=16, event_idx=True)
    head = ring.add([(address, 16)], [(address, 512), (address, 1)])
    ring.kick()
    await ring.called()
    for head, length in ring.used(): ...

Invariants:

- The device is told only when it asked to be, as drivers do: a wake-up that it forgets to ask for
  hangs the test.
- The driver asks to be told of the next used buffer before it waits, and looks once more after.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

from iodma import Engine, Event
from iodma.virtio import Feature, QueueSetup

NEXT, WRITE, INDIRECT = 1, 2, 4
_NO_NOTIFY = 1

Buffers = Sequence[tuple[int, int]]


class GuestRing:
    """One ring at `base` of guest memory, whose bytes are `view` and whose addresses begin at 0.

    Args:
        arena: (address, length) of memory for indirect tables; None: no tables.
    """

    def __init__(
        self,
        view: memoryview,
        base: int,
        size: int,
        *,
        event_idx: bool = False,
        arena: tuple[int, int] | None = None,
        first: int = 0,
    ) -> None:
        self.view, self.base, self.size, self.event_idx = view, base, size, event_idx
        self.available = base + 16 * size
        self.used_ring = (self.available + 6 + 2 * size + 3) & ~3
        self.end = self.used_ring + 6 + 8 * size
        self.arena = arena
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.index = self.told = self.seen = first & 0xFFFF
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.kicks = self.calls = 0
        self.event: Event | None = None
        view[base : self.end] = bytes(self.end - base)
        self._put("<H", self.available + 2, self.index)
        self._put("<H", self.used_ring + 2, self.index)

    @property
    def features(self) -> int:
        """What a driver with such a ring accepts."""
        bits = Feature.VERSION_1
        if self.event_idx:
            bits |= Feature.EVENT_IDX
        if self.arena:
            bits |= Feature.INDIRECT_DESC
        return int(bits)

    def setup(self, index: int = 0) -> QueueSetup:
        """As a transport tells a device."""
        return QueueSetup(
            index,
            self.size,
            self.base,
            self.available,
            self.used_ring,
            next=self.seen,
            call=self.call_fd,
            kick=self.kick_fd,
            error=self.error_fd,
        )

    def _put(self, format: str, at: int, *values: int) -> None:
        struct.pack_into(format, self.view, at, *values)

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("<H", self.view, at)[0])

    # --- chains -----------------------------------------------------------------------------------

    def room(self) -> int:
        """Descriptors that are free."""
        return len(self.free)

    def add(self, readable: Buffers, writable: Buffers, indirect: bool = False) -> int:
        """Makes a chain available; the device is told of it by `kick`. Its head."""
        buffers = [(*each, 0) for each in readable] + [(*each, WRITE) for each in writable]
        taken = [self.free.pop() for _ in range(1 if indirect else len(buffers))]
        if indirect:
            assert self.arena is not None
            room = self.arena[1] // self.size
            table = self.arena[0] + room * taken[0]
            assert 16 * len(buffers) <= room
            self._table(table, buffers, list(range(len(buffers))))
            entries = [(table, 16 * len(buffers), INDIRECT)]
        else:
            entries = buffers
        self._table(self.base, entries, taken)
        self.chains[taken[0]] = taken
        self.offer(taken[0])
        return taken[0]

    def _table(self, at: int, entries: Sequence[tuple[int, int, int]], where: list[int]) -> None:
        for k, (address, length, flags) in enumerate(entries):
            last = k + 1 == len(entries)
            following = 0 if last else where[k + 1]
            flags |= 0 if last else NEXT
            self._put("<QIHH", at + 16 * where[k], address, length, flags, following)

    def offer(self, head: int) -> None:
        """Puts a head into the available ring."""
        self._put("<H", self.available + 4 + 2 * (self.index % self.size), head)
        self.index = (self.index + 1) & 0xFFFF
        self._put("<H", self.available + 2, self.index)

    def kick(self) -> None:
        """Tells the device of what was made available since the last time, if it wants to know."""
        if self.event_idx:
            wants = self._get(self.used_ring + 4 + 8 * self.size)
            new, old = self.index, self.told
            tell = (new - wants - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            tell = not self._get(self.used_ring) & _NO_NOTIFY
        self.told = self.index
        if tell:
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)

    def used(self) -> Iterator[tuple[int, int]]:
        """(head, length) of chains that came back since the last look."""
        while self.pending():
            at = self.used_ring + 4 + 8 * (self.seen % self.size)
            head, length = struct.unpack_from("<II", self.view, at)
            self.seen = (self.seen + 1) & 0xFFFF
            self.free += self.chains.pop(head)
            yield head, length

    # --- notifications ----------------------------------------------------------------------------

    def listen(self, engine: Engine) -> None:
        """Hears the device's notifications as the engine runs."""
        self.event = Event(engine)
        engine.add_reader(self.call_fd, self._called)

    def _called(self) -> None:
        assert self.event is not None
        os.eventfd_read(self.call_fd)
        self.calls += 1
        self.event.set()

    async def called(self) -> None:
        """Waits until the device has given back something that `used` has not told of."""
        assert self.event is not None
        while True:
            self.event.clear()
            self._ask()
            if self.pending():
                return
            await self.event.wait()

    def _ask(self) -> None:
        """Asks to be told of the next buffer that comes back."""
        if self.event_idx:
            self._put("<H", self.available + 4 + 2 * self.size, self.seen)

    def pending(self) -> bool:
        """Whether a buffer has come back that `used` has not told of."""
        return self.seen != self._get(self.used_ring + 2)

    def broken(self) -> bool:
        """Whether the device has signalled an error."""
        try:
            return os.eventfd_read(self.error_fd) > 0
        except BlockingIOError:
            return False

    def close(self, engine: Engine | None = None) -> None:
        if engine is not None and self.event is not None:
            engine.remove_reader(self.call_fd)
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)
