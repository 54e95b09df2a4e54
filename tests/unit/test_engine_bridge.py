"""Inside other people's loops: descriptors of theirs in ours, and ours in theirs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import iodma
from tests.unit.engines import held_port, settle


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine() as engine:
        yield engine


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[iodma.File]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 256)
    with iodma.File(path) as file:
        yield file


def readable(engine: iodma.Engine, seconds: float = 0) -> bool:
    return bool(select.select([engine.fileno()], [], [], seconds)[0])


# --- foreign descriptors --------------------------------------------------------------------------


def test_a_reader_is_called_while_there_is_something_to_read(
    engine: iodma.Engine, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    heard: list[bytes] = []

    def hear() -> None:
        heard.append(os.read(read, 1))
        if len(heard) == 3:
            engine.stop()

    engine.add_reader(read, hear)
    os.write(write, b"abc")
    engine.run()
    assert heard == [b"a", b"b", b"c"]
    engine.remove_reader(read)
    os.write(write, b"d")
    engine.call_later(0.02, engine.stop)
    engine.run()
    assert len(heard) == 3
    engine.remove_reader(read)


def test_a_reader_wakes_an_engine_that_sleeps(engine: iodma.Engine, pipe: tuple[int, int]) -> None:
    engine.add_reader(pipe[0], engine.stop)
    signal_at = time.monotonic() + 0.03
    engine.call_later(0.03, lambda: os.write(pipe[1], b"x"))
    engine.run()
    assert signal_at <= time.monotonic() + 0.001 < signal_at + 5


def test_two_readers_of_one_descriptor_are_refused(
    engine: iodma.Engine, pipe: tuple[int, int]
) -> None:
    engine.add_reader(pipe[0], lambda: None)
    with pytest.raises(iodma.BusyError, match="has a reader already"):
        engine.add_reader(pipe[0], lambda: None)


def test_a_reader_may_remove_itself_and_others(engine: iodma.Engine) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    called: list[int] = []

    def only_one(number: int) -> None:
        called.append(number)
        for near, _ in pairs:
            engine.remove_reader(near.fileno())

    for number, (near, far) in enumerate(pairs):
        engine.add_reader(near.fileno(), partial(only_one, number))
        far.send(b"x")
    engine.call_later(0.05, engine.stop)
    engine.run()
    assert len(called) == 1
    for pair in pairs:
        for each in pair:
            each.close()


def test_a_closed_descriptor_can_still_be_removed(engine: iodma.Engine) -> None:
    read, write = os.pipe()
    engine.add_reader(read, lambda: None)
    os.close(read)
    os.close(write)
    engine.remove_reader(read)
    engine.call_later(0.01, engine.stop)
    engine.run()


# --- pump and fileno ------------------------------------------------------------------------------


def test_pump_never_sleeps_and_fileno_tells_when_to_call_it(
    engine: iodma.Engine, disk: iodma.File
) -> None:
    with iodma.Ram(1 << 16) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        settle(engine)
        engine.fileno()
        settle(engine)
        assert not readable(engine), "there is nothing to do"
        transfer = port.to_memory((0, 1 << 16), source=disk)
        assert readable(engine), "it is submitted by a pump"
        deadline = time.monotonic() + 10
        while not transfer.done:
            assert readable(engine, max(0, deadline - time.monotonic())), "it came and nobody said"
            engine.pump()
        assert transfer.result.ok
        assert bytes(ram.view(0, 256)) == bytes(range(256))
        settle(engine)
        assert not readable(engine), "it would be called for ever"


@pytest.mark.parametrize(
    "what",
    [
        lambda engine, event: event.set(),
        lambda engine, event: engine.call_soon(event.set),
        lambda engine, event: engine.call_threadsafe(event.set),
        lambda engine, event: engine.call_later(0, event.set),
        lambda engine, event: engine.start(setting(event)),
    ],
    ids=["set", "call_soon", "call_threadsafe", "call_later", "start"],
)
def test_whatever_is_begun_between_two_pumps_is_heard(engine: iodma.Engine, what: Any) -> None:
    async def wait() -> str:
        await event.wait()
        return "heard"

    event = iodma.Event(engine)
    task = engine.start(wait())
    engine.fileno()
    settle(engine)
    assert not readable(engine)
    what(engine, event)
    deadline = time.monotonic() + 10
    while not task.done:
        assert readable(engine, max(0, deadline - time.monotonic()))
        engine.pump()
    assert task.result == "heard"


async def setting(event: iodma.Event) -> None:
    event.set()


def test_cancels_and_resets_between_two_pumps_are_heard(engine: iodma.Engine) -> None:
    with held_port(engine) as (port, held):
        engine.fileno()
        for what in (lambda transfer: transfer.cancel(), lambda transfer: port.reset()):
            transfer = port.from_memory((0, 16), to=held)
            settle(engine)
            assert not readable(engine)
            what(transfer)
            assert readable(engine)
            settle(engine)
            assert held.cancelled.pop() == transfer.ticket
            held.finish()
            assert readable(engine)
            settle(engine)
            assert transfer.result.status == iodma.Status.OK


def test_what_a_pump_refuses_at_its_end_is_heard(engine: iodma.Engine) -> None:
    """A batch that a coroutine submits in a pump faults in its last step, after its deliveries."""
    batch = iodma.Batch(1, 1)
    batch.n, batch.first[0], batch.count[0] = 1, 0, 1
    batch.address[0], batch.length[0] = 0, 512
    faults = 0
    with iodma.Null() as endpoint:
        port = engine.port(iodma.Memory())
        again = iodma.Event(engine)

        async def submit() -> None:
            while faults < 5:
                again.clear()
                port.submit(batch, endpoint)
                await again.wait()

        async def hear() -> None:
            nonlocal faults
            async for done in port.completions(forever=True):
                assert done.status[0] == iodma.Status.FAULT
                faults += 1
                again.set()

        task = engine.start(hear())
        engine.start(submit())
        while faults < 5:
            assert engine.pump() or readable(engine), "nobody would pump it again"
        task.cancel()
        settle(engine)


def test_pump_resumes_no_more_than_it_is_told_to(engine: iodma.Engine) -> None:
    ran: list[int] = []

    async def one(number: int) -> None:
        ran.append(number)

    for number in range(5):
        engine.start(one(number))
    assert engine.pump(2)
    assert ran == [0, 1]
    assert engine.pump(2)
    engine.pump(2)
    assert ran == [0, 1, 2, 3, 4]


# --- asyncio --------------------------------------------------------------------------------------


async def a_bit_of_everything(
    engine: iodma.Engine, ram: iodma.Ram, disk: iodma.File, read: int
) -> list[object]:
    """A read, a timer and a foreign descriptor."""
    port = engine.port(iodma.Memory({0: ram}))
    done = await port.to_memory((0, 4096), source=disk)
    await engine.sleep(0.01)
    heard = iodma.Event(engine)
    engine.add_reader(read, heard.set)
    await heard.wait()
    engine.remove_reader(read)
    return [done.moved, os.read(read, 9)]


def test_under_asyncio(engine: iodma.Engine, disk: iodma.File, pipe: tuple[int, int]) -> None:
    """All through one add_reader."""
    read, write = pipe
    with iodma.Ram(1 << 16) as ram:
        device = a_bit_of_everything(engine, ram, disk, read)

        async def main() -> object:
            loop = asyncio.get_running_loop()
            loop.add_reader(engine.fileno(), engine.pump)
            future = loop.create_future()
            engine.start(device)._when_done(lambda task: future.set_result(task.result))
            loop.call_later(0.03, os.write, write, b"foreign")
            try:
                return await asyncio.wait_for(future, 20)
            finally:
                loop.remove_reader(engine.fileno())

        assert asyncio.run(main()) == [4096, b"foreign"]
        assert bytes(ram.view(0, 4096)) == bytes(range(256)) * 16


def test_under_asyncio_its_own_tasks_are_not_kept_waiting(engine: iodma.Engine) -> None:
    async def spin() -> None:
        while True:
            await engine.sleep(0)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.add_reader(engine.fileno(), engine.pump)
        tasks = [engine.start(spin()) for _ in range(10)]
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.001)
            ticks += 1
        for task in tasks:
            task.cancel()
        while engine.stats().tasks:
            await asyncio.sleep(0)
        loop.remove_reader(engine.fileno())
        return ticks

    assert asyncio.run(asyncio.wait_for(main(), 20)) == 20


# --- trio -----------------------------------------------------------------------------------------


async def pump_in_trio(engine: iodma.Engine) -> None:
    while True:
        while engine.pump():
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.wait_readable(engine.fileno())


def test_under_trio(engine: iodma.Engine, disk: iodma.File, pipe: tuple[int, int]) -> None:
    read, write = pipe
    with iodma.Ram(1 << 16) as ram:
        device = a_bit_of_everything(engine, ram, disk, read)

        async def write_later() -> None:
            await trio.sleep(0.03)
            os.write(write, b"foreign")

        async def main() -> object:
            over = trio.Event()
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pump_in_trio, engine)
                    nursery.start_soon(write_later)
                    task = engine.start(device)
                    task._when_done(lambda _: over.set())
                    await over.wait()
                    nursery.cancel_scope.cancel()
            return task.result

        assert trio.run(main) == [4096, b"foreign"]
        assert bytes(ram.view(0, 4096)) == bytes(range(256)) * 16


# --- Ctrl-C ---------------------------------------------------------------------------------------

PLAIN = """
        engine.call_soon(ready)
        engine.run()
"""
IN_A_COROUTINE = """
        async def main():
            ready()
            while True:
                sum(range(1000))
        engine.run(main())
"""
ASYNCIO = """
        import asyncio
        async def main():
            loop = asyncio.get_running_loop()
            loop.add_reader(engine.fileno(), engine.pump)
            loop.call_soon(ready)
            await asyncio.sleep(60)
        asyncio.run(main())
"""
TRIO = """
        import trio
        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pumping)
                ready()
                await trio.sleep_forever()
        async def pumping():
            while True:
                while engine.pump():
                    await trio.lowlevel.checkpoint()
                await trio.lowlevel.wait_readable(engine.fileno())
        try:
            trio.run(main)
        except* KeyboardInterrupt:
            interrupted = True
        if interrupted:
            raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    "loop", [PLAIN, IN_A_COROUTINE, ASYNCIO, TRIO], ids=["run", "coroutine", "asyncio", "trio"]
)
def test_ctrl_c_ends_it_and_everything_is_given_back(loop: str, tmp_path: Path) -> None:
    """With a read in flight that never ends by itself, and a coroutine that waits for it."""
    program = """
import os, socket, iodma

near, far = socket.socketpair()
ended = []

def ready():
    print("ready", flush=True)

async def hear(port, endpoint):
    try:
        await port.to_memory((0, 16), source=endpoint)
    finally:
        ended.append("hear")

try:
    with near, far, iodma.Ram(4096) as ram, iodma.Socket(near) as quiet, \\
            iodma.Engine(slow_step=None) as engine:
        port = engine.port(iodma.Memory({0: ram}))
        engine.start(hear(port, quiet))
        engine.pump()
        engine.pump()
        run()
except KeyboardInterrupt:
    print("interrupted", ended, ram.leases, flush=True)
"""
    body = f"def run():\n{textwrap.indent(textwrap.dedent(loop), '    ')}\n{program}"
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (out, err, child.returncode) == ("interrupted ['hear'] 0\n", "", 0)


def test_what_a_strict_pump_lets_out_does_not_lose_the_rest() -> None:
    def fall() -> None:
        raise ValueError

    async def work() -> None:
        ran.append(1)
        await engine.sleep(0)
        ran.append(2)

    ran: list[int] = []
    with iodma.Engine(strict=True) as engine:
        engine.fileno()
        settle(engine)
        engine.call_soon(fall)
        engine.call_later(0, fall)
        engine.start(work())
        fallen = 0
        deadline = time.monotonic() + 10
        while len(ran) < 2 or fallen < 2:
            assert readable(engine, max(0, deadline - time.monotonic())), "it is forgotten"
            try:
                engine.pump()
            except ValueError:
                fallen += 1
        settle(engine)
        assert not readable(engine)
