"""Memory maps: 1 to 4096 regions, up to the last address, touching, merging, with holes.

Invariants:

- What a transfer reads and writes is compared with a dictionary of bytes.
- A map is told apart by what lies at its edges: the bytes before, first, last and after.
"""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import iodma
from iodma import Access, Status
from iodma.testing import strict_engine
from tests.unit.system import System, system_fixture  # noqa: F401

TOP = 1 << 64
PAGE = 4096


def pieces(memory: iodma.Memory, segments: Any, access: Access = Access.READ) -> Any:
    """(bytes, offset in the region) of each piece, or the Fault."""
    found = memory.translate(segments, access)
    if isinstance(found, iodma.Fault):
        return found
    return [(length, offset) for _, length, offset, _ in found]


@pytest.mark.parametrize("count", [1, 2, 3, 64, 1000, 4096])
def test_so_many_regions(count: int, rng: random.Random) -> None:
    """Put in in any order; each byte of each is found, and nothing beside."""
    with iodma.Ram(count * PAGE) as ram:
        step = TOP // count
        bases = [i * step + (step - PAGE if i == count - 1 else rng.randrange(step - PAGE + 1))
                 for i in range(count)]  # fmt: skip
        order = list(range(count))
        rng.shuffle(order)
        memory = iodma.Memory({bases[i]: (ram, i * PAGE, PAGE) for i in order})
        for i in rng.sample(range(count), min(count, 200)):
            base = bases[i]
            assert pieces(memory, (base, PAGE)) == [(PAGE, i * PAGE)]
            assert pieces(memory, (base + PAGE - 1, 1)) == [(1, i * PAGE + PAGE - 1)]
            if base and (i == 0 or bases[i - 1] + PAGE <= base - 1):
                fault = pieces(memory, (base - 1, 2))
                assert (fault.address, fault.offset) == (base - 1, 0)
            if base + PAGE < TOP and (i == count - 1 or bases[i + 1] > base + PAGE):
                fault = pieces(memory, [(base, 1), (base + 1, PAGE)])
                assert (fault.address, fault.offset) == (base + PAGE, PAGE)
        everything = [(base, PAGE) for base in bases]
        assert sum(length for length, _ in pieces(memory, everything)) == count * PAGE
        rng.shuffle(order)
        for n, i in enumerate(order):
            assert memory.remove(bases[i]).done
            if n % 257 == 0:
                assert isinstance(pieces(memory, (bases[i], 1)), iodma.Fault)
        assert memory._count == 0


@pytest.mark.parametrize("order", ["up", "down", "outwards", "inwards", "random"])
def test_regions_that_come_and_go_in_any_order(order: str, rng: random.Random) -> None:
    """A map has room at both ends; whoever comes at either end, or goes there, moves no others."""
    count = 1000
    places = list(range(count))
    if order == "down":
        places.reverse()
    elif order == "random":
        rng.shuffle(places)
    elif order != "up":
        places.sort(key=lambda i: abs(2 * i - count), reverse=order == "inwards")
    with iodma.Ram(count * PAGE) as ram:
        memory = iodma.Memory()
        for round in range(3):
            for n, i in enumerate(places):
                memory.add(2 * i * PAGE, ram, i * PAGE, PAGE)
                if n % 97 == round:
                    first, last = min(places[: n + 1]), max(places[: n + 1])
                    assert pieces(memory, (2 * first * PAGE, 8)) == [(8, first * PAGE)]
                    assert pieces(memory, (2 * last * PAGE, 8)) == [(8, last * PAGE)]
            assert [row[0] for row in memory._ranges()] == [2 * i * PAGE for i in range(count)]
            going = places if round % 2 else places[::-1]
            for n, i in enumerate(going):
                assert memory.remove(2 * i * PAGE).done
                if n % 97 == round:
                    left = sorted(going[n + 1 :])
                    assert [row[2] for row in memory._ranges()] == [k * PAGE for k in left]
            assert memory._count == 0


def test_a_region_that_touches_2_to_the_64(system: System) -> None:
    base = TOP - 2 * PAGE
    with iodma.Ram(2 * PAGE) as ram:
        system.memory.add(base, ram)

        async def main() -> None:
            system.memory.write(0, b"last")
            assert (await system.port.copy((0, 4), (TOP - 4, 4))).ok
            assert await system.port.load_bytes(TOP - 4, 4) == b"last"
            await system.port.store("<B", TOP - 1, 7)
            assert await system.port.load("<B", TOP - 1) == (7,)
            done = await system.port.copy((TOP - 4, 8), (0, 8))
            assert done.status is Status.FAULT and done.fault is not None
            assert (done.fault.offset, done.fault.address) == (4, TOP - 1)
            assert "past 2^64" in done.fault.reason
            with pytest.raises(iodma.DmaFault, match="past 2"):
                await system.port.load("<Q", TOP - 4)
            assert await system.memory.remove(base, cancel=True)

        system.run(main())
        with ram.view(2 * PAGE - 4, 4) as view:
            assert bytes(view) == b"las\x07"


def test_the_whole_address_space_in_two_windows(system: System) -> None:
    """Address 0 and address 2^64 - 1, through a stage that moves them, and nothing between."""
    with iodma.Ram(PAGE) as low, iodma.Ram(PAGE) as high:
        memory = iodma.Memory({0: low, TOP - PAGE: high})
        window = iodma.Window(memory)
        assert isinstance(window.translate((0, PAGE), 1), list)
        assert isinstance(window.translate((TOP - PAGE, PAGE), 1), list)
        fault = window.translate([(0, 1), (TOP - 1, 1), (PAGE, 1)], 1)
        assert isinstance(fault, iodma.Fault) and (fault.offset, fault.address) == (2, PAGE)
        assert isinstance(iodma.Window(memory, TOP - PAGE).translate((0, PAGE), 1), list)


def test_parts_of_one_region_side_by_side_are_one_piece() -> None:
    with iodma.Ram(8 * PAGE) as ram, iodma.Ram(PAGE) as other:
        memory = iodma.Memory(
            {
                0x0000: (ram, 0, PAGE),
                0x1000: (ram, PAGE, PAGE),
                0x2000: (ram, 2 * PAGE, PAGE),
                0x3000: (ram, 5 * PAGE, PAGE),  # beside it in the map, and not in the region
                0x4000: other,
                0x5000: (ram, 6 * PAGE, PAGE),
            }
        )
        assert pieces(memory, (0, 3 * PAGE)) == [(3 * PAGE, 0)]
        assert pieces(memory, (PAGE - 1, 2)) == [(2, PAGE - 1)]
        assert pieces(memory, (0, 6 * PAGE)) == [
            (3 * PAGE, 0),
            (PAGE, 5 * PAGE),
            (PAGE, 0),
            (PAGE, 6 * PAGE),
        ]
        assert pieces(memory, [(0x2000, PAGE), (0x0000, PAGE), (0x1000, 8)]) == [
            (PAGE, 2 * PAGE),
            (PAGE + 8, 0),
        ], "also where the list has them apart"
        assert pieces(memory, [(0x3000, PAGE), (0x5000, PAGE)]) == [(2 * PAGE, 5 * PAGE)]


def test_a_region_may_be_mapped_more_than_once(system: System) -> None:
    with iodma.Ram(PAGE) as ram:
        for base in (1 << 40, 1 << 41):
            system.memory.add(base, ram)

        async def main() -> None:
            await system.port.store("<I", 1 << 40, 5)
            assert await system.port.load("<I", 1 << 41) == (5,)
            assert await system.memory.remove(1 << 40)
            with pytest.raises(iodma.DmaFault):
                await system.port.load("<I", 1 << 40)
            assert await system.port.load("<I", 1 << 41) == (5,)

        system.run(main())


@pytest.mark.parametrize("hole", [1, 7, PAGE])
def test_a_hole_faults_at_its_first_byte(system: System, hole: int) -> None:
    base = 1 << 40
    with iodma.Ram(2 * PAGE) as ram:
        system.memory.add(base, ram, 0, PAGE)
        system.memory.add(base + PAGE + hole, ram, PAGE, PAGE)

        async def main() -> None:
            for begin in (0, 1, PAGE - 1):
                done = await system.port.copy((base + begin, PAGE + hole), (0, PAGE + hole))
                assert done.fault is not None and done.moved == 0
                assert done.fault.offset == PAGE - begin
                assert done.fault.address == base + PAGE
            whole = [(base, PAGE), (base + PAGE + hole, PAGE)]
            assert (await system.port.copy(whole, (0, 2 * PAGE))).ok

        system.run(main())


def test_rom_may_be_read_and_not_written(system: System) -> None:
    with iodma.Rom(b"firmware") as rom:
        system.memory.add(1 << 40, rom)

        async def main() -> None:
            assert await system.port.load_bytes(1 << 40, 8) == b"firmware"
            done = await system.port.copy((0, 8), ((1 << 40) + 2, 8))
            assert done.fault is not None
            assert (done.fault.address, done.fault.access) == ((1 << 40) + 2, Access.WRITE)
            assert "permit" in done.fault.reason
            assert await system.port.load_bytes(1 << 40, 8) == b"firmware"

        system.run(main())


def test_regions_come_and_go_while_transfers_run(system: System, rng: random.Random) -> None:
    """What is there is the right memory; what is not there is a fault at that address."""
    count, base = 64, 1 << 40
    rams = [iodma.Ram(PAGE) for _ in range(count)]
    for i, ram in enumerate(rams):
        with ram.view() as view:
            view[:] = bytes([i + 1]) * PAGE
    there = [False] * count
    over = False

    async def churn() -> None:
        while not over:
            i = rng.randrange(count)
            if there[i]:
                removal = system.memory.remove(base + i * PAGE)
                assert await removal
            else:
                system.memory.add(base + i * PAGE, rams[i])
            there[i] = not there[i]
            await system.turns(1)

    async def main() -> None:
        nonlocal over
        task = system.engine.start(churn())
        faults = 0
        for round_ in range(400):
            first, pages = rng.randrange(count), rng.randrange(1, 5)
            segments = [(base + (first + k) % count * PAGE + 5, 100) for k in range(pages)]
            system.memory.fill(0, 0, pages * 100)
            done = await system.port.copy(segments, (0, pages * 100))
            got = system.memory.read(0, pages * 100)
            if done.ok:
                for k in range(pages):
                    expected = bytes([(first + k) % count + 1]) * 100
                    assert got[k * 100 : k * 100 + 100] == expected, round_
            else:
                faults += 1
                assert done.fault is not None and done.fault.address in {a for a, _ in segments}
                assert done.fault.offset == done.moved or done.moved == 0
        assert 0 < faults < 400
        over = True
        await task

    system.run(main())
    for ram in rams:
        ram.close()
    for i, present in enumerate(there):
        if present:
            assert system.memory.remove(base + i * PAGE).done


class Looped(iodma.Device):
    """A device whose own window is in the memory that its port leads to."""

    value = iodma.Register(0x0)


def test_a_machine_that_is_let_go_of_is_collected() -> None:
    """Memory, window, bus, device, port and what the device keeps: one cycle, through the core."""

    def machine() -> list[weakref.ref[Any]]:
        with iodma.Engine() as engine, iodma.Ram(PAGE) as ram:
            memory, bus = iodma.Memory({0: ram}), iodma.Bus()
            device = Looped(engine.port(memory))
            memory.add(1 << 32, iodma.DeviceWindow(bus.attach(device, 0), PAGE))

            async def main() -> None:
                device.last = device.port.copy((0, 4), (1 << 32, 4))  # type: ignore[attr-defined]
                await device.last  # type: ignore[attr-defined]

            engine.run(main())
            return [weakref.ref(each) for each in (engine, ram, memory, device, device.port)]

    parts = machine()
    gc.collect()
    assert [part() for part in parts] == [None] * 5


def test_an_engine_keeps_no_space_that_nobody_else_keeps() -> None:
    """A server makes new ones for each front-end, on the same engine."""
    with strict_engine() as engine, iodma.Ram(PAGE) as ram:

        def front_end() -> list[weakref.ref[Any]]:
            memory = iodma.Memory({0: ram})
            found = iodma.Mapping(0, 0, PAGE, Access.READ)
            iommu = iodma.Iommu(memory, walk=lambda address, access: found)
            with engine.port(iommu) as port:

                async def main() -> bytes:
                    return await port.load_bytes(0, 4)

                assert engine.run(main()) == bytes(4)
            return [weakref.ref(memory), weakref.ref(iommu)]

        for _ in range(3):
            parts = front_end()
            gc.collect()
            assert [part() for part in parts] == [None] * 2


def test_a_space_is_changed_in_the_thread_of_its_engine_and_no_other() -> None:
    """What another thread tries is refused before it changes anything."""
    with strict_engine() as engine, iodma.Ram(1 << 16) as ram, iodma.Ram(4096) as more:
        memory = iodma.Memory()
        missed: list[int] = []

        def walk(address: int, access: Access) -> None:
            missed.append(address)

        iommu, walked = iodma.Iommu(memory), iodma.Iommu(memory, walk=walk)

        def set_up() -> None:  # nobody's yet: any thread will do
            memory.add(0, ram)
            iommu.map(0, 0, 4096)

        in_a_thread(set_up)
        ports = engine.port(iommu), engine.port(walked)
        mapping = iodma.Mapping(0, 0, 4096, Access.RW)
        refused: list[object] = []

        def elsewhere() -> None:
            for what in (
                lambda: memory.add(1 << 20, more),
                lambda: memory.remove(0),
                lambda: iommu.map(4096, 0, 4096),
                lambda: iommu.unmap(0, 4096),
                lambda: iommu.invalidate(),
                lambda: walked.update(mapping),
                lambda: walked.refuse(0, Access.READ),
            ):
                with pytest.raises(iodma.WrongThreadError):
                    what()
                refused.append(what)

        async def main() -> None:
            load = ports[1].load_bytes(0, 4)
            while not missed:
                await engine.sleep(0)
            in_a_thread(elsewhere)
            assert len(refused) == 7
            assert walked.misses == ((0, Access.READ),), "still to be answered"
            walked.update(mapping)
            assert await load == bytes(4)
            assert (await ports[0].copy((0, 8), (8, 8))).ok, "still mapped"
            done = await ports[0].copy((0, 8), (4096, 8))
            assert done.status is Status.FAULT

        engine.run(main())
        assert memory.translate((1 << 20, 1), Access.READ).__class__ is iodma.Fault
    memory.remove(0)  # nobody's again


def in_a_thread(what: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            what()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("regions", [2, 3, 4, 5, 17])
def test_the_last_address_of_all_is_found_among_few_regions_and_many(regions: int) -> None:
    with contextlib.ExitStack() as opened:
        top = (1 << 64) - 4096
        places = [number << 20 for number in range(regions - 1)] + [top]
        rams = [opened.enter_context(iodma.Ram(4096)) for _ in places]
        memory = iodma.Memory(dict(zip(places, rams, strict=True)))
        last = (1 << 64) - 1
        whole = [(place, 4096) for place in places]
        assert memory.walk([*whole, (last, 1)], Access.WRITE) == regions + 1
        assert memory.walk([(0, 1), (last, 1), (top, 16)], Access.READ) == 3
        fault = memory.walk([(0, 1), (last, 2)], Access.READ)
        assert isinstance(fault, iodma.Fault) and fault.offset == 2
