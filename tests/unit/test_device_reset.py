"""Reset: what it does in which order, and what it refuses to the code of before."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import Event, Port
from iodma._core import Wait
from iodma.devices import Device, Register
from iodma.errors import Cancelled, StaleError
from tests.unit.engines import Held, WatchedEngine, device_engine, held_port, run, settle
from tests.unit.mover import Mover

ONES = 0xFFFF_FFFF


@pytest.fixture
def mover(engine: WatchedEngine, port: Port, held: Held) -> Mover:
    device = Mover(port, held=held)
    engine.attach(device)
    device.log.clear()
    return device


def attached(engine: WatchedEngine, device: Any) -> Any:
    engine.attach(device)
    return device


def test_a_reset_drains_then_ends_tasks_then_resets_then_acknowledges(
    engine: WatchedEngine, held: Held, mover: Mover
) -> None:
    mover.bus_write(0, 4, 7)
    settle(engine)
    mover.interrupt.set(True)
    mover.bus_write(0x08, 4, 5)
    ack = mover.request_reset()
    assert (mover.state, mover.generation) == ("resetting", 1)
    settle(engine)
    assert len(held.cancelled) == 1
    assert mover.log.pop() == ("end", 7)
    mover.log.append("asked")

    async def acknowledged() -> None:
        await ack
        mover.log.append("acknowledged")

    engine.start(acknowledged())
    settle(engine)
    assert mover.log == [("begin", 7), "asked"], "the DMA has not drained"
    assert (mover.interrupt.level, mover.control) == (True, 5)
    held.finish()
    settle(engine)
    assert mover.log[2:] == ["reset", "acknowledged"]
    assert (mover.interrupt.level, mover.control, mover.status) == (False, 0, 1)
    assert (mover.state, mover.counts.resets) == ("running", 1)


def test_a_reset_waits_for_tasks_as_well_as_for_ports(engine: WatchedEngine) -> None:
    class Stubborn(Device):
        async def work(self, event: Event) -> None:
            try:
                await event.wait()
            except Cancelled:
                other = Event(engine)
                engine.start(self.wake(other))
                await other.wait()  # refused: an old coroutine waits for nothing

        async def wake(self, event: Event) -> None:
            event.set()

    device = attached(engine, Stubborn())
    device.start(device.work(Event(engine)))
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (device.state, device.tasks, engine.failures) == ("running", 0, [])


def test_a_task_that_is_slow_to_end_holds_the_reset_up(
    engine: WatchedEngine, held: Held, mover: Mover
) -> None:
    mover.start(mover.move(1))
    settle(engine)
    held.finish()
    for _ in range(3):
        engine.start(nothing())  # due before the task is
    mover.request_reset()
    for _ in range(4):
        assert (mover.state, mover.tasks) == ("resetting", 1)
        engine.pump(1)
    settle(engine)
    assert mover.log == [("begin", 1), ("end", 1), "reset"]


def test_an_engine_that_gives_up_a_reset_leaves_it_unacknowledged(
    engine: WatchedEngine, held: Held, mover: Mover
) -> None:
    mover.start(mover.move(1))
    settle(engine)
    ack: Any = mover.request_reset()
    settle(engine)
    ack.task.cancel()
    settle(engine)
    assert (mover.state, mover.log) == ("resetting", [("begin", 1), ("end", 1)])
    held.finish()
    settle(engine)
    assert mover.state == "resetting"


def test_during_a_reset_the_bus_is_refused_but_for_what_always_works(
    engine: WatchedEngine, held: Held, mover: Mover
) -> None:
    mover.start(mover.move(1))
    settle(engine)
    mover.bus_write(0x08, 4, 1)
    mover.bus_write(0x00, 4, 9)
    mover.bus_write(0x0C, 4, 9)
    assert mover.bus_read(0x04, 4) == ONES
    assert mover.bus_read(0x08, 4) == 1
    assert (mover.counts.refused_reads, mover.counts.refused_writes) == (1, 2)
    with pytest.raises(StaleError, match=r"start\(move\) while the device is resetting"):
        mover.start(mover.move(2))
    with pytest.raises(StaleError, match="ring while the device is resetting"):
        mover.ring.ring(3)
    held.finish()
    settle(engine)
    assert mover.bus_read(0x04, 4) == 1


def test_overlapping_resets_are_one(engine: WatchedEngine, held: Held, mover: Mover) -> None:
    mover.start(mover.move(1))
    settle(engine)
    first = mover.request_reset()
    settle(engine)
    assert mover.request_reset() is first
    mover.bus_write(0x08, 4, 1)
    held.finish()
    settle(engine)
    assert (mover.counts.resets, mover.generation, mover.log.count("reset")) == (1, 1, 1)
    assert mover.request_reset() is not first
    settle(engine)


def test_the_rest_of_a_split_access_is_refused_after_a_reset_in_it(
    engine: WatchedEngine,
) -> None:
    class Wide(Device):
        control = Register(0, write="controlled", read="leave")
        data = Register(4)

        def controlled(self, value: int) -> None:
            self.request_reset()

        def leave(self) -> int:
            self.request_reset()
            return 7

    device = attached(engine, Wide())
    device.bus_write(0, 8, 0x5_0000_0001)
    assert (device.data, device.counts.refused_writes) == (0, 1)
    settle(engine)
    assert device.bus_read(0, 8) == 0xFFFF_FFFF_0000_0007
    assert device.counts.refused_reads == 1
    settle(engine)


def test_an_old_coroutine_is_refused_everything(
    engine: WatchedEngine, port: Port, held: Held, mover: Mover
) -> None:
    refused = []

    async def work() -> None:
        try:
            await port.from_memory((0, 16), to=held)
        finally:
            steps = {
                "register": lambda: setattr(mover, "status", 9),
                "start": lambda: mover.start(mover.move(9)),
                "ring": lambda: mover.ring.ring(9),
                "interrupt": lambda: mover.interrupt.pulse(),
                "submit": lambda: port.from_memory((0, 16), to=held),
                "line": lambda: mover.interrupt.set(True),
            }
            for name, step in steps.items():
                with pytest.raises(StaleError):
                    step()
                refused.append(name)
            mover.bus_write(0x08, 4, 77)
            assert mover.control == 0, "also past the bus"
            await Event(engine).wait()

    mover.start(work())
    settle(engine)
    mover.request_reset()
    settle(engine)
    assert refused == ["register", "start", "ring", "interrupt", "submit", "line"]
    held.finish()
    settle(engine)
    assert (mover.state, mover.tasks, engine.failures) == ("running", 0, [])


def test_a_coroutine_of_another_device_is_not_stale(engine: WatchedEngine, mover: Mover) -> None:
    async def work(other: Mover) -> None:
        try:
            await Event(engine).wait()
        finally:
            other.status = 9

    device = attached(engine, Device())
    device.start(work(mover))
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (mover.status, engine.failures) == (9, [])


def test_a_coroutine_that_resets_its_own_device_is_cancelled(
    engine: WatchedEngine, mover: Mover
) -> None:
    async def work() -> None:
        try:
            await mover.request_reset()
        except Cancelled:
            mover.log.append("cancelled")
            raise

    mover.start(work())
    settle(engine)
    assert mover.log == ["cancelled", "reset"]


def test_work_that_goes_on_all_the_time_is_begun_by_the_hook(engine: WatchedEngine) -> None:
    seen: list[object] = []

    class Beacon(Device):
        def reset(self) -> None:
            self.start(self.watch())

        async def watch(self) -> None:
            seen.append(self.generation)
            await asked.wait()
            seen.append("asked")

    asked = Event(engine)
    device = attached(engine, Beacon())
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (seen, device.tasks) == ([0, 1], 1)
    asked.set()
    settle(engine)
    assert seen == [0, 1, "asked"]


def test_an_acknowledgement_can_be_awaited_by_many_and_late(
    engine: WatchedEngine, mover: Mover
) -> None:
    async def twice() -> str:
        ack = mover.request_reset()
        await ack
        await ack
        return mover.state

    assert run(engine, twice) == "running"


def test_all_ports_among_the_endpoints_are_drained(engine: WatchedEngine, port: Port) -> None:
    ports = [engine.port(port.space, f"port{i}") for i in range(3)]
    device = attached(engine, Mover(ports[0], receive=ports[1], other=ports[2], disk="disk"))
    before = [port.generation for port in ports]
    device.request_reset()
    settle(engine)
    assert [port.generation for port in ports] == [each + 1 for each in before]


def test_without_an_engine_it_is_over_at_once() -> None:
    mover = Mover()
    mover.control = 4
    mover.bus_write(0x08, 4, 1)
    assert (mover.control, mover.log, mover.state) == (0, ["reset"], "running")

    async def acknowledged() -> None:
        await mover.request_reset()

    with device_engine() as engine:
        run(engine, acknowledged)


def test_a_coroutine_that_swallowed_one_cancel_is_ended_by_a_reset(
    engine: WatchedEngine, mover: Mover
) -> None:
    async def work() -> None:
        with suppress(Cancelled):
            await Event(engine).wait()
        mover.log.append("swallowed")
        await Event(engine).wait()

    task = mover.start(work())
    settle(engine)
    task.cancel()
    settle(engine)
    assert not task.done
    mover.request_reset()
    settle(engine)
    assert (mover.state, mover.log) == ("running", ["swallowed", "reset"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_for_the_program_reaches_it(
    engine: WatchedEngine, mover: Mover, error: type[BaseException]
) -> None:
    async def interrupted() -> None:
        raise error

    mover.start(interrupted())
    with pytest.raises(error):
        engine.run()
    assert (mover.state, mover.tasks) == ("running", 0)


class OtherPort:
    """A port of another make, whose drains may fail."""

    in_flight = 0
    error: Exception | None = None

    def __init__(self, engine: WatchedEngine) -> None:
        self.engine = engine

    def reset(self) -> Wait[None]:
        wait: Wait[None] = Wait(self.engine)
        if self.error is not None:
            wait._fail(self.error)
        else:
            wait._resolve(None)
        return wait


def test_a_drain_that_fails_is_never_acknowledged(engine: WatchedEngine) -> None:
    port = OtherPort(engine)
    mover: Mover = attached(engine, Mover(port))

    async def acknowledged() -> None:
        await mover.request_reset()

    mover.log.clear()
    port.error = TimeoutError("a request cannot be cancelled")
    with pytest.raises(TimeoutError):
        run(engine, acknowledged)
    assert (mover.state, mover.log, mover.counts.resets) == ("failed", ["TimeoutError"], 0)
    port.error = None
    run(engine, acknowledged)
    assert mover.state == "running"


def test_a_hook_that_fails_fails_the_reset(engine: WatchedEngine) -> None:
    class Broken(Mover):
        def reset(self) -> None:
            if self.generation:
                raise ValueError("a bug")

    device = attached(engine, Broken())
    device.request_reset()
    settle(engine)
    assert (device.state, device.log, device.counts.resets) == ("failed", ["ValueError"], 0)


def test_what_an_old_coroutine_raises_is_told_and_the_reset_goes_on(
    engine: WatchedEngine, mover: Mover, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        try:
            await Event(engine).wait()
        finally:
            raise ValueError("in finally")

    mover.start(work())
    settle(engine)
    run(engine, lambda: wait(mover))
    assert (mover.state, [type(error) for _, error in engine.failures]) == ("running", [ValueError])
    assert "in finally" in caplog.text


async def wait(device: Device) -> None:
    await device.request_reset()


def test_a_task_that_never_began_does_not_begin(engine: WatchedEngine, mover: Mover) -> None:
    mover.start(mover.move(1))
    mover.request_reset()
    settle(engine)
    assert (mover.log, mover.state) == (["reset"], "running")


async def nothing() -> None:
    pass


STEPS = ["start", "ring", "write", "finish", "pump", "reset", "fail", "step"]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_any_schedule_comes_to_rest_and_nothing_old_survives(steps: list[str]) -> None:
    with device_engine() as engine, held_port(engine) as (port, held):
        mover = attached(engine, Mover(port, held=held))
        before = mover.generation
        for number, step in enumerate(steps):
            match step:
                case "start" if mover.state == "running":
                    mover.start(mover.move(number))
                case "ring":
                    mover.bus_write(0x0C, 4, number)
                case "write":
                    mover.bus_write(0x00, 4, number)
                case "finish":
                    held.finish()
                case "pump":
                    settle(engine)
                case "step":
                    engine.pump(1)
                case "reset":
                    mover.request_reset()
                case "fail":
                    mover._fail(ValueError())
            assert mover.generation >= before
            before = mover.generation
            assert mover._open is (mover.state == "running")
            if mover._open:
                assert not mover._scope._stale
        held.finish()
        settle(engine)
        last = mover.request_reset()
        settle(engine)
        held.finish()
        settle(engine)
        assert (mover.state, mover.tasks, mover.status) == ("running", 0, 1)
        assert mover.ring.running == mover.ring.waiting == 0
        begun = [each for each in mover.log if each[0] == "begin"]
        ended = [each for each in mover.log if each[0] == "end"]
        assert sorted(begun) == sorted(("begin", number) for _, number in ended)
        run(engine, lambda: acknowledged(last))


async def acknowledged(ack: Any) -> None:
    await ack


def test_resets_leave_nothing_behind(engine: WatchedEngine, mover: Mover) -> None:
    def left() -> int:
        gc.collect()
        return sum(type(each).__name__ == "_Reset" for each in gc.get_objects())

    before = left()
    for _ in range(10):
        mover.request_reset()
        settle(engine)
    assert left() == before
