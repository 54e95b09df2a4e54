# SPDX-License-Identifier: Apache-2.0
"""What a review of the core found, each as the shortest program that showed it.

Invariants

- A test here fails, crashes or hangs on the core as it was before the change that it came with.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest

import iodma
from iodma import _core
from iodma.endpoints.base import KIND_SCRIPT
from iodma.testing import strict_engine
from tests.unit.system import few_objects, leaks

__all__ = ["few_objects", "leaks"]


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
        if direction is iodma.Direction.TO_MEMORY:
            finish(ticket, 8, bytes(8))
        else:
            assert target._peek(ticket, 8) == bytes(8)
            finish(ticket, 8)
        assert refused == [iodma.Error, iodma.Error, iodma.StaleError]
        engine.pump()
        assert transfer.result.ok


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
