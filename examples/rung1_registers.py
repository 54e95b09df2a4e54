# SPDX-License-Identifier: Apache-2.0
"""Rung 1: registers only.  A port of eight pins, some of them inputs, with an interrupt on edges.

iodma check examples/rung1_registers.py      the register map, as a datasheet would list it
iodma run examples/rung1_registers.py        the device against the driver below
iodma run examples/rung1_registers.py --socket-path=S       as a PCI function of a virtual machine
"""

import iodma


class Pins(iodma.Device):
    """Eight pins: outputs are driven by the guest, inputs by whoever holds the device."""

    pci = iodma.Pci(vendor=0xF1DA, device=0x0001, class_code=0x088000, bars={0: 4096})

    ident = iodma.Register(0x00, 1, "ro", reset=0x8D, doc="identification")
    outputs = iodma.Register(0x01, 1, doc="1: the pin is an output")
    drive = iodma.Register(0x02, 1, doc="level of the outputs")
    level = iodma.Register(0x03, 1, "ro", read="levels", doc="level of all pins")
    edges = iodma.Register(0x04, 1, "w1c", write="update", doc="inputs that have changed")
    enable = iodma.Register(0x05, 1, write="update", doc="edges that interrupt")

    def reset(self) -> None:
        self.inputs = 0

    def levels(self) -> int:
        return (self.drive & self.outputs) | (self.inputs & ~self.outputs)

    def update(self, value: int) -> None:
        """After a write to EDGES or ENABLE: does the line still have a reason to be raised?"""
        self.interrupt.set(self.edges & self.enable != 0)

    def apply(self, inputs: int) -> None:
        """The world outside puts levels on the pins."""
        self.edges |= (self.inputs ^ inputs) & ~self.outputs & 0xFF
        self.inputs = inputs
        self.interrupt.set(self.edges & self.enable != 0)


async def driver(bus, base, device):
    assert bus.read8(base + 0x00) == 0x8D
    bus.write8(base + 0x01, 0x0F)  # the low four pins are outputs
    bus.write8(base + 0x02, 0xF5)
    assert bus.read8(base + 0x03) == 0x05
    bus.write8(base + 0x05, 0x10)

    device.apply(0x20)  # an edge that is not enabled
    assert not device.interrupt.level
    device.apply(0x3F)
    assert device.interrupt.level
    assert bus.read8(base + 0x04) == 0x30
    assert bus.read32(base + 0x00) == 0x35F5_0F8D  # four registers in one access
    bus.write8(base + 0x04, 0x10)  # acknowledge
    assert not device.interrupt.level
    assert bus.read8(base + 0x04) == 0x20

    bus.write8(base + 0x00, 0)  # read-only: dropped, and counted
    assert bus.read8(base + 0x00) == 0x8D
    assert device.counts.bad_writes == 1
    await device.request_reset()
    return [bus.read8(base + offset) for offset in range(6)]


def test_pins() -> None:
    with iodma.Engine(strict=True) as engine:
        device, bus = Pins(), iodma.Bus()
        engine.attach(device)
        bus.attach(device, 0x1000)
        assert engine.run(driver(bus, 0x1000, device)) == [0x8D, 0, 0, 0, 0, 0]
