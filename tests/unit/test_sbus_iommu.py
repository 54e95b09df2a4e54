"""The SBus IOMMU's registers, and what they mean for DMA."""

from __future__ import annotations

import struct
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.devices.sbus_iommu import RANGE_BYTES, Afsr, Control, SbusIommu, SlotConfig, iopte
from tests.unit.engines import Held

PAGE = 4096
TABLE = 0x4_0000
CONTROL, BASE, FLUSH, PGFLUSH = 0x0, 0x4, 0x14, 0x18
AFSR, AFAR, AER, SBCFG0, MID, MASK_ID = 0x1000, 0x1004, 0x1008, 0x1010, 0x2000, 0x3018
START = 0xFF00_0000
SLOTS = SlotConfig.SAB30 | SlotConfig.BA16 | SlotConfig.BA8 | SlotConfig.BYPASS


class Machine:
    """1 MiB of RAM and the IOMMU."""

    def __init__(self, **options: Any) -> None:
        self.engine = iodma.Engine(strict=True, slow_step=None)
        self.ram = iodma.Ram(1 << 20)
        self.memory = iodma.Memory({0: self.ram})
        self.view = self.ram.view()
        self.iommu = SbusIommu(self.memory, name="iommu", **options)
        self.engine.attach(self.iommu)
        self.levels: list[bool] = []
        self.iommu.interrupt.connect(self.levels.append)
        self.port = self.engine.port(self.iommu.stage)
        self.null = iodma.Null()

    def read(self, offset: int) -> int:
        return self.iommu.bus_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.iommu.bus_write(offset, 4, value)

    def put(self, page: int, entry: int) -> None:
        struct.pack_into(">I", self.view, TABLE + 4 * page, entry)

    def on(self, rnge: int = 0) -> None:
        self.write(BASE, TABLE >> 4)
        self.write(CONTROL, rnge << 2 | Control.ENAB)

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.run(main)

    def dma(self, address: int, *, write: bool = False, length: int = 16) -> iodma.Completion:
        async def main() -> iodma.Completion:
            if write:
                return await self.port.to_memory((address, length), source=self.null)
            return await self.port.from_memory((address, length), to=self.null)

        done: iodma.Completion = self.run(main())
        return done

    def close(self) -> None:
        self.engine.close()
        self.null.close()
        self.view.release()
        self.ram.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    one = Machine()
    yield one
    one.close()


# --- registers ------------------------------------------------------------------------------------


def test_registers_after_power_on(machine: Machine) -> None:
    want = {
        CONTROL: 0x0500_0000,
        BASE: 0,
        AFSR: 0x0080_0000,
        AFAR: 0,
        AER: 3,
        SBCFG0: 0,
        MID: 8,
        MASK_ID: 0x2300_0000,
    }
    assert {offset: machine.read(offset) for offset in want} == want


def test_the_bits_that_can_be_written(machine: Machine) -> None:
    for offset in (CONTROL, BASE, AFSR, AFAR, AER, SBCFG0, SBCFG0 + 12, MID, MASK_ID):
        machine.write(offset, 0xFFFF_FFFF)
    assert machine.read(CONTROL) == 0x0500_001D
    assert machine.read(BASE) == 0xFFFF_FC00
    assert machine.read(AFSR) == 0xFF8F_FFFF
    assert machine.read(AFAR) == 0xFFFF_FFFF
    assert machine.read(AER) == 0x801F_000F
    assert machine.read(SBCFG0) == machine.read(SBCFG0 + 12) == SLOTS
    assert machine.read(MID) == 0x1F_0008
    assert machine.read(MASK_ID) == 0x2300_0000
    machine.write(AER, 0)
    machine.write(AFSR, 0)
    machine.write(MID, 0)
    assert (machine.read(AER), machine.read(AFSR), machine.read(MID)) == (1, 0x80_0000, 8)


def test_only_whole_words_are_accessed(machine: Machine) -> None:
    machine.iommu.bus_write(CONTROL, 1, 1)
    machine.iommu.bus_write(CONTROL + 2, 2, 1)
    assert machine.read(CONTROL) == 0x0500_0000
    assert machine.iommu.bus_read(CONTROL, 2) == 0xFFFF


def test_physical_addresses_of_31_bits() -> None:
    machine = Machine(physical_bits=31, version=0x0400_0000)
    try:
        machine.write(BASE, 0xFFFF_FFFF)
        assert machine.read(BASE) == 0x07FF_FC00
        assert machine.read(CONTROL) == 0x0400_0000
        machine.on()
        machine.put(0, iopte(0x5000) | 0xF800_0000)  # bits 35:31 do not exist
        assert machine.dma(START).ok
    finally:
        machine.close()


@pytest.mark.parametrize("options", [{"version": 1}, {"physical_bits": 37}])
def test_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(iodma.ArgumentError):
        SbusIommu(iodma.Memory(), **options)


# --- translation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rnge", range(8))
def test_ranges_end_at_the_top_of_the_bus(machine: Machine, rnge: int) -> None:
    size = RANGE_BYTES[rnge]
    assert size == (16 << 20) << rnge
    first = (1 << 32) - size
    machine.on(rnge)
    machine.put(0, iopte(0x5000))
    assert machine.dma(first).ok
    below = machine.dma(first - 1)
    assert below.status is Status.FAULT and below.fault is not None
    assert below.fault.address == first - 1
    # The last entry, where the table fits in RAM.
    last = TABLE + (size // PAGE - 1) * 4
    if last < 1 << 20:
        struct.pack_into(">I", machine.view, last, iopte(0x6000))
        assert machine.dma(0xFFFF_FFF0).ok
        assert machine.dma(0xFFFF_FFF0, length=17).fault.address == 1 << 32  # type: ignore[union-attr]


def test_what_is_off_passes_physical_addresses(machine: Machine) -> None:
    machine.view[0x5000:0x5004] = b"here"

    async def load(address: int) -> bytes:
        (data,) = await machine.port.load("4s", address)
        return bytes(data)

    assert machine.run(load(0x5000)) == b"here"
    machine.on()
    machine.put(3, iopte(0x5000))
    assert machine.run(load(START + 3 * PAGE)) == b"here"
    assert machine.dma(0x5000).status is Status.FAULT
    machine.write(CONTROL, 0)
    assert machine.run(load(0x5000)) == b"here"


def test_36_bits_of_a_physical_address(machine: Machine) -> None:
    with iodma.Ram(PAGE) as high:
        machine.memory.add(0xF_0000_0000, high)
        machine.on()
        machine.put(0, iopte(0xF_0000_0000))
        with high.view() as view:
            view[:5] = b"above"

        async def main() -> Any:
            return await machine.port.load("5s", START)

        assert machine.run(main()) == (b"above",)
        # ... and so is the table's address.
        machine.write(BASE, 0xF000_0000)
        with high.view() as view:
            struct.pack_into(">I", view, 4, iopte(0x5000))
        machine.view[0x5000:0x5005] = b"below"

        async def again() -> Any:
            return await machine.port.load("5s", START + PAGE)

        assert machine.run(again()) == (b"below",)
        machine.memory.remove(0xF_0000_0000)


def test_an_entry_is_used_until_it_is_flushed(machine: Machine) -> None:
    machine.on()
    machine.put(0, iopte(0x5000))
    assert machine.dma(START, write=True).ok
    machine.put(0, 0)
    assert machine.dma(START, write=True).ok
    machine.write(PGFLUSH, START + PAGE)
    assert machine.dma(START, write=True).ok
    machine.write(PGFLUSH, START + 0x123)
    assert machine.dma(START, write=True).status is Status.FAULT
    machine.put(0, iopte(0x5000))
    assert machine.dma(START, write=True).ok
    machine.put(0, 0)
    machine.write(FLUSH, 0)
    assert machine.dma(START).status is Status.FAULT


# --- faults ---------------------------------------------------------------------------------------


def test_a_fault_is_latched(machine: Machine) -> None:
    machine.on()
    machine.put(1, iopte(0x5000, write=False))
    assert machine.dma(START + 0x10).status is Status.FAULT
    assert machine.levels == [True]
    assert machine.read(AFSR) == 0xC086_0000
    assert machine.levels == [True, False]
    assert machine.read(AFAR) == START
    done = machine.dma(START + PAGE + 8, write=True)
    assert done.fault is not None and done.fault.address == START + PAGE + 8
    assert (machine.read(AFAR), machine.read(AFSR)) == (START + PAGE, 0xC082_0000)
    assert machine.dma(START + PAGE).ok


def test_the_first_of_several_faults_stays(machine: Machine) -> None:
    machine.on()
    assert machine.dma(START + 2 * PAGE, write=True).status is Status.FAULT
    assert machine.dma(START + 3 * PAGE).status is Status.FAULT
    assert machine.iommu.afar == START + 2 * PAGE
    assert machine.read(AFSR) == 0xC082_0000 | Afsr.ME
    assert machine.dma(START + 3 * PAGE).status is Status.FAULT
    assert (machine.read(AFAR), machine.read(AFSR)) == (START + 3 * PAGE, 0xC086_0000)
    assert machine.dma(START).status is Status.FAULT
    machine.write(AFSR, 0)
    assert machine.read(AFSR) == 0x80_0000
    assert machine.levels[-1] is False


def test_a_table_outside_memory(machine: Machine) -> None:
    machine.on()
    machine.write(BASE, 0x0800_0000)
    done = machine.dma(START)
    assert done.status is Status.FAULT and done.fault is not None
    assert "page table" in done.fault.reason
    assert machine.read(AFAR) == START


# --- revocation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["page", "all", "base", "range", "off", "reset"])
def test_busy_until_what_was_taken_away_has_ended(machine: Machine, how: str) -> None:
    machine.on()
    machine.put(0, iopte(0x5000))
    held = Held()

    async def main() -> None:
        transfer = machine.port.from_memory((START, 16), to=held)
        await machine.engine.sleep(0)
        before = machine.iommu.busy
        assert held.asked and not before
        if how == "page":
            machine.write(PGFLUSH, START)
        elif how == "all":
            machine.write(FLUSH, 0)
        elif how == "base":
            machine.write(BASE, 0x400)
        elif how == "range":
            machine.write(CONTROL, 5)
        elif how == "off":
            machine.write(CONTROL, 0)
        else:
            await machine.iommu.request_reset()
        assert machine.iommu.busy
        await machine.engine.sleep(0)
        assert machine.iommu.busy
        held.finish()
        await machine.iommu.settled()
        assert transfer.done
        assert (await transfer).ok

    machine.run(main())
    assert not machine.iommu.busy
    held.close()


def test_a_guest_that_flushes_all_the_time(machine: Machine) -> None:
    """No more is kept for it than for one that flushes now and then."""
    machine.on()
    machine.put(0, iopte(0x5000))
    machine.put(1, iopte(0x6000))
    held = Held()

    async def main() -> None:
        first = machine.port.from_memory((START, 16), to=held)
        await machine.engine.sleep(0)
        before = machine.engine.stats().revocations
        for _ in range(1000):
            machine.write(PGFLUSH, START)
            machine.write(CONTROL, 5)
            machine.write(CONTROL, 1)
        assert machine.engine.stats().revocations - before < 100
        late = machine.port.from_memory((START + PAGE, 16), to=held)
        await machine.engine.sleep(0)
        machine.write(FLUSH, 0)
        (ticket,) = [each for each in held.asked if each == first.ticket]
        held._finish(ticket, held.asked.pop(ticket))
        assert (await first).ok
        assert machine.iommu.busy  # the late one, which was flushed as well
        held.finish()
        await machine.iommu.settled()
        assert late.done

    machine.run(main())
    held.close()


def test_writes_that_change_nothing_take_nothing_away(machine: Machine) -> None:
    machine.on()
    machine.put(0, iopte(0x5000))
    held = Held()

    async def main() -> None:
        transfer = machine.port.from_memory((START, 16), to=held)
        await machine.engine.sleep(0)
        machine.on()
        machine.write(PGFLUSH, START + PAGE)
        assert not machine.iommu.busy
        held.finish()
        assert (await transfer).ok

    machine.run(main())
    held.close()


def test_dma_that_hits_its_own_registers(machine: Machine) -> None:
    """Its table leads to its registers: the write takes effect, and waits for nobody."""

    class Window:
        def read(self, offset: int, width: int) -> int:
            return machine.iommu.bus_read(offset, width)

        def write(self, offset: int, width: int, value: int) -> None:
            machine.iommu.bus_write(offset, width, value)

    machine.memory.add(0x1000_0000, iodma.DeviceWindow(Window(), 0x4000))
    machine.on()
    machine.put(0, iopte(0x1000_0000))

    async def main() -> None:
        # A word for control (off) and one for the table's address, in one transfer.
        await machine.port.store("<II", START, 0, 0x1000)
        await machine.iommu.settled()

    machine.run(main())
    assert machine.iommu.stage.mode.name == "PASS" and machine.iommu.stage.table == 0x1_0000
