# SPDX-License-Identifier: Apache-2.0
"""The device: reads a stretch of a file into pages of guest memory, and sends the same pages to the
network.

    PAGE      0x00  64 bit  wo        the bus address of one more page; pages are used in this order
    POSITION  0x08  64 bit  rw        where in the file the stretch begins, bytes
    LENGTH    0x10  64 bit  rw        bytes of it, at most all pages together
    GO        0x18  32 bit  doorbell  read the stretch into the pages, then send them
    STATUS    0x1c  32 bit  ro        how the last stretch ended: iodma.Status
    STEP      0x20  32 bit  ro        where it ended: 1 reading, 2 sending, 3 done
    ERROR     0x24  32 bit  ro        the errno of an IO_ERROR
    MOVED     0x28  64 bit  ro        bytes of the step it ended in

Invariants
 - The pages' list is made once, from register writes; a transfer is described by the list, and no
   byte of payload or descriptor passes through Python.
 - An interrupt follows every doorbell, when STATUS, STEP, ERROR and MOVED tell of it.
"""

from __future__ import annotations

from enum import IntEnum

import iodma

__all__ = ["PAGE_BYTES", "Step", "Streamer"]

PAGE_BYTES = 4096


class Step(IntEnum):
    """What STEP says."""

    IDLE = 0
    READING = 1
    SENDING = 2
    DONE = 3


class Streamer(iodma.Device):
    """Streams a file from the disk to the network, through pages of guest memory."""

    disk: iodma.File
    network: iodma.Socket
    #: The network side's port; the disk side's may lead through swapped byte lanes.
    out: iodma.Port

    page = iodma.Register(0x00, 8, "wo", write="add_page", doc="bus address of one more page")
    position = iodma.Register(0x08, 8, doc="where in the file")
    length = iodma.Register(0x10, 8, doc="bytes to stream")
    go = iodma.Doorbell(0x18, run="stream", doc="read, then send")
    status = iodma.Register(0x1C, access="ro", doc="how it ended")
    step = iodma.Register(0x20, access="ro", doc="where it ended")
    error = iodma.Register(0x24, access="ro", doc="errno of an IO_ERROR")
    moved = iodma.Register(0x28, 8, "ro", doc="bytes of that step")

    def reset(self) -> None:
        self.pages = iodma.ScatterList([])
        self._added: list[tuple[int, int]] = []

    def add_page(self, address: int) -> None:
        self._added.append((address, PAGE_BYTES))

    async def stream(self, _: int) -> None:
        if len(self._added) != len(self.pages):
            self.pages = iodma.ScatterList(self._added)
        length = min(self.length, self.pages.total_bytes)
        pages = self.pages.slice(0, length)

        self.step = Step.READING
        done = await self.port.to_memory(pages, source=self.disk, offset=self.position)
        if done.ok and done.moved == length:
            self.step = Step.SENDING
            done = await self.out.from_memory(pages, to=self.network)
            if done.ok:
                self.step = Step.DONE
        self.status, self.error, self.moved = done.status, done.error, done.moved
        self.interrupt.pulse()
