"""Reset: what it does in which order, and what it refuses to the code of before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.devices import Device, Register
from iodma.errors import Cancelled, StaleError
from tests.unit.fake_engine import Event, FakeEngine, FakePort, device_engine, run, settle
from tests.unit.mover import Mover

ONES = 0xFFFF_FFFF


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with device_engine() as engine:
        yield engine


@pytest.fixture
def port(engine: FakeEngine) -> FakePort:
    return FakePort(engine)


@pytest.fixture
def mover(engine: FakeEngine, port: FakePort) -> Mover:
    device = Mover(port)
    engine.attach(device)
    device.log.clear()
    return device


def attached(engine: FakeEngine, device: Any) -> Any:
    engine.attach(device)
    return device


def test_a_reset_drains_then_ends_tasks_then_resets_then_acknowledges(
    engine: FakeEngine, port: FakePort, mover: Mover
) -> None:
    mover.bus_write(0, 4, 7)
    settle(engine)
    mover.interrupt.set(True)
    mover.bus_write(0x08, 4, 5)
    ack = mover.request_reset()
    assert (mover.state, mover.generation) == ("resetting", 1)
    assert port.transfers[0].cancelled
    mover.log.append("asked")

    async def acknowledged() -> None:
        await ack
        mover.log.append("acknowledged")

    engine.start(acknowledged())
    settle(engine)
    assert mover.log == [("begin", 7), "asked", ("end", 7)], "the DMA has not drained"
    assert (mover.interrupt.level, mover.control) == (True, 5)
    port.finish()
    settle(engine)
    assert mover.log[3:] == ["reset", "acknowledged"]
    assert (mover.interrupt.level, mover.control, mover.status) == (False, 0, 1)
    assert (mover.state, mover.counts.resets) == ("running", 1)


def test_a_reset_waits_for_tasks_as_well_as_for_ports(engine: FakeEngine) -> None:
    class Stubborn(Device):
        async def work(self, event: Event) -> None:
            try:
                await event
            except Cancelled:
                other = Event()
                engine.start(self.wake(other))
                await other  # refused: an old coroutine waits for nothing

        async def wake(self, event: Event) -> None:
            event.set()

    device = attached(engine, Stubborn())
    device.start(device.work(Event()))
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (device.state, device.tasks, engine.failures) == ("running", 0, [])


def test_a_task_that_is_slow_to_end_holds_the_reset_up(
    engine: FakeEngine, port: FakePort, mover: Mover
) -> None:
    mover.start(mover.move(1))
    settle(engine)
    port.finish()
    engine.ready.clear()  # the task is due, and late
    task = next(iter(engine.tasks))
    mover.request_reset()
    settle(engine)
    assert (mover.state, mover.tasks) == ("resetting", 1)
    engine.ready.append(task)
    settle(engine)
    assert mover.log == [("begin", 1), ("end", 1), "reset"]


def test_an_engine_that_gives_up_a_reset_leaves_it_unacknowledged(
    engine: FakeEngine, mover: Mover
) -> None:
    mover.start(mover.move(1))
    task = engine.ready.pop()
    ack: Any = mover.request_reset()
    settle(engine)
    ack.task.cancel()
    settle(engine)
    assert (mover.state, mover.log) == ("resetting", [])
    engine.ready.append(task)
    settle(engine)


def test_during_a_reset_the_bus_is_refused_but_for_what_always_works(
    engine: FakeEngine, port: FakePort, mover: Mover
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
    port.finish()
    settle(engine)
    assert mover.bus_read(0x04, 4) == 1


def test_overlapping_resets_are_one(engine: FakeEngine, port: FakePort, mover: Mover) -> None:
    mover.start(mover.move(1))
    settle(engine)
    first = mover.request_reset()
    settle(engine)
    assert mover.request_reset() is first
    mover.bus_write(0x08, 4, 1)
    port.finish()
    settle(engine)
    assert (mover.counts.resets, mover.generation, mover.log.count("reset")) == (1, 1, 1)
    assert mover.request_reset() is not first
    settle(engine)


def test_the_rest_of_a_split_access_is_refused_after_a_reset_within_it(engine: FakeEngine) -> None:
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
    engine: FakeEngine, port: FakePort, mover: Mover
) -> None:
    refused = []

    async def work() -> None:
        try:
            await port.transfer()
        finally:
            steps = {
                "register": lambda: setattr(mover, "status", 9),
                "start": lambda: mover.start(mover.move(9)),
                "ring": lambda: mover.ring.ring(9),
                "interrupt": lambda: mover.interrupt.pulse(),
                "submit": port.transfer,
                "line": lambda: mover.interrupt.set(True),
            }
            for name, step in steps.items():
                with pytest.raises(StaleError):
                    step()
                refused.append(name)
            mover.bus_write(0x08, 4, 77)
            assert mover.control == 0, "also past the bus"
            await Event()

    mover.start(work())
    settle(engine)
    mover.request_reset()
    settle(engine)
    assert refused == ["register", "start", "ring", "interrupt", "submit", "line"]
    port.finish()
    settle(engine)
    assert (mover.state, mover.tasks, engine.failures) == ("running", 0, [])


def test_a_coroutine_of_another_device_is_not_stale(engine: FakeEngine, mover: Mover) -> None:
    async def work(other: Mover) -> None:
        try:
            await Event()
        finally:
            other.status = 9

    device = attached(engine, Device())
    device.start(work(mover))
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (mover.status, engine.failures) == (9, [])


def test_a_coroutine_that_resets_its_own_device_is_cancelled(
    engine: FakeEngine, mover: Mover
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


def test_work_that_goes_on_all_the_time_is_begun_by_the_hook(engine: FakeEngine) -> None:
    seen: list[object] = []

    class Beacon(Device):
        def reset(self) -> None:
            self.start(self.watch())

        async def watch(self) -> None:
            seen.append(self.generation)
            await asked
            seen.append("asked")

    asked = Event()
    device = attached(engine, Beacon())
    settle(engine)
    device.request_reset()
    settle(engine)
    assert (seen, device.tasks) == ([0, 1], 1)
    asked.set()
    settle(engine)
    assert seen == [0, 1, "asked"]


def test_an_acknowledgement_can_be_awaited_by_many_and_late(
    engine: FakeEngine, mover: Mover
) -> None:
    async def twice() -> str:
        ack = mover.request_reset()
        await ack
        await ack
        return mover.state

    assert run(engine, twice) == "running"


def test_all_ports_among_the_endpoints_are_drained(engine: FakeEngine) -> None:
    ports = [FakePort(engine) for _ in range(3)]
    device = attached(engine, Mover(ports[0], receive=ports[1], other=ports[2], disk="disk"))
    device.request_reset()
    settle(engine)
    assert [port.resets for port in ports] == [1, 1, 1]


def test_without_an_engine_it_is_over_at_once() -> None:
    mover = Mover()
    mover.control = 4
    mover.bus_write(0x08, 4, 1)
    assert (mover.control, mover.log, mover.state) == (0, ["reset"], "running")

    async def acknowledged() -> None:
        await mover.request_reset()

    with device_engine() as engine:
        run(engine, acknowledged)


def test_a_drain_that_fails_is_never_acknowledged(
    engine: FakeEngine, port: FakePort, mover: Mover
) -> None:
    async def acknowledged() -> None:
        await mover.request_reset()

    port.drain_error = TimeoutError("a request cannot be cancelled")
    with pytest.raises(TimeoutError):
        run(engine, acknowledged)
    assert (mover.state, mover.log, mover.counts.resets) == ("failed", ["TimeoutError"], 0)
    port.drain_error = None
    run(engine, acknowledged)
    assert mover.state == "running"


def test_a_hook_that_fails_fails_the_reset(engine: FakeEngine) -> None:
    class Broken(Mover):
        def reset(self) -> None:
            if self.generation:
                raise ValueError("a bug")

    device = attached(engine, Broken())
    device.request_reset()
    settle(engine)
    assert (device.state, device.log, device.counts.resets) == ("failed", ["ValueError"], 0)


def test_what_an_old_coroutine_raises_is_told_and_the_reset_goes_on(
    engine: FakeEngine, mover: Mover, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        try:
            await Event()
        finally:
            raise ValueError("in finally")

    mover.start(work())
    settle(engine)
    run(engine, lambda: wait(mover))
    assert (mover.state, [type(error) for _, error in engine.failures]) == ("running", [ValueError])
    assert "in finally" in caplog.text


async def wait(device: Device) -> None:
    await device.request_reset()


def test_a_task_that_never_began_does_not_begin(engine: FakeEngine, mover: Mover) -> None:
    mover.start(mover.move(1))
    mover.request_reset()
    settle(engine)
    assert (mover.log, mover.state) == (["reset"], "running")


STEPS = ["start", "ring", "write", "finish", "pump", "reset", "fail", "step"]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
def test_any_schedule_comes_to_rest_and_nothing_old_survives(steps: list[str]) -> None:
    with device_engine() as engine:
        port = FakePort(engine)
        mover = attached(engine, Mover(port))
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
                    port.finish()
                case "pump":
                    settle(engine)
                case "step" if engine.ready:
                    engine.ready.popleft().step()
                case "reset":
                    mover.request_reset()
                case "fail":
                    mover._task_done(failed_task(engine))
            assert mover.generation >= before
            before = mover.generation
            assert mover._open is (mover.state == "running")
            if mover._open:
                assert not mover._scope._stale
        port.finish()
        settle(engine)
        last = mover.request_reset()
        settle(engine)
        port.finish()
        settle(engine)
        assert (mover.state, mover.tasks, mover.status) == ("running", 0, 1)
        assert mover.ring.running == mover.ring.waiting == 0
        begun = [each for each in mover.log if each[0] == "begin"]
        ended = [each for each in mover.log if each[0] == "end"]
        assert sorted(begun) == sorted(("begin", number) for _, number in ended)
        run(engine, lambda: acknowledged(last))


async def acknowledged(ack: Any) -> None:
    await ack


def failed_task(engine: FakeEngine) -> Any:
    async def fall() -> None:
        raise ValueError

    task = engine.start(fall())
    engine.ready.remove(task)
    task.step()
    return task
