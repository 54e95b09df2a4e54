"""The completion contract of the design: each test names the rule that it holds the core to.

Invariants:

- Nothing here depends on which engine runs it, nor on how long anything takes.
- What a rule forbids is looked for where it would show: in memory (canaries), in the counters, or
  in the order in which things were seen from outside.
"""

from __future__ import annotations

import errno
import logging
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import Answer, FakeMemory, Request, ScriptedEndpoint, strict_engine
from iodma.testing.leaks import few_objects, leaks  # noqa: F401  (checks every test here)

MIB = 1 << 20


class System:
    """An engine, memory and a port, and a way to run a coroutine."""

    def __init__(self) -> None:
        self.engine = strict_engine()
        self.memory = FakeMemory(8 * MIB)
        self.port: iodma.Port = self.engine.port(self.memory)
        self.ram = self.memory.ram(0)

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    async def turns(self, count: int = 5) -> None:
        for _ in range(count):
            await self.engine.sleep(0)

    def close(self) -> None:
        self.engine.close()
        self.memory.close()
        vars(self).clear()  # pytest keeps what a fixture made until after the last check


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[iodma.File]:
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(MIB))
    with iodma.File(tmp_path / "file") as made:
        yield made


def content(file: iodma.File) -> bytes:
    return Path(file.name).read_bytes()


def shuffled(count: int, size: int, seed: int = 1) -> list[tuple[int, int]]:
    """So many segments of ``size`` bytes, out of order and with gaps."""
    places = list(range(count))
    random.Random(seed).shuffle(places)
    return [(place * 2 * size, size) for place in places]


def connection(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def hold(_: Request) -> Answer:
    return Answer.hold()


# -- 1: exactly one terminal completion ---------------------------------------


def test_rule_1_exactly_one_terminal_completion(system: System, file: iodma.File) -> None:
    port, seen = system.port, []
    flaky = ScriptedEndpoint(
        bytes(4096),
        script=lambda request: [Answer.short(7), Answer.all(), Answer.fail(5)][request.offset % 3],
    )
    left, right = socket.socketpair()
    with iodma.Buffer(4096) as buffer, flaky, left, right, iodma.Socket(left) as wire:

        async def main() -> None:
            transfers: list[Any] = []
            for i in range(300):
                at = (i * 4096, 1000)
                match i % 8:
                    case 0:
                        transfers.append(port.to_memory(at, source=file, offset=i * 1000))
                    case 1:
                        transfers.append(port.to_memory(at, source=flaky, offset=i))
                    case 2:
                        transfers.append(port.from_memory(at, to=buffer, offset=3500))
                    case 3:
                        transfers.append(port.copy(at, (i, 1000)))
                    case 4:
                        transfers.append(port.from_memory((1 << 40, 8), to=buffer))
                    case 5:
                        transfers.append(port.from_memory(at, to=wire))
                    case 6:
                        transfers.append(port.to_memory(at, source=wire))
                    case _:
                        transfers.append(port.flush(file))
                if i % 5 == 0:
                    transfers[-1].cancel()
                transfers[-1]._when_done(lambda done: seen.append(done.ticket))
            right.setblocking(False)
            for transfer in reversed(transfers):
                if not transfer.done:
                    transfer.cancel()
                await transfer
                await transfer

        system.run(main())
        stats = system.engine.stats()
        assert len(seen) == len(set(seen)) == 300
        assert stats.submitted == stats.delivered == sum(stats.completed.values()) == 300
        assert stats.in_flight == 0 and system.ram.leases == 0


def test_rule_1_moved_is_the_contiguous_prefix(system: System) -> None:
    """What `moved` says is there, and not a byte more."""
    data = random.Random(2).randbytes(1000)
    pieces = [1, 2, 300, 13, 84]
    disk = ScriptedEndpoint(data, script=[*map(Answer.short, pieces), Answer.fail(errno.EIO)])
    segments = shuffled(10, 100)
    with disk:
        system.memory.place_canaries()
        before = system.memory.read_list(segments)

        async def main() -> Any:
            return await system.port.to_memory(segments, source=disk)

        done = system.run(main())
    assert (done.status, done.moved, done.error) == (Status.IO_ERROR, 400, errno.EIO)
    assert system.memory.read_list(segments) == data[:400] + before[400:]
    cut, left = [], 400
    for address, length in segments:
        cut.append((address, min(length, left)))
        left -= min(length, left)
    kept = system.memory.read_list(cut)
    system.memory.place_canaries(except_for=cut)
    system.memory.write_list(cut, kept)
    system.memory.check_canaries()


def test_rule_1_a_split_transfer_completes_after_its_last_piece(
    system: System, file: iodma.File
) -> None:
    segments = shuffled(3000, 300)
    seen: list[int] = []
    file.grow(MIB)

    async def main() -> Any:
        transfer = system.port.to_memory(segments, source=file)
        transfer._when_done(lambda done: seen.append(done.result.moved))
        return await transfer

    done = system.run(main())
    assert (done.status, done.moved) == (Status.OK, 900_000)
    assert seen == [900_000], "once, with all of it"
    assert system.memory.read_list(segments) == content(file)[:900_000]
    assert system.engine.stats().requests > 1, "it was to be split"


@pytest.mark.parametrize("endpoint", ["file", "buffer", "scripted", "copy"])
def test_rule_1_overlapping_segments_touch_no_byte_outside_the_list(
    system: System, file: iodma.File, endpoint: str, rng: random.Random
) -> None:
    data = content(file)
    with iodma.Buffer(MIB) as buffer, ScriptedEndpoint(data) as scripted:
        source = {"file": file, "buffer": buffer, "scripted": scripted}.get(endpoint)

        async def main() -> None:
            for _ in range(20):
                base = rng.randrange(0, 4 * MIB)
                segments = [
                    (base + rng.randrange(2000), rng.randrange(1, 800))
                    for _ in range(rng.randrange(1, 12))
                ]
                total = sum(length for _, length in segments)
                system.memory.place_canaries(except_for=segments)
                if source is not None:
                    done = await system.port.to_memory(segments, source=source)
                else:
                    done = await system.port.copy((5 * MIB, total), segments)
                assert (done.status, done.moved) == (Status.OK, total)
                system.memory.check_canaries()

        system.run(main())


def test_rule_1_short_file_reads_go_on_to_the_end_of_the_file(
    system: System, file: iodma.File
) -> None:
    disk = ScriptedEndpoint(b"x" * 1000, script=lambda request: Answer.short(17))

    async def main() -> None:
        done = await system.port.to_memory((0, 4096), source=disk, offset=100)
        assert (done.status, done.moved) == (Status.OK, 900)
        done = await system.port.to_memory((0, MIB), source=file, offset=MIB - 5000)
        assert (done.status, done.moved) == (Status.OK, 5000)
        done = await system.port.to_memory((0, 10), source=file, offset=MIB)
        assert (done.status, done.moved) == (Status.OK, 0)

    with disk:
        system.run(main())
        assert len(disk.requests) == 54


# -- 2: never inside the submitting call --------------------------------------


def test_rule_2_nothing_completes_inside_the_submitting_call(
    system: System, file: iodma.File
) -> None:
    port = system.port
    inside: list[str] = []
    buffer, null = iodma.Buffer(4096), iodma.Null()
    submits = {
        "nothing to move": lambda: port.to_memory((0, 0), source=file),
        "an empty list": lambda: port.from_memory([], to=buffer),
        "a fault": lambda: port.to_memory((1 << 50, 8), source=file),
        "a position that no file has": lambda: port.to_memory(
            (0, 8), source=file, offset=(1 << 64) - 1
        ),
        "a memory endpoint": lambda: port.to_memory((0, 8), source=buffer),
        "no endpoint": lambda: port.from_memory((0, 8), to=null),
        "a copy": lambda: port.copy((0, 8), (8, 8)),
        "a file": lambda: port.to_memory((0, 8), source=file),
        "a flush": lambda: port.flush(file),
    }

    submitting = False

    def note(what: str) -> None:
        if submitting:
            inside.append(what)

    async def one(what: str, submit: Any, cancel: bool) -> None:
        nonlocal submitting
        submitting = True
        transfer = submit()
        transfer._when_done(lambda _: note(what))
        if cancel:
            transfer.cancel()
        assert not transfer.done, what
        submitting = False
        await transfer

    async def main() -> None:
        for what, submit in submits.items():
            await one(what, submit, cancel=False)
            await one(what, submit, cancel=True)

    with buffer, null:
        system.run(main())
    assert inside == []


def test_rule_2_a_coroutine_is_never_resumed_inside_a_submit_or_cancel(system: System) -> None:
    depth = 0
    log: list[str] = []
    with ScriptedEndpoint(bytes(8), script=hold) as disk:
        first: Any = None

        async def waiter() -> None:
            await first
            log.append("resumed" if depth == 0 else "re-entered")

        async def main() -> None:
            nonlocal first, depth
            first = system.port.to_memory((0, 8), source=disk)
            task = system.engine.start(waiter())
            await disk.asked()
            depth = 1
            disk.answer()
            system.port.copy((0, 8), (8, 8)).cancel()
            system.port.cancel(first.ticket)
            log.append("submitted")
            depth = 0
            await task

        system.run(main())
    assert log == ["submitted", "resumed"]


def test_rule_2_what_is_known_at_once_keeps_nobody_else_from_running(system: System) -> None:
    """A coroutine whose every await is done at once is one among others all the same."""
    ticks = 0

    async def other() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await system.turns(1)

    async def main() -> None:
        task = system.engine.start(other())
        for i in range(5000):
            assert await system.port.load("<I", i * 4) == (0,)
        task.cancel()

    system.run(main())
    assert ticks > 5


# -- 3: a cancel is a request, the lease ends at the terminal completion -------


def test_rule_3_a_cancel_is_a_request_and_the_lease_lasts_to_the_completion(system: System) -> None:
    with ScriptedEndpoint(b"12345678", script=hold, on_cancel="ignore") as disk:

        async def main() -> None:
            transfer = system.port.to_memory([(0, 4), (100, 4)], source=disk)
            await disk.asked()
            assert transfer.cancel() and transfer.cancel()
            await system.turns()
            assert not transfer.done, "the endpoint still has it"
            assert system.ram.leases == 2, "and so the memory is held"
            disk.answer()
            done = await transfer
            assert (done.status, done.moved) == (Status.OK, 8), "it was too late"
            assert system.ram.leases == 0
            assert not transfer.cancel()

        system.run(main())
        assert system.memory.read(0, 4) + system.memory.read(100, 4) == b"12345678"


def test_rule_3_memory_stays_mapped_until_the_lease_ends() -> None:
    with (
        strict_engine() as engine,
        ScriptedEndpoint(b"late", script=hold, on_cancel="ignore") as disk,
    ):
        ram = iodma.Ram(4096)
        memory = iodma.Memory({0: ram})
        port = engine.port(memory)

        async def main() -> None:
            transfer = port.to_memory((0, 4), source=disk)
            await disk.asked()
            removal = memory.remove(0, cancel=True)
            ram.close()
            for _ in range(5):
                await engine.sleep(0)
            assert not removal.done and removal.held_by == [transfer.ticket]
            disk.answer()
            assert await removal is True
            assert (await transfer).ok

        engine.run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_rule_3_a_zero_copy_send_ends_with_its_second_completion(system: System, kind: str) -> None:
    """Where there is no such thing (a unix socket, the threads engine), it is an ordinary send."""
    data = random.Random(3).randbytes(4 * MIB)
    system.memory.write(0, data)
    near, far = connection(kind)
    received = bytearray()

    def receive() -> None:
        while chunk := far.recv(1 << 16):
            received.extend(chunk)

    with near, far, iodma.Socket(near, zero_copy=True) as wire:
        peer = threading.Thread(target=receive)
        peer.start()

        async def main() -> None:
            done = await system.port.from_memory((0, len(data)), to=wire)
            assert (done.status, done.moved) == (Status.OK, len(data))
            assert system.ram.leases == 0
            system.memory.fill(0)  # nothing of it may be sent again from there

        system.run(main())
        near.shutdown(socket.SHUT_WR)
        peer.join()
    assert received == data


# -- 4: what a guest or the host can cause is a value -------------------------


def test_rule_4_every_status_is_a_value(system: System, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    left, right = socket.socketpair()
    held = ScriptedEndpoint(bytes(8), script=hold)
    read_only = iodma.File(tmp_path / "file", read_only=True)
    with left, iodma.Socket(left) as wire, held, read_only, iodma.Buffer(64) as small:
        port = system.port

        async def main() -> None:
            done = await port.to_memory((0, 8), source=read_only)
            assert (done.status, done.ok, done.error, done.fault) == (Status.OK, True, 0, None)
            done = await port.to_memory([(0, 8), (1 << 40, 8)], source=read_only)
            assert done.status is Status.FAULT and done.fault is not None and not done.ok
            assert (done.fault.offset, done.fault.address) == (8, 1 << 40)
            assert done.fault.stage == "memory" and done.fault.access is iodma.Access.WRITE
            done = await port.from_memory((0, 8), to=read_only)
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EROFS)
            done = await port.from_memory((0, 80), to=small)
            assert (done.status, done.moved, done.error) == (Status.IO_ERROR, 64, errno.ENOSPC)
            transfer = port.to_memory((0, 8), source=held)
            transfer.cancel()
            done = await transfer
            assert (done.status, done.moved, done.error) == (Status.CANCELLED, 0, 0)
            right.sendall(b"last")
            right.close()
            done = await port.to_memory((0, 8), source=wire)
            assert (done.status, done.moved) == (Status.PEER_GONE, 4)
            done = await port.from_memory((0, MIB), to=wire)
            assert (done.status, done.error) == (Status.PEER_GONE, errno.EPIPE)

        system.run(main())


def test_rule_4_only_load_and_store_raise_and_then_the_completion_comes_along(
    system: System,
) -> None:
    port = system.port

    async def main() -> None:
        for access in (
            lambda: port.load("<IQ", 1 << 40),
            lambda: port.load_bytes(8 * MIB - 4, 8),
            lambda: port.store("<I", 1 << 40, 5),
            lambda: port.store_bytes(8 * MIB - 4, bytes(8)),
            lambda: port.load_segments(1 << 40, 4),
            lambda: port.load_segments(0, 2000),
        ):
            with pytest.raises(iodma.DmaFault) as caught:
                await access()
            completion = caught.value.completion
            assert completion.status is Status.FAULT and completion.fault is not None
            assert str(completion.fault) == str(caught.value)

    system.run(main())


# -- 5: reset ------------------------------------------------------------------


def test_rule_5_no_byte_lands_after_a_reset_was_acknowledged(
    system: System, file: iodma.File, rng: random.Random
) -> None:
    left, right = socket.socketpair()
    right.settimeout(5)
    with left, right, iodma.Socket(left) as wire:
        port = system.port

        async def main() -> None:
            for trial in range(40):
                generation = port.generation
                transfers = [
                    port.to_memory((i * 65536, 65536), source=file, offset=i * 65536)
                    for i in range(8)
                ]
                transfers.append(port.to_memory((MIB, 4096), source=wire))
                transfers.append(port.copy((2 * MIB, MIB), (3 * MIB, MIB)))
                await system.turns(rng.randrange(4))
                if trial % 2:
                    right.send(b"x" * 100)
                await port.reset()
                assert port.generation == generation + 1
                assert port.in_flight == 0 and system.ram.leases == 0
                system.memory.place_canaries()
                if not trial % 2:
                    right.send(b"y" * 100)
                await system.turns(3)
                assert all(transfer.done for transfer in transfers)
                system.memory.check_canaries()
                left.setblocking(False)
                try:
                    left.recv(4096)
                except BlockingIOError:
                    pass
                finally:
                    left.setblocking(True)

        system.run(main())


def test_rule_5_a_reset_is_acknowledged_only_when_all_is_drained(system: System) -> None:
    with ScriptedEndpoint(bytes(64), script=hold, on_cancel="ignore") as disk:
        port = system.port

        async def main() -> None:
            transfers = [port.to_memory((i * 8, 8), source=disk) for i in range(3)]
            await disk.asked(3)
            reset = port.reset()
            assert port.resetting
            with pytest.raises(iodma.StaleError, match="being reset"):
                port.copy((0, 8), (8, 8))
            for left in (2, 1, 0):
                await system.turns()
                assert not reset.done and port.in_flight == left + 1
                disk.answer()
            await reset
            assert [(await each).status for each in transfers] == [Status.OK] * 3
            assert (await port.copy((0, 8), (8, 8))).ok, "and then it goes on"

        system.run(main())


def test_rule_5_a_late_cancel_hits_nothing_and_nobody_else(system: System) -> None:
    with ScriptedEndpoint(bytes(64), script=hold) as disk:
        port = system.port

        async def main() -> None:
            old = port.to_memory((0, 8), source=disk)
            await disk.asked(1)
            await port.reset()
            assert (await old).status is Status.CANCELLED
            assert not port.cancel(old.ticket)
            fresh = [port.to_memory((0, 8), source=disk) for _ in range(64)]
            await disk.asked(65)
            assert old.ticket not in {each.ticket for each in fresh}
            assert not port.cancel(old.ticket) and not old.cancel()
            assert not any(request.cancelled for request in disk.waiting)
            disk.answer_all()
            assert all([(await each).ok for each in fresh])
            assert not port.cancel(fresh[0].ticket)
            assert not port.cancel((1 << 64) - 1) and not port.cancel(0)

        system.run(main())


class Worker(iodma.Device):
    """Reads its disk into memory, over and over, until it is reset."""

    go = iodma.Doorbell(0x0, run="work")
    count = iodma.Register(0x4, access="rw")

    disk: iodma.Endpoint

    def reset(self) -> None:
        self.log: list[str] = getattr(self, "log", [])

    async def work(self, value: int) -> None:
        try:
            while True:
                await self.port.to_memory((0, 8), source=self.disk)
                self.count += 1
        except iodma.Cancelled:
            self.log.append("cancelled")
            for what, refused in (
                ("submit", lambda: self.port.copy((0, 8), (8, 8))),
                ("register", lambda: setattr(self, "count", 77)),
                ("start", lambda: self.start(self.work(0))),
            ):
                try:
                    refused()
                except iodma.StaleError:
                    self.log.append(f"{what} refused")
            try:
                await self.engine.sleep(0)
            except iodma.StaleError:
                self.log.append("await refused")
            raise
        finally:
            self.log.append("finally")


def test_rule_5_coroutines_of_the_old_generation_get_cancelled_and_can_only_end(
    system: System,
) -> None:
    with ScriptedEndpoint(bytes(8)) as disk:
        device = Worker(system.port, disk=disk)
        bus = iodma.Bus()
        bus.attach(device, 0x1000)

        async def main() -> None:
            bus.write32(0x1000, 1)
            while bus.read32(0x1004) < 3:
                await system.turns(1)
            await device.request_reset()
            assert device.log == [
                "cancelled",
                "submit refused",
                "register refused",
                "start refused",
                "await refused",
                "finally",
            ]
            assert bus.read32(0x1004) == 0, "registers have their reset values"
            asked = len(disk.requests)
            await system.turns()
            assert len(disk.requests) == asked

        system.run(main())
        assert not isinstance(iodma.Cancelled(), Exception)


# -- 6: an uncaught exception fails that device alone --------------------------


class Fragile(iodma.Device):
    go = iodma.Doorbell(0x0, run="work")
    done = iodma.Register(0x4, access="ro")
    poke = iodma.Register(0x8, write="poked")

    def poked(self, value: int) -> None:
        raise ZeroDivisionError("a bug in a handler")

    async def work(self, value: int) -> None:
        await self.port.copy((0, 8), (8, 8))
        if value == 13:
            raise ZeroDivisionError("a bug in a coroutine")
        self.done = value


@pytest.mark.parametrize("where", ["handler", "coroutine"])
def test_rule_6_an_uncaught_exception_fails_that_device_alone(
    caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with iodma.Engine() as engine, FakeMemory(4096) as memory:
        bus = iodma.Bus()
        broken = Fragile(engine.port(memory), name="broken")
        sound = Fragile(engine.port(memory), name="sound")
        bus.attach(broken, 0x0)
        bus.attach(sound, 0x1000)

        async def main() -> None:
            for value in range(20):
                bus.write32(0x1000, value + 20)
                if value == 5:
                    if where == "handler":
                        bus.write32(0x8, 1)
                    else:
                        bus.write32(0x0, 13)
                while bus.read32(0x1004) != value + 20:
                    await engine.sleep(0)
            assert bus.read32(0x4) == 0xFFFF_FFFF, "all-ones"

        with caplog.at_level(logging.ERROR, "iodma"):
            engine.run(main())
    told = [record for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert len(told) == 1, "once"
    assert told[0].exc_info and told[0].exc_info[2] is not None, "with its traceback"
    assert (broken.counts.failures, sound.counts.failures) == (1, 0)


@pytest.mark.parametrize("where", ["handler", "coroutine"])
def test_rule_6_a_strict_engine_lets_it_out(where: str) -> None:
    with strict_engine() as engine, FakeMemory(4096) as memory:
        bus = iodma.Bus()
        bus.attach(Fragile(engine.port(memory), name="broken"), 0)

        async def main() -> None:
            bus.write32(0x8 if where == "handler" else 0, 13)
            await engine.sleep(1)

        with pytest.raises(ZeroDivisionError, match=f"a bug in a {where}"):
            engine.run(main())


# -- 7: DMA that hits a device window is a message -----------------------------


class Log:
    """A window's target that notes what it sees, and perhaps does something."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []
        self.also: Any = None

    def read(self, offset: int, width: int) -> int:
        value = sum((offset + i & 0xFF) << 8 * i for i in range(width))
        self.seen.append(("r", offset, width, value))
        return value

    def write(self, offset: int, width: int, value: int) -> bool | None:
        self.seen.append(("w", offset, width, value))
        return None if self.also is None else self.also(offset)


WINDOW = 1 << 32


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31])
def test_rule_7_each_access_once_ascending_and_naturally_aligned(
    system: System, first: int, length: int
) -> None:
    log = Log()
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    data = bytes(range(100, 100 + length))
    system.memory.write(0, data)

    async def main() -> None:
        done = await system.port.copy((0, length), (WINDOW + first, length))
        assert (done.status, done.moved) == (Status.OK, length)

    system.run(main())
    at, written = first, b""
    for verb, offset, width, value in log.seen:
        assert verb == "w" and offset == at and width in (1, 2, 4, 8) and offset % width == 0
        written += value.to_bytes(width, "little")
        at += width
    assert written == data, "each byte once, in order"


def test_rule_7_a_message_comes_after_the_pieces_before_it(
    system: System, file: iodma.File
) -> None:
    log, seen = Log(), []
    log.also = lambda offset: seen.append(system.memory.read(0, 4096))
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        done = await system.port.to_memory(
            [(0, 4096), (WINDOW, 8), (8192, 4096), (WINDOW + 8, 8)], source=file
        )
        assert (done.status, done.moved) == (Status.OK, 8208)

    system.run(main())
    assert seen == [content(file)[:4096]] * 2
    assert system.memory.read(8192, 4096) == content(file)[4104:8200]


def test_rule_7_a_window_that_refuses_is_a_fault_at_that_offset(system: System) -> None:
    log = Log()
    log.also = lambda offset: offset < 16
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        done = await system.port.copy([(0, 100)], [(0x1000, 50), (WINDOW, 50)])
        assert done.status is Status.FAULT and done.fault is not None
        assert (done.moved, done.fault.offset, done.fault.address) == (66, 66, WINDOW + 16)

    system.run(main())
    assert [offset for _, offset, _, _ in log.seen] == [0, 8, 16], "and nothing is retried"


def test_rule_7_past_the_depth_limit_it_ends_in_a_bus_error(system: System) -> None:
    """A window whose handler stores to the window again."""
    log, transfers = Log(), list[Any]()
    log.also = lambda offset: transfers.append(system.port.store("<Q", WINDOW, 5))
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        transfers.append(system.port.copy((0, 4), (WINDOW + 4, 4)))
        for transfer in transfers:  # it grows
            try:
                await transfer
            except iodma.DmaFault as error:
                fault = error.completion.fault
        assert fault is not None and (fault.offset, fault.address) == (0, WINDOW)
        assert "bus error" in fault.reason

    system.run(main())
    assert len(log.seen) == 8, "so many nested messages"
    assert len(transfers) == 9, "and the ninth was refused"


def test_rule_7_a_handler_is_never_entered_again_from_its_own_messages(system: System) -> None:
    busy, entered = False, 0
    log = Log()

    def handler(offset: int) -> None:
        nonlocal busy, entered
        assert not busy
        busy = True
        entered += 1
        if entered < 5:
            system.port.store("<I", WINDOW, entered)
            system.port.copy((0, 16), (WINDOW + 64, 16))
        busy = False

    log.also = handler
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        await system.port.store("<I", WINDOW, 1)
        while system.engine.stats().in_flight:
            await system.turns(1)

    system.run(main())
    assert entered > 5


@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_rule_7_a_handler_may_end_the_transfer_that_it_is_a_message_of(
    system: System, how: str
) -> None:
    log, transfers = Log(), list[Any]()

    def handler(offset: int) -> None:
        if how == "cancel":
            assert transfers[0].cancel() in (True, False)
        else:
            system.port.reset()

    log.also = handler
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    with ScriptedEndpoint(bytes(64)) as disk, iodma.Buffer(64) as buffer:

        async def one(submit: Any) -> None:
            transfers[:] = [submit()]
            assert (await transfers[0]).status in (Status.OK, Status.CANCELLED)
            await system.port.reset()

        for submit in (
            lambda: system.port.copy((0, 16), (WINDOW, 16)),
            lambda: system.port.to_memory((WINDOW, 16), source=buffer),
            lambda: system.port.to_memory((WINDOW, 16), source=disk),
        ):
            system.run(one(submit))


def test_rule_7_a_handler_may_cancel_what_is_read_from_it(system: System) -> None:
    transfers: list[Any] = []

    class Reader(Log):
        def read(self, offset: int, width: int) -> int:
            transfers[0].cancel()
            return super().read(offset, width)

    log = Reader()
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    left, right = socket.socketpair()
    with left, right, iodma.Socket(left) as wire:

        async def main() -> None:
            transfers.append(system.port.from_memory((WINDOW, 16), to=wire))
            assert (await transfers[0]).status is Status.CANCELLED

        system.run(main())
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            right.recv(1)


def test_rule_7_an_msi_comes_after_the_data_before_it(system: System, file: iodma.File) -> None:
    seen: list[tuple[int, bytes]] = []
    msi = iodma.MsiWindow(lambda offset, vector: seen.append((vector, system.memory.read(0, 4096))))
    system.memory.add(0xFEE0_0000, msi)

    async def main() -> None:
        await system.port.to_memory((0, 4096), source=file)
        await system.port.store("<I", 0xFEE0_0000, 0x41)

    system.run(main())
    assert seen == [(0x41, content(file)[:4096])]


# -- 8: order --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_rule_8_two_sends_on_one_stream_never_interleave(system: System, kind: str) -> None:
    near, far = connection(kind)
    size, trials = 256 << 10, 40
    system.memory.fill(b"a", 0, size)
    system.memory.fill(b"b", MIB, size)
    received = bytearray()

    def receive() -> None:
        while len(received) < trials * 2 * size:
            received.extend(far.recv(1 << 20))

    with near, far, iodma.Socket(near) as wire:
        peer = threading.Thread(target=receive)
        peer.start()

        async def send(base: int) -> None:
            segments = [(base + i * 4096, 4096) for i in range(size // 4096)]
            assert (await system.port.from_memory(segments, to=wire)).ok

        async def main() -> None:
            for _ in range(trials):
                both = [system.engine.start(send(base)) for base in (0, MIB)]
                for task in both:
                    await task

        system.run(main())
        peer.join()
        assert system.engine.stats().waited["order"] >= trials
    assert received == (b"a" * size + b"b" * size) * trials


def test_rule_8_receives_on_one_stream_are_filled_in_order(system: System) -> None:
    near, far = socket.socketpair()
    with near, far, iodma.Socket(near) as wire:

        async def main() -> None:
            transfers = [system.port.to_memory((i * 100, 100), source=wire) for i in range(50)]
            await system.turns()
            data = bytes(i // 100 for i in range(5000))
            for at in range(0, 5000, 77):
                far.sendall(data[at : at + 77])
                await system.turns(1)
            for transfer in transfers:
                assert (await transfer).moved == 100
            assert system.memory.read(0, 5000) == data

        system.run(main())


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_rule_8_a_packet_endpoint_keeps_order_and_packets(
    system: System, kind: socket.SocketKind
) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far, iodma.Datagram(near) as out, iodma.Datagram(far) as into:
        sizes = [1 + i * 37 % 900 for i in range(60)]

        async def main() -> None:
            for i, size in enumerate(sizes):
                system.memory.fill(i + 1, i * 1000, size)
            receives = [
                system.port.to_memory((MIB + i * 1000, 1000), source=into) for i in range(60)
            ]
            sends = [
                system.port.from_memory(
                    [(i * 1000, size // 2), (i * 1000 + size // 2, size - size // 2)], to=out
                )
                for i, size in enumerate(sizes)
            ]
            for transfer, size in zip(sends + receives, sizes + sizes, strict=True):
                assert (await transfer).moved == size
            for i, size in enumerate(sizes):
                assert system.memory.read(MIB + i * 1000, size) == bytes([i + 1]) * size

        system.run(main())


def test_rule_8_a_flush_covers_what_completed_before_it(system: System, file: iodma.File) -> None:
    async def main() -> None:
        for i in range(16):
            system.memory.fill(i + 1, 0, 4096)
            assert (await system.port.from_memory((0, 4096), to=file, offset=i * 4096)).ok
            done = await system.port.flush(file)
            assert (done.status, done.moved) == (Status.OK, 0)

    system.run(main())
    assert system.engine.stats().requests == 32
    assert content(file)[: 16 * 4096] == b"".join(bytes([i + 1]) * 4096 for i in range(16))


def test_rule_8_data_is_visible_before_the_descriptor_that_says_so(
    system: System, file: iodma.File
) -> None:
    """A guest on a processor of its own, that polls the descriptor."""
    data, rounds = content(file), 100
    bad: list[int] = []
    flags = system.ram.view(4096 + 4 * MIB, 4)
    payload = system.ram.view(4096, 4096)
    over = False

    def guest() -> None:
        last = 0
        while last < rounds and not over:
            now = int.from_bytes(flags[:2], "little")
            if now != last:
                at = (now - 1) * 1000
                if bytes(payload[:1000]) != data[at : at + 1000]:
                    bad.append(now)
                last = now
                flags[2] = 1  # seen

    async def main() -> None:
        for i in range(rounds):
            await system.port.to_memory((0, 1000), source=file, offset=i * 1000)
            await system.port.store("<H", 4 * MIB, i + 1)
            while not flags[2]:
                await system.turns(1)
            flags[2] = 0

    processor = threading.Thread(target=guest)
    processor.start()
    try:
        system.run(main())
    finally:
        over = True
        processor.join()
        flags.release()
        payload.release()
    assert bad == []
