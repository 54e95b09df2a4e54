"""Memory that somebody else moves, where it is not all well: refused, dropped, cancelled, closed.

Invariants:

- Nothing answers but the test, unless it says `by_turns`.
"""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import pytest

import iodma
from iodma import Access, Status
from iodma.memory import RemoteRequest
from iodma.testing import ScriptedEndpoint
from tests.unit.farmemory import FarMemory
from tests.unit.farsystem import FAR, WINDOW, Far, far_fixture  # noqa: F401
from tests.unit.system import (
    file_fixture,  # noqa: F401
    hold,
)


def test_a_refusal_is_a_fault_there(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.copy([(0, 100), (FAR + 8, 3 * 4096)], (0x10000, 12_388))
        await far.asked(3)
        far.far.answer(far.far.waiting[2])
        far.far.fail(far.far.waiting[1])
        await far.turns()
        assert not transfer.done  # before all are answered
        far.far.answer()
        done = await transfer
        assert done.status is Status.FAULT and done.moved == 0
        assert done.fault == iodma.Fault(
            4196, FAR + 8 + 4096, Access.READ, "inject", "whoever has the memory refused"
        )
        store = far.port.store_bytes(FAR, bytes(3 * 4096))
        await far.asked(3)
        for each in far.far.waiting[:0:-1]:
            far.far.fail(each)
        far.far.answer()
        with pytest.raises(iodma.DmaFault) as caught:
            await store
        failed, fault = caught.value.completion, caught.value.completion.fault
        assert failed.moved == 4096 and fault is not None and fault.access is Access.WRITE
        assert (fault.offset, fault.address) == (4096, FAR + 4096)

    far.run(main())
    assert far.far.leases == 0 and far.ram.leases == 0


@pytest.mark.parametrize("way", ["from_memory", "to_memory"])
def test_a_refusal_of_what_goes_through_the_arena(far: Far, way: str, file: iodma.File) -> None:
    async def main() -> None:
        segments = [(0, 4096), (FAR, 8192), (8192, 10)]
        if way == "from_memory":
            transfer = far.port.from_memory(segments, to=file)
        else:
            transfer = far.port.to_memory(segments, source=file)
        await far.asked(2)
        far.far.answer()
        far.far.fail()
        done = await transfer
        assert done.fault is not None and done.fault.offset == 8192
        assert done.moved == (4096 if way == "from_memory" else 8192)

    far.run(main())
    assert far.engine.stats().arena[1] == 0


def test_a_request_that_is_dropped_is_a_refusal(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 100)
        await far.asked()
        far.far.waiting.clear()
        with pytest.raises(iodma.DmaFault, match="refused"):
            await transfer
        transfer = far.port.load_bytes(FAR, 100)
        await far.asked()
        thread = threading.Thread(target=far.far.waiting.clear)
        thread.start()
        thread.join()
        with pytest.raises(iodma.DmaFault, match="refused"):
            await transfer

    far.run(main())


def test_one_that_is_dropped_wakes_an_engine_that_sleeps(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 100)
        await far.asked()
        asleep = threading.Event()
        far.engine.call_soon(asleep.set)

        def drop() -> None:
            asleep.wait()
            far.far.waiting.clear()

        thread = threading.Thread(target=drop)
        thread.start()
        with pytest.raises(iodma.DmaFault):
            await transfer
        thread.join()

    far.run(main())


def test_a_request_in_a_cycle_is_collected(far: Far) -> None:
    class Cycle:
        def __init__(self, request: RemoteRequest) -> None:
            self.request, self.me = request, self

    class Dropping:
        def read(self, offset: int, length: int, request: RemoteRequest) -> None:
            Cycle(request)

        def write(self, offset: int, data: bytes, request: RemoteRequest) -> None: ...

    far.memory.add(WINDOW, iodma.RemoteMemory(Dropping(), 4096))

    async def main() -> None:
        transfer = far.port.load_bytes(WINDOW, 100)
        await far.turns()
        assert not transfer.done
        gc.collect()
        with pytest.raises(iodma.DmaFault):
            await transfer

    far.run(main())


def test_what_cannot_be_answered(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 100)
        await far.asked()
        request = far.far.waiting.pop().request
        with pytest.raises(iodma.ArgumentError, match="99 bytes were given; 100 were asked for"):
            request.done(bytes(99))
        with pytest.raises(iodma.ArgumentError, match="0 bytes were given"):
            request.done()
        with pytest.raises(TypeError):
            request.done(7)  # type: ignore[arg-type]
        caught: list[Exception] = []

        def elsewhere() -> None:
            try:
                request.done(bytes(100))
            except iodma.Error as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert isinstance(caught[0], iodma.WrongThreadError)
        request.done(b"x" * 100)
        assert request.answered
        for again in (lambda: request.done(bytes(100)), request.fail):
            with pytest.raises(iodma.StaleError):
                again()
        assert await transfer == b"x" * 100

    far.run(main())
    with pytest.raises(TypeError):
        RemoteRequest()


class Raising:
    def read(self, offset: int, length: int, request: RemoteRequest) -> None:
        raise ValueError("no such page")

    def write(self, offset: int, data: bytes, request: RemoteRequest) -> None:
        request.done()
        raise ValueError("but it is written")


def test_a_target_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    with iodma.Engine() as engine:
        port = engine.port(iodma.Memory({0: iodma.RemoteMemory(Raising(), 4096)}))

        async def main() -> None:
            with pytest.raises(iodma.DmaFault, match="refused"):
                await port.load_bytes(0, 8)
            await port.store_bytes(0, bytes(8))

        with caplog.at_level(logging.ERROR, "iodma"):
            engine.run(main())
        assert "no such page" in caplog.text


def test_a_target_that_raises_in_a_strict_engine() -> None:
    with iodma.Engine(strict=True) as engine:
        port = engine.port(iodma.Memory({0: iodma.RemoteMemory(Raising(), 4096)}))

        async def main() -> None:
            await port.load_bytes(0, 8)

        with pytest.raises(ValueError, match="no such page"):
            engine.run(main())


def test_a_cancel_sends_no_more_and_waits_for_what_was_sent(far: Far) -> None:
    async def main() -> None:
        with iodma.Buffer(1 << 20) as buffer:
            for act in (
                lambda: far.port.from_memory((FAR, 1 << 20), to=buffer),
                lambda: far.port.to_memory((FAR, 1 << 20), source=buffer),
                lambda: far.port.copy((FAR, 1 << 19), (FAR + (1 << 19), 1 << 19)),
                lambda: far.port.store_bytes(FAR, bytes(1 << 20)),
            ):
                far.far.log.clear()
                transfer: Any = act()
                await far.asked(32)
                sent = len(far.far.log)
                assert transfer.cancel()
                await far.turns()
                assert not transfer.done
                far.far.answer(far.far.waiting[3])
                await far.turns()
                far.far.answer_all()
                try:
                    done = await transfer
                except iodma.DmaFault as fault:
                    done = fault.completion
                assert done.status is Status.CANCELLED and len(far.far.log) == sent

    far.run(main())


def test_what_an_endpoint_gave_is_written_although_it_was_cancelled(far: Far) -> None:
    """A stream does not give it again."""
    near, other = far.wire()
    other.send(b"s" * 20_000)

    async def main() -> None:
        transfer = far.port.to_memory((FAR, 20_000), source=near)
        await far.asked(2)
        assert transfer.cancel()
        far.by_turns()
        far.far.answer()
        done = await transfer
        assert done.moved == far.far.data[:20_000].count(b"s") >= 8192

    far.run(main())


def test_reset_and_revocation_wait_for_answers(far: Far) -> None:
    async def main() -> None:
        slot = iodma.PciSlot(far.memory)
        slot.set_bus_master(True)
        port = far.engine.port(slot)
        transfer = port.load_bytes(FAR, 100)
        await far.asked()
        off = slot.set_bus_master(False)
        gone = far.memory.remove(FAR)
        reset = port.reset()
        await far.turns()
        assert off is not None and not off.done and not gone.done and port.resetting
        far.far.answer()
        await reset
        assert await off and await gone
        assert transfer.done

    far.run(main())


def test_answers_after_the_engine_is_closed_are_nothing() -> None:
    far = Far()
    transfer = far.port.load_bytes(FAR, 100)

    async def main() -> None:
        await far.asked(1)

    far.run(main())
    waiting = [*far.far.waiting]
    far.engine.close(deadline=0.05)
    far.close()
    assert transfer.done and far.far.leases == 0
    waiting[0].request.done(bytes(100))
    far.far.waiting.clear()


def test_memory_that_is_closed_takes_nothing_new(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 100)
        await far.asked()
        far.far.close()
        with pytest.raises(iodma.DmaFault, match="nothing is mapped"):
            await far.port.load_bytes(FAR, 100)
        far.far.answer()
        await transfer

    far.run(main())


def test_a_small_arena_is_shared_fairly() -> None:
    far = Far(bounce_bytes=64 << 10)
    far.by_turns()

    async def main() -> None:
        with iodma.Buffer(1 << 20) as buffer, ScriptedEndpoint(1 << 20, script=hold) as slow:
            moves = [far.port.copy((FAR, 300_000), (FAR + 600_000, 300_000)) for _ in range(4)]
            moves += [far.port.to_memory((FAR, 1000), source=slow) for _ in range(4)]
            moves += [far.port.from_memory((FAR, 200_000), to=buffer) for _ in range(4)]
            moves += [far.port.from_memory((FAR, 1000), to=slow) for _ in range(4)]
            while not all(each.done for each in moves):
                slow.answer_all()
                await far.engine.sleep(0)
            assert all([(await each).ok for each in moves])

    far.run(main())
    assert far.engine.stats().arena[1] == 0
    far.close()


def test_without_an_arena_lists_on_both_sides_are_refused() -> None:
    with iodma.Engine(strict=True, bounce_bytes=0) as engine:
        memory = FarMemory(8192)
        memory.by_turns_of(engine)
        port = engine.port(iodma.Memory({0: memory}))

        async def main() -> None:
            done = await port.copy((0, 100), (4096, 100))
            assert done.status is Status.IO_ERROR
            await port.store_bytes(0, b"x")

        engine.run(main())
