"""The slot of a PCI function: Bus Master Enable holds for every DMA; shutting it is a revocation.

Invariants:

- What is in flight is held by the test, so "before" and "after" are not a matter of time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest

import iodma
from iodma import Access, Status
from iodma.testing import Inject, ScriptedEndpoint, strict_engine
from tests.unit.system import System, hold


class Slotted(System):
    """A system with a slot on top of its chain, and a port there."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = iodma.PciSlot(self.inject)
        self.port = self.engine.port(self.slot)


@pytest.fixture
def slotted() -> Iterator[Slotted]:
    made = Slotted()
    yield made
    made.close()


def test_a_slot_begins_off_with_a_memory_of_its_own() -> None:
    slot = iodma.PciSlot()
    assert not slot.bus_master
    assert isinstance(slot.memory, iodma.Memory) and slot.next is slot.memory
    assert repr(slot) == "<PciSlot bus master enable off of <Memory memory: 0 regions>>"
    mine = iodma.Memory()
    assert iodma.PciSlot(Inject(iodma.Window(mine))).memory is mine


def test_what_a_slot_refuses() -> None:
    with pytest.raises(iodma.ArgumentTypeError, match="is not an address space"):
        iodma.PciSlot(3)  # type: ignore[arg-type]
    with pytest.raises(iodma.ArgumentTypeError, match="a string would be right"):
        iodma.PciSlot(name=3)  # type: ignore[arg-type]
    slot = iodma.PciSlot()
    slot.set_bus_master(True)
    with pytest.raises(iodma.ArgumentError, match="deadline"):
        slot.set_bus_master(False, deadline=-1)
    assert slot.bus_master


def test_off_is_a_fault_at_the_first_byte_whatever_is_behind_it(slotted: Slotted) -> None:
    async def main() -> None:
        empty = await slotted.port.copy((0, 0), (0, 0))
        assert empty.ok  # nothing needs a bus
        done = await slotted.port.copy([(64, 0), (0x20, 8)], (0x10_0000_0000, 8))
        assert done.status is Status.FAULT and done.moved == 0
        assert done.fault == iodma.Fault(
            0, 0x20, Access.READ, "bus master enable", "it is off: nothing passes"
        )
        for each in (slotted.port.load("<I", 4), slotted.port.store("<I", 4, 1)):
            with pytest.raises(iodma.DmaFault, match="bus master enable"):
                await each
        slotted.slot.set_bus_master(True)
        await slotted.port.store("<I", 4, 7)
        assert await slotted.port.load("<I", 4) == (7,)
        done = await slotted.port.copy((0, 8), (0x10_0000_0000, 8))
        assert done.fault is not None and done.fault.stage == slotted.memory.name

    slotted.run(main())


def test_interrupts_pass_it_too(slotted: Slotted) -> None:
    raised: list[int] = []
    slotted.memory.add(0xFEE0_0000, iodma.MsiWindow(lambda offset, vector: raised.append(vector)))

    async def main() -> None:
        with pytest.raises(iodma.DmaFault):
            await slotted.port.store("<I", 0xFEE0_0000, 33)
        assert not raised
        slotted.slot.set_bus_master(True)
        await slotted.port.store("<I", 0xFEE0_0000, 33)

    slotted.run(main())
    assert raised == [33]


def test_shutting_waits_for_what_is_in_flight_and_for_nothing_else(slotted: Slotted) -> None:
    slow, slot = slotted.held(), slotted.slot
    beside = slotted.engine.port(slotted.inject)

    async def main() -> None:
        slot.set_bus_master(True)
        first = slotted.port.to_memory([(0, 64), (4096, 64)], source=slow)
        other = beside.to_memory((8192, 64), source=slow)
        await slotted.until(lambda: len(slow.waiting) == 2)
        off = slot.set_bus_master(False)
        assert off is not None and off.held_by == [first.ticket]
        late = await slotted.port.to_memory((0, 64), source=slow)
        assert late.fault is not None and late.fault.stage == "bus master enable"
        assert slot.set_bus_master(True) is None
        after = slotted.port.to_memory((64, 64), source=slow)
        await slotted.until(lambda: len(slow.waiting) == 3)
        assert not off.done
        slow.answer(slow.waiting[0])
        assert await off and off.ok and first.done
        assert not other.done and not after.done
        slow.answer_all()
        assert (await other).ok and (await after).ok

    slotted.run(main())


def test_shutting_in_haste_cancels(slotted: Slotted) -> None:
    slow = slotted.scripted(script=hold, on_cancel="honour")

    async def main() -> None:
        slotted.slot.set_bus_master(True)
        transfer = slotted.port.to_memory((0, 64), source=slow)
        await slotted.until(lambda: slow.waiting)
        off = slotted.slot.set_bus_master(False, cancel=True)
        assert off is not None and await off
        assert (await transfer).status is Status.CANCELLED

    slotted.run(main())


def test_a_deadline_fails_and_takes_no_memory_from_others(
    slotted: Slotted, caplog: pytest.LogCaptureFixture
) -> None:
    slow = slotted.held()

    async def main() -> None:
        slotted.slot.set_bus_master(True)
        transfer = slotted.port.to_memory((0, 64), source=slow)
        await slotted.until(lambda: slow.waiting)
        with caplog.at_level(logging.ERROR, "iodma.lease"):
            off = slotted.slot.set_bus_master(False, deadline=0)
            assert off is not None and await off is False and off.failed
        assert "bus master enable: what is from 0x0 on is still held" in caplog.text
        assert not slotted.ram.quarantined
        slow.answer_all()
        await transfer

    slotted.run(main())


def test_no_stage_may_shut_it_in_the_middle_of_a_walk() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        refused: list[Exception] = []

        def verdict(address: int, length: int, access: Access) -> int:
            try:
                slot.set_bus_master(False)
            except iodma.Error as error:
                refused.append(error)
            return 0

        slot = iodma.PciSlot(Inject(iodma.Memory({0: ram}), verdict))
        slot.set_bus_master(True)
        port = engine.port(slot)

        async def main() -> None:
            assert (await port.copy((0, 8), (8, 8))).ok

        engine.run(main())
        assert refused and slot.bus_master


@pytest.mark.parametrize("regions", [1, 3, 10, 40])
def test_lists_over_any_number_of_regions_hold_it_once(regions: int, rng: random.Random) -> None:
    """The ways through a memory differ with its size: each must be waited for."""
    with strict_engine() as engine, iodma.Ram(regions * 4096) as ram:
        slot = iodma.PciSlot()
        for i in range(regions):
            slot.memory.add(i * 8192, ram, i * 4096, 4096)
        slot.set_bus_master(True)
        port = engine.port(slot)
        system = [(i * 8192 + 64 * k, 64) for i in range(regions) for k in (0, 3)]
        rng.shuffle(system)

        async def main() -> None:
            with ScriptedEndpoint(1 << 20, script=hold) as slow:
                for segments in (system, system[:1], system[:2]):
                    transfer = port.to_memory(segments, source=slow)
                    while not slow.waiting:
                        await engine.sleep(0)
                    off = slot.set_bus_master(False)
                    assert off is not None and off.held_by == [transfer.ticket] and not off.done
                    slow.answer_all()
                    assert await off
                    assert (await transfer).ok
                    slot.set_bus_master(True)

        engine.run(main())


def test_who_asks_is_told_of_what_is_refused() -> None:
    """Once for each transfer that it ends, in the call or later; of memory and of the gate; and
    what they raise harms nobody."""
    told: list[tuple[str, int, int, bool]] = []
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        slot = iodma.PciSlot()
        slot._tell_faults(lambda *what: told.append(("slot", *what)))
        slot.memory._tell_faults(lambda *what: told.append(("memory", *what)))
        slot.memory.add(0, ram, read_only=True)
        port = engine.port(slot)

        async def main() -> None:
            with pytest.raises(iodma.DmaFault):
                await port.load("<Q", 16)
            assert (await port.copy((0, 8), (8, 8))).status == Status.FAULT
            assert told == [("slot", 16, 1, False), ("slot", 0, 1, False)]
            slot.set_bus_master(True)
            told.clear()
            await port.load("<Q", 16)
            with pytest.raises(iodma.DmaFault):
                await port.store("<Q", 16, 0)
            with pytest.raises(iodma.DmaFault):
                await port.load("<Q", 4092)
            assert (await port.copy((0, 8), (0x5000, 8))).status == Status.FAULT
            assert told == [
                ("memory", 16, 2, False),
                ("memory", 4096, 1, True),
                ("memory", 0x5000, 2, True),
            ]
            slot.memory._tell_faults(None)
            assert (await port.copy((0x5000, 8), (0, 8))).status == Status.FAULT
            assert len(told) == 3

        engine.run(main())


def test_who_is_told_may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[type[BaseException]] = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: raised.append(what.exc_type))
    with strict_engine() as engine:
        slot = iodma.PciSlot()
        slot._tell_faults(lambda *what: 1 // 0)
        port = engine.port(slot)

        async def main() -> None:
            assert (await port.copy((0, 8), (8, 8))).status == Status.FAULT

        engine.run(main())
    assert raised == [ZeroDivisionError]
