# SPDX-License-Identifier: Apache-2.0
"""An engine that is closed, leaked or forgotten: what is left is ended, nothing stays behind."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma.engine.loop import engines
from tests.unit.engines import settle
from tests.unit.programs import python


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine() as engine:
        yield engine


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
