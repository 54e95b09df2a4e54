"""`iodma.testing.PciDriver`: a device is driven as a guest drives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import iodma
from iodma.pci import Function
from iodma.testing import FakeMemory, PciDriver, ScriptedEndpoint, strict_engine
from tests.unit.pcikit import Lines, described

ADDRESS, GO, STATUS, WORD = 0x00, 0x08, 0x0C, 0x10


class Reader(iodma.Device):
    """Reads from a disk to memory; a failure goes to a line of its own."""

    pci: Any = iodma.Pci(
        vendor=0xF1DA, device=5, bars={0: 64, 2: iodma.Bar(16, at=16)}, msi=2, msix=2
    )
    address = iodma.Register(ADDRESS, 8)
    go = iodma.Doorbell(GO, run="work")
    status = iodma.Register(STATUS, access="ro")
    word = iodma.Register(WORD, 8, narrowest=1)
    disk: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed = self.interrupt_line("failed")

    async def work(self, length: int) -> None:
        done = await self.port.to_memory((self.address, length), source=self.disk)
        self.status = done.status
        (self.interrupt if done.ok else self.failed).pulse()


@contextmanager
def driven() -> Iterator[tuple[iodma.Engine, PciDriver, FakeMemory]]:
    with (
        strict_engine() as engine,
        FakeMemory(4096) as memory,
        ScriptedEndpoint(b"0123456789") as disk,
    ):
        device = Reader(engine.port(iodma.PciSlot(memory)), disk=disk)
        with PciDriver(device) as driver:
            yield engine, driver, memory


@pytest.mark.parametrize("kind", ["intx", "msi", "msix"])
def test_a_driver_waits_for_its_interrupts(kind: str) -> None:
    with driven() as (engine, driver, memory):

        async def main() -> None:
            driver.enable()
            getattr(driver, f"use_{kind}")()
            driver.write64(ADDRESS, 0x100)
            driver.write32(GO, 10)
            await driver.interrupt()
            assert memory.read(0x100, 10) == b"0123456789"
            driver.write64(ADDRESS, 1 << 40)
            driver.write32(GO, 10)
            await driver.interrupt(0 if kind == "intx" else 1)
            assert driver.read32(STATUS) == iodma.Status.FAULT

        engine.run(main())
        assert sum(driver.counts.values()) == 2 and not driver.asserted
        assert driver.function.interrupts.mode == kind


def test_interrupts_that_came_before_are_taken_one_by_one() -> None:
    with driven() as (engine, driver, _):
        driver.enable()
        driver.use_msix()
        for _ in range(2):
            driver.function.device.interrupt.pulse()

        async def main() -> str:
            await driver.interrupt()
            await driver.interrupt()
            third = engine.start(driver.interrupt())
            await engine.sleep(0)
            early = third.done
            driver.function.device.interrupt.pulse()
            await third
            return f"{early}"

        assert engine.run(main()) == "False" and driver.counts[0] == 3


def test_a_masked_vector_waits() -> None:
    with driven() as (_, driver, _):
        driver.enable()
        driver.use_msix()
        driver.mask(1)
        line = driver.function.device.interrupt_line("third")
        line.pulse()
        line.pulse()
        assert driver.counts[1] == 0
        driver.mask(1, False)
        assert driver.counts[1] == 1
        with pytest.raises(iodma.ArgumentError, match="there is no vector 2; 0 to 1"):
            driver.mask(2)


def test_registers_of_all_widths_and_bars() -> None:
    with driven() as (_, driver, _):
        driver.write64(WORD, 0x1122334455667788)
        assert driver.read8(WORD) == 0x88 and driver.read16(WORD + 2) == 0x5566
        assert driver.read32(4, bar=2) == 0x11223344
        driver.write8(0, 0xFF, bar=2)
        driver.write16(2, 0xAAAA, bar=2)
        assert driver.read64(WORD) == 0x11223344AAAA77FF
        for write in (lambda: driver.write8(0, 256), lambda: driver.write(0, 1, 3)):
            with pytest.raises(iodma.ArgumentError, match="does not fit"):
                write()
        with pytest.raises(iodma.AddressRangeError):
            driver.read32(0, bar=1)


@pytest.mark.parametrize("express", [True, False])
def test_disable_and_reset(express: bool) -> None:
    with strict_engine() as engine:
        slot = iodma.PciSlot()
        device = described(express=express)(engine.port(slot))
        engine.attach(device)
        with PciDriver(Function(device)) as driver:

            async def main() -> None:
                driver.enable()
                seen = [slot.bus_master]
                await driver.disable()
                assert [*seen, slot.bus_master] == [True, False]
                device.value = 3
                await driver.reset()
                assert device.value == 0 and driver.config_read(0x04, 2) == 0

            engine.run(main())
            assert device.counts.resets == 1


def test_what_a_function_does_not_have() -> None:
    with PciDriver(described(intx=False)()) as driver:
        assert driver.capability(0x05) is None
        for use in (driver.use_intx, driver.use_msi, driver.use_msix):
            with pytest.raises(iodma.UnsupportedError):
                use()


def test_a_function_of_somebody_else_stays() -> None:
    function = Function(Lines())
    with PciDriver(function) as driver:
        with pytest.raises(iodma.BusyError):
            PciDriver(function)
        function.device.interrupt.set(True)
        assert driver.asserted
    again = PciDriver(function)
    assert again.asserted and again.counts[0] == 1
    again.close()
