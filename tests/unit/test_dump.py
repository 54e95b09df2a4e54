"""SIGUSR1: what is in flight, told without disturbing it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import iodma
from iodma.engine.dump import MOST, describe, dump_on_signal
from tests.unit.engines import held_port, settle


@pytest.fixture
def engine() -> Iterator[iodma.Engine]:
    with iodma.Engine(name="mine") as engine:
        yield engine


def mine(text: str) -> list[str]:
    """The lines about the engine called mine."""
    found = re.search(r"^iodma: mine .*\n(  .*\n)*", text, re.MULTILINE)
    return found[0].splitlines() if found else []


def test_it_names_every_transfer_and_the_counters(engine: iodma.Engine) -> None:
    with held_port(engine) as (port, held):
        transfer = port.from_memory([(0, 16), (64, 8)], to=held)
        settle(engine)
        head, row, counters = mine(describe())
        assert head == f"iodma: mine ({engine.kind}): 1 transfers in flight, 0 tasks"
        assert row.startswith(
            f"  {transfer.ticket:#x} port0: transfer from_memory, {engine.transfers()[0].state} "
        )
        assert row.endswith("0 of 24 bytes, <Held held>")
        assert "submitted=1 " in counters
        assert "delivered" not in counters


def test_a_flood_is_cut_and_counted(engine: iodma.Engine) -> None:
    with held_port(engine) as (port, held):
        for _ in range(MOST + 5):
            port.from_memory((0, 16), to=held)
        settle(engine)
        lines = mine(describe())
        assert len(lines) == 1 + MOST + 1 + 1
        assert lines[-2] == "  ... and 5 younger ones"


def test_it_tells_where_each_task_waits(engine: iodma.Engine) -> None:
    async def driver() -> None:
        await iodma.Event(engine).wait()

    async def inner() -> None:
        await driver()

    task = engine.start(inner(), name="lost")
    settle(engine)
    line = driver.__code__.co_firstlineno + 1
    assert f"  task lost, at {__file__}:{line}" in mine(describe())
    for _ in range(MOST):
        engine.start(driver())
    lines = mine(describe())
    assert lines[-2] == "  ... and 1 younger tasks"
    assert sum(each.startswith("  task ") for each in lines) == MOST
    task.cancel()


def test_without_an_engine_it_says_so() -> None:
    assert "no engine is open" in python(
        "from iodma.engine.dump import describe; print(describe())"
    )


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    ).stdout


PROGRAM = """
import iodma, socket
from iodma.engine.dump import dump_on_signal

dump_on_signal()
near, far = socket.socketpair()

async def main(port, quiet):
    transfer = port.to_memory((0, 5), source=quiet)
    engine.call_soon(lambda: print("ready", flush=True))
    done = await transfer
    print(bytes(ram.view(0, done.moved)))

with near, far, iodma.Ram(4096) as ram, iodma.Socket(near) as quiet, iodma.Engine() as engine:
    engine.add_reader(0, lambda: far.send(b"hello") and engine.remove_reader(0))
    engine.run(main(engine.port(iodma.Memory({0: ram})), quiet))
"""


def test_a_program_that_waits_tells_and_goes_on() -> None:
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stderr is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    for _ in range(30):
        child.send_signal(signal.SIGUSR1)
        assert re.match(r"iodma: engine0 \(\w+\): 1 transfers in", child.stderr.readline())
        assert re.search(r"to_memory, .* 0 of 5 bytes, <Socket", child.stderr.readline())
        assert child.stderr.readline() == "  task main, at <string>:11\n"
        assert "submitted=1" in child.stderr.readline()
    out, err = child.communicate("x", timeout=30)
    assert (out, err, child.returncode) == ("b'hello'\n", "", 0)


def test_only_the_main_thread_can_ask_for_it() -> None:
    caught: list[ValueError] = []

    def elsewhere() -> None:
        try:
            dump_on_signal()
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(caught) == 1
