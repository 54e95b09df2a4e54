"""The engine: results and exceptions, threads and processes, fairness, and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Coroutine, Iterator
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
    thread = threading.Timer(0.02, engine.stop)
    thread.start()
    begin = time.monotonic()
    engine.run()
    assert time.monotonic() - begin >= 0.015
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


# --- what may not be done -------------------------------------------------------------------------


def test_it_cannot_be_run_pumped_or_closed_from_within(engine: iodma.Engine) -> None:
    refused: list[str] = []

    def try_all() -> None:
        other = coroutine()
        for what in (lambda: engine.run(other), engine.run, engine.pump, engine.close):
            with pytest.raises(iodma.Error, match="runs"):
                what()
            refused.append("refused")

    async def coroutine() -> None:
        pass

    async def main() -> None:
        try_all()
        engine.call_soon(try_all)
        engine.call_later(0, try_all)
        await engine.sleep(0.01)

    engine.run(main())
    assert len(refused) == 12
    settle(engine)


def test_another_thread_is_refused(engine: iodma.Engine) -> None:
    caught: list[BaseException] = []

    async def work() -> None:
        pass

    def elsewhere() -> None:
        for what in (
            engine.run,
            engine.pump,
            engine.fileno,
            engine.close,
            lambda: engine.call_soon(print),
            lambda: engine.sleep(0),
            lambda: engine.add_reader(0, print),
            lambda: engine.attach(iodma.Device()),
        ):
            try:
                what()
            except iodma.WrongThreadError as error:
                caught.append(error)
        for coro in (work(), work()):
            try:
                engine.start(coro) if len(caught) % 2 else engine.run(coro)
            except iodma.WrongThreadError as error:
                caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 10
    assert "thread" in str(caught[0])
    assert not engine.closed


def test_call_threadsafe_crosses_threads(engine: iodma.Engine) -> None:
    called: list[tuple[int, int]] = []
    enough = iodma.Event(engine)

    def arrived(number: int) -> None:
        called.append((number, threading.get_ident()))
        if len(called) == 400:
            enough.set()

    def caller(first: int) -> None:
        for number in range(first, first + 100):
            engine.call_threadsafe(arrived, number)

    threads = [threading.Thread(target=caller, args=(i * 100,)) for i in range(4)]

    async def main() -> None:
        for thread in threads:
            thread.start()
        await enough.wait()

    engine.run(main())
    for thread in threads:
        thread.join()
    assert {thread for _, thread in called} == {threading.get_ident()}
    for first in range(0, 400, 100):
        mine = [number for number, _ in called if first <= number < first + 100]
        assert mine == sorted(mine), "in the order of the calls"


def test_call_threadsafe_wakes_an_engine_that_sleeps(engine: iodma.Engine) -> None:
    event = iodma.Event(engine)
    threading.Timer(0.02, engine.call_threadsafe, (event.set,)).start()

    async def main() -> None:
        await event.wait()

    begin = time.monotonic()
    engine.run(main())
    assert time.monotonic() - begin < 5


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A program of its own: what it prints, and how it ends."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_fork_child_may_not_use_it_and_the_parent_goes_on() -> None:
    done = python(
        """
        import os, sys, iodma

        async def work():
            await engine.sleep(0.01)
            return "parent"

        with iodma.Engine() as engine:
            engine.run(work())
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    engine.run()
                except iodma.WrongThreadError as error:
                    status = 0 if "process that made it" in str(error) else 2
                engine.close()
                with iodma.Engine() as own:  # it makes one of its own
                    own.run(own.sleep.__self__.attach and own.start and wait(own))
                os._exit(status if engine.closed else 3)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), engine.run(work()))
        """.replace("own.sleep.__self__.attach and own.start and wait(own)", "wait(own)").replace(
            "async def work()",
            "async def wait(own):\n    await own.sleep(0.001)\n\nasync def work()",
        )
        if False
        else """
        import os, iodma

        async def wait(engine):
            await engine.sleep(0.01)
            return "went on"

        with iodma.Engine() as engine:
            engine.run(wait(engine))
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    engine.run()
                except iodma.WrongThreadError as error:
                    status = 0 if "process that made it" in str(error) else 2
                engine.close()
                with iodma.Engine() as own:
                    own.run(wait(own))
                os._exit(status if engine.closed else 3)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(status, engine.run(wait(engine)))
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0 went on\n", "", 0)


def test_what_belongs_to_another_loop_is_refused_where_it_is_awaited(engine: iodma.Engine) -> None:
    async def main(foreign: Any) -> str:
        try:
            await foreign
        except iodma.ArgumentTypeError as error:
            return str(error)
        return "nothing"

    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        text = engine.run(main(future))
        assert "Future" in text
        assert "Engine.fileno and Engine.pump" in text
        text = engine.run(main(asyncio.sleep(0)))
        assert "None was awaited" in text
    finally:
        loop.close()


def test_what_is_another_engines_is_refused(engine: iodma.Engine) -> None:
    with iodma.Engine() as other:

        async def main() -> str:
            try:
                await other.sleep(0)
            except iodma.Error as error:
                return str(error)
            return "nothing"

        assert f"outside the coroutines of {other!r}" in engine.run(main())


def test_an_await_outside_the_engine_is_refused(engine: iodma.Engine) -> None:
    async def elsewhere() -> None:
        await engine.sleep(1)

    with pytest.raises(iodma.ArgumentTypeError, match=r"Engine\.start or Engine\.run"):
        asyncio.run(elsewhere())


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


# --- the end --------------------------------------------------------------------------------------


def test_close_cancels_what_is_left_and_waits_for_it(tmp_path: Path) -> None:
    ended: list[str] = []

    async def work(coro: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            await coro
        finally:
            ended.append(name)

    async def read() -> None:
        await port.to_memory((0, 4096), source=file)

    async def wait() -> None:
        await iodma.Event(engine).wait()

    async def hear() -> None:
        await port.to_memory((0, 16), source=quiet)

    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    near, far = socket.socketpair()
    with near, far, iodma.Ram(4096) as ram, iodma.File(path) as file, iodma.Socket(near) as quiet:
        engine = iodma.Engine()
        port = engine.port(iodma.Memory({0: ram}))
        for function in (read, wait, hear):
            engine.start(work(function(), function.__name__))
        engine.pump()
        engine.pump()
        assert engine.stats().in_flight >= 1
        begin = time.monotonic()
        engine.close()
        assert time.monotonic() - begin < 2
        assert sorted(ended) == ["hear", "read", "wait"]
        assert (ram.leases, engine.closed) == (0, True)
        engine.close()
    with pytest.raises(iodma.ClosedError):
        engine.run()
    with pytest.raises(iodma.ClosedError), engine:
        pass
    assert engine not in engines


def test_close_goes_to_its_end_whatever_is_raised_in_it() -> None:
    engine = iodma.Engine(strict=True)

    async def stubborn(number: int) -> None:
        try:
            await iodma.Event(engine).wait()
        finally:
            raise ValueError(number)

    for number in range(3):
        engine.start(stubborn(number))
    settle(engine)
    with pytest.raises(ValueError, match=r"^[012]$"):
        engine.close()
    assert engine.closed


def test_a_task_that_will_not_end_cannot_keep_it_open(caplog: pytest.LogCaptureFixture) -> None:
    engine = iodma.Engine()

    async def stubborn() -> None:
        while True:
            try:
                await iodma.Event(engine).wait()
            except BaseException as error:
                seen.append(type(error))

    seen: list[type] = []
    engine.start(stubborn())
    settle(engine)
    engine.close(deadline=0.05)
    assert (engine.closed, seen) == (True, [iodma.Cancelled])


def test_a_leaked_engine_is_told() -> None:
    engine = iodma.Engine()
    with pytest.warns(ResourceWarning, match="was not closed"):
        del engine
        gc.collect()


def test_a_program_that_forgets_everything_ends_quietly_but_for_the_warning() -> None:
    done = python(
        """
        import iodma
        engine = iodma.Engine()
        port = engine.port(iodma.Memory({0: iodma.Ram(4096)}))
        engine.run(engine.start and (lambda: port)() and main()) if False else None
        """
    )
    assert done.returncode == 0
    assert "Fatal" not in done.stderr
    assert "Segmentation" not in done.stderr


def test_a_callback_that_raises_is_logged_and_the_rest_go_on(
    engine: iodma.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("in a callback")

    async def main() -> None:
        engine.call_soon(broken)
        engine.call_later(0, broken)
        await engine.sleep(0.01)

    with caplog.at_level(logging.ERROR, "iodma.engine"):
        engine.run(main())
    assert len(caplog.records) == 2
    with iodma.Engine(strict=True) as strict:
        strict.call_soon(broken)
        with pytest.raises(ValueError, match="in a callback"):
            strict.run()


def test_an_engine_that_is_closed_leaves_nothing_behind() -> None:
    """No descriptor, no thread, and no reference to what it worked with."""

    class Waiter(iodma.Device):
        def reset(self) -> None:
            self.start(self.wait())

        async def wait(self) -> None:
            await self.engine.sleep(3600)

    def once() -> weakref.ref[Waiter]:
        with iodma.Ram(4096) as ram, iodma.Engine() as engine:
            device = Waiter(engine.port(iodma.Memory({0: ram})))
            read, write = os.pipe()
            engine.add_reader(read, engine.stop)
            engine.fileno()
            os.write(write, b"x")
            engine.run(device)
        with pytest.raises(iodma.ClosedError):
            engine.call_threadsafe(print)
        os.close(read)
        os.close(write)
        return weakref.ref(device)

    once()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    devices = [once() for _ in range(5)]
    gc.collect()
    assert [device() for device in devices] == [None] * 5
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_task_that_failed_can_be_collected_with_whom_it_failed(engine: iodma.Engine) -> None:
    """Its exception knows the frame that waited, and that frame knows the task."""

    class Big:
        pass

    seen: list[weakref.ref[Big]] = []

    async def fall() -> None:
        raise ValueError

    async def wait() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        task = engine.start(fall())
        await task

    async def main() -> None:
        with pytest.raises(ValueError):
            await engine.start(wait())

    engine.run(main())
    gc.collect()
    assert [each() for each in seen] == [None]


def test_each_waiter_of_a_load_that_faulted_gets_its_own_exception(engine: iodma.Engine) -> None:
    with iodma.Ram(4096) as ram:
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> list[iodma.DmaFault]:
            transfer = port.load("<I", 1 << 40)
            return [await caught(transfer), await caught(transfer)]

        async def caught(transfer: iodma.Transfer[Any]) -> iodma.DmaFault:
            with pytest.raises(iodma.DmaFault) as error:
                await transfer
            return error.value

        first, second = engine.run(main())
        assert first is not second
        assert first.completion is second.completion
        assert first.completion.fault is not None
