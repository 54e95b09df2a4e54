"""A device: its making, its scope, and how it fails alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from iodma import Port
from iodma.devices import Device, Register
from iodma.errors import (
    ArgumentError,
    ArgumentTypeError,
    BusyError,
    Error,
    WrongThreadError,
)
from tests.unit.engines import Held, WatchedEngine, device_engine, settle
from tests.unit.mover import Mover

ONES = 0xFFFF_FFFF


@pytest.fixture
def mover(engine: WatchedEngine, port: Port, held: Held) -> Mover:
    device = Mover(port, held=held)
    engine.attach(device)
    device.log.clear()
    return device


# --- making one -----------------------------------------------------------------------------------


def test_endpoints_and_names() -> None:
    device = Mover(disk="a disk")
    assert device.disk == "a disk"  # type: ignore[attr-defined]
    assert device.name.startswith("mover")
    assert Device(name="nic").name == "nic"
    assert Device(name="nic").interrupt.name == "nic.interrupt"


@pytest.mark.parametrize("name", ["status", "start", "begin", "engine", "_values"])
def test_an_endpoint_cannot_hide_what_the_device_has(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"an endpoint cannot be called {name}"):
        Mover(**{name: 1})


def test_what_is_missing_is_named() -> None:
    device = Device(name="nic")
    with pytest.raises(Error, match="nic has no port"):
        _ = device.port
    with pytest.raises(Error, match="nic has no engine yet"):
        _ = device.engine
    with pytest.raises(Error, match=r"nic has no engine to run nic\.move in"):
        device.start(Mover().move(1))


def test_power_on_calls_the_hook_once_and_one_engine_is_enough(engine: WatchedEngine) -> None:
    device = Mover()
    assert device.log == []
    engine.attach(device)
    engine.attach(device)
    assert device.log == ["reset"]
    assert device.engine is engine
    with device_engine() as other, pytest.raises(BusyError, match="another engine"):
        other.attach(device)


def test_a_port_of_another_engine_is_refused(port: Port) -> None:
    with device_engine() as other, pytest.raises(ArgumentError, match="another engine"):
        other.attach(Mover(port))


# --- the scope ------------------------------------------------------------------------------------


def test_a_handler_starts_work_that_runs_later(
    engine: WatchedEngine, held: Held, mover: Mover
) -> None:
    mover.bus_write(0, 4, 7)
    assert (mover.log, mover.tasks) == ([], 1)
    settle(engine)
    assert mover.log == [("begin", 7)]
    held.finish()
    settle(engine)
    assert mover.log == [("begin", 7), ("moved", 7), ("end", 7)]
    assert (mover.bus_read(4, 4), mover.tasks) == (2, 0)


def test_start_takes_a_coroutine(mover: Mover) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a coroutine; call an `async def`"):
        mover.start(mover.move)  # type: ignore[arg-type]


def test_a_cancelled_task_is_no_failure(engine: WatchedEngine, held: Held, mover: Mover) -> None:
    task = mover.start(mover.move(1))
    settle(engine)
    task.cancel()
    settle(engine)
    assert (mover.log, mover.state) == ([("begin", 1), ("end", 1)], "running")
    held.finish()


# --- failure --------------------------------------------------------------------------------------


def write_handler(device: Fallible) -> None:
    device.bus_write(0x10, 4, 0)


def read_handler(device: Fallible) -> None:
    assert device.bus_read(0x10, 4) == ONES


def coroutine(device: Fallible) -> None:
    device.start(device.fall())


def doorbell(device: Fallible) -> None:
    device.port = None  # type: ignore[assignment]
    device.ring.ring(1)


class Fallible(Mover):
    wrong = Register(0x10, read="broken", write="broken_by")
    hurt = Register(0x14, always=True)

    def broken(self) -> int:
        raise ValueError("a bug")

    def broken_by(self, value: int) -> None:
        raise ValueError("a bug")

    async def fall(self) -> None:
        raise ValueError("a bug")

    def failure(self, error: Exception) -> None:
        super().failure(error)
        self.hurt = 1


@pytest.mark.parametrize("cause", [write_handler, read_handler, coroutine, doorbell])
def test_an_uncaught_exception_fails_the_device_alone_and_is_logged_once(
    engine: WatchedEngine,
    port: Port,
    held: Held,
    mover: Mover,
    caplog: pytest.LogCaptureFixture,
    cause: Callable[[Fallible], None],
) -> None:
    device = Fallible(engine.port(port.space, "its own"), held=held)
    engine.attach(device)
    mover.start(mover.move(1))
    device.start(device.move(2))
    settle(engine)
    device.interrupt.set(True)
    cause(device)
    settle(engine)
    assert (device.state, device.counts.failures, device.tasks) == ("failed", 1, 0)
    assert (device.bus_read(0x04, 4), device.bus_read(0x14, 4)) == (ONES, 1)
    device.bus_write(0x00, 4, 1)
    device.bus_write(0x10, 4, 1)
    assert device.counts.refused_writes == 2
    assert (device.interrupt.level, len(held.cancelled)) == (False, 1)
    kind = type(engine.failures[0][1])
    assert device.log[1] == ("begin", 2)
    assert device.log.count(("end", 2)) == 1
    assert device.log.count(kind.__name__) == 1
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert [each.name for each in errors] == ["iodma.devices"]
    assert errors[0].exc_info is not None and errors[0].exc_info[0] is kind
    assert [each for each, _ in engine.failures] == [device]
    held.finish()
    settle(engine)
    assert mover.state == "running"


def test_a_reset_brings_a_failed_device_back(engine: WatchedEngine) -> None:
    device = Fallible()
    engine.attach(device)
    device.bus_write(0x10, 4, 0)
    device.bus_write(0x08, 4, 1)
    assert device.state == "resetting"
    settle(engine)
    assert (device.state, device.bus_read(0x04, 4), device.hurt) == ("running", 1, 0)


@pytest.mark.parametrize("cause", [write_handler, coroutine])
def test_a_strict_engine_raises_it_again(cause: Callable[[Fallible], None]) -> None:
    with device_engine(strict=True) as engine:
        device = Fallible()
        engine.attach(device)
        with pytest.raises(ValueError, match="a bug"):
            cause(device)
            settle(engine)
        assert device.state == "failed"


def test_without_an_engine_it_fails_the_same() -> None:
    device = Fallible()
    write_handler(device)
    assert device.state == "failed"


def test_a_guest_that_fails_a_device_again_and_again_fills_no_log(
    engine: WatchedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    device = Fallible()
    engine.attach(device)
    for _ in range(100):
        write_handler(device)
        device.bus_write(0x08, 4, 1)
        settle(engine)
    assert device.counts.failures == 100
    assert len(caplog.records) < 10


def test_the_hook_may_set_registers_whoever_caused_the_failure(engine: WatchedEngine) -> None:
    async def own_coroutine() -> None:
        write_handler(device)

    device = Fallible()
    engine.attach(device)
    device.start(own_coroutine())
    settle(engine)
    assert (device.state, device.hurt) == ("failed", 1)
    assert [type(error) for _, error in engine.failures] == [ValueError]


def test_a_device_that_has_failed_does_not_fail_again(engine: WatchedEngine) -> None:
    class Twice(Fallible):
        last = Register(0x18, always=True, write="broken_by")

    device = Twice()
    engine.attach(device)
    device.bus_write(0x10, 4, 0)
    device.bus_write(0x18, 4, 0)
    assert (device.counts.failures, len(engine.failures)) == (1, 1)


def test_a_hook_is_not_re_entered_through_the_bus(engine: WatchedEngine) -> None:
    class Curious(Mover):
        def reset(self) -> None:
            self.log.append(self.bus_read(0x04, 4))
            self.bus_write(0x00, 4, 1)

    device = Curious()
    engine.attach(device)
    assert (device.log, device.counts.reentered, device.tasks) == ([ONES], 2, 0)


def test_a_failure_in_the_hooks(engine: WatchedEngine, caplog: pytest.LogCaptureFixture) -> None:
    class Worse(Fallible):
        def reset(self) -> None:
            raise ValueError("in reset")

        def failure(self, error: Exception) -> None:
            raise KeyError("in failure")

    device = Worse()
    engine.attach(device)
    assert device.state == "failed"
    assert [type(error) for _, error in engine.failures] == [ValueError]
    assert "while it was failing" in caplog.text


# --- the thread -----------------------------------------------------------------------------------


def test_another_thread_is_refused(mover: Mover) -> None:
    caught: list[Exception] = []

    def elsewhere() -> None:
        for access in (lambda: mover.bus_read(4, 4), lambda: mover.bus_write(4, 4, 0)):
            try:
                access()
            except WrongThreadError as error:
                caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 2
    assert "call_threadsafe" in str(caught[0])
    assert mover.state == "running"


def test_a_device_moves_to_the_thread_of_its_engine(engine: WatchedEngine) -> None:
    made: list[Mover] = []
    thread = threading.Thread(target=lambda: made.append(Mover()))
    thread.start()
    thread.join()
    with pytest.raises(WrongThreadError):
        made[0].bus_read(4, 4)
    engine.attach(made[0])
    assert made[0].bus_read(4, 4) == 1


def test_refused_accesses_are_told_at_debug_level(
    mover: Mover, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="iodma.devices")
    mover.bus_read(0x40, 2)
    mover.bus_write(0x40, 2, 0x1F)
    assert caplog.messages == [
        f"{mover.name}: read of 2 bytes at 0x40: all-ones",
        f"{mover.name}: write of 2 bytes at 0x40, 0x1f: dropped",
    ]
