# SPDX-License-Identifier: Apache-2.0
"""Rung 3: a copy engine with a ring of descriptors in guest memory, errors, and a reset.

A descriptor is 32 bytes, little-endian:

    0x00  u64  SOURCE    bus address
    0x08  u64  TARGET    bus address
    0x10  u32  LENGTH    bytes; what is above 2^20 is cut off
    0x14  u32  FLAGS     bit 0: interrupt when it is done
    0x18  u32  RESULT    written back: bit 31 done, bits 7..0 iodma.Status
    0x1c  u32  MOVED     written back: bytes

The guest fills descriptors and writes TAIL, the index behind the last one; the engine works from
HEAD to TAIL and writes back each result.  A descriptor that faults is one that has failed: the
engine goes on with the next.  A ring that cannot be read or written is a fault of the engine: it
halts until it is reset.

Two lines interrupt: `interrupt` (MSI-X vector 0) when a descriptor that asks for it is done, and
`error` (vector 1) when one has failed or the engine has halted.  A driver acknowledges in IRQ
first, and looks at the ring then.

iodma check examples/rung3_copy_engine.py
iodma run examples/rung3_copy_engine.py
iodma run examples/rung3_copy_engine.py --socket-path=S       as a PCI function of a virtual machine
"""

from enum import IntFlag

import iodma
from iodma.testing import Inject, PciDriver, strict_engine

DESCRIPTOR = "<QQII"
DESCRIPTOR_BYTES = 32
RESULT = 0x18
DONE = 1 << 31
LONGEST = 1 << 20


class State(IntFlag):
    """Bits of STATUS."""

    HALTED = 1
    RESETTING = 2


class Cause(IntFlag):
    """Bits of IRQ and IRQ_ENABLE."""

    DONE = 1
    FAILED = 2
    HALTED = 4


class CopyEngine(iodma.Device):
    """Copies memory to memory, as a ring of descriptors says."""

    pci = iodma.Pci(vendor=0xF1DA, device=0x0003, class_code=0x088000, bars={0: 4096}, msix=2)

    ring = iodma.Register(0x00, 8, doc="bus address of the ring")
    entries = iodma.Register(0x08, mask=0xFFFF, doc="descriptors in it")
    control = iodma.Register(0x0C, access="wo", write="command", always=True, doc="1: reset")
    status = iodma.Register(0x10, access="ro", read="tell", always=True, doc="1 halted, 2 in reset")
    head = iodma.Register(0x14, access="ro", doc="the next descriptor to be done")
    tail = iodma.Doorbell(0x18, run="work", doc="the first descriptor not to be done")
    irq = iodma.Register(0x1C, access="w1c", write="update", doc="1 done, 2 failed, 4 halted")
    irq_enable = iodma.Register(0x20, write="update", doc="causes that interrupt")
    fault = iodma.Register(0x28, 8, "ro", doc="the address that was refused last")

    def __init__(self, port=None, **more) -> None:
        super().__init__(port, **more)
        self.error = self.interrupt_line("error")

    # --- registers ----------------------------------------------------------------------------

    def command(self, value: int) -> None:
        if value & 1:
            self.request_reset()

    def tell(self) -> int:
        return self.status | (State.RESETTING if self.state == "resetting" else 0)

    def update(self, value: int) -> None:
        """IRQ or IRQ_ENABLE was written; MSI-X sends a message again for a cause that is left."""
        self.signal()

    def cause(self, cause: Cause) -> None:
        self.irq |= cause
        self.signal()

    def signal(self, hidden: int = 0) -> None:
        causes = self.irq & self.irq_enable & ~hidden
        self.interrupt.set(causes & Cause.DONE != 0)
        self.error.set(causes & (Cause.FAILED | Cause.HALTED) != 0)

    # --- the ring -----------------------------------------------------------------------------

    async def work(self, tail: int) -> None:
        """TAIL was written.  Doorbells are served one at a time, in their order."""
        if self.status & State.HALTED:
            return
        try:
            if tail >= self.entries:
                raise ValueError
            while self.head != tail:
                await self.one(self.ring + self.head * DESCRIPTOR_BYTES)
                self.head = (self.head + 1) % self.entries
        except iodma.DmaFault as refused:
            self.halt(refused.completion)
        except ValueError:  # a tail outside the ring, or a ring outside the address space
            self.halt(None)

    async def one(self, descriptor: int) -> None:
        source, target, length, flags = await self.fetch(descriptor)
        done = await self.move(source, target, min(length, LONGEST))
        if done.fault is not None:
            self.fault = done.fault.address
        # What was copied is in memory before the descriptor says so.
        await self.report(descriptor, done)
        if not done.ok:
            self.cause(Cause.FAILED)
        elif flags & 1:
            self.cause(Cause.DONE)

    async def fetch(self, descriptor: int) -> tuple[int, int, int, int]:
        return await self.port.load(DESCRIPTOR, descriptor)

    async def move(self, source: int, target: int, length: int) -> iodma.Completion:
        return await self.port.copy((source, length), (target, length))

    async def report(self, descriptor: int, done: iodma.Completion) -> None:
        await self.port.store("<II", descriptor + RESULT, DONE | done.status, done.moved)

    def halt(self, completion: iodma.Completion | None) -> None:
        if completion is not None and completion.fault is not None:
            self.fault = completion.fault.address
        self.status = State.HALTED
        self.cause(Cause.HALTED)


# --- its driver -------------------------------------------------------------------------------


class Guest:
    """What a driver does with a copy engine at ``base``."""

    RING, ENTRIES = 0x1000, 8

    def __init__(self, bus, base, device, engine, ram) -> None:
        self.bus, self.base, self.device, self.ram = bus, base, device, ram
        self.raised = iodma.Event(engine)
        for line in (device.interrupt, device.error):
            line.connect(lambda level: self.raised.set() if level else None)

    def set_up(self) -> None:
        self.bus.write64(self.base + 0x00, self.RING)
        self.bus.write32(self.base + 0x08, self.ENTRIES)
        self.bus.write32(self.base + 0x20, Cause.DONE | Cause.FAILED | Cause.HALTED)

    def describe(self, index, source, target, length, flags=0) -> None:
        words = source.to_bytes(8, "little") + target.to_bytes(8, "little")
        words += length.to_bytes(4, "little") + flags.to_bytes(4, "little") + bytes(8)
        with self.ram.view(self.RING + 32 * index, 32) as view:
            view[:] = words

    def result(self, index) -> tuple[int, int]:
        with self.ram.view(self.RING + 32 * index + 0x18, 8) as view:
            return int.from_bytes(view[:4], "little"), int.from_bytes(view[4:], "little")

    async def ring(self, tail) -> Cause:
        """Writes TAIL, waits for the interrupt, acknowledges and returns its causes."""
        self.raised.clear()
        self.bus.write32(self.base + 0x18, tail)
        await self.raised.wait()
        return self.acknowledge()

    def acknowledge(self) -> Cause:
        causes = self.bus.read32(self.base + 0x1C)
        self.bus.write32(self.base + 0x1C, causes)
        return Cause(causes)


async def driver(bus, base, device, engine, ram):
    guest = Guest(bus, base, device, engine, ram)
    guest.set_up()
    with ram.view(0x8000, 4096) as view:
        view[:] = bytes(range(256)) * 16

    # Two copies, one interrupt.
    guest.describe(0, 0x8000, 0x10000, 4096)
    guest.describe(1, 0x8100, 0x20003, 77, flags=1)
    assert await guest.ring(2) == Cause.DONE
    assert guest.result(0) == (DONE | iodma.Status.OK, 4096)
    assert guest.result(1) == (DONE | iodma.Status.OK, 77)
    assert ram.view(0x10000, 4096) == ram.view(0x8000, 4096)
    assert ram.view(0x20003, 77) == ram.view(0x8100, 77)

    # One that faults, between two that do not.
    nowhere = 0xDEAD_0000_0000
    guest.describe(2, 0x8000, 0x30000, 16)
    guest.describe(3, 0x8000, nowhere, 16)
    guest.describe(4, 0x8000, 0x30010, 16, flags=1)
    assert await guest.ring(5) == Cause.FAILED
    while bus.read32(base + 0x14) != 5:
        await engine.sleep(0.001)
    assert guest.result(3) == (DONE | iodma.Status.FAULT, 0)
    assert guest.result(4) == (DONE | iodma.Status.OK, 16)
    assert bus.read64(base + 0x28) == nowhere
    bus.write32(base + 0x1C, Cause.DONE)

    # A ring that is not there: it halts, and only a reset brings it back.
    bus.write64(base + 0x00, nowhere)
    assert await guest.ring(6) == Cause.HALTED
    assert bus.read32(base + 0x10) == State.HALTED
    bus.write32(base + 0x18, 7)
    bus.write32(base + 0x0C, 1)
    assert bus.read32(base + 0x10) & State.RESETTING
    while bus.read32(base + 0x10) & State.RESETTING:
        await engine.sleep(0.001)
    assert bus.read64(base + 0x00) == bus.read32(base + 0x14) == bus.read32(base + 0x10) == 0

    # A reset in the middle of work: nothing of the old ring is done after it.
    guest.set_up()
    for index in range(7):
        guest.describe(index, 0x8000, 0x40000, LONGEST)
    bus.write32(base + 0x18, 7)
    bus.write32(base + 0x0C, 1)
    while bus.read32(base + 0x10) & State.RESETTING:
        await engine.sleep(0.001)
    results = [guest.result(index) for index in range(7)]
    await engine.sleep(0.01)
    assert results == [guest.result(index) for index in range(7)]

    # And it works as on the first day.
    guest.set_up()
    guest.describe(0, 0x8000, 0x50000, 4096, flags=1)
    assert await guest.ring(1) == Cause.DONE
    assert ram.view(0x50000, 4096) == ram.view(0x8000, 4096)
    return device.counts.resets


# --- its tests --------------------------------------------------------------------------------


def tried(test, ram_bytes=4 << 20):
    """Runs test(guest, inject) against a device whose DMA passes through `inject`."""
    with strict_engine() as engine, iodma.Ram(ram_bytes) as ram:
        inject = Inject(iodma.Memory({0: ram}))
        slot = iodma.PciSlot(inject)
        device, bus = CopyEngine(engine.port(slot)), iodma.Bus()
        slot.set_bus_master(True)
        bus.attach(device, 0)
        guest = Guest(bus, 0, device, engine, ram)
        guest.set_up()
        return engine.run(test(guest, inject))


def test_the_copy_engine() -> None:
    with iodma.Engine(strict=True) as engine, iodma.Ram(4 << 20) as ram:
        device = CopyEngine(engine.port(iodma.Memory({0: ram})))
        bus = iodma.Bus()
        bus.attach(device, 0x1000_0000)
        assert engine.run(driver(bus, 0x1000_0000, device, engine, ram)) == 2


def test_a_fault_in_the_middle_of_a_page() -> None:
    async def test(guest, inject):
        inject.fault(0x9064, 1, iodma.Access.WRITE, times=1)
        guest.describe(0, 0x8000, 0x9000, 4096, flags=1)
        guest.describe(1, 0x8000, 0x9000, 4096, flags=1)
        assert await guest.ring(1) == Cause.FAILED
        assert guest.result(0) == (DONE | iodma.Status.FAULT, 0)
        assert guest.bus.read64(0x28) == 0x9064
        assert await guest.ring(2) == Cause.DONE
        assert guest.result(1) == (DONE | iodma.Status.OK, 4096)

    tried(test)


def test_a_message_for_each_cause_and_again_for_what_is_left() -> None:
    async def test(guest, inject):
        with PciDriver(guest.device) as pci:
            pci.enable()
            pci.use_msix()
            guest.describe(0, 0x8000, 0x9000, 16, flags=1)
            assert await guest.ring(1) == Cause.DONE
            assert pci.counts == {0: 1}
            inject.fault(0x9000, 1, times=1)
            guest.describe(1, 0x8000, 0x9000, 16)
            assert await guest.ring(2) == Cause.FAILED
            assert pci.counts == {0: 1, 1: 1}
            guest.device.cause(Cause.FAILED)
            guest.device.cause(Cause.HALTED)
            assert pci.counts[1] == 2  # the line was raised when the second cause came
            pci.write32(0x1C, Cause.FAILED)
            assert pci.counts[1] == 3
            pci.write32(0x1C, Cause.HALTED)
            assert pci.counts == {0: 1, 1: 3}

    tried(test)


def test_without_bus_mastering_no_byte_moves() -> None:
    async def test(guest, inject):
        with PciDriver(guest.device) as pci:  # and no enable()
            guest.describe(0, 0x8000, 0x9000, 16, flags=1)
            assert await guest.ring(1) == Cause.HALTED
            assert guest.result(0) == (0, 0)
            pci.enable()
            pci.write32(0x0C, 1)
            while pci.read32(0x10) & State.RESETTING:
                await guest.device.engine.sleep(0)
            guest.set_up()
            assert await guest.ring(1) == Cause.DONE

    tried(test)


def test_a_reset_while_memory_lets_it_wait() -> None:
    async def test(guest, inject):
        rule = inject.hold(0x9000, 4096)
        guest.describe(0, 0x8000, 0x9000, 4096, flags=1)
        guest.bus.write32(0x18, 1)
        await inject.caught()
        guest.bus.write32(0x0C, 1)
        while guest.bus.read32(0x10) & State.RESETTING:
            await guest.device.engine.sleep(0)
        rule.release()
        assert guest.result(0) == (0, 0)
        assert guest.device.interrupt.count == 0

    tried(test)
