"""Every edge of the state table is walked, and each waiting state is waited in for each reason.

Invariants:

- An edge counts as walked when the core counted it, in the scenario that is named after it.
- A scenario that has no edge, or an edge that has no scenario, fails: the table and the tests
  cannot drift apart.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.transfer import TRANSITIONS, diagram
from tests.unit.system import (
    WINDOW,
    Registers,
    System,
    drain,
)

Scenario = Callable[[System, Path], Awaitable[None]]
SCENARIOS: dict[tuple[str, str], Scenario] = {}


def edge(source: str, target: str) -> Callable[[Scenario], Scenario]:
    def note(scenario: Scenario) -> Scenario:
        SCENARIOS[source, target] = scenario
        return scenario

    return note


async def ended(transfer: Any, status: Status, moved: int | None = None) -> None:
    done = await transfer
    assert done.status is status, done
    assert moved is None or done.moved == moved


@edge("FREE", "DESCRIBED")
@edge("COMPLETE", "DELIVERED")
@edge("DELIVERED", "FREE")
async def any_transfer(system: System, path: Path) -> None:
    await ended(system.port.copy((0, 8), (8, 8)), Status.OK, 8)


@edge("DESCRIBED", "IN_FLIGHT")
@edge("IN_FLIGHT", "COMPLETE")
async def a_file(system: System, path: Path) -> None:
    with iodma.File(path) as file:
        await ended(system.port.to_memory((0, 4096), source=file), Status.OK, 4096)


@edge("DESCRIBED", "PENDING")
@edge("PENDING", "DESCRIBED")
async def a_translation_is_asked_for(system: System, path: Path) -> None:
    rule = system.inject.hold(4096, 4096)
    transfer = system.port.copy((0, 8), (4096, 8))
    await system.inject.caught()
    assert system.state(transfer) == "PENDING" and system.ram.leases == 0
    rule.release()
    await ended(transfer, Status.OK, 8)


@edge("PENDING", "COMPLETE")
async def cancelled_while_pending(system: System, path: Path) -> None:
    system.inject.hold()
    transfer = system.port.copy((0, 8), (8, 8))
    await system.inject.caught()
    transfer.cancel()
    await ended(transfer, Status.CANCELLED, 0)


@edge("DESCRIBED", "WAITING")
@edge("WAITING", "DESCRIBED")
async def behind_another_in_order(system: System, path: Path) -> None:
    wire, far = system.wire()
    first, second = (system.port.to_memory((i * 8, 8), source=wire) for i in range(2))
    await system.turns()
    assert (system.state(first), system.state(second)) == ("IN_FLIGHT", "WAITING")
    assert system.ram.leases == 1, "who waits holds nothing"
    far.send(bytes(16))
    await ended(second, Status.OK, 8)
    await ended(first, Status.OK, 8)


@edge("WAITING", "COMPLETE")
async def cancelled_while_waiting(system: System, path: Path) -> None:
    wire, far = system.wire()
    first, second = (system.port.to_memory((i * 8, 8), source=wire) for i in range(2))
    await system.turns()
    second.cancel()
    await ended(second, Status.CANCELLED, 0)
    assert not first.done
    far.send(bytes(8))
    await ended(first, Status.OK, 8)


@edge("DESCRIBED", "FAULTED")
@edge("FAULTED", "COMPLETE")
async def nothing_is_mapped(system: System, path: Path) -> None:
    await ended(system.port.copy((0, 8), (1 << 50, 8)), Status.FAULT, 0)


@edge("DESCRIBED", "COMPLETE")
async def nothing_to_move_or_cancelled_at_once(system: System, path: Path) -> None:
    await ended(system.port.copy((0, 0), (8, 0)), Status.OK, 0)
    transfer = system.port.copy((0, 8), (8, 8))
    transfer.cancel()
    await ended(transfer, Status.CANCELLED, 0)


@edge("IN_FLIGHT", "WAITING")
async def the_next_piece_needs_what_another_has(system: System, path: Path) -> None:
    """The arena has one page, and a send from a device window has it."""
    system.window(Registers())
    wire, far = system.full_wire()
    holder = system.port.from_memory((WINDOW, 8), to=wire)
    await system.turns()
    with iodma.File(path) as file:
        transfer = system.port.to_memory([(0, 4096), (WINDOW, 8)], source=file)
        await system.until(lambda: system.state(transfer) == "WAITING")
        (row,) = (row for row in system.engine.transfers() if row.ticket == transfer.ticket)
        assert (row.waits_for, row.moved) == ("budget", 4096)
        assert not holder.done
        drain(far)
        await ended(transfer, Status.OK, 4104)
    await ended(holder, Status.OK, 8)


@edge("IN_FLIGHT", "CANCELLING")
@edge("CANCELLING", "COMPLETE")
async def cancelled_in_flight(system: System, path: Path) -> None:
    wire, _ = system.wire()
    transfer = system.port.to_memory((0, 8), source=wire)
    await system.turns()
    transfer.cancel()
    assert system.state(transfer) == "CANCELLING" and system.ram.leases == 1
    await ended(transfer, Status.CANCELLED, 0)


@edge("IN_FLIGHT", "FAULTED")
async def a_window_refuses_what_came(system: System, path: Path) -> None:
    registers = Registers()
    system.window(registers)
    registers.refuse = True
    wire, far = system.wire()
    far.send(bytes(16))
    await ended(system.port.to_memory([(0, 8), (WINDOW, 8)], source=wire), Status.FAULT, 8)


@edge("CANCELLING", "FAULTED")
async def a_window_refuses_what_comes_after_the_cancel(system: System, path: Path) -> None:
    registers = Registers()
    system.window(registers)
    registers.refuse = True
    disk = system.held()
    transfer = system.port.to_memory((WINDOW, 8), source=disk)
    await disk.asked()
    transfer.cancel()
    disk.answer()
    await ended(transfer, Status.FAULT, 0)


# -- the edges ----------------------------------------------------------------


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    return tmp_path / "file"


def walk(scenario: Scenario, path: Path) -> dict[tuple[str, str], int]:
    system = System(bounce_bytes=4096)
    try:
        system.engine._edges()  # counts from here on
        system.run(scenario(system, path))
        counted = system.engine._edges()
        assert system.ram.leases == 0 and system.engine.transfers() == []
        assert system.engine.stats().arena[1] == 0, "nothing of the arena is kept"
        return counted
    finally:
        system.close()


@pytest.mark.parametrize(
    "pair", [(a, b) for a, b, _ in TRANSITIONS], ids=lambda pair: f"{pair[0]}-{pair[1]}"
)
def test_edge_is_walked(pair: tuple[str, str], path: Path) -> None:
    assert walk(SCENARIOS[pair], path)[pair] > 0


def test_every_edge_has_a_scenario_and_every_scenario_an_edge() -> None:
    assert SCENARIOS.keys() == {(a, b) for a, b, _ in TRANSITIONS}


def test_all_scenarios_together_walk_the_whole_table(path: Path) -> None:
    total = dict.fromkeys(SCENARIOS, 0)
    for scenario in dict.fromkeys(SCENARIOS.values()):
        for pair, times in walk(scenario, path).items():
            total[pair] += times
    assert [pair for pair, times in total.items() if not times] == []
    entered, left = (sum(n for pair, n in total.items() if pair[i] == "FREE") for i in (0, 1))
    assert entered == left, "every row came back"


def test_counting_is_per_edge_and_flows_are_conserved(path: Path) -> None:
    """What goes into a state comes out of it, when nothing is in flight."""
    for scenario in dict.fromkeys(SCENARIOS.values()):
        counted = walk(scenario, path)
        for state in {a for a, _ in counted}:
            into = sum(n for (_, b), n in counted.items() if b == state)
            out = sum(n for (a, _), n in counted.items() if a == state)
            assert into == out, (scenario, state)


def test_the_diagram_shows_every_edge() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == 1 + len(TRANSITIONS)
    for a, b, _ in TRANSITIONS:
        assert sum(line.startswith(f"    {a} --> {b}: ") for line in lines) == 1


# -- every reason to wait -----------------------------------------------------


async def waits_for(system: System, transfer: Any, what: str) -> None:
    def found() -> bool:
        return any(
            row.waits_for == what and row.state == "WAITING"
            for row in system.engine.transfers()
            if row.ticket == transfer.ticket
        )

    await system.until(found)
    assert system.engine.stats().waited[what] >= 1


def test_waiting_for_order(path: Path) -> None:
    system = System()

    async def main() -> None:
        wire, far = system.wire()
        transfers = [system.port.to_memory((i * 8, 8), source=wire) for i in range(4)]
        await waits_for(system, transfers[3], "order")
        far.send(bytes(32))
        for transfer in reversed(transfers):
            await ended(transfer, Status.OK, 8)

    system.run(main())
    system.close()


def test_waiting_for_room_in_the_ring(path: Path) -> None:
    system = System(in_flight=1)

    async def main() -> None:
        one, far = system.wire()
        two, other = system.wire()
        first = system.port.to_memory((0, 8), source=one)
        await system.turns()
        second = system.port.to_memory((8, 8), source=two)
        await waits_for(system, second, "ring")
        other.send(b"second..")
        await system.turns()
        assert not second.done
        far.send(bytes(8))
        await ended(first, Status.OK, 8)
        await ended(second, Status.OK, 8)
        assert system.memory.read(8, 8) == b"second.."

    system.run(main())
    system.close()


def test_waiting_for_bounce_budget_is_first_in_first_out(path: Path) -> None:
    system = System(bounce_bytes=4096)
    order: list[int] = []

    def note(number: int, _: object) -> None:
        order.append(number)

    async def main() -> None:
        system.window(Registers())
        wire, far = system.full_wire()
        holder = system.port.from_memory((WINDOW, 8), to=wire)
        await system.turns()
        with iodma.File(path) as file:
            transfers = [system.port.to_memory((WINDOW + i * 8, 8), source=file) for i in range(5)]
            for i, transfer in enumerate(transfers):
                transfer._when_done(functools.partial(note, i))
                await waits_for(system, transfer, "budget")
            drain(far)
            for transfer in [holder, *transfers]:
                await ended(transfer, Status.OK, 8)

    system.run(main())
    system.close()
    assert order == [0, 1, 2, 3, 4]


def test_waiting_for_a_range_of_a_direct_file(path: Path) -> None:
    """Two writes into one block: the second sees what the first left."""
    system = System()

    async def main() -> None:
        try:
            file = system.use(iodma.File(path, direct=True))
        except OSError as error:
            pytest.skip(f"this file system has no O_DIRECT: {error}")
        if file.constraints.offset_alignment == 1:
            pytest.skip("this file system wants no alignment")
        system.memory.fill(b"a", 0, 100)
        system.memory.fill(b"b", 4096, 100)
        transfers = [
            system.port.from_memory((i % 2 * 4096, 100), to=file, offset=1000 + i * 50)
            for i in range(8)
        ]
        for transfer in transfers:
            await ended(transfer, Status.OK, 100)
        assert system.engine.stats().waited["range"] > 0

    system.run(main())
    system.close()
    data, expected = path.read_bytes(), bytearray(bytes(range(256)) * 64)
    for i in range(8):
        expected[1000 + i * 50 : 1100 + i * 50] = (b"b" if i % 2 else b"a") * 100
    assert data == expected
