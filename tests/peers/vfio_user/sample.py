# SPDX-License-Identifier: Apache-2.0
"""The device that libvfio-user's sample client drives, as that library's sample server is from
outside: a timer that interrupts, memory in a BAR, and DMA of both kinds when the timer has fired.

    python -m tests.peers.vfio_user.sample SOCKET [client ...]

serves it, for one client, and runs that if it is given; see docs/how-to-vfio-user.md.

 - BAR 0, 8 bytes: written, the second (since 1970) when the timer fires; read, seconds since then.
 - BAR 1, three pages of memory that can be mapped, and a fourth, as a BAR's size is a power of two.
 - At the timer, INTx; then four writes of 1 KiB and two reads of 2 KiB each, which must give what
   was written, to the page at 0x1000, which is mapped, and then to the one at 0, by messages.

Invariant: what is read back is compared; `done` counts the rounds in which all was right.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import iodma

PAGE, PIECE = 4096, 1024


class Sample(iodma.Device):
    """A conventional PCI device. Its client knows no Bus Master Enable: the timer sets it."""

    pci = iodma.Pci(
        vendor=0xDEAD,
        device=0xBEEF,
        subsystem_vendor=0xCAFE,
        subsystem=0xBABE,
        bars={0: 16, 1: iodma.Bar(4 * PAGE, ram="memory")},
        express=False,
        power_management=False,
    )
    timer = iodma.Register(0, 8, read="since", write="arm")

    def __init__(self, port: iodma.Port, memory: iodma.Ram) -> None:
        super().__init__(port)
        self.memory = memory
        self.done = 0

    def since(self) -> int:
        return (int(time.time()) - self.timer) % (1 << 64)

    def arm(self, when: int) -> None:
        self.start(self.fire(when))

    async def fire(self, when: int) -> None:
        await self.engine.sleep(max(0.0, when - time.time()))
        slot = self.port.space
        assert isinstance(slot, iodma.PciSlot)
        slot.set_bus_master(True)
        self.interrupt.pulse()
        for page in (PAGE, 0):
            await self.move(page)
        self.done += 1

    async def move(self, page: int) -> None:
        pieces = [letter * PIECE for letter in (b"A", b"B", b"C", b"D")]
        for place, piece in enumerate(pieces):
            await self.port.store_bytes(page + place * PIECE, piece)
        for place in (0, 2):
            data = await self.port.load_bytes(page + place * PIECE, 2 * PIECE)
            assert data == pieces[place] + pieces[place + 1], f"page {page:#x} has other bytes"


@contextmanager
def served(
    engine: iodma.Engine, path: str | os.PathLike[str]
) -> Iterator[tuple[Sample, iodma.VfioUserServer]]:
    """The device and its server; what lies at 0 is reached by messages."""
    with iodma.Ram(4 * PAGE) as memory:
        device = Sample(engine.port(iodma.PciSlot()), memory)
        server = iodma.VfioUserServer(
            engine, device, path, mapped=lambda address, size: address != 0
        )
        try:
            yield device, server
        finally:
            engine.run(server.close())


async def once(engine: iodma.Engine, server: iodma.VfioUserServer) -> None:
    """Until the first client is gone."""
    while not server.sessions or server.session is not None:
        await engine.sleep(0.05)


def main(path: str, *client: str) -> None:
    with iodma.Engine() as engine, served(engine, path) as (device, server):
        process = subprocess.Popen([*client, path]) if client else None
        engine.run(once(engine, server))
        print(f"the device has fired, and all DMA was right, {device.done} times")
        if process is not None:
            print(f"the client has ended with {process.wait(60)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
