"""Unmaps, resets and a gate that is shut, against DMA in flight, in any order: nothing lands late.

A client maps pages of its files, and some that it does not share; a device moves bytes to and from
them; the client takes pages away, shuts Bus Master Enable, resets, answers messages late, in
another order or with an error.

Invariants:

- A page is the client's own from the answer to its unmap until it maps it again: it is filled with
  a pattern then, which nothing may change, and which nothing may have read when it is mapped again.
- So is all memory from the moment that the gate is acknowledged to be shut until it is opened.
- No message is asked, or unanswered, for a region that is acknowledged to be gone; those for one
  whose unmap was refused may still be unanswered when the next one there is.
- A page is mapped at one address at a time.
- An unmap is refused only when its time is over, which it is when the schedule says so; its bytes
  are nobody's until what held them has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import Answer, Clock, ScriptedEndpoint, strict_engine
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user import messages as wire
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.messages import Command, Refusal
from iodma.transports.vfio_user.remote import Remote
from tests.unit.schedules import run_many

PAGE = 4096
PAGES, FILES, SLOTS = 6, 2, 16
MARK = 0x1DEA_F00D_0BAD_CAFE


class Still(Clock):
    """Stands still, but for `advance`."""

    def idle_until(self, when_ns: int) -> None: ...


@dataclass(eq=False)
class Page:
    """A page of a file; ``slot`` is where it is mapped, or None."""

    fd: int
    number: int
    slot: int | None = None
    pattern: bytes = b""

    def fill(self, generation: int) -> None:
        self.pattern = struct.pack("<QQ", MARK, generation) * (PAGE // 16)
        os.pwrite(self.fd, self.pattern, self.number * PAGE)

    def content(self) -> bytes:
        return os.pread(self.fd, PAGE, self.number * PAGE)


@dataclass(eq=False)
class Slot:
    """A page of bus addresses: a page of a file, or one that is not shared (None)."""

    number: int
    page: Page | None


@dataclass
class Schedule:
    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.stack = ExitStack()
        keep = self.stack.enter_context
        self.clock = Still()
        self.engine = keep(strict_engine(clock=self.clock, bounce_bytes=64 << 10))
        self.slot = iodma.PciSlot()
        self.remote = Remote(self.ask)
        self.remote.most = self.rng.choice([512, 1 << 20])
        self.table = DmaTable(self.engine, self.slot.memory, self.remote)
        self.ports = [self.engine.port(self.slot, f"port{i}") for i in range(2)]
        self.pages: list[Page] = []
        for _ in range(FILES):
            fd = os.memfd_create("guest")
            self.stack.callback(os.close, fd)
            os.ftruncate(fd, PAGES * PAGE)
            self.pages += [Page(fd, number) for number in range(PAGES)]
        self.generation = 0
        for page in self.pages:
            self.own(page)
        self.slots: dict[int, Slot] = {}
        self.gone: list[Slot] = []
        self.asked: list[tuple[int, int, bytes]] = []
        self.transfers: list[Any] = []
        self.gate: Any = None
        self.resets: list[Any] = []
        self.quiet: list[bytes] | None = None
        self.held = False  # longer than there was time
        self.refused: set[int] = set()  # slots that it was so for
        self.script = keep(ScriptedEndpoint(1 << 16, script=self.answer_or_hold))
        self.buffer = keep(iodma.Buffer(1 << 16))
        ours, peer = socket.socketpair()
        self.peer = keep(peer)
        self.peer.setblocking(False)
        with ours:
            self.stream = keep(iodma.Socket(ours))

    def answer_or_hold(self, _: object) -> Answer:
        return self.rng.choice([Answer.hold(), Answer()])

    # --- the client -------------------------------------------------------------------------------

    def own(self, page: Page) -> None:
        page.slot = None
        self.generation += 1
        page.fill(self.generation)

    def ask(self, id: int, command: int, payload: bytes) -> None:
        at = struct.unpack_from("=Q", payload)[0] // PAGE
        there = at in self.slots or any(each.number == at for each in self.gone)
        assert there or self.held, f"a message for {at:#x}, which is not there"
        assert self.quiet is None, "a message while the gate is shut"
        self.asked.append((id, command, payload))

    def map(self) -> None:
        number = self.rng.randrange(SLOTS)
        free = [page for page in self.pages if page.slot is None]
        page = self.rng.choice(free) if free and self.rng.random() < 0.8 else None
        going = [each for each in self.gone if each.number == number]
        if number in self.slots or any(page is None or each.page is None for each in going):
            return
        if page is None:
            self.table.map(number * PAGE, PAGE, 3, None, 0)
        else:
            assert page.content() == page.pattern, "written to while it was the client's"
            os.pwrite(page.fd, bytes(PAGE), page.number * PAGE)  # the mark is gone before DMA is
            page.slot = number
            with Descriptor(os.dup(page.fd)) as descriptor:
                self.table.map(number * PAGE, PAGE, 3, descriptor, page.number * PAGE)
            if self.quiet is not None:
                self.quiet[self.pages.index(page)] = page.content()
        self.slots[number] = Slot(number, page)

    def unmap(self) -> None:
        if not self.slots:
            return
        if self.rng.random() < 0.1:
            numbers = [*self.slots]
            wait = self.table.unmap(0, 0, all=True)
        else:
            numbers = [self.rng.choice([*self.slots])]
            wait = self.table.unmap(numbers[0] * PAGE, PAGE)
        slots = [self.slots.pop(number) for number in numbers]
        if wait is None:
            self.acknowledged(slots, numbers)
            return
        self.gone += slots
        self.engine.start(self.wait_for(wait, slots, numbers))

    async def wait_for(self, wait: Any, slots: list[Slot], numbers: list[int]) -> None:
        try:
            await wait
        except Refusal as refusal:
            assert refusal.errno == errno.EBUSY
            refusal.__traceback__ = None  # the wait keeps it, and it would keep this frame
            self.gone = [each for each in self.gone if each not in slots]
            self.held = True
            self.refused.update(numbers)
            return
        self.acknowledged(slots, numbers)

    def acknowledged(self, slots: list[Slot], numbers: list[int]) -> None:
        self.gone = [each for each in self.gone if each not in slots]
        waiting = {struct.unpack_from("=Q", payload)[0] // PAGE for _, _, payload in self.asked}
        for slot, number in zip(slots, numbers, strict=True):
            allowed = number in self.slots or number in self.refused
            assert allowed or number not in waiting, "unanswered, and unmapped"
            if slot.page is not None:
                self.own(slot.page)
                if self.quiet is not None:
                    self.quiet[self.pages.index(slot.page)] = slot.page.content()

    def answer(self) -> None:
        if not self.asked:
            return
        id, command, payload = self.asked.pop(self.rng.randrange(len(self.asked)))
        address, count = struct.unpack_from("=QQ", payload)
        if self.rng.random() < 0.1:
            self.remote.take(id, command, wire.REPLY | wire.ERROR, b"")
        else:
            data = bytes(count) if command == Command.DMA_READ else b""
            self.remote.take(id, command, wire.REPLY, struct.pack("=QQ", address, count) + data)

    def shut(self) -> None:
        self.opened()
        self.gate = self.slot.set_bus_master(False)
        self.engine.start(self.wait_for_gate(self.gate))

    async def wait_for_gate(self, gate: Any) -> None:
        if not await gate:
            self.held = True
        elif gate is self.gate and not self.slot.bus_master:
            self.quiet = [page.content() for page in self.pages]
            assert not self.asked, "the gate is shut, and messages are not answered"

    def opened(self) -> None:
        if self.quiet is not None:
            assert self.quiet == [page.content() for page in self.pages], "past the gate"
            self.quiet = None

    def open(self) -> None:
        self.opened()
        self.gate = None
        self.slot.set_bus_master(True)

    # --- the device -------------------------------------------------------------------------------

    def segments(self) -> list[tuple[int, int]]:
        rng = self.rng
        slots = [*self.slots] or [0]
        return [
            (rng.choice(slots) * PAGE + rng.randrange(PAGE - 64), rng.choice([8, 64, 64, PAGE]))
            for _ in range(rng.choice([1, 1, 2, 5]))
        ]

    def submit(self) -> None:
        rng, segments = self.rng, self.segments()
        port = rng.choice(self.ports)
        if port.resetting or len(self.transfers) > 30:
            return
        total = sum(length for _, length in segments)
        endpoint = rng.choice([self.script, self.script, self.buffer, self.stream])
        transfer: Any
        match rng.randrange(6):
            case 0 | 1:
                transfer = port.to_memory(segments, source=endpoint)
            case 2 | 3:
                transfer = port.from_memory(segments, to=endpoint)
            case 4:
                transfer = port.store_bytes(segments[0][0], b"s" * min(total, 100))
            case _:
                transfer = port.copy(segments, [(address, n) for address, n in segments[::-1]])
        self.transfers.append(transfer)

    def cancel(self) -> None:
        if self.transfers:
            self.rng.choice(self.transfers).cancel()

    def reset(self) -> None:
        port = self.rng.choice(self.ports)
        if not port.resetting:
            self.engine.start(self.wait_for_reset(port, [*self.transfers]))

    async def wait_for_reset(self, port: iodma.Port, before: list[Any]) -> None:
        await port.reset()
        assert port.in_flight == 0

    def script_answers(self) -> None:
        if self.script.waiting:
            self.script.answer(self.rng.choice(self.script.waiting))

    def feed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.peer.send(bytes(self.rng.randint(1, 5000)))

    def drink(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.peer.recv(1 << 16):
                assert struct.pack("<Q", MARK) not in data, "a page of the client's was read"

    def wait(self) -> None:
        self.clock.advance(self.rng.choice([0.5, 2.5]))

    def turn(self) -> None:
        self.engine.pump()
        self.judge()

    def judge(self) -> None:
        left = []
        for transfer in self.transfers:
            if not transfer.done:
                left.append(transfer)
                continue
            try:
                done = transfer.result
            except iodma.DmaFault as fault:
                done = fault.completion
            assert done.status in (Status.OK, Status.FAULT, Status.CANCELLED), done
        self.transfers = left

    ACTS = (
        *(("map", 12), ("unmap", 8), ("submit", 20), ("turn", 20), ("answer", 10)),
        *(("script_answers", 8), ("feed", 4), ("drink", 2), ("cancel", 3)),
        *(("reset", 2), ("shut", 2), ("open", 5), ("wait", 2)),
    )

    def play(self, steps: int = 60) -> None:
        self.open()
        names = [name for name, _ in self.ACTS]
        for name in self.rng.choices(names, [weight for _, weight in self.ACTS], k=steps):
            getattr(self, name)()
        self.engine.run(self.finish())
        for page in self.pages:
            if page.slot is None:
                assert page.content() == page.pattern, "written to while it was the client's"
        data = bytes(self.buffer.view()) + bytes(self.script.content)
        assert struct.pack("<Q", MARK) not in data, "a page of the client's was read"
        self.drink()

    async def finish(self) -> None:
        if self.rng.random() < 0.5:
            self.unmap_rest()
        for _ in range(2000):
            if not self.transfers and not self.gone:
                break
            while self.asked:
                self.answer()
            self.script.answer_all()
            self.feed()
            self.drink()
            await self.engine.sleep(0)
            self.judge()
        assert not self.transfers and not self.gone, (self.transfers, self.engine.transfers())
        self.opened()
        self.remote.close()
        assert await self.table.close() or self.held
        assert self.table.mappings == 0

    def unmap_rest(self) -> None:
        with contextlib.suppress(Refusal):
            while self.slots:
                self.unmap()


def run_schedule(seed: int) -> None:
    schedule = Schedule(seed)
    try:
        schedule.play()
    finally:
        schedule.stack.close()


@pytest.mark.parametrize("part", range(2))
def test_schedules(part: int, rng: random.Random) -> None:
    run_many(run_schedule, rng, 150)


@pytest.mark.soak
def test_ten_thousand_schedules(rng: random.Random) -> None:
    run_many(run_schedule, rng, 10_000)
