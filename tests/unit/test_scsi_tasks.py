"""Task sets, task management, unit attentions, sense data that is kept: what SAM-5 says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import Memory, Ram
from iodma.scsi import DataDirection, Disk, Request, ScsiStatus, State, Target, TaskAttribute
from iodma.scsi.request import EDGES, diagram
from iodma.testing import ScriptedEndpoint, strict_engine
from tests.unit.engines import settle
from tests.unit.scsikit import CHECK, GOOD, Initiator, cdb, on_disk, state_of

READ = cdb("READ (10)", TRANSFER_LENGTH=1)
TUR = cdb("TEST UNIT READY")
SIMPLE, ORDERED, HEAD = TaskAttribute


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * 512))
    return path


def test_the_states_are_drawn_as_they_are() -> None:
    lines = diagram().splitlines()
    assert len(lines) == 2 + len(EDGES) and lines[1].startswith("    [*] --> DORMANT")
    page = Path(__file__).parents[2] / "docs" / "how-to-scsi.md"
    assert diagram() in page.read_text(), f"docs/how-to-scsi.md should have:\n{diagram()}"
    ends = {State.COMPLETED, State.CANCELLED}
    assert {there for _, there in EDGES} == set(State) - {State.DORMANT}
    assert not ends & {here for here, _ in EDGES}


# --- order ----------------------------------------------------------------------------------------


def may_begin(order: list[TaskAttribute], alive: list[bool], index: int) -> bool:
    """SAM-5 8.7, of what is left of a task set: whether a command is, or may be, enabled."""
    older = [a for a, here in zip(order[:index], alive, strict=False) if here]
    everybody = [a for i, a in enumerate(order) if alive[i] and i != index]
    match order[index]:
        case TaskAttribute.HEAD_OF_QUEUE:
            return True
        case TaskAttribute.ORDERED:
            return not older and HEAD not in everybody
        case _:
            return ORDERED not in older and HEAD not in everybody


@given(st.data())
def test_commands_begin_in_the_order_of_their_attributes(data: st.DataObject) -> None:
    disk = ScriptedEndpoint(64 * 512)
    with strict_engine() as engine, Ram(4096) as ram, disk:
        target = Target(engine, Disk(disk))
        it = Initiator(engine, target, ram)
        engine.run(it.settle())
        order: list[TaskAttribute] = []
        requests: list[Request] = []
        begun: set[int] = set()
        for _ in range(data.draw(st.integers(1, 12))):
            alive = [not each.over for each in requests]
            if any(alive) and data.draw(st.booleans()):
                index = data.draw(st.sampled_from([i for i, here in enumerate(alive) if here]))
                requests[index].cancel()
            else:
                order.append(data.draw(st.sampled_from(TaskAttribute)))
                requests.append(it.send(READ, tag=len(order), attribute=order[-1]))
            settle(engine)
            alive = [not each.over for each in requests]
            for index, each in enumerate(requests):
                if not alive[index]:
                    continue
                if may_begin(order, alive, index):
                    begun.add(index)
                assert state_of(each) is (State.DATA if index in begun else State.DORMANT), index
        for each in requests:
            each.cancel()
        settle(engine)
        assert not target.units[0].tasks
        target.close()
        it.port.close()


def test_a_task_set_has_an_end(path: Path) -> None:
    with on_disk(path, depth=3) as it:

        async def main() -> None:
            some = [it.send(READ, tag=tag) for tag in range(3)]
            request, _ = await it.command(READ, tag=3)
            assert request.status is ScsiStatus.TASK_SET_FULL
            for each in some:
                await it.move(each)
                assert await each.finished is GOOD
            request, _ = await it.command(READ, tag=3)
            assert request.status is GOOD

        it.run(main)


def test_overlapped_commands_end_all_of_the_initiators(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            other = Initiator(it.engine, it.target, it.ram, name=1)
            await other.settle()
            kept = other.send(READ, tag=4)
            first, second = it.send(READ, tag=4), it.send(READ, tag=5)
            third = it.send(READ, tag=5)
            assert await third.finished is CHECK
            assert str(third.sense) == "ABORTED_COMMAND 4E/00"
            assert [await first.finished, await second.finished] == [None, None]
            await other.move(kept)
            assert await kept.finished is GOOD
            untagged = it.send(READ)
            assert await it.send(TUR).finished is CHECK and await untagged.finished is None
            other.port.close()

        it.run(main)


# --- task management ------------------------------------------------------------------------------


def test_abort_task_and_task_set(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            other = Initiator(it.engine, it.target, it.ram, name=1)
            await other.settle()
            a, b, c = (it.send(READ, tag=tag) for tag in range(3))
            d = other.send(READ, tag=0)
            assert await it.target.abort_task(0, 1, it.name)
            assert not await it.target.abort_task(0, 1, it.name)
            assert (a.over, b.cancelled, c.over, d.over) == (False, True, False, False)
            assert await it.target.abort_task_set(0, it.name)
            assert a.cancelled and c.cancelled and not d.over
            assert await it.target.clear_task_set(0, it.name) and d.cancelled
            request, _ = await other.command(TUR)
            assert str(request.sense) == "UNIT_ATTENTION 2F/00"
            assert (await it.command(TUR))[0].status is GOOD
            assert not await it.target.abort_task(9, 1, it.name)
            other.port.close()

        it.run(main)


def caches(disk: Disk) -> bool:
    return disk.write_cache


@pytest.mark.parametrize(
    ("how", "sense"),
    [("unit", "29/03"), ("target", "29/03"), ("bus", "29/02")],
)
def test_resets(path: Path, how: str, sense: str) -> None:
    with on_disk(path, removable=True) as it:
        disk = it.target.units[0]
        assert isinstance(disk, Disk)

        async def main() -> None:
            page = bytes(4) + bytes((8, 0x12)) + bytes(18)  # WCE off
            select = cdb("MODE SELECT (6)", PF=1, PARAMETER_LIST_LENGTH=len(page))
            assert (await it.command(select, page))[0].status is GOOD
            assert not caches(disk)
            await it.command(cdb("PREVENT ALLOW MEDIUM REMOVAL", PREVENT=1))
            waiting = [it.send(READ, tag=1), it.send(READ, tag=2, attribute=ORDERED)]
            await waiting[0].ready
            target = it.target
            await (target.reset_unit(0) if how == "unit" else target.reset(bus=how == "bus"))
            assert all(state_of(each) is State.CANCELLED for each in waiting)
            assert caches(disk)
            request, _ = await it.command(TUR)
            assert str(request.sense) == f"UNIT_ATTENTION {sense}"
            request, _ = await it.command(cdb("START STOP UNIT", LOEJ=1))
            assert request.status is GOOD, "nobody prevents it any more"

        it.run(main)


def test_an_initiator_that_is_gone_leaves_nothing(path: Path) -> None:
    with on_disk(path, removable=True) as it:

        async def main() -> None:
            await it.command(cdb("PREVENT ALLOW MEDIUM REMOVAL", PREVENT=1))
            waiting = it.send(READ, tag=1)
            await waiting.ready
            await it.target.forget(it.name)
            assert state_of(waiting) is State.CANCELLED
            request, _ = await it.command(TUR)
            assert str(request.sense) == "UNIT_ATTENTION 29/00", "it is as one that never was"
            assert (await it.command(cdb("START STOP UNIT", LOEJ=1)))[0].status is GOOD

        it.run(main)


# --- sense data that is kept, unit attentions -----------------------------------------------------


def test_sense_data_waits_for_request_sense_and_for_nothing_else(path: Path) -> None:
    sense = cdb("REQUEST SENSE", ALLOCATION_LENGTH=18)
    wrong = cdb("READ (10)", LOGICAL_BLOCK_ADDRESS=99, TRANSFER_LENGTH=1)
    with on_disk(path) as it:

        async def main() -> None:
            request, _ = await it.command(wrong)
            assert request.sense is not None
            _, data = await it.command(sense)
            assert data == request.sense.fixed()
            _, data = await it.command(sense)
            assert (data[2], data[12]) == (0, 0), "it is told once"
            await it.command(wrong)
            await it.command(TUR)
            _, data = await it.command(sense)
            assert data[2] == 0, "the next command has cleared it"
            await it.command(wrong, autosense=True)
            _, data = await it.command(sense)
            assert data[2] == 0, "it was delivered with the status"
            await it.command(wrong)
            descriptors = cdb("REQUEST SENSE", DESC=1, ALLOCATION_LENGTH=255)
            _, data = await it.command(descriptors)
            assert data == request.sense.descriptor() and data[0] == 0x72

        it.run(main)


def test_what_is_exempt_from_unit_attentions(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            await it.target.reset_unit(0)
            for exempt in (
                cdb("INQUIRY", ALLOCATION_LENGTH=36),
                cdb("REPORT LUNS", ALLOCATION_LENGTH=16),
            ):
                assert (await it.command(exempt))[0].status is GOOD
            _, data = await it.command(cdb("REQUEST SENSE", ALLOCATION_LENGTH=18))
            assert (data[2], data[12], data[13]) == (6, 0x29, 3)
            assert (await it.command(TUR))[0].status is GOOD, "it was told"
            await it.target.reset_unit(0)
            request, _ = await it.command(b"\xc0" + bytes(9))
            assert str(request.sense) == "UNIT_ATTENTION 29/03", "it goes before all else"

        it.run(main)


def test_others_hear_of_modes_media_and_sizes_that_change(path: Path) -> None:
    with on_disk(path, removable=True) as it:
        disk = it.target.units[0]
        assert isinstance(disk, Disk)

        async def main() -> None:
            other = Initiator(it.engine, it.target, it.ram, name=1)
            await other.settle()
            page = bytes(4) + bytes((8, 0x12)) + bytes(18)
            await it.command(cdb("MODE SELECT (6)", PF=1, PARAMETER_LIST_LENGTH=24), page)
            await it.command(cdb("START STOP UNIT", LOEJ=1))
            await it.command(cdb("START STOP UNIT", LOEJ=1, START=1))
            with path.open("ab") as file:
                file.write(bytes(512 * 8))
            assert disk.resize() and not disk.resize()
            with path.open("ab") as file:
                file.write(bytes(512))
            assert disk.resize(), "told once, however often it changes"
            heard = [str((await other.command(TUR))[0].sense) for _ in range(4)]
            assert heard == [f"UNIT_ATTENTION {it}" for it in ("2A/01", "28/00", "2A/09")] + [
                "None"
            ]
            heard = [str((await it.command(TUR))[0].sense) for _ in range(2)]
            assert heard == ["UNIT_ATTENTION 2A/09", "None"]
            _, data = await it.command(cdb("READ CAPACITY (10)"))
            assert int.from_bytes(data[:4], "big") == 72
            with path.open("ab") as file:
                file.write(bytes(512))
            disk.resize()
            await it.target.reset_unit(0)
            heard = [str((await other.command(TUR))[0].sense).split()[-1] for _ in range(2)]
            assert heard == ["29/03", "None"], "a reset is told instead of what was before"
            other.port.close()

        it.run(main)


def test_a_request_without_data_is_ready_when_it_is_over(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            request = it.send(TUR)
            assert state_of(request) is State.ENABLED and request.working
            await request.ready
            assert state_of(request) is State.COMPLETED and request.direction is DataDirection.NONE
            with Ram(4096) as ram:
                port = it.engine.port(Memory({0: ram}))
                assert (await request.transfer(port, (0, 512))).moved == 0
                port.close()

        it.run(main)


# --- reservations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["release", "unit reset", "gone"])
def test_a_unit_is_one_initiators_alone_until_it_lets_go(path: Path, how: str) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            other = Initiator(it.engine, it.target, it.ram, name=1)
            await other.settle()
            assert (await it.command(cdb("RESERVE (6)")))[0].status is GOOD
            for command in Disk.commands.all:
                request, _ = await other.command(cdb(command.name), bytes(512))
                conflict = request.status is ScsiStatus.RESERVATION_CONFLICT
                assert conflict != command.unreserved, command.name
            assert (await it.command(TUR))[0].status is GOOD, "a release of another's is nothing"
            if how == "release":
                await it.command(cdb("RELEASE (6)"))
            elif how == "unit reset":
                await it.target.reset_unit(0)
                await other.settle()
            else:
                await it.target.forget(it.name)
            assert (await other.command(TUR))[0].status is GOOD
            for name in ("RESERVE (6)", "RELEASE (6)"):
                for bit in (0x10, 0x01):
                    raw = bytes((cdb(name)[0], bit)) + bytes(4)
                    request, _ = await other.command(raw)
                    assert str(request.sense) == "ILLEGAL_REQUEST 24/00"
            other.port.close()

        it.run(main)
