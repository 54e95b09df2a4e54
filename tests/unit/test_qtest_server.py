"""The qtest server: when it answers, whose the time is, and who comes and goes."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from iodma import ArgumentError, Event
from iodma.testing import strict_engine
from iodma.transports.qtest import Machine, PhysicalSpace, QtestServer, SteppedClock
from tests.qtest import Qtest, QtestError
from tests.unit.qtestkit import Rig, opened, rig_fixture

#: The fixture.
__all__ = ["rig_fixture"]


# --- time, and rest -------------------------------------------------------------------------------


def test_time_is_the_clients(rig: Rig) -> None:
    rang: list[int] = []
    for ns in (500, 200, 200, 900):
        rig.engine.call_later(ns / 1e9, lambda: rang.append(rig.clock.now_ns()))
    assert rig("clock_step") == "OK 200" and rang == [200, 200]
    assert rig("clock_step 1") == "OK 201"
    assert rig("clock_step 1000") == "OK 1201"
    assert rang == [200, 200, 500, 900]
    assert rig("clock_set 5000") == "OK 5000"
    assert rig("clock_set 4000") == "FAIL 5000"
    assert rig("clock_step").startswith("FAIL cannot advance")
    assert rig("clock_step 0x7fffffffffffffff") == "FAIL could not advance time"
    assert rig("clock_set 0x7fffffffffffffff") == "OK 9223372036854775807"


def test_a_timer_may_start_another_and_the_clock_waits_for_what_they_begin(rig: Rig) -> None:
    rang: list[int] = []

    async def work() -> None:
        await rig.engine.sleep(100e-9)
        rang.append(rig.clock.now_ns())
        rig.busy[0] = True
        for _ in range(10):
            event = Event(rig.engine)
            rig.engine.call_soon(event.set)
            await event.wait()
        rig.engine.call_later(100e-9, lambda: rang.append(rig.clock.now_ns()))
        rig.busy[0] = False

    rig.engine.start(work())
    rig.turn()
    assert rig("clock_step 1000") == "OK 1000"
    assert rang == [100, 200]


def test_a_timer_that_never_ends_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    for rig in opened(deadline_s=0.05):
        on = [True]

        def again(rig: Rig = rig, on: list[bool] = on) -> None:
            if on:
                rig.engine.call_later(0, again)

        again()
        answer = rig("clock_step 1000")
        assert answer == "FAIL could not advance time"
        assert "does not come to rest in 0.05 s" in caplog.text
        on.clear()
        rig.turn()
        assert rig("clock_step 1000") == "OK 1000"


def test_a_command_is_answered_when_the_machine_rests() -> None:
    for rig in opened(deadline_s=50.0):  # a busy machine is slow, and not stuck
        steps: list[str] = []

        async def work(count: int, rig: Rig = rig, steps: list[str] = steps) -> None:
            for _ in range(count):
                event = Event(rig.engine)
                rig.engine.call_soon(event.set)
                await event.wait()
            steps.append("rests")
            rig.busy[0] = False

        rig.busy[0] = True
        rig.engine.start(work(5))
        rig.client.stream.send(b"readl 0\nreadl 4\n")
        rig.client.answer()
        assert steps == ["rests"]
        rig.busy[0] = True
        rig.engine.start(work(100_000))  # long enough that it is looked at less often
        rig.client.answer()
        assert steps == ["rests"] or steps == ["rests"] * 2
        rig("readl 0")
        assert steps == ["rests"] * 2


def test_one_that_never_rests_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    for rig in opened(deadline_s=0.02):
        rig.busy[0] = True
        assert rig("readl 0") == "OK 0x0000000000000000"
        assert rig("endianness") == "OK big"
        assert "board: readl: the machine does not come to rest in 0.02 s" in caplog.text


# --- the server -----------------------------------------------------------------------------------


def test_clients_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with strict_engine(slow_step=None) as engine:
        server = QtestServer(engine, Machine(PhysicalSpace()), path)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
                client = Qtest(stream, engine.pump)
                assert client("endianness") == "little"
                # A machine without a clock, or a reset: as QEMU without its accelerator.
                with pytest.raises(QtestError, match="Unknown command 'clock_step'"):
                    client("clock_step", 5)
                with pytest.raises(QtestError, match="Unknown command 'iodma_reset'"):
                    client("iodma_reset")
        assert server.sessions == 3
        task = engine.start(server.close())
        while not task.done:
            engine.pump()
    assert not path.exists()


def test_the_clock_is_the_engines() -> None:
    machine = Machine(PhysicalSpace(), clock=SteppedClock())
    with strict_engine() as engine, pytest.raises(ArgumentError, match="clock is not that of"):
        QtestServer(engine, machine, "nowhere")


def test_an_engine_sleeps_while_its_clock_stands() -> None:
    clock = SteppedClock()
    with strict_engine(slow_step=None, clock=clock) as engine:
        rang: list[int] = []

        def ring() -> None:
            rang.append(clock.now_ns())
            engine.stop()

        def move() -> None:
            ours.recv(1)
            clock.go_to(1 << 30)

        engine.call_later(1, ring)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            engine.add_reader(ours.fileno(), move)
            turns = engine.stats().turns
            threading.Timer(0.05, theirs.send, [b"x"]).start()
            engine.run()
            engine.remove_reader(ours.fileno())
        assert rang == [1 << 30]
        assert engine.stats().turns - turns < 100


def test_a_client_that_asks_again_at_once_needs_no_turn_of_the_engine() -> None:
    """It is waited for in its turn: but not for ever, and not when something else is to be done."""
    with strict_engine(slow_step=None) as engine:
        ours, theirs = socket.socketpair()
        with theirs:
            server = QtestServer(
                engine, Machine(PhysicalSpace()), fd=theirs.fileno(), linger_us=10_000
            )
        said: list[bytes] = []

        def client() -> None:
            for _ in range(300):
                ours.sendall(b"endianness\n")
                said.append(ours.recv(100))
            ours.close()

        before = engine.stats().turns
        thread = threading.Thread(target=client)
        thread.start()
        engine.run(server.wait())
        thread.join()
        assert said == [b"OK little\n"] * 300
        assert engine.stats().turns - before < 200


@pytest.mark.parametrize("linger_us", [-1, 10_001])
def test_lingering_is_bounded(linger_us: float) -> None:
    with strict_engine() as engine, pytest.raises(ArgumentError, match="0 to 10000 micro"):
        QtestServer(engine, Machine(PhysicalSpace()), "nowhere", linger_us=linger_us)


def test_a_client_that_leaves_in_the_middle() -> None:
    for rig in opened(deadline_s=0.05):
        rig.busy[0] = True
        rig.client.stream.send(b"readl 0\niodma_reset\nreadl")
        rig.turn()
        rig.client.close()
        while not rig.server.closed:
            rig.turn()
        rig.busy[0] = False


def test_a_client_that_leaves_in_a_reset(rig: Rig) -> None:
    rig.client.stream.send(b"iodma_reset\n")
    rig.client.close()
    while not rig.server.closed:
        rig.turn()
