# SPDX-License-Identifier: Apache-2.0
"""The guest's side: its memory, the pages that it gives to the device, and its driver.

The chain is that of a machine with an IOMMU on its bus:

    device -> [byte lanes] -> IOMMU -> window -> memory

Bus addresses, the IOMMU's targets and the pages' places in RAM are three different orders.

Invariants
 - Every byte of RAM is a known one before the device is given anything, so that a byte moved to the
   wrong place is seen.
 - Only the pages of the list are mapped.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Self

import numpy as np

import iodma
from iodma.tools.demo.device import PAGE_BYTES, Step, Streamer
from iodma.tools.demo.peer import DemoError, PeerGone

__all__ = ["BASE", "PAGES", "STALL_S", "Guest", "drive"]

#: Where the device is on the guest's bus.
BASE = 0xFE00_0000
#: Pages that the device gets: what one doorbell can move.
PAGES = 512
#: Of guest RAM, four times as many.
RAM_BYTES = 4 * PAGES * PAGE_BYTES
#: Where RAM begins, physically; and where the guest's bus addresses do.
RAM_BASE = 0x1_0000_0000
BUS_BASE = 0x8000_0000
#: What no page holds before the device writes to it.
CANARY = 0xA5
#: Seconds without progress after which the demo gives up.
STALL_S = 30.0


class Guest:
    """Guest RAM and the chain in front of it.

    Attributes:
        bus: the top of the chain, as the network side of the device sees it.
        swapped: the same through byte lanes of another order, for the disk side; or `bus`.
        pages: bus addresses, in the order in which the device is to use them.
    """

    def __init__(self, swap: int | None) -> None:
        order = random.Random(2007)
        self.ram = iodma.Ram(RAM_BYTES)
        self.memory = iodma.Memory({RAM_BASE: self.ram}, name="ram")
        self.window = iodma.Window(self.memory, offset=RAM_BASE, limit=RAM_BYTES)
        self.bus = iodma.Iommu(self.window, page=PAGE_BYTES)
        self._used = order.sample(range(RAM_BYTES // PAGE_BYTES), PAGES)
        self.pages = [BUS_BASE + number * PAGE_BYTES for number in range(PAGES)]
        for address, number in zip(self.pages, self._used, strict=True):
            self.bus.map(address, number * PAGE_BYTES, PAGE_BYTES)
        order.shuffle(self.pages)
        self.swapped: iodma.Iommu | iodma.ByteLanes = self.bus
        if swap is not None:
            self.swapped = iodma.ByteLanes(self.bus, width=swap)
        with self.ram.view() as view:
            np.frombuffer(view, np.uint8).fill(CANARY)

    def check(self) -> None:
        """Raises DemoError if a byte outside the mapped pages has changed."""
        with self.ram.view() as view:
            pages = np.frombuffer(view, np.uint8).reshape(-1, PAGE_BYTES)
            touched = set(np.flatnonzero((pages != CANARY).any(axis=1)).tolist())
            del pages
        if wrong := touched - set(self._used):
            raise DemoError(f"page {min(wrong)} of guest RAM was written; it was not in the list")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.ram.close()


async def drive(
    bus: iodma.Bus, device: Streamer, pages: list[int], size: int, progress: Callable[[int], object]
) -> None:
    """The guest's driver: gives the device its pages, then has it stream ``size`` bytes of the
    file.

    Raises:
        DemoError: the device says that a stretch was not moved.
    """
    engine = device.engine
    came = iodma.Event(engine)
    device.interrupt.connect(lambda level: came.set() if level else None)
    for address in pages:
        bus.write64(BASE + Streamer.page.offset, address)
    done = 0
    while done < size:
        length = min(size - done, len(pages) * PAGE_BYTES)
        bus.write64(BASE + Streamer.position.offset, done)
        bus.write64(BASE + Streamer.length.offset, length)
        came.clear()
        timer = engine.call_later(STALL_S, came.set)
        edges = device.interrupt.count
        bus.write32(BASE + Streamer.go.offset, 1)
        await came.wait()
        timer.cancel()
        if device.interrupt.count == edges:
            raise DemoError(f"nothing has moved for {STALL_S:.0f} s, at byte {done} of {size}")
        if bus.read32(BASE + Streamer.step.offset) != Step.DONE:
            raise _failure(bus, done)
        done += length
        progress(done)


def _failure(bus: iodma.Bus, done: int) -> DemoError:
    """What the device's registers say of a stretch that failed."""
    status = iodma.Status(bus.read32(BASE + Streamer.status.offset))
    error = bus.read32(BASE + Streamer.error.offset)
    at = done + bus.read64(BASE + Streamer.moved.offset)
    reading = bus.read32(BASE + Streamer.step.offset) == Step.READING
    what = "reading the file" if reading else "sending"
    if status == iodma.Status.IO_ERROR:
        return DemoError(f"{what} failed at byte {at}: {os.strerror(error)}")
    if status == iodma.Status.PEER_GONE:
        return PeerGone(f"after about {at} bytes")
    if status == iodma.Status.OK:
        return DemoError(f"the file ends at byte {at}, earlier than its size has said")
    return DemoError(f"{what} ended with {status.name} at byte {at}")
