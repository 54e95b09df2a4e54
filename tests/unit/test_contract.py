"""The completion contract of the design, rules 1 to 4: each test bears the number of its rule.

Invariants:

- Nothing here depends on which engine runs it, nor on how long anything takes.
- What a rule forbids is looked for where it would show: in memory (canaries), in the counters, or
  in the order in which things were seen from outside.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import Answer, ScriptedEndpoint, strict_engine
from tests.unit.system import (  # noqa: F401
    MIB,
    System,
    connection,
    content,
    file_fixture,
    hold,
    shuffled,
    system_fixture,
)

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


def test_a_table_of_segments_is_read_in_every_format(system: System) -> None:
    port = system.port
    entries = [(0x1000, 4096), ((1 << 64) - 1, 0), (0, (1 << 64) - 1)]
    small = [(0x1000, 4096), (0xFFFF, 0)]

    async def main() -> None:
        for format, pairs in (("<QQ", entries), (">QQ", entries), ("<IxxxxH", small)):
            table = b"".join(struct.pack(format, *pair) for pair in pairs)
            await port.store_bytes(100, table)
            read = await port.load_segments(100, len(pairs), format=format)
            assert [read[i] for i in range(len(read))] == pairs
            assert len(await port.load_segments(100, 0, format=format)) == 0
        with pytest.raises(iodma.ArgumentError):
            await port.load_segments(100, 2, format="<Q")

    system.run(main())
