"""Timers, the clock they go by, and calls for the next turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iodma
from tests.unit.engines import settle


class VirtualClock:
    """Goes where the engine would sleep to, and nowhere else."""

    def __init__(self) -> None:
        self.now = 1_000
        self.idle: list[int] = []

    def now_ns(self) -> int:
        return self.now

    def idle_until(self, when_ns: int) -> None:
        assert when_ns >= self.now
        self.idle.append(when_ns)
        self.now = when_ns


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine() as engine:
        yield engine


def test_a_sleep_lasts_at_least_as_long_as_asked(engine: iodma.Engine) -> None:
    async def main() -> float:
        begin = time.monotonic()
        await engine.sleep(0.02)
        return time.monotonic() - begin

    assert 0.02 <= engine.run(main()) < 5


def test_timers_come_in_order_and_equal_ones_in_the_order_of_the_calls() -> None:
    with iodma.Engine(clock=VirtualClock()) as engine:
        log: list[str] = []
        for name, seconds in (("c", 2), ("a", 1), ("d", 2), ("b", 1), ("e", 3)):
            engine.call_later(seconds, partial(log.append, name))
        engine.call_later(4, engine.stop)
        engine.run()
        assert log == list("abcde")


def test_a_cancelled_timer_does_not_come() -> None:
    clock = VirtualClock()
    with iodma.Engine(clock=clock) as engine:
        log: list[int] = []
        timers = [engine.call_later(each, partial(log.append, each)) for each in range(4)]
        timers[0].cancel()
        timers[2].cancel()
        timers[2].cancel()
        engine.call_later(9, engine.stop)
        engine.run()
        assert log == [1, 3]


def test_with_a_clock_of_ones_own_hours_pass_at_once() -> None:
    clock = VirtualClock()
    with iodma.Engine(clock=clock) as engine:

        async def main() -> int:
            for _ in range(24):
                await engine.sleep(3600)
            return engine.clock.now_ns()

        begin = time.monotonic()
        assert engine.run(main()) == 1_000 + 24 * 3600 * 10**9
        assert time.monotonic() - begin < 5
        assert len(clock.idle) == 24


def test_such_a_clock_does_not_pass_while_something_is_in_flight(tmp_path: Path) -> None:
    clock = VirtualClock()
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 16))
    with (
        iodma.Engine(clock=clock) as engine,
        iodma.Ram(1 << 16) as ram,
        iodma.File(path) as file,
    ):
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> tuple[bool, list[int]]:
            engine.call_later(1, lambda: None)
            done = await port.to_memory((0, 1 << 16), source=file)
            return done.ok, list(clock.idle)

        assert engine.run(main()) == (True, [])


def test_such_a_clock_passes_under_pump_too() -> None:
    clock = VirtualClock()
    with iodma.Engine(clock=clock) as engine:
        task = engine.start(sleeper(engine, 60))
        settle(engine)
        assert (task.result, clock.now) == (60, 1_000 + 60 * 10**9)


async def sleeper(engine: iodma.Engine, seconds: float) -> float:
    await engine.sleep(seconds)
    return seconds


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_sleepers_wake_in_the_order_of_their_times(times: list[int]) -> None:
    with iodma.Engine(clock=VirtualClock()) as engine:
        woken: list[int] = []

        async def one(seconds: int) -> None:
            await engine.sleep(seconds)
            woken.append(seconds)

        async def main() -> None:
            for task in [engine.start(one(each)) for each in times]:
                await task

        engine.run(main())
        assert woken == sorted(times)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e10])
def test_a_time_that_cannot_be_is_refused(engine: iodma.Engine, seconds: float) -> None:
    with pytest.raises(iodma.ArgumentError, match="seconds is"):
        engine.call_later(seconds, lambda: None)


def test_call_soon_runs_in_the_next_turn_in_order(engine: iodma.Engine) -> None:
    log: list[str] = []

    def again(name: str) -> None:
        log.append(name)
        if len(log) < 4:
            engine.call_soon(again, "again")

    async def main() -> None:
        engine.call_soon(again, "first")
        engine.call_soon(log.append, "second")
        assert log == []
        await engine.sleep(0.01)

    engine.run(main())
    assert log == ["first", "second", "again", "again"]


def test_an_earlier_timer_made_from_within_shortens_the_sleep(engine: iodma.Engine) -> None:
    async def main() -> float:
        begin = time.monotonic()
        engine.call_later(30, lambda: None)
        engine.call_soon(engine.call_later, 0.01, event.set)
        await event.wait()
        return time.monotonic() - begin

    event = iodma.Event(engine)
    assert engine.run(main()) < 5


def test_a_timer_that_makes_another_for_now_lets_the_rest_go_on() -> None:
    """Also where the clock stands still."""
    with iodma.Engine(clock=VirtualClock()) as engine:
        calls = 0

        def again() -> None:
            nonlocal calls
            calls += 1
            engine.call_later(0, again)

        async def main() -> int:
            again()
            for _ in range(10):
                await engine.sleep(0)
            return calls

        assert 1 < engine.run(main()) < 100
