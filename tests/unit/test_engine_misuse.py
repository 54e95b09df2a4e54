# SPDX-License-Identifier: Apache-2.0
"""What may not be done with an engine: from within, from other threads, processes and loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import iodma
from tests.unit.engines import settle
from tests.unit.programs import python


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine() as engine:
        yield engine


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


def test_a_fork_child_may_not_use_it_and_the_parent_goes_on() -> None:
    done = python(
        """
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
