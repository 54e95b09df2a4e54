"""Doorbells: order, bounds, and what a reset does to what waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import Event
from iodma.devices import Device, Doorbell
from iodma.errors import ArgumentError
from tests.unit.engines import WatchedEngine, device_engine, settle


class Rung(Device):
    serial = Doorbell(0x0, run="work", depth=3, full="overrun")
    parallel = Doorbell(0x8, 8, run="work", concurrent=True, depth=3)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[object] = []
        self.gates: dict[int, Event] = {}

    async def work(self, value: int) -> None:
        self.log.append(value)
        self.gates[value] = Event(self.engine)
        try:
            await self.gates[value].wait()
        finally:
            self.log.append(-value)

    def overrun(self, value: int) -> None:
        self.log.append(f"dropped {value}")


@pytest.fixture
def rung(engine: WatchedEngine) -> Rung:
    device = Rung()
    engine.attach(device)
    return device


def end(engine: WatchedEngine, rung: Rung, *values: int) -> None:
    for value in values:
        rung.gates[value].set()
        settle(engine)


def test_serial_runs_follow_each_other_in_the_order_of_the_writes(
    engine: WatchedEngine, rung: Rung
) -> None:
    for value in (1, 2, 3):
        rung.bus_write(0, 4, value)
    assert (rung.serial.running, rung.serial.waiting) == (1, 2)
    settle(engine)
    end(engine, rung, 1, 2, 3)
    assert rung.log == [1, -1, 2, -2, 3, -3]
    assert (rung.serial.running, rung.serial.waiting) == (0, 0)


def test_concurrent_runs_start_at_once(engine: WatchedEngine, rung: Rung) -> None:
    for value in (1, 2, 3):
        rung.bus_write(8, 8, value)
    settle(engine)
    end(engine, rung, 2, 1, 3)
    assert rung.log == [1, 2, 3, -2, -1, -3]


def test_a_ring_past_the_depth_is_dropped_counted_and_told(
    engine: WatchedEngine, rung: Rung
) -> None:
    for value in range(1, 6):
        rung.bus_write(0, 4, value)
        rung.bus_write(8, 8, 10 + value)
    assert rung.log == ["dropped 4", "dropped 5"]
    assert (rung.serial.dropped, rung.parallel.dropped) == (2, 2)
    assert rung.counts.doorbells_dropped == 4
    settle(engine)
    end(engine, rung, 11, 12, 13, 1)
    rung.bus_write(0, 4, 6)
    end(engine, rung, 2, 3, 6)
    assert rung.log[-4:] == [3, -3, 6, -6]


def test_a_cancelled_run_lets_the_next_begin(engine: WatchedEngine, rung: Rung) -> None:
    rung.serial.ring(1)
    rung.serial.ring(2)
    settle(engine)
    engine._tasks_of(rung)[0].cancel()
    settle(engine)
    assert rung.log == [1, -1, 2]
    end(engine, rung, 2)


def test_a_reset_forgets_what_waits(engine: WatchedEngine, rung: Rung) -> None:
    for value in (1, 2, 3):
        rung.serial.ring(value)
        rung.parallel.ring(10 + value)
    settle(engine)
    rung.request_reset()
    settle(engine)
    assert rung.log == [1, 11, 12, 13, -1, -11, -12, -13]
    rung.serial.ring(4)
    settle(engine)
    end(engine, rung, 4)
    assert rung.log[-2:] == [4, -4]


def test_it_has_no_bits_of_its_own(rung: Rung) -> None:
    assert rung.bus_read(0, 4) == 0xFFFF_FFFF
    rung.bus_write(0, 2, 1)
    assert (rung.counts.bad_reads, rung.counts.bad_writes) == (1, 1)
    with pytest.raises(ArgumentError, match=r"stores nothing: ring it with .ring\(3\)"):
        rung.serial = 3
    with pytest.raises(ArgumentError, match="serial: 0x100000000 does not fit in 32 bits"):
        rung.serial.ring(1 << 32)
    assert isinstance(Rung.serial, Doorbell)


@given(st.lists(st.integers(1, 4), max_size=30))
def test_serial_is_a_queue_with_a_bound(moves: list[int]) -> None:
    """Rings, and ends of the running one, against a plain list."""
    with device_engine() as engine:
        rung = Rung()
        engine.attach(rung)
        model: list[int] = []
        expected: list[object] = []
        for number, move in enumerate(moves, 1):
            if move > 1 and len(model) < 3:
                model.append(number)
                expected += [number] if len(model) == 1 else []
            elif move > 1:
                expected.append(f"dropped {number}")
            elif model:
                done = model.pop(0)
                expected += [-done, *model[:1]]
            if move > 1:
                rung.bus_write(0, 4, number)
                settle(engine)
            elif move == 1 and rung.serial.running:
                end(engine, rung, done)
            assert rung.log == expected
        while model:
            end(engine, rung, model.pop(0))
