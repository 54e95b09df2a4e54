"""Maps change and ports are reset under transfers in flight: no stale byte, and no hang.

Each schedule is drawn from one number, which a failure prints (`run_schedule(seed)` replays it).
Receives from sockets that nobody has sent to yet hold their memory for as long as the schedule
likes; sends to peers that do not read, files and a scripted endpoint are in flight beside them.

What is checked, after every step:

- A byte of memory changes only while a transfer is in flight that may write it.
- When a revocation is acknowledged, its pages get canaries, and those stay; and what is in them is
  not sent to anybody.
- A revocation is done when the last of the transfers that held the range is over, not before and
  not later; past its deadline it has failed for good, and memory is quarantined.
- After a reset is acknowledged no byte of memory changes any more.
- All of it ends, and no descriptor, mapping or lease is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import tempfile
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import iodma
from iodma import Access, Mapping
from iodma.testing import Answer, ScriptedEndpoint
from tests.unit.schedules import run_many

PAGE = 4096
PAGES = 8  # of each Ram
IOVAS = 12
IOVA = 0x4000_0000
SECONDS = 10.0
SMALL_BUFFER = 4096

#: What a schedule does, and how often.
STEPS = {
    "submit": 30,
    "turn": 20,
    "unmap": 12,
    "change_map": 10,
    "peer_sends": 10,
    "remove": 4,
    "cancel": 4,
    "peer_reads": 3,
    "answer": 4,
    "reset": 1,
}

Range = tuple[int, int, int]  # which Ram, from, to


@dataclass(eq=False)
class Mapped:
    """A page of the IOMMU's map."""

    ram: int
    page: int


@dataclass(eq=False)
class Flight:
    transfer: Any
    iovas: set[int]
    segments: list[tuple[int, int]]
    writes: bool
    takes_turns: bool  # with others at its socket
    ranges: list[tuple[Mapped, Range]] = field(default_factory=list)

    def may_write(self) -> list[Range]:
        return [each for _, each in self.ranges] if self.writes else []


@dataclass(eq=False)
class Revoked:
    revocation: Any
    mapped: list[Mapped]
    ram: int  # -1: pages of the IOMMU
    holders: list[Flight]
    expires: bool


class Schedule:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stack = contextlib.ExitStack()
        keep = self.stack.enter_context
        self.engine = keep(iodma.Engine(strict=True, bounce_bytes=1 << 20, spin_us=0, workers=12))
        self.rams = [keep(iodma.Ram(PAGES * PAGE)) for _ in range(2)]
        self.expected = [np.zeros(PAGES * PAGE, np.uint8) for _ in self.rams]
        self.memory = iodma.Memory()
        self.bases = [0x10_0000, 0x10_0000 + PAGES * PAGE]  # neighbours
        for i in range(2):
            self.canary((i, 0, PAGES * PAGE))
            self.memory.add(self.bases[i], self.rams[i])
        self.present = [True, True]
        self.lost = [False, False]  # quarantined
        self.over = False
        self.walking = self.rng.random() < 0.4
        self.iommu, top = self.stage()
        if self.rng.random() < 0.3:
            top = iodma.ByteLanes(top, self.rng.choice([2, 4, 8]))
        self.port = self.engine.port(top)
        self.map: dict[int, Mapped] = {}
        self.flights: list[Flight] = []
        self.revoked: list[Revoked] = []
        self.secrets: list[tuple[Mapped, bytes]] = []  # canaries that nobody may send
        self.sent = bytearray()
        self.sockets: list[iodma.Socket] = []
        self.peers: list[socket.socket] = []
        self.connect()
        with tempfile.TemporaryFile() as file:
            file.write(self.rng.randbytes(3 * PAGE))
            file.flush()
            self.disk = keep(iodma.File(file.fileno()))
        self.script = keep(
            ScriptedEndpoint(
                bytes(PAGE),
                script=lambda _: self.rng.choice([Answer.hold(), Answer.hold(), Answer.all()]),
                on_cancel=self.rng.choice(["honour", "ignore"]),
            )
        )
        for _ in range(IOVAS - 2):
            self.change_map()

    def stage(self) -> tuple[Any, Any]:
        """What pages are mapped with, and what transfers go through."""
        me = weakref.ref(self)  # the core holds the walker, and no cycle through it is found
        iommu = iodma.Iommu(
            self.memory,
            PAGE,
            walk=(lambda *key: schedule.walk(*key) if (schedule := me()) else False)
            if self.walking
            else None,
        )
        return iommu, iommu

    def connect(self) -> None:
        keep = self.stack.enter_context
        for i in range(3):
            ours, peer = socket.socketpair()
            peer.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            with ours:
                if i == 2:  # full: what is sent here waits
                    ours.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            ours.send(bytes(SMALL_BUFFER))
                    ours.setblocking(True)
                self.sockets.append(keep(iodma.Socket(ours)))
            self.peers.append(keep(peer))

    # -- what is where ----------------------------------------------------------------------

    def real(self, ram: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        with self.rams[ram].view() as view:
            return np.frombuffer(bytes(view), np.uint8)

    def canary(self, where: Range) -> bytes:
        ram, first, last = where
        pattern = self.rng.randbytes(16)
        data = pattern * ((last - first) // 16)
        with self.rams[ram].view(first, last - first) as view:
            view[:] = data
        self.expected[ram][first:last] = np.frombuffer(data, np.uint8)
        return pattern

    def live(self, mapped: Mapped) -> bool:
        return self.present[mapped.ram] and not self.lost[mapped.ram]

    def extend(self, flight: Flight, iova: int) -> None:
        """What the flight may touch where this page of its list is mapped now."""
        mapped = self.map.get(iova)
        if mapped is None or not self.live(mapped):
            return
        for address, length in flight.segments:
            first = max(address, IOVA + iova * PAGE)
            last = min(address + length, IOVA + (iova + 1) * PAGE)
            if first < last:
                at = mapped.page * PAGE - (IOVA + iova * PAGE)
                flight.ranges.append((mapped, (mapped.ram, first + at, last + at)))

    # -- the steps --------------------------------------------------------------------------

    def change_map(self) -> None:
        """Map a page that is not mapped, perhaps one that somebody waits for."""
        free = [i for i in range(IOVAS) if i not in self.map]
        if not free:
            return
        iova = self.rng.choice(free)
        if self.iommu.misses and self.rng.random() < 0.7:
            address, asked = self.rng.choice(self.iommu.misses)
            iova = (address - IOVA) // PAGE
            if iova in self.map or self.rng.random() < 0.2:
                self.iommu.refuse(address, asked)
                return
        target = self.found(iova)
        access = self.rng.choice([Access.RW, Access.RW, Access.WRITE])
        if self.walking:
            assert self.iommu.update(Mapping(IOVA + iova * PAGE, target, PAGE, access)) is None
        else:
            self.iommu.map(IOVA + iova * PAGE, target, PAGE, access)

    def found(self, iova: int) -> int:
        """Where a page shall be; what is in flight and has to start again may use it."""
        ram, page = self.rng.randrange(2), self.rng.randrange(PAGES)
        self.map[iova] = Mapped(ram, page)
        self.expose(ram, page)
        for flight in self.flights:
            if iova in flight.iovas:
                self.extend(flight, iova)
        return self.bases[ram] + page * PAGE

    def walk(self, address: int, access: Access) -> Mapping | bool | None:
        iova = (address - IOVA) // PAGE
        if self.over or iova in self.map or self.rng.random() < 0.1:
            return False
        if self.rng.random() < 0.4:
            return None
        return Mapping(address, self.found(iova), PAGE, Access.RW)

    def expose(self, ram: int, page: int | None = None) -> None:
        self.secrets = [
            (mapped, pattern)
            for mapped, pattern in self.secrets
            if mapped.ram != ram or page not in (None, mapped.page)
        ]

    def segments(self) -> list[tuple[int, int]]:
        out = []
        for _ in range(self.rng.choice([1, 1, 2, 4])):
            iova = self.rng.choice([*self.map, self.rng.randrange(IOVAS)])
            if self.rng.random() < 0.9 and self.map:
                iova = self.rng.choice(list(self.map))
            start = self.rng.randrange(PAGE - 64)
            length = self.rng.choice([64, 500, PAGE - start, PAGE])
            out.append((IOVA + iova * PAGE + start, min(length, (IOVAS - iova) * PAGE - start)))
        return out

    def submit(self) -> None:
        segments = self.segments()
        kind = self.rng.choice(["receive"] * 4 + ["send", "read", "write", "script", "script"])
        writes = True
        if kind == "receive":
            minimum = self.rng.choice([None, None, 1])
            source = self.rng.choice(self.sockets)
            transfer = self.port.to_memory(segments, source=source, minimum=minimum)
        elif kind == "send":
            writes = False
            transfer = self.port.from_memory(segments, to=self.sockets[2])
        elif kind == "read":
            transfer = self.port.to_memory(segments, source=self.disk)
        elif kind == "write":
            writes = False
            transfer = self.port.from_memory(segments, to=self.disk)
        else:
            transfer = self.port.to_memory(segments, source=self.script)
        iovas = {(a - IOVA + k) // PAGE for a, n in segments for k in {*range(0, n, PAGE), n - 1}}
        flight = Flight(transfer, iovas, segments, writes, kind in ("receive", "send"))
        for iova in iovas:
            self.extend(flight, iova)
        self.flights.append(flight)

    def unmap(self) -> None:
        first = self.rng.randrange(IOVAS)
        count = self.rng.choice([1, 1, 2, IOVAS])
        count = min(count, IOVAS - first)
        iovas = range(first, first + count)
        running = self.running()
        candidates = [f for f in self.flights if f.iovas & set(iovas)]
        deadline = self.rng.choice([None, None, None, 5.0, 0.0, 0.001])
        act = self.rng.choice([self.iommu.unmap, self.iommu.invalidate])
        revocation = act(
            IOVA + first * PAGE, count * PAGE, cancel=self.rng.random() < 0.4, deadline=deadline
        )
        mapped = [self.map.pop(iova) for iova in iovas if iova in self.map]
        self.revoke(revocation, mapped, -1, candidates, deadline, running)

    def running(self) -> set[int]:
        """What certainly holds its memory."""
        return {i.ticket for i in self.engine.transfers() if i.state in ("IN_FLIGHT", "CANCELLING")}

    def remove(self) -> None:
        ram = self.rng.randrange(2)
        if not self.present[ram]:
            if not self.lost[ram] and not any(r.ram == ram for r in self.revoked):
                self.put_back(ram)
            return
        candidates = [f for f in self.flights if any(m.ram == ram for m, _ in f.ranges)]
        deadline = self.rng.choice([None, None, 5.0, 0.0, 0.001])
        revocation = self.memory.remove(
            self.bases[ram], cancel=self.rng.random() < 0.4, deadline=deadline
        )
        self.present[ram] = False
        mapped = [m for m in self.map.values() if m.ram == ram]
        self.revoke(revocation, mapped, ram, candidates, deadline, set())

    def put_back(self, ram: int) -> None:
        self.memory.add(self.bases[ram], self.rams[ram])
        self.present[ram] = True
        self.expose(ram)
        for flight in self.flights:
            for iova in flight.iovas:
                if iova in self.map and self.map[iova].ram == ram:
                    self.extend(flight, iova)

    def revoke(
        self,
        revocation: Any,
        mapped: list[Mapped],
        ram: int,
        candidates: list[Flight],
        deadline: float | None,
        running: set[int],
    ) -> None:
        held = set(revocation.held_by)
        by_ticket = {flight.transfer.ticket: flight for flight in candidates}
        assert held <= set(by_ticket), "held by what does not touch it"
        if not revocation.done or not held:
            # (those that a hasty revocation ended at once hold it no more)
            ended = {t for t in by_ticket if t not in {i.ticket for i in self.engine.transfers()}}
            must = {f.transfer.ticket for f in candidates if f.transfer.ticket in running} - ended
            still = self.running()
            assert must & still <= held, "acknowledged while it is held"
        assert revocation.done == (not held)
        self.revoked.append(
            Revoked(revocation, mapped, ram, [by_ticket[t] for t in held], deadline is not None)
        )
        self.look()

    def cancel(self) -> None:
        if self.flights:
            self.rng.choice(self.flights).transfer.cancel()

    def peer_sends(self) -> None:
        peer = self.rng.choice(self.peers)
        with contextlib.suppress(BlockingIOError):
            peer.send(self.rng.randbytes(self.rng.choice([10, 300, 3000])))

    def peer_reads(self, most: int = 20_000) -> None:
        with contextlib.suppress(BlockingIOError):
            self.sent += self.peers[2].recv(most)

    def answer(self) -> None:
        if self.script.waiting:
            request = self.rng.choice(self.script.waiting)
            self.script.answer(request, self.rng.choice([None, 10]))

    def reset(self) -> None:
        for request in self.script.waiting:  # those whose cancel it ignored
            if request.cancelled:
                self.script.answer(request, error=errno.ECANCELED)
        self.script.on_cancel = "honour"
        self.run(self.port.reset())
        assert all(flight.transfer.done for flight in self.flights)
        self.look()
        assert not self.flights and not any(r for r in self.revoked if not r.revocation.failed)
        for peer in self.peers:  # what comes now is for nobody
            with contextlib.suppress(BlockingIOError):
                peer.send(b"late" * 100)
        for _ in range(2):
            self.turn()

    def turn(self) -> None:
        self.engine.pump()
        self.look()

    # -- what must hold -----------------------------------------------------------------------

    def look(self) -> None:
        loose = [np.zeros(PAGES * PAGE, bool) for _ in self.rams]
        for flight in self.flights:
            for ram, first, last in flight.may_write():
                loose[ram][first:last] = True
        for ram, expected in enumerate(self.expected):
            real = self.real(ram)
            wrong = np.flatnonzero((real != expected) & ~loose[ram])
            assert not len(wrong), f"ram {ram}: stale bytes at {wrong[:8]}, {len(wrong)} in all"
            expected[:] = real
        self.flights = [flight for flight in self.flights if not flight.transfer.done]
        pending = []
        states = {info.ticket: info.state for info in self.engine.transfers()}
        for each in self.revoked:
            held = set(each.revocation.held_by)
            # One that went together with others, and could not go after all, waits for its turn
            # again, and has let go: it is translated anew when that comes.
            each.holders = [
                f
                for f in each.holders
                if f.transfer.done or f.transfer.ticket in held or not f.takes_turns
            ]
            alive = [f.transfer.ticket for f in each.holders if not f.transfer.done]
            holding = {ticket for ticket in alive if states[ticket] != "COMPLETE"}
            if each.revocation.failed:
                assert each.expires and not each.revocation.ok
                self.failed(each)
                continue
            assert held == holding, (held, states)
            assert each.revocation.done <= (not holding) and each.revocation.done >= (not alive)
            if each.revocation.done:
                assert each.revocation.ok and each.revocation.result is True
                self.acknowledged(each)
            else:
                pending.append(each)
        self.revoked = pending
        assert [ram.quarantined for ram in self.rams] == self.lost

    def acknowledged(self, revoked: Revoked) -> None:
        """Nobody reaches what was revoked: new canaries, for good."""
        gone = set(map(id, revoked.mapped))
        quiet = {(m.ram, m.page) for m in revoked.mapped}
        for flight in self.flights:
            if revoked.ram >= 0:
                flight.ranges = [r for r in flight.ranges if r[0].ram != revoked.ram]
            else:
                flight.ranges = [r for r in flight.ranges if id(r[0]) not in gone]
        if revoked.ram >= 0:
            quiet = {(revoked.ram, page) for page in range(PAGES)}
        for flight in self.flights:  # through another mapping
            quiet -= {(m.ram, m.page) for m, _ in flight.ranges}
        mapped_now = {(m.ram, m.page) for m in self.map.values() if self.live(m)}
        for ram, page in quiet:
            pattern = self.canary((ram, page * PAGE, (page + 1) * PAGE))
            if (ram, page) not in mapped_now:
                self.secrets.append((Mapped(ram, page), pattern))

    def failed(self, revoked: Revoked) -> None:
        if revoked.ram >= 0:
            assert revoked.revocation.result is False
            self.lost[revoked.ram] = True
            with pytest.raises(iodma.ClosedError, match="quarantined"):
                self.memory.add(self.bases[revoked.ram], self.rams[revoked.ram])

    # -- running and ending ---------------------------------------------------------------------

    def run(self, wait: Any) -> Any:
        async def main() -> Any:
            return await wait

        timer = self.engine.call_later(SECONDS, self.stuck)
        try:
            return self.engine.run(main())
        finally:
            timer.cancel()

    def stuck(self) -> None:
        raise TimeoutError("\n".join(map(str, self.engine.transfers())))

    def play(self) -> None:
        steps = self.rng.choices(list(STEPS), list(STEPS.values()), k=40)
        for step in steps:
            getattr(self, step)()
        if self.rng.random() < 0.5:  # else the reset, or the engine's end, ends it all
            for peer in self.peers:
                with contextlib.suppress(BlockingIOError):
                    while data := peer.recv(1 << 16):
                        if peer is self.peers[2]:
                            self.sent += data
                peer.close()
            self.script.on_cancel = "honour"
            self.over = True
            while self.flights:
                for key in self.iommu.misses:
                    self.iommu.refuse(*key)
                self.script.answer_all()
                self.run(self.engine.sleep(0.0005))
                self.look()
        else:
            self.reset()
        for each in self.revoked:
            self.run(each.revocation)
        self.look()
        assert not self.flights and not self.revoked
        for mapped, pattern in self.secrets:
            assert pattern not in self.sent, f"a stale page of ram {mapped.ram} was sent"
        assert all(not ram.leases for ram in self.rams)
        assert self.port.in_flight == 0


def run_schedule(seed: int, kind: type[Schedule] = Schedule) -> None:
    schedule = kind(seed)
    try:
        schedule.play()
    finally:
        schedule.stack.close()


@pytest.mark.parametrize("part", range(4))
def test_schedules(part: int, rng: random.Random) -> None:
    run_many(run_schedule, rng, 150)


@pytest.mark.soak
def test_ten_thousand_schedules(rng: random.Random) -> None:
    run_many(run_schedule, rng, 10_000)


def test_a_failed_revocation_quarantines_only_what_was_revoked() -> None:
    ours, peer = socket.socketpair()
    with (
        iodma.Engine(strict=True) as engine,
        iodma.Ram(PAGE) as low,
        iodma.Ram(PAGE) as high,
        ours,
        peer,
        iodma.Socket(ours) as source,
    ):
        memory = iodma.Memory({0: low, PAGE: high})
        port = engine.port(memory)

        async def main() -> None:
            transfer = port.to_memory((PAGE - 100, 200), source=source)
            await engine.sleep(0)
            assert await memory.remove(PAGE, deadline=0.0) is False
            assert high.quarantined and not low.quarantined
            assert (await port.load_bytes(0, 4)) == bytes(4)
            peer.send(bytes(200))
            assert (await transfer).ok
            with pytest.raises(iodma.DmaFault):
                await port.load_bytes(PAGE, 4)

        engine.run(main())
