"""Commands of several initiators, cancels and resets in random order, on real files.

Whatever happens: every request ends, what has ended moves nothing any more, and a block holds what
one of the writes to it has put there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import File, Memory, Ram
from iodma.scsi import DataDirection, Disk, Request, Target, TaskAttribute
from iodma.testing import strict_engine
from tests.unit.engines import settle
from tests.unit.scsikit import GOOD, cdb

BLOCKS = 16
PAGE = 4096
MOST = 24

commands = st.sampled_from(
    [
        *("READ (10)", "WRITE (10)", "WRITE (10)", "WRITE AND VERIFY (10)", "VERIFY (10)"),
        *("COMPARE AND WRITE", "SYNCHRONIZE CACHE (10)", "TEST UNIT READY", "WRITE SAME (16)"),
    ]
)
actions = st.one_of(
    st.tuples(
        st.just("send"),
        commands,
        st.integers(0, BLOCKS - 1),
        st.sampled_from(TaskAttribute),
        st.integers(0, 2),
    ),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(0, MOST)),
    st.tuples(st.just("abort set"), st.integers(0, 2)),
    st.tuples(st.just("reset"), st.booleans()),
    st.tuples(st.just("gone"), st.integers(0, 2)),
)


class World:
    """A target, three initiators, and a page of memory for each request."""

    def __init__(self, engine: Any, target: Target, ram: Ram) -> None:
        self.engine = engine
        self.target = target
        self.ram = ram
        self.port = engine.port(Memory({0: ram}), "initiators")
        self.requests: list[Request] = []
        self.movers: list[Any] = []
        self.seen: dict[int, bytes] = {}
        self.written: dict[int, set[int]] = {lba: {0} for lba in range(BLOCKS)}

    def page(self, index: int) -> memoryview:
        return self.ram.view(index * PAGE, PAGE)

    def send(self, name: str, lba: int, attribute: TaskAttribute, initiator: int) -> None:
        index = len(self.requests)
        if index == MOST:
            return
        fields: dict[str, int] = {}
        if name not in ("TEST UNIT READY", "SYNCHRONIZE CACHE (10)"):
            fields["LOGICAL_BLOCK_ADDRESS"] = lba
            length = {"VERIFY (10)": "VERIFICATION_LENGTH"}.get(name, "TRANSFER_LENGTH")
            if name in ("COMPARE AND WRITE", "WRITE SAME (16)"):
                length = "NUMBER_OF_LOGICAL_BLOCKS"
            fields[length] = 1
        value = index + 1
        # What is written is of its request alone; COMPARE AND WRITE compares with zeroes.
        data = bytes((value,)) * PAGE
        if name == "COMPARE AND WRITE":
            data = bytes(512) + data[512:]
        with self.page(index) as page:
            page[:] = data
        if name.startswith(("WRITE", "COMPARE")):
            self.written[lba].add(value)
        request = self.target.request(
            0, cdb(name, **fields), index, attribute=attribute, initiator=initiator
        )
        self.requests.append(request)
        if request.over:
            self.ended(index)
        else:
            request.when_over(lambda: self.ended(index))
        self.movers.append(self.engine.start(self.move(index, request)))

    async def move(self, index: int, request: Request) -> None:
        await request.ready
        at = index * PAGE
        while request.left:
            length = min(request.left, 300)
            done = await request.transfer(self.port, (at, length))
            at += length
            if not done.ok:
                return

    def ended(self, index: int) -> None:
        with self.page(index) as page:
            self.seen[index] = bytes(page)

    def do(self, action: Any) -> None:
        match action:
            case ("send", name, lba, attribute, initiator):
                self.send(name, lba, attribute, initiator)
            case ("turn", count):
                for _ in range(count):
                    self.engine.pump(1)
            case ("cancel", index) if self.requests:
                self.requests[index % len(self.requests)].cancel()
            case ("abort set", initiator):
                self.target.abort_task_set(0, initiator)
            case ("reset", bus):
                self.target.reset(bus=bus)
            case ("gone", initiator):
                self.target.forget(initiator)

    async def rest(self) -> None:
        for request in self.requests:
            await request.finished
        for mover in self.movers:
            await mover


@pytest.mark.parametrize("kind", ["auto", "threads"])
@given(many=st.lists(actions, max_size=40), write_cache=st.booleans())
def test_every_request_ends_and_then_moves_nothing(
    kind: str, many: list[Any], write_cache: bool
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        strict_engine(kind) as engine,
        Ram(MOST * PAGE) as ram,
        File(Path(folder) / "disk.img", create=BLOCKS * 512) as file,
    ):
        target = Target(engine, Disk(file, write_cache=write_cache))
        world = World(engine, target, ram)
        for action in many:
            world.do(action)
        engine.run(world.rest())
        settle(engine)
        assert not len(target.units[0].tasks) and not engine.transfers()
        for index, request in enumerate(world.requests):
            assert request.over and not request.in_flight and not request.working
            with world.page(index) as page:
                assert page == world.seen[index], request
            if request.direction is DataDirection.IN and request.status is GOOD:
                assert not request.left
        content = (Path(folder) / "disk.img").read_bytes()
        for lba, values in world.written.items():
            for at in range(lba * 512, lba * 512 + 512):
                assert content[at] in values
        target.close()
        world.port.close()
