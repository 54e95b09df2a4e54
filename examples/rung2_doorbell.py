# SPDX-License-Identifier: Apache-2.0
"""Rung 2: a doorbell starts DMA, an interrupt ends it.  iodma run examples/rung2_doorbell.py"""

import iodma


class Reader(iodma.Device):
    """Reads a block of a disk into memory."""

    pci = iodma.Pci(vendor=0xF1DA, device=0x0002, class_code=0x018000, bars={0: 4096}, msi=1)
    disk: iodma.File
    target = iodma.Register(0x00, 8, doc="bus address that the block goes to")
    go = iodma.Doorbell(0x08, run="read", doc="the number of a block: read it")
    status = iodma.Register(0x0C, access="ro", doc="how it ended: iodma.Status")

    async def read(self, block: int) -> None:
        done = await self.port.to_memory((self.target, 512), source=self.disk, offset=512 * block)
        self.status = done.status
        self.interrupt.pulse()


async def driver(bus, base, device, engine):
    came = iodma.Event(engine)
    device.interrupt.connect(lambda level: came.set() if level else None)
    bus.write64(base + 0x00, 0x2000)
    bus.write32(base + 0x08, 3)
    await came.wait()
    return iodma.Status(bus.read32(base + 0x0C)).name


def test_the_block_is_in_memory() -> None:
    with iodma.Engine(strict=True) as engine, iodma.Ram(1 << 20) as ram, iodma.Buffer(4096) as disk:
        disk.view(3 * 512, 512)[:] = b"block 3." * 64
        device, bus = Reader(engine.port(iodma.Memory({0: ram})), disk=disk), iodma.Bus()
        bus.attach(device, 0x1000)
        assert engine.run(driver(bus, 0x1000, device, engine)) == "OK"
        assert ram.view(0x2000, 512) == b"block 3." * 64
