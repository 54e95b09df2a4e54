"""The engine: results and exceptions, cancelling, fairness, and what it tells of itself."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma.engine.loop import engines
from tests.unit.engines import Held, held_port, settle


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine() as engine:
        yield engine


# --- results --------------------------------------------------------------------------------------


def test_run_gives_what_the_coroutine_returns(engine: iodma.Engine) -> None:
    async def nested() -> int:
        await engine.sleep(0)
        return 41

    async def main() -> int:
        return await nested() + 1

    assert engine.run(main()) == 42
    assert engine.run(nested()) == 41, "and may be called again"


def test_run_raises_what_the_coroutine_raises_once(
    engine: iodma.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await engine.sleep(0)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        engine.run(main())
    assert any(entry.name == "main" for entry in caught.traceback)
    assert caplog.records == [], "it is not logged as well"


def test_a_task_gives_its_result_to_any_number_early_and_late(engine: iodma.Engine) -> None:
    async def work() -> str:
        await engine.sleep(0.001)
        return "done"

    async def main() -> list[str]:
        task = engine.start(work(), name="work")
        others = [engine.start(join(task)) for _ in range(3)]
        results = [await other for other in others]
        return [*results, await task, task.result]

    async def join(task: iodma.Task[str]) -> str:
        return await task

    assert engine.run(main()) == ["done"] * 5


def test_a_task_that_nobody_waits_for_is_logged_and_the_others_go_on(
    engine: iodma.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def fall() -> None:
        raise ValueError("unseen")

    async def main() -> str:
        engine.start(fall(), name="falls")
        await engine.sleep(0.001)
        return "went on"

    assert engine.run(main()) == "went on"
    assert [record.getMessage() for record in caplog.records] == [
        f"{engine.name}: task falls failed"
    ]
    assert "unseen" in caplog.text


def test_a_strict_engine_lets_it_out() -> None:
    async def fall() -> None:
        raise ValueError("unseen")

    with iodma.Engine(strict=True) as engine:
        engine.start(fall())
        with pytest.raises(ValueError, match="unseen"):
            engine.run()


def test_what_a_waiter_sees_is_not_logged(
    engine: iodma.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def fall() -> None:
        await engine.sleep(0)
        raise ValueError

    async def main() -> str:
        try:
            await engine.start(fall())
        except ValueError:
            return "seen"
        return "not seen"

    assert engine.run(main()) == "seen"
    assert caplog.records == []


def test_an_exit_in_any_task_ends_the_program(engine: iodma.Engine) -> None:
    async def leave() -> None:
        sys.exit(3)

    async def main() -> None:
        engine.start(leave())
        await iodma.Event(engine).wait()

    with pytest.raises(SystemExit):
        engine.run(main())


def test_run_takes_a_coroutine_a_device_or_nothing(engine: iodma.Engine) -> None:
    class Ends(iodma.Device):
        def reset(self) -> None:
            self.start(self.end())

        async def end(self) -> None:
            self.engine.stop()

    device = Ends()
    assert engine.run(device) is None
    assert device.engine is engine
    with pytest.raises(iodma.ArgumentTypeError, match="3 is not a Device"):
        engine.run(3)
    with pytest.raises(iodma.ArgumentTypeError, match="call an `async def`"):
        engine.start(lambda: None)  # type: ignore[arg-type]


# --- stop -----------------------------------------------------------------------------------------


def test_stop_ends_run_from_inside_and_cancels_main(engine: iodma.Engine) -> None:
    seen: list[str] = []

    async def main() -> None:
        engine.call_soon(engine.stop)
        try:
            await iodma.Event(engine).wait()
        except iodma.Cancelled:
            await engine.sleep(0.001)
            seen.append("tidied up")
            raise

    assert engine.run(main()) is None
    assert seen == ["tidied up"]


def test_stop_from_another_thread_and_before_run(engine: iodma.Engine) -> None:
    engine.stop()
    engine.run()
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        engine.stop()

    thread = threading.Timer(0.02, ask)
    thread.start()
    engine.run()
    assert asked.is_set()
    thread.join()


def test_a_main_that_ends_in_spite_of_stop_has_its_result(engine: iodma.Engine) -> None:
    async def main() -> str:
        engine.stop()
        try:
            await iodma.Event(engine).wait()
        except iodma.Cancelled:
            return "finished all the same"
        return ""

    assert engine.run(main()) == "finished all the same"


# --- cancelling -----------------------------------------------------------------------------------


def test_a_task_that_never_began_never_runs(
    engine: iodma.Engine, recwarn: pytest.WarningsRecorder
) -> None:
    ran = []

    async def work() -> None:
        ran.append(1)

    async def main() -> type[BaseException]:
        task = engine.start(work())
        task.cancel()
        try:
            await task
        except iodma.Cancelled as error:
            return type(error)
        return BaseException

    assert engine.run(main()) is iodma.Cancelled
    gc.collect()
    assert (ran, list(recwarn)) == ([], [])


def test_a_cancel_is_thrown_where_the_coroutine_waits(engine: iodma.Engine) -> None:
    log: list[str] = []

    async def work() -> None:
        try:
            await iodma.Event(engine).wait()
        finally:
            log.append("unwound")

    async def main() -> None:
        task = engine.start(work())
        await engine.sleep(0)
        task.cancel()
        assert log == [], "not inside the call"
        with pytest.raises(iodma.Cancelled):
            await task
        assert (log, task.cancelled) == (["unwound"], True)
        task.cancel()
        assert log == ["unwound"]

    engine.run(main())


def test_a_cancelled_task_cancels_the_transfer_it_waits_for(engine: iodma.Engine) -> None:
    async def move(port: iodma.Port, held: Held) -> None:
        await port.from_memory((0, 16), to=held)

    with held_port(engine) as (port, held):
        task = engine.start(move(port, held))
        settle(engine)
        assert port.in_flight == 1
        task.cancel()
        settle(engine)
        assert (task.done, len(held.cancelled), port.in_flight) == (True, 1, 1)


def test_cancelling_oneself_takes_effect_at_the_next_wait(engine: iodma.Engine) -> None:
    log: list[str] = []

    async def work() -> None:
        task: Any = engine.current_task
        task.cancel()
        log.append("still here")
        await engine.sleep(0)
        log.append("never")

    async def main() -> None:
        with pytest.raises(iodma.Cancelled):
            await engine.start(work())

    engine.run(main())
    assert log == ["still here"]


# --- fairness -------------------------------------------------------------------------------------


def test_a_coroutine_that_never_has_to_wait_starves_nobody(engine: iodma.Engine) -> None:
    ready = iodma.Event(engine)
    ready.set()
    turns = 0
    over = False

    async def greedy() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await ready.wait()

    async def main() -> int:
        nonlocal over
        engine.start(greedy())
        await engine.sleep(0.01)
        over = True
        return turns

    assert engine.run(main()) > 256, "it ran all the time, and a timer came all the same"


def test_a_crowd_that_wakes_itself_lets_completions_and_readers_through(
    engine: iodma.Engine, tmp_path: Path
) -> None:
    over = False

    async def spin() -> None:
        while not over:
            await engine.start(nothing())

    async def main() -> bytes:
        nonlocal over
        read, write = os.pipe()
        readable = iodma.Event(engine)
        engine.add_reader(read, readable.set)
        for _ in range(20):
            engine.start(spin())
        done = await port.to_memory((0, 4096), source=file)
        assert done.ok
        os.write(write, b"x")
        await readable.wait()
        engine.remove_reader(read)
        over = True
        os.close(read)
        os.close(write)
        return bytes(ram.view(0, 5))

    path = tmp_path / "disk"
    path.write_bytes(b"hello" + bytes(4091))
    with iodma.Ram(4096) as ram, iodma.File(path) as file:
        port = engine.port(iodma.Memory({0: ram}))
        assert engine.run(main()) == b"hello"


async def nothing() -> None:
    pass


# --- looking at it --------------------------------------------------------------------------------


def test_transfers_and_stats_say_what_is_in_flight(engine: iodma.Engine) -> None:
    with held_port(engine) as (port, held):
        transfer = port.from_memory([(0, 16), (32, 8)], to=held)
        settle(engine)
        (info,) = engine.transfers()
        assert (info.ticket, info.kind, info.port) == (transfer.ticket, "transfer", "port0")
        assert (info.direction, info.total, info.moved) == ("from_memory", 24, 0)
        assert 0 <= info.age_s < 60
        assert "held" in info.endpoint
        stats = engine.stats()
        assert (stats.in_flight, stats.submitted, stats.delivered) == (1, 1, 0)
        held.finish()
        settle(engine)
        stats = engine.stats()
        assert (stats.in_flight, stats.delivered, stats.completed["ok"]) == (0, 1, 1)
        assert stats.bytes_from_memory == 24
        assert engine.transfers() == []
    assert stats.as_dict()["kind"] == engine.kind


def test_tasks_are_counted_and_named(engine: iodma.Engine) -> None:
    async def work() -> None:
        seen.append(repr(engine.current_task))
        await iodma.Event(engine).wait()

    seen: list[str] = []
    task = engine.start(work(), name="mine")
    assert engine.start(nothing()).name == "nothing"
    settle(engine)
    assert engine.stats().tasks == 1
    assert (seen, task.name) == (["<Task mine ready>"], "mine")
    assert engine.current_task is None
    assert engine in engines


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kind": "fast"}, "kind is 'fast'; auto, uring or threads"),
        ({"depth": 0}, "depth is 0; 1 to 32768"),
        ({"in_flight": 1 << 20}, "in_flight is 1048576"),
        ({"bounce_bytes": -1}, "bounce_bytes is -1"),
        ({"workers": 0}, "workers is 0; 1 to 256"),
    ],
)
def test_what_cannot_be_asked_of_it(options: dict[str, Any], what: str) -> None:
    with pytest.raises(iodma.ArgumentError, match=what):
        iodma.Engine(**options)
