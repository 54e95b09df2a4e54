"""Transfers in every state in which they can be cancelled.

Invariant: a case tells how its transfer may end, and what else is to go on then.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from tests.unit.system import (
    MIB,
    WINDOW,
    Registers,
    System,
    drain,
)

CANCELLED, OK = Status.CANCELLED, Status.OK


@dataclass
class Case:
    """A transfer in some state: how it may end, and how those that it is in the way of go on."""

    transfer: Any
    state: str
    #: How it may end.
    statuses: tuple[Status, ...] = (CANCELLED,)
    #: What the test has to do before it can end at all.
    let_go: Callable[[], object] = lambda: None
    #: Others: they end with OK once `free` was called.
    others: list[Any] = field(default_factory=list)
    free: Callable[[], object] = lambda: None


Setup = Callable[[System, Path], Awaitable[Case]]
SETUPS: dict[str, Setup] = {}


def setup(function: Setup) -> Setup:
    SETUPS[function.__name__] = function
    return function


@setup
async def described(system: System, path: Path) -> Case:
    file = system.use(iodma.File(path))
    return Case(system.port.to_memory((0, 4096), source=file), "DESCRIBED")


@setup
async def pending(system: System, path: Path) -> Case:
    system.inject.hold(7 * MIB, 4096)
    transfer = system.port.copy((MIB, 8), (7 * MIB, 8))
    await system.inject.caught()
    return Case(transfer, "PENDING")


@setup
async def waiting_for_order(system: System, path: Path) -> Case:
    wire, far = system.wire()
    transfers = [system.port.to_memory((i * 8, 8), source=wire) for i in range(3)]
    await system.turns()
    others = [transfers[0], transfers[2]]
    return Case(transfers[1], "WAITING", others=others, free=lambda: far.send(bytes(16)))


@setup
async def holding_the_order(system: System, path: Path) -> Case:
    wire, far = system.wire()
    transfers = [system.port.to_memory((i * 8, 8), source=wire) for i in range(3)]
    await system.turns()
    return Case(transfers[0], "IN_FLIGHT", others=transfers[1:], free=lambda: far.send(bytes(16)))


async def holds_the_budget(system: System, path: Path) -> tuple[list[Any], socket.socket]:
    """The first has all of it: what registers gave is kept until the peer takes it."""
    system.window(Registers())
    wire, far = system.full_wire()
    file = system.use(iodma.File(path))
    transfers = [system.port.from_memory((WINDOW, 8), to=wire)]
    await system.turns()
    assert system.engine.stats().arena[1] == 4096
    transfers += [system.port.to_memory((WINDOW + i * 8, 8), source=file) for i in range(3)]
    await system.turns()
    return transfers, far


@setup
async def waiting_for_budget(system: System, path: Path) -> Case:
    transfers, far = await holds_the_budget(system, path)
    others = [transfers[0], transfers[2], transfers[3]]
    return Case(transfers[1], "WAITING", others=others, free=lambda: drain(far))


@setup
async def holding_the_budget(system: System, path: Path) -> Case:
    transfers, _ = await holds_the_budget(system, path)
    return Case(transfers[0], "IN_FLIGHT", others=transfers[1:])


@setup
async def in_flight_on_a_file(system: System, path: Path) -> Case:
    file = system.use(iodma.File(path))
    transfer = system.port.to_memory((0, MIB), source=file)
    return Case(transfer, "", statuses=(CANCELLED, OK))


@setup
async def receiving(system: System, path: Path) -> Case:
    wire, _ = system.wire("tcp")
    transfer = system.port.to_memory((0, 4096), source=wire)
    await system.turns()
    return Case(transfer, "IN_FLIGHT")


@setup
async def receiving_the_rest(system: System, path: Path) -> Case:
    wire, far = system.wire()
    transfer = system.port.to_memory((0, 4096), source=wire)
    far.send(b"x" * 1000)

    def here() -> bool:
        return any(
            row.ticket == transfer.ticket and row.moved == 1000 for row in system.engine.transfers()
        )

    await system.until(here)
    await system.turns()
    return Case(transfer, "IN_FLIGHT")


@setup
async def sending_to_who_does_not_read(system: System, path: Path) -> Case:
    wire, _ = system.wire()
    transfer = system.port.from_memory((0, 4 * MIB), to=wire)
    await system.turns()
    return Case(transfer, "IN_FLIGHT")


@setup
async def sending_zero_copy_to_who_does_not_read(system: System, path: Path) -> Case:
    wire, far = system.wire("tcp", zero_copy=True)
    transfer = system.port.from_memory([(i * 65536, 65536) for i in range(64)] * 4, to=wire)
    await system.turns(50)
    return Case(transfer, "IN_FLIGHT", let_go=far.close, statuses=(CANCELLED, Status.PEER_GONE))


@setup
async def on_a_descriptor_that_does_not_block(system: System, path: Path) -> Case:
    """It waits in a poll, not in a read."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with near:
        wire = system.use(iodma.Socket(near))
    system.use(far)
    transfer = system.port.to_memory((0, 4096), source=wire)
    await system.turns()
    return Case(transfer, "IN_FLIGHT")


@setup
async def scripted_that_honours_it(system: System, path: Path) -> Case:
    disk = system.held(on_cancel="honour")
    transfer = system.port.to_memory((0, 8), source=disk)
    await disk.asked()
    return Case(transfer, "IN_FLIGHT")


@setup
async def scripted_that_ignores_it(system: System, path: Path) -> Case:
    disk = system.held(on_cancel="ignore")
    transfer = system.port.to_memory((0, 8), source=disk)
    await disk.asked()
    return Case(transfer, "IN_FLIGHT", statuses=(OK,), let_go=disk.answer)


@setup
async def scripted_that_answers_in_part(system: System, path: Path) -> Case:
    disk = system.held(on_cancel="ignore")
    transfer = system.port.to_memory((0, 8), source=disk)
    await disk.asked()
    return Case(transfer, "IN_FLIGHT", let_go=lambda: disk.answer(moved=3))


@setup
async def waiting_for_a_range(system: System, path: Path) -> Case:
    file = system.use(iodma.File(path, direct=True))
    if file.constraints.offset_alignment == 1:
        pytest.skip("this file system wants no alignment")
    transfers = [system.port.from_memory((0, 100), to=file, offset=1000 + i * 10) for i in range(3)]
    return Case(transfers[1], "", statuses=(CANCELLED, OK), others=[transfers[0], transfers[2]])


#: Those that need the arena, or the device window, for themselves.
ALONE = {"holding_the_budget", "waiting_for_budget"}
