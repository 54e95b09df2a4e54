# SPDX-License-Identifier: Apache-2.0
"""The device of `iodma bench vfio-user`, written as a user would, and the server that it runs in.

    python -m iodma.tools.bench.vfio_device --socket-path S

COPY copies one page from SOURCE to TARGET. TAIL makes it work through a ring of descriptors, each
of which names two tables of (address, length): what is copied, and where to. See `vfio_layout` for
the numbers, and csrc/peer/vfio_user.h for a descriptor.

Invariants
 - Only public names are used; nothing is done for the benchmark that a device would not do.
 - The counters that it shows are the engine's own.
"""

from __future__ import annotations

import argparse
import struct
import sys

import iodma
from iodma.engine.dump import dump_on_signal
from iodma.tools.bench import vfio_layout as layout

__all__ = ["CopyEngine", "main"]

#: Sources, targets, entries, flags; the result is written behind them.
DESCRIPTOR = struct.Struct("<QQII8x")
DONE = 1 << 31
INTERRUPT = 1


class CopyEngine(iodma.Device):
    """Copies pages, and lists of pages."""

    pci = iodma.Pci(
        vendor=0xF1DA,
        device=0x00BE,
        class_code=0x088000,
        bars={0: layout.BAR_BYTES},
        msix=2,
    )

    source = iodma.Register(layout.SOURCE, 8, doc="bus address of a page")
    target = iodma.Register(layout.TARGET, 8, doc="bus address of the page that it goes to")
    copy = iodma.Doorbell(layout.COPY, run="copy_page", doc="copy it")
    entries = iodma.Register(layout.ENTRIES, doc="descriptors in the ring")
    ring = iodma.Register(layout.RING, 8, doc="bus address of the ring")
    tail = iodma.Doorbell(layout.TAIL, run="work", doc="the first descriptor not to be done")
    status = iodma.Register(layout.STATUS, access="ro", read="tell", doc="1: halted")
    python_bytes = iodma.Register(layout.PYTHON_BYTES, 8, "ro", read="count_python")
    copied_bytes = iodma.Register(layout.COPIED_BYTES, 8, "ro", read="count_copied")

    def __init__(self, port: iodma.Port) -> None:
        super().__init__(port)
        self.lists_done = self.interrupt_line("lists")

    def reset(self) -> None:
        self.head = 0
        self.halted = False

    def tell(self) -> int:
        return int(self.halted)

    def count_python(self) -> int:
        return self.engine.stats().python_bytes

    def count_copied(self) -> int:
        return self.engine.stats().copied

    async def copy_page(self, value: int) -> None:
        page = layout.PAGE
        await self.port.copy((self.source, page), (self.target, page))
        self.interrupt.pulse()

    async def work(self, tail: int) -> None:
        if self.halted or tail >= self.entries:
            return
        try:
            while self.head != tail:  # again where the ring begins anew
                end = tail if tail > self.head else self.entries
                await self.some(self.head, end)
                self.head = end % self.entries
        except iodma.DmaFault:  # a ring or a table that is not there
            self.halted = True
            self.lists_done.pulse()

    async def some(self, first: int, end: int) -> None:
        """Descriptors that lie one behind the other: all are begun, then the results written."""
        port, size = self.port, DESCRIPTOR.size
        at = self.ring + first * size
        begun = []
        for each in DESCRIPTOR.iter_unpack(await port.load_bytes(at, (end - first) * size)):
            sources, targets, count, flags = each
            source = await port.load_segments(sources, count)
            target = await port.load_segments(targets, count)
            begun.append((flags, port.copy(source, target)))
        for result, (flags, copy) in enumerate(begun):
            done = await copy
            to = at + result * size + layout.RESULT_AT
            await port.store("<II", to, DONE | done.status, done.moved)
            if flags & INTERRUPT:
                self.lists_done.pulse()


async def serve(engine: iodma.Engine, path: str) -> None:
    """Until the process ends."""
    slot = iodma.PciSlot()
    device = CopyEngine(engine.port(slot))
    async with iodma.VfioUserServer(engine, device, path) as server:
        await server.wait()


def main(arguments: list[str]) -> int:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m iodma.tools.bench.vfio_device")
    parser.add_argument("--socket-path", metavar="S", required=True)
    options = parser.parse_args(arguments)
    dump_on_signal()
    with iodma.Engine() as engine:
        engine.run(serve(engine, options.socket_path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
