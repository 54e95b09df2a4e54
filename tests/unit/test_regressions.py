# SPDX-License-Identifier: Apache-2.0
"""What a review of the core found, each as the shortest program that showed it.

Invariants

- A test here fails, crashes or hangs on the core as it was before the change that it came with.
"""

from __future__ import annotations

import gc
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import _core
from iodma.endpoints.base import KIND_SCRIPT
from iodma.testing import Inject, strict_engine
from tests.unit.system import Registers, full_connection


class Writes:
    """A device window that notes what is written, and calls ``then``."""

    def __init__(self, then: Any = None) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.then = then

    def read(self, offset: int, width: int) -> int:
        if self.then is not None:
            self.then()
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        self.seen.append((offset, width, value))
        if self.then is not None:
            self.then()


def batch_of(count: int, length: int = 16) -> iodma.Batch:
    batch = iodma.Batch(count, count)
    batch.count[:] = 1
    batch.first[:] = range(count)
    batch.address[:] = 0
    batch.length[:] = length
    batch.n = count
    return batch


def test_an_endpoint_dropped_after_a_refused_submit_is_not_looked_at_again() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram:

        async def never(address: int, access: iodma.Access) -> None:
            await iodma.Event(engine).wait()

        iommu = iodma.Iommu(iodma.Memory({0: ram}), walk=never)
        port = engine.port(iommu, depth=1)

        async def main() -> None:
            null = iodma.Null()
            transfer = port.from_memory((0, 16), to=null)
            while not iommu.misses:
                await engine.sleep(0)
            transfer.cancel()  # pending, so it is over at once; but not delivered
            with pytest.raises(iodma.BusyError):
                port.from_memory((0, 16), to=null)
            null.close()
            del null
            gc.collect()
            assert (await transfer).status is iodma.Status.CANCELLED

        engine.run(main())


def test_a_port_that_only_its_completions_hold_may_go_in_its_reset() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram, iodma.Null() as null:

        async def main() -> None:
            port = engine.port(iodma.Memory({0: ram}))
            port.submit(batch_of(4), null)
            while port.in_flight:
                await engine.sleep(0)
            reset = port.reset()
            del port
            gc.collect()
            await reset

        engine.run(main())


def test_rows_that_are_the_tickets_that_submit_writes_are_refused() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
        port = engine.port(iodma.Memory({0: ram}))
        batch = batch_of(4)
        batch.ticket[:] = [3, 2, 1, 0]
        with pytest.raises(iodma.ArgumentError, match="tickets"):
            port.submit(batch, null, rows=batch.ticket)
        assert port.outstanding == 0


@pytest.mark.parametrize("direction", iodma.Direction)
def test_a_window_written_outside_of_a_turn_cannot_close_the_engine(
    direction: iodma.Direction,
) -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        refused: list[type[BaseException]] = []

        def close() -> None:
            for what in (engine.close, engine.pump, lambda: finish(ticket, 16)):
                try:
                    what()
                except iodma.Error as error:
                    refused.append(type(error))

        window = iodma.DeviceWindow(Writes(close), 4096)
        port = engine.port(iodma.Memory({0: ram, 0x1000: window}))
        asked: list[int] = []
        target = _core.Target(KIND_SCRIPT)
        finish = target._finish
        target._set_script(lambda ticket, *rest: asked.append(ticket), lambda *rest: None)
        if direction is iodma.Direction.TO_MEMORY:
            transfer = port.to_memory((0x1000, 8), source=target)
        else:
            transfer = port.from_memory((0x1000, 8), to=target)
        engine.pump()
        (ticket,) = asked
        other = port.copy((16, 8), (24, 8))
        if direction is iodma.Direction.TO_MEMORY:
            finish(ticket, 8, bytes(8))
        else:
            assert target._peek(ticket, 8) == bytes(8)
            finish(ticket, 8)
        assert refused == [iodma.Error, iodma.Error, iodma.StaleError]
        engine.pump()
        assert transfer.result.ok
        assert other.result.ok  # what is refused has cancelled nothing either


def test_what_is_told_of_its_end_as_the_engine_closes_cannot_close_it_again() -> None:
    engine = strict_engine().__enter__()
    with iodma.Ram(4096) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        target = _core.Target(KIND_SCRIPT)
        target._set_script(lambda *rest: None, lambda *rest: None)
        transfer = port.from_memory((0, 8), to=target)
        engine.pump()
        refused: list[type[BaseException]] = []

        def told(_: object) -> None:
            for what in (engine._close, lambda: port.from_memory((0, 8), to=target)):
                try:
                    what()
                except iodma.Error as error:
                    refused.append(type(error))

        transfer._when_done(told)
        engine._cancel_all()
        assert engine._close()
        assert refused == [iodma.Error, iodma.ClosedError]
        assert transfer.result.status is iodma.Status.CANCELLED
        engine.close()


def test_a_segment_whose_length_goes_as_its_address_is_read() -> None:
    class Address:
        def __index__(self) -> int:
            pair.clear()
            return 0

    pair: list[Any] = [Address(), 1 << 40]
    segments: Any = [pair]
    assert iodma.ScatterList(segments).total_bytes == 1 << 40


def test_a_request_answered_in_part_has_its_next_though_more_completions_are_waited_for() -> None:
    size = 4 << 20
    ours, theirs = socket.socketpair()

    def peer() -> None:
        got = 0
        while got < size:
            got += len(theirs.recv(1 << 16))
        theirs.sendall(bytes(16))  # only now: so the receive ends after the last of the sends

    thread = threading.Thread(target=peer, daemon=True)
    thread.start()
    with (
        ours,
        theirs,
        strict_engine() as engine,
        iodma.Ram(2 * size) as ram,
        iodma.Socket(ours) as stream,
    ):
        port = engine.port(iodma.Memory({0: ram}))
        batch = batch_of(2)
        batch.direction[:] = [0, 1]
        batch.address[:] = [0, size]
        batch.length[:] = [size, 16]

        async def main() -> list[int]:
            port.submit(batch, stream)
            moved: list[int] = []
            async for done in port.completions(limit=16, at_least=2):
                assert done.all_ok
                moved += done.moved.tolist()
            return moved

        assert sorted(engine.run(main())) == [16, size]
        thread.join()


def test_a_send_is_not_blamed_for_the_memory_of_one_that_goes_with_it(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    file = tmp_path / "memory"
    file.write_bytes(bytes(4096))
    with (
        ours,
        theirs,
        file.open("r+b") as opened,
        strict_engine(small=(0, 0)) as engine,
        iodma.Ram(4096) as ram,
        iodma.Ram.from_fd(opened.fileno(), 0, 4096) as gone,
        iodma.Socket(ours) as stream,
    ):
        opened.truncate(0)
        port = engine.port(iodma.Memory({0: ram, 0x10000: gone}))

        async def main() -> list[iodma.Status]:
            addresses = (0, 0x100, 0x10000, 0x200)
            sends = [port.from_memory((address, 100), to=stream) for address in addresses]
            return [(await send).status for send in sends]

        ok, fault = iodma.Status.OK, iodma.Status.FAULT
        assert engine.run(main()) == [ok, ok, fault, ok]


def test_segments_side_by_side_on_a_device_window_are_accesses_of_their_own() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        seen = Writes()
        port = engine.port(iodma.Memory({0: ram, 0x1000: iodma.DeviceWindow(seen, 4096)}))

        async def main() -> None:
            assert (await port.copy((0, 16), [(0x1000, 4), (0x1004, 4), (0x1008, 8)])).ok

        engine.run(main())
        assert seen.seen == [(0, 4, 0), (4, 4, 0), (8, 8, 0)]


class Bounces:
    """Sends of registers to peers that read nothing: each holds its bytes of a small arena."""

    def __init__(self, engine: iodma.Engine, ram: iodma.Ram) -> None:
        self.engine = engine
        self.window = iodma.DeviceWindow(Registers(1 << 16), 1 << 16)
        memory = iodma.Memory({0: ram, 1 << 16: self.window})
        self.iommu = _core.Space(2, memory, "iommu")
        self.iommu._map(0, 1 << 17, 0, None, 3)
        self.port = engine.port(iodma.ByteLanes(self.iommu, width=2))
        self.far: list[socket.socket] = []
        self.streams: list[iodma.Socket] = []

    def send(self, length: int, address: int = 1 << 16) -> iodma.Transfer[Any]:
        near, far = full_connection()
        self.far.append(far)
        with near:
            self.streams.append(iodma.Socket(near))
        return self.port.from_memory((address, length), to=self.streams[-1])

    def state(self, transfer: iodma.Transfer[Any]) -> str:
        return next(t.state for t in self.engine.transfers() if t.ticket == transfer.ticket)

    def used(self) -> int:
        return int(self.engine._stats()["arena_used"])

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        for far in self.far:
            far.close()
        self.window.close()


def test_the_next_for_the_budget_goes_on_when_the_one_before_is_cancelled() -> None:
    with strict_engine(bounce_bytes=64 << 10) as engine, iodma.Ram(1 << 16) as ram:
        bounces = Bounces(engine, ram)

        async def main() -> None:
            held = [bounces.send(size) for size in (16 << 10, 16 << 10, 16 << 10, 8 << 10)]
            first, second = bounces.send(16 << 10), bounces.send(4 << 10)
            await engine.sleep(0)
            await engine.sleep(0)
            assert [bounces.state(each) for each in (first, second)] == ["WAITING"] * 2
            first.cancel()
            await engine.sleep(0)
            await engine.sleep(0)
            assert bounces.state(second) == "IN_FLIGHT"
            for each in (*held, second):
                each.cancel()
                await each

        engine.run(main())
        bounces.close()


def test_what_waits_for_a_translation_holds_nothing_of_the_budget() -> None:
    with strict_engine(bounce_bytes=64 << 10) as engine, iodma.Ram(1 << 16) as ram:
        bounces = Bounces(engine, ram)
        bounces.iommu._set_hook(lambda address, length, access: 2, True)

        async def main() -> None:
            held = [bounces.send(16 << 10) for _ in range(4)]
            waits = bounces.send(16 << 10, address=0)
            while bounces.state(waits) != "WAITING":
                await engine.sleep(0)
            bounces.iommu._unmap(0, 1 << 16)
            held[0].cancel()
            await held[0]
            while bounces.state(waits) != "PENDING":
                await engine.sleep(0)
            assert bounces.used() == 48 << 10
            for each in (*held, waits):
                each.cancel()
                await each

        engine.run(main())
        bounces.close()


def test_a_transfer_that_the_stage_cancels_as_it_is_asked_is_over() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
        stage = _core.Space(2, iodma.Memory({0: ram}), "stage")
        transfers: list[iodma.Transfer[Any]] = []

        def miss(address: int, length: int, access: int) -> int:
            transfers[0].cancel()
            return 2

        stage._set_hook(miss, True)
        port = engine.port(stage)

        async def main() -> None:
            transfers.append(port.from_memory((0, 16), to=null))
            assert (await transfers[0]).status is iodma.Status.CANCELLED

        engine.run(main())
        stage._set_hook(None, False)


def test_a_send_that_a_stage_cancels_as_it_is_to_go_with_another_stays_behind() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        strict_engine(small=(0, 0)) as engine,
        iodma.Ram(4096) as ram,
        iodma.Socket(ours) as stream,
    ):
        memory = iodma.Memory({0: ram})
        stage = _core.Space(4, memory, "stage")
        sends: list[iodma.Transfer[Any]] = []

        def walk(address: int, length: int, access: int) -> int:
            sends[2].cancel()
            return 0

        stage._set_hook(walk, False)
        ports = engine.port(memory), engine.port(memory), engine.port(stage), engine.port(memory)

        async def main() -> list[iodma.Status]:
            sends.extend(port.from_memory((0, 100), to=stream) for port in ports)
            return [(await send).status for send in sends]

        ok = iodma.Status.OK
        assert engine.run(main()) == [ok, ok, iodma.Status.CANCELLED, ok]
        assert len(theirs.recv(4096)) == 300
        stage._set_hook(None, False)


@pytest.mark.parametrize("how", ["remove", "add", "unmap"])
def test_a_map_does_not_change_while_a_stage_above_it_is_asked(how: str) -> None:
    """What the walk has found so far is leased by nobody yet: it would be given back under it."""
    with (
        strict_engine() as engine,
        iodma.Ram(4096) as ram,
        iodma.Ram(4096) as other,
        iodma.Null() as null,
    ):
        memory = iodma.Memory({0: ram})
        iommu = iodma.Iommu(memory)
        iommu.map(0, 0, 4096)
        elsewhere = iodma.Memory({0: other})
        refused: list[str] = []

        def verdict(address: int, length: int, access: iodma.Access) -> int:
            elsewhere.remove(0)  # of no chain that is walked
            elsewhere.add(0, other)
            try:
                if how == "remove":
                    memory.remove(0)
                elif how == "add":
                    memory.add(8192, other)
                else:
                    iommu.unmap(0, 4096)
            except iodma.Error as error:
                refused.append(str(error))
            return 0

        port = engine.port(Inject(iommu, verdict))

        async def main() -> None:
            assert (await port.from_memory([(0, 8), (100, 8)], to=null)).ok

        engine.run(main())
        assert len(refused) == 2 and "its map may change afterwards" in refused[0]
        assert engine.run(revoked(memory))


async def revoked(memory: iodma.Memory) -> bool:
    return await memory.remove(0)


def test_a_trace_too_large_for_any_memory_is_refused() -> None:
    with strict_engine() as engine, pytest.raises(MemoryError):
        engine._trace(1 << 60)


def test_memory_registered_with_one_engine_is_not_so_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 4096)
    with iodma.Ram(4096) as ram:
        for what in (ram, None, ram):  # None: the arena, which takes the number that the memory had
            with (
                strict_engine(bounce_bytes=64 << 10) as engine,  # what anybody may pin
                iodma.File(path, read_only=True) as file,
            ):
                try:
                    assert engine.register(what)
                except OSError:
                    pytest.skip("the kernel registers no memory here")
                port = engine.port(iodma.Memory({0: ram}))

                async def main(port: iodma.Port = port, file: iodma.File = file) -> None:
                    assert (await port.to_memory((0, 4096), source=file)).moved == 4096

                engine.run(main())


def test_views_are_let_go_of_while_large_copies_run_without_the_lock() -> None:
    size = 1 << 20
    with strict_engine() as engine, iodma.Ram(4 * size) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        over = threading.Event()

        def views() -> None:
            while not over.is_set():
                with ram.view():
                    pass

        thread = threading.Thread(target=views)
        thread.start()

        async def main() -> None:
            for _ in range(50):
                copies = [port.copy((k * size, size), (size, size)) for k in (0, 2, 3)]
                copies.append(port.copy((0, 16), (1 << 40, 16)))
                assert [(await each).ok for each in copies] == [True, True, True, False]

        try:
            engine.run(main())
        finally:
            over.set()
            thread.join()
        assert engine.stats().lock_released > 0
        assert (ram.leases, ram.views) == (0, 0)
