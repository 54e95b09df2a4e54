"""A guest with a virtio block device: requests as its driver makes them, in process.

    with Guest(disk) as guest:
        async def main():
            status, data, length = await guest.request(BlkType.IN, 5, into=512)
        guest.run(main())

Invariants:

- The device is `VirtioBlk` on the real ring; nothing but guest memory, eventfds and what a
  transport says goes between the two.
- Buffers of a request are taken from an arena and cut as the caller says; the bytes around them
  are checked to be untouched when the guest is closed.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Coroutine, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest

from iodma import Engine, File, Memory, Ram
from iodma._core import Space, Wait
from iodma.devices.virtio_blk import BlkStatus, VirtioBlk
from tests.unit.guestpacked import PackedGuestRing
from tests.unit.guestring import GuestRing

OK, IOERR, UNSUPP = BlkStatus
SECTORS = 256
SIZE = SECTORS * 512
#: Where guest memory begins, of its addresses.
RAM_SIZE = 8 << 20
ARENA, SLOT = 1 << 20, 128 << 10
CANARY = 0xA5


class Guest:
    """A machine with one disk.

    Args:
        disk: the endpoint; None: the caller gives a device.
        size: entries of each ring.
        options: for `VirtioBlk`.
    """

    def __init__(
        self,
        disk: Any,
        *,
        size: int = 64,
        queues: int = 1,
        event_idx: bool = True,
        indirect: bool = True,
        packed: bool = False,
        features: int = 0,
        start: bool = True,
        engine: Engine | None = None,
        **options: Any,
    ) -> None:
        self.engine = engine or Engine(strict=True, slow_step=None)
        self.ram = Ram(RAM_SIZE)
        self.view = self.ram.view()
        self.view[ARENA:] = bytes((CANARY,)) * (RAM_SIZE - ARENA)
        self.memory = Memory({0: self.ram})
        self.space: Space = self.memory  #: What addresses of the rings are in.
        self.device = VirtioBlk(disk, queues=queues, **options)
        self.engine.attach(self.device)
        self.rings: list[GuestRing] = []
        for index in range(queues):
            base = 0x1000 + 0x20000 * index
            self.rings.append(
                (PackedGuestRing if packed else GuestRing)(
                    self.view,
                    base,
                    size,
                    event_idx=event_idx,
                    arena=(base + 0x10000, size * 1024) if indirect else None,
                )
            )
        self.indirect = indirect
        self.slots = list(range(ARENA, RAM_SIZE, SLOT))
        self.waits: dict[tuple[int, int], Wait[int]] = {}
        self.tasks: list[Any] = []
        if start:
            self.start(features)

    def start(self, features: int = 0) -> None:
        """As a driver sets the device up."""
        self.device.set_features(self.rings[0].features | features)
        for index in range(len(self.rings)):
            self.start_ring(index)

    def start_ring(self, index: int) -> None:
        """Starts a ring from where it is."""
        ring = self.rings[index]
        self.device.start_queue(ring.setup(index), self.space)
        if ring.event is None:
            ring.listen(self.engine)
            self.tasks.append(self.engine.start(self._hear(index)))

    async def _hear(self, index: int) -> None:
        ring = self.rings[index]
        while True:
            await ring.called()
            for head, length in ring.used():
                self.waits.pop((index, head))._resolve(length)

    # --- requests ---------------------------------------------------------------------------------

    def chain(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        queue: int = 0,
        indirect: bool = False,
    ) -> Wait[int]:
        """Makes a chain of buffers available. Await it for the length in the used ring."""
        ring = self.rings[queue]
        head = ring.add(readable, writable, indirect)
        wait: Wait[int] = Wait(self.engine)
        self.waits[queue, head] = wait
        return wait

    async def request(
        self,
        type: int,
        sector: int = 0,
        out: bytes = b"",
        into: int = 0,
        *,
        queue: int = 0,
        pieces: random.Random | None = None,
        kick: bool = True,
    ) -> tuple[int, bytes, int]:
        """One request: (status byte, what was read, length in the used ring).

        Args:
            out: data for the device to read.
            into: bytes that it is to write.
            pieces: cuts header, data and status in random places.
        """
        slot = self.slots.pop()
        header = struct.pack("<IIQ", type, 0, sector)
        readable = self._place(slot, header + out, pieces)
        at = slot + SLOT // 2
        writable = self._place(at, bytes((0xEE,)) * (into + 1), pieces)
        length = await self._send(readable, writable, queue, pieces, kick)
        got = b"".join(self.view[address : address + n] for address, n in writable)
        for address, n in (*readable, *writable):
            self.view[address : address + n] = bytes((CANARY,)) * n
        assert self.view[slot : slot + SLOT] == bytes((CANARY,)) * SLOT, "outside of its buffers"
        self.slots.append(slot)
        return got[-1], got[:-1], length

    async def _send(
        self,
        readable: list[tuple[int, int]],
        writable: list[tuple[int, int]],
        queue: int,
        pieces: random.Random | None,
        kick: bool,
    ) -> int:
        full = self.rings[queue].room() < 2 * (len(readable) + len(writable))
        indirect = self.indirect and (full or pieces is None or pieces.random() < 0.7)
        wait = self.chain(readable, writable, queue, indirect)
        if kick:
            self.rings[queue].kick()
        return await wait

    def _place(self, at: int, data: bytes, pieces: random.Random | None) -> list[tuple[int, int]]:
        """Puts data into guest memory, in one buffer or several with gaps between."""
        if pieces is None:
            self.view[at : at + len(data)] = data
            return [(at, len(data))]
        cuts = {0, len(data)}
        for _ in range(pieces.randrange(4)):
            cuts.add(pieces.randrange(len(data) + 1))
        if pieces.random() < 0.5:
            cuts |= {min(16, len(data)), len(data) - 1}
        edges = sorted(cuts)
        placed = []
        for first, end in pairwise(edges):
            at += pieces.randrange(1, 100)
            self.view[at : at + end - first] = data[first:end]
            placed.append((at, end - first))
            at += end - first
        return placed

    # --- running ----------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.run(main)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        async def end() -> None:
            await self.device.reset_device()

        for task in self.tasks:
            task.cancel()
        self.engine.run(end())
        for ring in self.rings:
            ring.close(self.engine)
        self.engine.close()
        self.view.release()
        self.ram.close()


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(SIZE))
    return path


@pytest.fixture(name="disk")
def disk_fixture(path: Path) -> Iterator[File]:
    with File(path) as disk:
        yield disk


def ranges(*each: tuple[int, int, int]) -> bytes:
    """Of a discard or write-zeroes request: (sector, sectors, flags)."""
    return b"".join(struct.pack("<QII", *one) for one in each)
