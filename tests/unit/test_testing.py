"""`iodma.testing` itself: what users test their devices with must fail when it should."""

from __future__ import annotations

import doctest
import errno
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import iodma
import iodma.testing
from iodma import Access, Status
from iodma.testing import (
    Answer,
    Clock,
    FakeMemory,
    Inject,
    LeakError,
    Request,
    ScriptedEndpoint,
    no_leaks,
    strict_engine,
)
from iodma.testing.memory import MARGIN

MODULES = [f"iodma.testing.{each.name}" for each in pkgutil.iter_modules(iodma.testing.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0, "no example"


# -- FakeMemory ---------------------------------------------------------------


def test_memory_reads_and_writes_across_regions_that_touch() -> None:
    with FakeMemory({0x1000: 4096, 0x2000: 100}) as memory:
        memory.write(0x1FFE, b"abcd")
        assert memory.read(0x1FFE, 4) == b"abcd"
        with memory.ram(0x1000).view(MARGIN + 0xFFE, 2) as view:
            assert bytes(view) == b"ab"
        assert memory.read_list([(0x2000, 2), (0x1FFE, 2)]) == b"cdab"
        memory.write_list([(0x2000, 2), (0x1FFE, 2)], b"wxyz")
        assert memory.read(0x1FFE, 4) == b"yzwx"


@pytest.mark.parametrize(("address", "length"), [(0xFFF, 2), (0x1FFF, 2), (5, 1), (0x1000, 4097)])
def test_memory_names_what_is_not_there(address: int, length: int) -> None:
    with FakeMemory({0x1000: 4096}) as memory:
        with pytest.raises(iodma.AddressRangeError, match="it is at 0x1000 to 0x1fff"):
            memory.read(address, length)
        before = memory.read(0x1000, 4096)
        with pytest.raises(iodma.AddressRangeError):
            memory.write(address, b"x" * length)
        assert memory.read(0x1000, 4096) == before, "written in part"


def test_memory_fills() -> None:
    with FakeMemory({0: 10, 100: 10}) as memory:
        memory.fill(0xA5)
        memory.fill(b"abc", 3, 5)
        assert memory.read(0, 10) == b"\xa5\xa5\xa5abcab\xa5\xa5"
        assert memory.read(100, 10) == b"\xa5" * 10
        with pytest.raises(iodma.ArgumentError, match="256"):
            memory.fill(256)


def test_canaries_tell_of_one_changed_byte_anywhere() -> None:
    with FakeMemory({0x10_0000: 5000, (1 << 64) - 4096: 4096}) as memory:
        memory.check_canaries()
        memory.place_canaries(except_for=[(0x10_0010, 16), (0x10_0100, 1)])
        memory.write(0x10_0010, bytes(16))
        memory.write(0x10_0100, b"\0")
        memory.check_canaries()
        for address in (0x10_0000, 0x10_000F, 0x10_0020, 0x10_1387, (1 << 64) - 1):
            held = memory.read(address, 1)
            memory.write(address, bytes([held[0] ^ 1]))
            assert memory.damage() == [address]
            with pytest.raises(AssertionError, match=f"1 canaries were changed: at {address:#x}"):
                memory.check_canaries()
            memory.write(address, held)
        memory.check_canaries()


def test_canaries_lie_around_every_region() -> None:
    with FakeMemory({0x10_0000: 5000}) as memory:
        for offset in (0, MARGIN - 1, MARGIN + 5000, 2 * MARGIN + 4999):
            with memory.ram(0x10_0000).view(offset, 1) as view:
                view[0] ^= 0xFF
            assert memory.damage() == [0x10_0000 + offset - MARGIN]
            with memory.ram(0x10_0000).view(offset, 1) as view:
                view[0] ^= 0xFF


# -- ScriptedEndpoint ---------------------------------------------------------


def test_endpoint_has_a_content_that_is_read_and_written() -> None:
    disk = ScriptedEndpoint(b"0123456789")
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)
        memory.write(100, b"abc")

        async def main() -> None:
            done = await port.to_memory((0, 20), source=disk, offset=5)
            assert (done.status, done.moved) == (Status.OK, 5), "up to the end, as a file"
            assert memory.read(0, 6) == b"56789\0"
            done = await port.from_memory([(101, 2), (100, 1)], to=disk, offset=12)
            assert done.ok and done.moved == 3

        engine.run(main())
    assert bytes(disk.content) == b"0123456789\0\0bca"
    assert [each.offset for each in disk.requests] == [5, 10, 12]


def test_endpoint_answers_short_and_is_asked_for_the_rest() -> None:
    disk = ScriptedEndpoint(bytes(range(100)), script=[Answer.short(30), Answer.short(1)])
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> Any:
            return await port.to_memory([(0, 50), (50, 50)], source=disk)

        assert engine.run(main()).moved == 100
        assert memory.read(0, 100) == bytes(range(100))
    assert [(each.offset, each.length) for each in disk.requests] == [(0, 100), (30, 70), (31, 69)]


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (Answer.fail(errno.EIO), Status.IO_ERROR, errno.EIO),
        (Answer.fail(errno.ENOSPC), Status.IO_ERROR, errno.ENOSPC),
        (Answer.gone(), Status.PEER_GONE, errno.ECONNRESET),
        (Answer.fail(errno.EPIPE), Status.PEER_GONE, errno.EPIPE),
        (Answer.end(), Status.OK, 0),
    ],
)
def test_endpoint_fails_as_scripted(answer: Answer, status: Status, error: int) -> None:
    disk = ScriptedEndpoint(bytes(100), script=[Answer.short(10), answer])
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> Any:
            return await port.to_memory((0, 100), source=disk)

        done = engine.run(main())
        assert (done.status, done.moved, done.error) == (status, 10, error)


def test_endpoint_is_full_at_its_limit() -> None:
    disk = ScriptedEndpoint(b"", limit=64)
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)
        memory.fill(b"ab")

        async def main() -> Any:
            return await port.from_memory((0, 100), to=disk)

        done = engine.run(main())
        assert (done.status, done.moved, done.error) == (Status.IO_ERROR, 64, errno.ENOSPC)
    assert bytes(disk.content) == b"ab" * 32


def test_endpoint_flushes_discards_and_writes_zeroes() -> None:
    disk = ScriptedEndpoint(b"x" * 8, limit=16)
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> None:
            for what, status, content in (
                (lambda: port.flush(disk), Status.OK, b"xxxxxxxx"),
                (lambda: port.discard(disk, 2, 3), Status.OK, b"xx\0\0\0xxx"),
                (lambda: port.discard(disk, 6, 1 << 62), Status.OK, b"xx\0\0\0x\0\0"),
                (lambda: port.discard(disk, 100, 8), Status.OK, b"xx\0\0\0x\0\0"),
                (lambda: port.write_zeroes(disk, 1, 1), Status.OK, b"x\0\0\0\0x\0\0"),
                (lambda: port.write_zeroes(disk, 5, 5), Status.OK, b"x" + bytes(9)),
                (lambda: port.write_zeroes(disk, 10, 7), Status.IO_ERROR, b"x" + bytes(9)),
            ):
                assert (await what()).status is status
                assert bytes(disk.content) == content
            disk.limit = None
            done = await port.write_zeroes(disk, 0, 1 << 62)
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EFBIG)

        engine.run(main())
    kinds = ["flush", *["discard"] * 3, *["write_zeroes"] * 4]
    assert [each.kind for each in disk.requests] == kinds
    assert repr(disk.requests[1]) == "<Request discard 3 bytes at 2 over>"


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (Answer.fail(errno.EIO), Status.IO_ERROR, errno.EIO),
        (Answer.fail(errno.EOPNOTSUPP), Status.IO_ERROR, errno.EOPNOTSUPP),
        (Answer.gone(), Status.PEER_GONE, errno.ECONNRESET),
        (Answer.short(1), Status.OK, 0),
        (Answer.end(), Status.OK, 0),
    ],
)
@pytest.mark.parametrize("kind", ["flush", "discard", "write_zeroes"])
def test_endpoint_ends_what_is_no_transfer_as_scripted(
    kind: str, answer: Answer, status: Status, error: int
) -> None:
    disk = ScriptedEndpoint(b"x" * 8, script=[answer])
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> Any:
            return await getattr(port, kind)(disk, *(() if kind == "flush" else (0, 8)))

        done = engine.run(main())
    assert (done.status, done.error) == (status, error)
    moved = 8 if status is Status.OK and kind != "flush" else 0
    assert done.moved == moved
    assert bytes(disk.content) == (bytes(8) if moved else b"x" * 8)
    assert len(disk.requests) == 1, "asked once, as a whole"


def test_endpoint_holds_a_flush_that_a_cancel_or_a_reset_ends() -> None:
    disk = ScriptedEndpoint(8, script=lambda _: Answer.hold())
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> None:
            held, cancelled, reset = port.flush(disk), port.flush(disk), port.discard(disk, 0, 8)
            await disk.asked(3)
            assert cancelled.cancel()
            assert (await cancelled).status is Status.CANCELLED
            assert not held.done
            disk._peek(held.ticket, 8)  # no bytes belong to it
            disk.answer(moved=100)
            assert (await held).ok
            await port.reset()
            assert reset.result.status is Status.CANCELLED

        engine.run(main())


def test_endpoint_delays_by_the_clock_and_reorders() -> None:
    clock = Clock()
    disk = ScriptedEndpoint(
        bytes(100), script=lambda request: Answer.all().after(10 - request.offset)
    )
    order = []
    with strict_engine(clock=clock) as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def read(at: int) -> None:
            await port.to_memory((at, 1), source=disk, offset=at)
            order.append((at, clock.now))

        async def main() -> None:
            for task in [engine.start(read(at)) for at in (1, 5, 3)]:
                await task

        engine.run(main())
    assert order == [(5, 5.0), (3, 7.0), (1, 9.0)]


def test_endpoint_never_answers_inside_the_call_that_asks() -> None:
    def script(request: Request) -> Answer:
        disk.answer(request)  # in a turn of its own: allowed
        return Answer.hold()

    disk = ScriptedEndpoint(bytes(8), script=script)
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)
        inside: list[object] = []

        def ask(ticket: int, *_: int) -> None:
            try:
                disk._finish(ticket, 8, bytes(8))
            except iodma.Error as error:
                inside.append(error)
            engine.call_soon(disk._finish, ticket, 8, bytes(8))

        async def main() -> None:
            assert (await port.to_memory((0, 8), source=disk)).ok
            disk._set_script(ask, ask)
            assert (await port.to_memory((0, 8), source=disk)).ok
            disk._set_script(print, print)  # what the core refers to is no cycle to be collected

        engine.run(main())
        assert "inside the call" in str(inside[0])


def test_endpoint_refuses_to_answer_twice_or_nobody() -> None:
    disk = ScriptedEndpoint(bytes(8), script=lambda _: Answer.hold())
    with pytest.raises(iodma.Error, match="no engine yet"):
        disk.asked()
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> None:
            transfer = port.to_memory((0, 8), source=disk)
            await disk.asked()
            (request,) = disk.waiting
            disk.answer(request)
            with pytest.raises(iodma.ArgumentError, match="answered already"):
                disk.answer(request)
            with pytest.raises(iodma.Error, match="no request waits"):
                disk.answer()
            await transfer

        engine.run(main())


@pytest.mark.parametrize("honours", [True, False])
def test_endpoint_that_never_completes_ends_when_cancelled_or_closed(honours: bool) -> None:
    disk = ScriptedEndpoint(
        bytes(8), script=lambda _: Answer.hold(), on_cancel="honour" if honours else "ignore"
    )
    with strict_engine() as engine, FakeMemory(4096) as memory:
        port = engine.port(memory)
        with disk:

            async def main() -> Any:
                transfer = port.to_memory((0, 8), source=disk)
                await disk.asked()
                assert transfer.cancel()
                assert disk.waiting[0].cancelled
                for _ in range(5):
                    await engine.sleep(0)
                assert transfer.done is honours
                if not honours:
                    disk.close()
                return await transfer

            assert engine.run(main()).status is Status.CANCELLED


def test_endpoint_counts_what_passes_through_python() -> None:
    disk = ScriptedEndpoint(bytes(64))
    with strict_engine() as engine, FakeMemory(4096) as memory, disk:
        port = engine.port(memory)

        async def main() -> None:
            await port.to_memory((0, 64), source=disk)

        engine.run(main())
        assert engine.stats().python_bytes == 64


# -- Inject -------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_inject_faults_at_the_byte_anywhere_in_a_chain(depth: int) -> None:
    with strict_engine() as engine, FakeMemory(1 << 16) as memory:
        space: iodma.Memory | iodma.Iommu | iodma.Window | Inject = memory
        for level in range(3):
            if level == depth:
                space = inject = Inject(space, name="broken")
            space = iodma.Window(space, name=f"window{level}")
        inject.fault(0x1800, 0x10, Access.WRITE)
        port = engine.port(space)

        async def main() -> None:
            done = await port.copy((0, 4096), (0x1000, 4096))
            assert done.status is Status.FAULT and done.fault is not None
            assert done.fault.offset == 0x800 and done.fault.address == 0x1800
            assert done.fault.stage == "broken" and "refused" in done.fault.reason
            assert (await port.copy((0x1000, 4096), (0x3000, 4096))).ok, "reads pass"
            assert (await port.copy((0, 0x7F0), (0x1010, 0x7F0))).ok, "up to the byte before"
            assert (await port.copy((0, 16), (0x1810, 16))).ok, "from the byte after"
            with pytest.raises(iodma.DmaFault):
                await port.store("<I", 0x180C, 1)

        engine.run(main())


def test_inject_faults_so_often_and_no_more() -> None:
    with strict_engine() as engine, FakeMemory(4096) as memory:
        inject = Inject(memory)
        rule = inject.fault(times=2)
        port = engine.port(inject)

        async def main() -> list[bool]:
            return [(await port.copy((0, 8), (8, 8))).ok for _ in range(4)]

        assert engine.run(main()) == [False, False, True, True]
        assert rule.caught == 2


def test_inject_delays_a_transfer_of_many_pieces_once_a_piece() -> None:
    clock = Clock()
    with strict_engine(clock=clock) as engine, FakeMemory(1 << 16) as memory:
        memory.fill(b"0123456789", 0, 4096)
        inject = Inject(memory)
        rule = inject.delay(1.0, access=Access.READ)
        port = engine.port(inject)
        disk = ScriptedEndpoint(limit=64)

        async def main() -> Any:
            return await port.from_memory([(0, 10), (100, 10), (20, 10)], to=disk)

        assert engine.run(main()).ok
        disk.close()
        assert rule.caught == 3 and rule.held == []
        assert clock.now == 1.0, "they wait side by side"
        assert bytes(disk.content) == b"0123456789" * 3


def test_inject_holds_and_releases_in_another_order() -> None:
    order = []
    with strict_engine() as engine, FakeMemory(1 << 16) as memory:
        inject = Inject(memory)
        rule = inject.hold(0x1000, 0x3000, Access.WRITE)
        port = engine.port(inject)

        async def write(at: int) -> None:
            assert (await port.copy((0, 16), (at, 16))).ok
            order.append(at)

        async def main() -> None:
            tasks = [engine.start(write(at)) for at in (0x1000, 0x2000, 0x3000, 0x4000)]
            while len(rule.held) < 3:
                await inject.caught()
            assert [address for address, _ in rule.held] == [0x1000, 0x2000, 0x3000]
            rule.release(0x3000)
            await tasks[2]
            rule.release(0x1000)
            await tasks[0]
            rule.remove()
            for task in tasks:
                await task

        engine.run(main())
    assert order == [0x4000, 0x3000, 0x1000, 0x2000]


def test_inject_asks_a_function_and_keeps_a_log() -> None:
    with strict_engine() as engine, FakeMemory(4096) as memory:
        inject = Inject(memory, lambda address, length, access: int(length == 13))
        inject.logging = True
        port = engine.port(inject)

        async def main() -> None:
            assert (await port.load_bytes(5, 12)) == bytes(12)
            with pytest.raises(iodma.DmaFault):
                await port.load_bytes(5, 13)

        engine.run(main())
        assert inject.log == [(5, 12, Access.READ, 0), (5, 13, Access.READ, 1)]


# -- Clock, leaks -------------------------------------------------------------


def test_clock_goes_on_only_when_nothing_is_in_flight() -> None:
    clock = Clock(5)
    seen: list[float] = []
    with (
        strict_engine(clock=clock) as engine,
        FakeMemory(1 << 20) as memory,
        iodma.File(sys.executable, read_only=True) as file,
    ):
        port = engine.port(memory)

        async def reader() -> None:
            for _ in range(20):
                assert (await port.to_memory((0, 65536), source=file)).ok
            seen.append(clock.now)

        async def main() -> None:
            task = engine.start(reader())
            await engine.sleep(1000)
            await task

        engine.run(main())
    assert seen == [5.0] and clock.now == 1005.0
    clock.advance(1)
    assert clock.now == 1006.0
    with pytest.raises(iodma.ArgumentError, match="-1"):
        clock.advance(-1)


def test_clock_goes_on_while_a_translation_is_held() -> None:
    clock = Clock()
    with strict_engine(clock=clock) as engine, FakeMemory(8192) as memory:
        inject = Inject(memory)
        port = engine.port(inject)
        inject.hold(0x1000, 1)

        async def main() -> None:
            await engine.sleep(1)
            held = port.load_bytes(0x1000, 8)
            await engine.sleep(1)
            assert not held.done
            held.cancel()

        engine.run(main())
    assert clock.now == 2.0


def test_no_leaks_names_what_was_left() -> None:
    def leak(what: str) -> object:
        match what:
            case "descriptor":
                return os.open("/dev/null", os.O_RDONLY)
            case "engine":
                return iodma.Engine(name="forgotten")
            case _:
                return ram.view(0, 1)

    ram = iodma.Ram(4096)
    left: list[object] = []
    for what in ("descriptor", "engine", "view"):
        with pytest.raises(LeakError, match=what), no_leaks():
            left.append(leak(what))
    with pytest.raises(LeakError, match=r"mapping of .*memfd.*: 8192 bytes"), no_leaks():
        left.append(iodma.Ram(8192))
    with no_leaks():
        pass
    os.close(left[0])  # type: ignore[arg-type]
    for each in (left[1], left[3], ram):
        each.close()  # type: ignore[attr-defined]
    left[2].release()  # type: ignore[attr-defined]


def test_plugin_fails_the_test_that_leaks_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "def test_good(): os.close(os.open('/dev/null', os.O_RDONLY))\n"
        "def test_bad(): os.open('/dev/null', os.O_RDONLY)\n"
        "@pytest.mark.leaks_allowed\n"
        "def test_may(): os.open('/dev/null', os.O_RDONLY)\n"
        "def test_after(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "iodma.testing.leaks", "-q", "-rA", "."]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ERROR test_it.py::test_bad" in run.stdout, run.stdout + run.stderr
    assert ": /dev/null" in run.stdout
    assert "4 passed, 1 error" in run.stdout
