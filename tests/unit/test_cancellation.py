"""Cancellation: in every state, by every way to ask for it, and what it leaves behind.

Invariants:

- A cancel never completes anything by itself in the call; each transfer still has its one
  completion.
- Whoever waited behind what was cancelled goes on.
- After it, nothing is held: no lease, no page of the arena, no place in an order.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iodma
from iodma import Status
from iodma.testing import Answer
from tests.unit.cancelcases import (
    ALONE,
    CANCELLED,
    OK,
    SETUPS,
    Case,
    sending_zero_copy_to_who_does_not_read,
)
from tests.unit.system import (  # noqa: F401
    MIB,
    WINDOW,
    Registers,
    System,
    content,
    drain,
    file_fixture,
    hold,
    system_fixture,
)

# -- ways to ask --------------------------------------------------------------


async def by_transfer(system: System, case: Case) -> None:
    assert case.transfer.cancel()


async def by_ticket(system: System, case: Case) -> None:
    assert system.port.cancel(case.transfer.ticket)


async def twice(system: System, case: Case) -> None:
    assert case.transfer.cancel()
    case.transfer.cancel()
    system.port.cancel(case.transfer.ticket)


async def by_the_task_that_waits_for_it(system: System, case: Case) -> None:
    ended: list[str] = []

    async def waiter() -> None:
        try:
            await case.transfer
        except iodma.Cancelled:
            ended.append("cancelled")
            raise
        finally:
            ended.append("finally")

    task = system.engine.start(waiter())
    if case.state == "DESCRIBED":
        task.cancel()  # before its first step: it never begins
        case.transfer.cancel()
    else:
        await system.engine.sleep(0)
        if case.transfer.done:
            return
        task.cancel()
    with pytest.raises(iodma.Cancelled):
        await task
    assert ended == ([] if case.state == "DESCRIBED" else ["cancelled", "finally"])


@pytest.mark.parametrize(
    "way", [by_transfer, by_ticket, twice, by_the_task_that_waits_for_it], ids=lambda w: w.__name__
)
@pytest.mark.parametrize("name", SETUPS)
def test_cancel(name: str, way: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    system = System(bounce_bytes=4096)

    async def main() -> None:
        case = await SETUPS[name](system, path)
        transfer = case.transfer
        if case.state:
            assert system.state(transfer) == case.state
        await way(system, case)
        if way is not by_the_task_that_waits_for_it:
            assert not transfer.done, "a request is no completion"
        case.let_go()
        done = await transfer
        assert done.status in case.statuses, done
        assert not transfer.cancel() and not system.port.cancel(transfer.ticket)
        assert (await transfer).status is done.status, "once and for all"
        case.free()
        for other in case.others:
            done = await other
            assert done.status is OK, done
        assert system.engine.transfers() == [] and system.ram.leases == 0
        assert system.engine.stats().arena[1] == 0
        assert (await system.port.copy((MIB, 8), (MIB + 8, 8))).ok, "and it goes on"

    system.run(main())
    system.close()


@pytest.mark.parametrize("name", SETUPS)
def test_reset_cancels_in_every_state(name: str, tmp_path: Path) -> None:
    """And lets those of another port go on, which wait behind it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    system = System(bounce_bytes=4096)

    async def main() -> None:
        case = await SETUPS[name](system, path)
        reset = system.port.reset()
        assert not case.transfer.done and not reset.done
        case.let_go()
        await reset
        assert case.transfer.done and system.port.in_flight == 0
        assert (await case.transfer).status in (CANCELLED, *case.statuses)
        for other in case.others:
            assert (await other).status in (CANCELLED, OK)
        system.memory.place_canaries()
        case.free()
        await system.turns()
        system.memory.check_canaries()
        assert system.ram.leases == 0 and system.engine.stats().arena[1] == 0

    system.run(main())
    system.close()


def test_reset_of_one_port_lets_the_others_go_on(tmp_path: Path) -> None:
    """One port holds the order, the budget and the ring; two others wait for each of them."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    system = System(bounce_bytes=4096)
    other = system.engine.port(system.memory, "other")
    third = system.engine.port(system.memory, "third")

    async def main() -> None:
        system.window(Registers())
        wire, far = system.full_wire()
        file = system.use(iodma.File(path))
        mine = [system.port.from_memory((WINDOW, 8), to=wire) for _ in range(3)]
        await system.turns()
        theirs = [port.from_memory((i, 8), to=wire) for i in (8, 16) for port in (other, third)]
        theirs += [port.to_memory((WINDOW, 8), source=file) for port in (third, other)]
        await system.turns()
        assert [system.state(each) for each in theirs] == ["WAITING"] * 6
        await system.port.reset()
        assert [(await each).status for each in mine] == [CANCELLED] * 3
        drain(far)
        assert [(await each).status for each in theirs] == [OK] * 6

    system.run(main())
    system.close()


# -- the end of the engine -----------------------------------------------------


@pytest.mark.parametrize("name", SETUPS)
def test_close_in_every_state(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    system = System(bounce_bytes=4096)
    case: Case = system.run(SETUPS[name](system, path))
    if name.startswith("scripted_that_answers") or "zero_copy" in name:
        system.engine.call_soon(case.let_go)
    system.engine.close(0.1)  # before the endpoints are closed
    assert system.engine.closed and case.transfer.done
    assert case.transfer.result.status in (CANCELLED, OK, Status.PEER_GONE)
    assert all(other.done for other in case.others)
    assert system.ram.leases == 0
    system.close()


def test_close_fails_while_the_kernel_holds_pages_and_may_be_called_again(system: System) -> None:
    """A zero-copy send to who does not read: its pages are the kernel's until the end of that."""
    case: Case = system.run(sending_zero_copy_to_who_does_not_read(system, Path()))
    try:
        system.engine.close(0.05)
    except iodma.BusyError as error:
        assert "the kernel still holds 1 requests after 0.05 s" in str(error)
        assert not system.engine.closed and not case.transfer.done and system.ram.leases
    case.let_go()
    system.engine.close()
    assert system.engine.closed and case.transfer.done and system.ram.leases == 0


def test_close_with_everything_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    system = System(bounce_bytes=1 << 20)
    log: list[str] = []

    async def waiter(name: str, case: Case) -> None:
        try:
            await case.transfer
        finally:
            log.append(name)

    async def main() -> list[Case]:
        cases = []
        for name, function in SETUPS.items():
            if name not in ALONE:
                cases.append(await function(system, path))
                system.engine.start(waiter(name, cases[-1]))
        await system.turns(1)  # a coroutine that has not begun would have nothing to unwind
        removal = system.memory.remove(0, deadline=None)
        assert not removal.done
        return cases

    cases = system.run(main())
    for case in cases:
        if Status.PEER_GONE in case.statuses:
            case.let_go()
    system.engine.close(0.1)
    for case in cases:
        assert case.transfer.done
    assert set(log) == set(SETUPS) - ALONE, "every coroutine was unwound"
    assert len(log) == len(set(log))
    assert system.ram.leases == 0
    system.close()


# -- batches -------------------------------------------------------------------


def batch_of(count: int, size: int) -> iodma.Batch:
    batch = iodma.Batch(count)
    batch.n = count
    batch.id[:] = np.arange(100, 100 + count)
    batch.address[:] = np.arange(count) * size
    batch.length[:] = size
    batch.first[:] = np.arange(count)
    batch.count[:] = 1
    batch.direction[:] = iodma.Direction.TO_MEMORY
    batch.position[:] = np.arange(count)
    return batch


def test_batches_are_cancelled_by_ticket(system: System) -> None:
    disk = system.held(on_cancel="honour")

    async def main() -> None:
        batch = batch_of(16, 64)
        tickets = system.port.submit(batch, disk, unit=64).tolist()
        assert len(set(tickets)) == 16
        await disk.asked(16)
        assert all(system.port.cancel(ticket) for ticket in tickets[::2])
        await system.turns()
        disk.answer_all()
        ends: dict[int, Status] = {}
        async for done in system.port.completions(limit=5):
            for identity, status in zip(done.id.tolist(), done.status.tolist(), strict=True):
                assert identity not in ends, "once"
                ends[identity] = Status(status)
        assert ends == {100 + i: OK if i % 2 else CANCELLED for i in range(16)}
        assert not any(system.port.cancel(ticket) for ticket in tickets)

    system.run(main())


def test_a_late_ticket_of_a_batch_hits_nobody(system: System) -> None:
    disk = system.held(on_cancel="honour")

    async def main() -> None:
        batch = batch_of(16, 64)
        old = system.port.submit(batch, disk, unit=64).tolist()
        await disk.asked(16)
        disk.answer_all()
        async for _ in system.port.completions():
            pass
        fresh = system.port.submit(batch, disk, unit=64).tolist()
        assert not set(old) & set(fresh)
        await disk.asked(32)
        assert not any(system.port.cancel(ticket) for ticket in old)
        disk.answer_all()
        async for done in system.port.completions():
            assert done.all_ok

    system.run(main())


def test_reset_takes_the_completions_of_batches_with_it(system: System) -> None:
    disk = system.held(on_cancel="honour")

    async def main() -> None:
        batch = batch_of(16, 64)
        system.port.submit(batch, disk, unit=64)
        await disk.asked(16)
        for request in disk.waiting[:4]:
            disk.answer(request)
        await system.turns()
        await system.port.reset()
        assert system.port.outstanding == 0
        seen = [done async for done in system.port.completions()]
        assert seen == [], "they are of the generation before"

    system.run(main())


# -- tasks ---------------------------------------------------------------------


def test_a_cancelled_task_may_clean_up_before_it_ends(system: System) -> None:
    log: list[str] = []

    async def worker() -> None:
        try:
            await system.engine.sleep(1000)
        finally:
            await system.port.store("<I", 0, 7)
            await system.turns()
            log.append("cleaned up")

    async def main() -> None:
        task = system.engine.start(worker())
        await system.turns()
        task.cancel()
        with pytest.raises(iodma.Cancelled):
            await task
        assert task.done and log == ["cleaned up"]
        task.cancel()

    system.run(main())
    assert system.memory.read(0, 4) == b"\x07\0\0\0"


def test_cancel_reaches_through_tasks_that_wait_for_tasks(system: System) -> None:
    """Only the one that is cancelled ends; what it waited for goes on."""
    event = iodma.Event(system.engine)

    async def inner() -> str:
        await event.wait()
        return "inner"

    async def main() -> None:
        below = system.engine.start(inner())

        async def outer() -> Any:
            return await below

        first, second = (system.engine.start(outer()) for _ in range(2))
        await system.turns()
        first.cancel()
        with pytest.raises(iodma.Cancelled):
            await first
        assert not below.done and not second.done
        event.set()
        assert await second == "inner"

    system.run(main())


def test_two_tasks_that_wait_for_one_transfer(system: System) -> None:
    """Cancelling one of them asks the transfer to end; the other gets the completion."""
    disk = system.held(on_cancel="honour")

    async def main() -> None:
        transfer = system.port.to_memory((0, 8), source=disk)

        async def waiter() -> Status:
            return (await transfer).status

        first, second = (system.engine.start(waiter()) for _ in range(2))
        await disk.asked()
        await system.turns()
        first.cancel()
        with pytest.raises(iodma.Cancelled):
            await first
        assert await second is CANCELLED

    system.run(main())


# -- races ---------------------------------------------------------------------


def test_cancels_at_random_moments_leave_either_all_or_a_prefix(
    system: System, file: iodma.File, rng: random.Random
) -> None:
    data = content(file)

    async def main() -> None:
        ends = dict.fromkeys(Status, 0)
        for _ in range(60):
            requests = []
            for slot in range(12):
                size = rng.choice([512, 4096, 65536])
                at, offset = slot * 131072, rng.randrange(len(data) - size)
                requests.append((at, offset, size))
            system.memory.place_canaries(except_for=[(at, size) for at, _, size in requests])
            before = {at: system.memory.read(at, size) for at, _, size in requests}
            transfers = [
                system.port.to_memory((at, size), source=file, offset=offset)
                for at, offset, size in requests
            ]
            await system.turns(rng.randrange(3))
            for transfer in transfers:
                if rng.random() < 0.7:
                    transfer.cancel()
                if rng.random() < 0.2:
                    await system.turns(1)
            for transfer, (at, offset, size) in zip(transfers, requests, strict=True):
                done = await transfer
                ends[done.status] += 1
                assert done.status in (OK, CANCELLED)
                got = system.memory.read(at, size)
                assert got[: done.moved] == data[offset : offset + done.moved]
                if done.status is OK:
                    assert done.moved == size
                elif done.moved == 0 and got != before[at]:
                    assert got == data[offset : offset + size], "bytes of nobody's"
            system.memory.check_canaries()
        assert ends[OK] and ends[CANCELLED]

    system.run(main())


@pytest.mark.parametrize("depth", [1, 2, 256])
def test_more_cancels_than_the_ring_has_room_for(depth: int) -> None:
    system = System(depth=depth)

    async def main() -> None:
        wires = [system.wire()[0] for _ in range(40)]
        transfers = [system.port.to_memory((i * 8, 8), source=wire) for i, wire in enumerate(wires)]
        await system.turns()
        for transfer in transfers:
            transfer.cancel()
        for transfer in transfers:
            assert (await transfer).status is CANCELLED

    system.run(main())
    system.close()


def test_a_cancel_that_comes_with_the_data_loses_nothing(system: System) -> None:
    """Received bytes are either reported or still in the socket."""
    wire, far = system.wire()
    sent = bytes(i & 0xFF for i in range(200_000))
    got = bytearray()

    async def main() -> None:
        at = 0
        for round_ in range(400):
            size = 1 + round_ * 37 % 500
            transfer = system.port.to_memory((0, 500), source=wire, minimum=500)
            if round_ % 3:
                await system.turns(round_ % 4)
            far.send(sent[at : at + size])
            at += size
            if round_ % 2:
                await system.turns(round_ % 3)
            transfer.cancel()
            done = await transfer
            got.extend(system.memory.read(0, done.moved))
        while len(got) < at:
            done = await system.port.to_memory((0, 500), source=wire, minimum=1)
            got.extend(system.memory.read(0, done.moved))
        assert got == sent[:at]

    system.run(main())


def test_a_script_may_answer_in_the_cancel_itself(system: System) -> None:
    disk = system.scripted(b"12345678", script=hold)
    disk.on_cancel = lambda request: disk.answer(request, 5)

    async def main() -> None:
        transfer = system.port.to_memory((0, 8), source=disk)
        await disk.asked()
        transfer.cancel()
        done = await transfer
        assert (done.status, done.moved) == (CANCELLED, 5)
        assert system.memory.read(0, 8) == b"12345\0\0\0"

    system.run(main())
    assert Answer.hold().held
