"""What is in flight, and the model beside it: how each transfer ends, and what lies in memory then.

Invariants:

- What would disturb something in flight waits for it, so that the outcome is always defined.
- After each completion memory is compared, and with nothing in flight the endpoints as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import iodma
from iodma import Status
from tests.unit import model
from tests.unit.chains import Plan
from tests.unit.farmemory import FarMemory
from tests.unit.transfers import Checker, Footprint

#: That something may be in flight before it counts as stuck: far more than a machine that has much
#: else to do takes (five were too few once), and less than the watchdog gives a test.
SECONDS = 30.0


def direct_directory() -> str | None:
    """Where a file can be opened with O_DIRECT: the usual place for such files, or beside us."""
    for place in (tempfile.gettempdir(), "/var/tmp", str(Path(__file__).parents[2])):
        try:
            with tempfile.NamedTemporaryFile(dir=place) as file:
                os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
                return place
        except OSError:
            continue
    return None


DIRECT_DIRECTORY = direct_directory()


@dataclass(eq=False)
class Endpoint:
    real: Any
    model: model.File
    path: str = ""
    direct: bool = False

    def content(self) -> bytes:
        if self.path:
            return Path(self.path).read_bytes()
        if isinstance(self.real, iodma.Buffer):
            return bytes(self.real.view())
        return b""

    def is_what_the_model_has(self) -> None:
        if not isinstance(self.model, model.Null):
            content = self.content()
            assert len(content) == len(self.model.data), f"{self.real}: size"
            assert content == self.model.data, f"{self.real}: " + difference(
                content, self.model.data
            )


def difference(got: bytes, wanted: bytes | bytearray) -> str:
    at = [i for i in range(len(wanted)) if got[i] != wanted[i]]
    return (
        f"{len(at)} bytes differ, from {at[0]} to {at[-1]}: {list(got[at[0] : at[0] + 8])} where"
        f" the model has {list(wanted[at[0] : at[0] + 8])}"
    )


@dataclass(eq=False)
class Move:
    """A transfer in flight, and what is expected of it."""

    transfer: Any
    footprint: Footprint
    judge: Callable[[Move, Any], None]
    text: str
    loose: bool = False  # cancelled, reset, or its memory taken away
    done: Any = None

    def __repr__(self) -> str:
        return self.text


@dataclass
class Stream:
    """A socket pair: `real` is the endpoint, `peer` what the test holds."""

    real: Any
    peer: socket.socket
    received: bytearray = field(default_factory=bytearray)  # by the peer
    sent: bytearray = field(default_factory=bytearray)  # to the peer, as the model has it
    coming: bytearray = field(default_factory=bytearray)  # from the peer, not yet taken
    asked: int = 0  # by receives in flight, at most


class Flight:
    """An engine, a chain, endpoints and what is in flight, with the model beside each."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.moves: list[Move] = []

    def begin(
        self, plan: Plan, seed: int, bounce: int, small: tuple[int, int] | None, in_flight: int
    ) -> None:
        rng = random.Random(seed)
        keep = self.stack.enter_context
        self.twin = keep(plan.build())
        self.checker = Checker(self.twin.regions)
        for which, (real, region) in enumerate(self.twin.regions):
            if region.writable and which not in self.twin.tables:
                region.data[:] = rng.randbytes(len(region.data))
                with real.view() as view:
                    view[:] = region.data
        self.engine = keep(
            iodma.Engine(strict=True, bounce_bytes=bounce, small=small, in_flight=in_flight)
        )
        for real, _ in self.twin.regions:
            if isinstance(real, FarMemory):
                real.by_turns_of(self.engine)
                real.at_once = rng.choice([0, 0, 0.3, 1])
        self.port = self.engine.port(self.twin.real, "single")
        self.batches = self.engine.port(self.twin.real, "batches")
        self.endpoints = []
        folder = tempfile.mkdtemp(prefix="iodma-")
        self.stack.callback(shutil.rmtree, folder)
        self.endpoints.append(self.file(folder, rng, direct=False))
        if DIRECT_DIRECTORY is not None:
            other = tempfile.mkdtemp(prefix="iodma-", dir=DIRECT_DIRECTORY)
            self.stack.callback(shutil.rmtree, other)
            self.endpoints.append(self.file(other, rng, direct=True))
            self.endpoints.append(self.endpoints[-1])  # twice as likely
        size = rng.choice([1, 3000, 20_000])
        self.endpoints.append(Endpoint(keep(iodma.Buffer(size)), model.Buffer(bytearray(size))))
        self.endpoints.append(Endpoint(keep(iodma.Null()), model.Null()))
        ours, peer = socket.socketpair()
        keep(peer)
        if rng.random() < 0.4:  # sends are short, and wait for the peer
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with ours:
            self.stream = Stream(keep(iodma.Socket(ours)), peer)
        peer.setblocking(False)
        self.engine.add_reader(peer.fileno(), self.peer_reads)

    def file(self, folder: str, rng: random.Random, direct: bool) -> Endpoint:
        path = f"{folder}/{'direct' if direct else 'buffered'}"
        data = rng.randbytes(rng.choice([0, 1, 511, 4096, 5000, 40_000]))
        Path(path).write_bytes(data)
        return Endpoint(
            self.stack.enter_context(iodma.File(path, direct=direct)),
            model.File(bytearray(data)),
            path,
            direct,
        )

    def peer_reads(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.stream.peer.recv(1 << 16):
                self.stream.received += data

    def feed(self, n: int) -> None:
        data = random.Random(n).randbytes(n)
        with contextlib.suppress(BlockingIOError):
            self.stream.coming += data[: self.stream.peer.send(data)]

    def feed_all(self) -> None:
        """All that the receives in flight still want."""
        while len(self.stream.coming) < self.stream.asked:
            self.feed(self.stream.asked - len(self.stream.coming))

    # -- one transfer -----------------------------------------------------------------------

    def submit(
        self,
        start: Callable[[], Any],
        footprint: Footprint,
        judge: Callable[[Move, Any], None],
        text: str,
    ) -> Move:
        if any(footprint.disturbs(move.footprint) for move in self.moves):
            self.drain()
        move = Move(start(), footprint, judge, text)
        self.moves.append(move)
        return move

    def refused(self, fault: model.Fault) -> Callable[[Move, Any], None]:
        def judge(move: Move, done: Any) -> None:
            if move.loose and done.status == Status.CANCELLED:
                return
            assert done.status == Status.FAULT and done.moved == 0, (move, done)
            if isinstance(done, Ended):
                assert move.loose or done.where == fault[:2], (move, done)
            elif not move.loose:
                got = done.fault
                assert (got.offset, got.address, int(got.access), got.stage) == fault

        return judge

    def ending(self, move: Move, done: Any, wanted: int, status: Status = Status.OK) -> None:
        """How it ended is how it should have."""
        if move.loose and done.status in (Status.CANCELLED, Status.FAULT):
            assert done.moved <= wanted
        else:
            assert (done.status, done.moved) == (status, wanted), (move, done)

    def loose_file(self, endpoint: Endpoint, position: int, data: bytes, moved: int) -> None:
        """The file has the first `moved` bytes, and of the others each is old or new."""
        if isinstance(endpoint.model, model.Null):
            return
        endpoint.model.write(position, data[:moved])
        old, content, end = endpoint.model.data, endpoint.content(), position + len(data)
        if data and end > len(old):  # nobody else makes it longer meanwhile
            assert len(old) <= len(content) <= end, (len(old), len(content), position, end, moved)
            old.extend(bytes(len(content) - len(old)))
        for i in range(position + moved, min(len(old), end)):
            assert content[i] in (old[i], data[i - position]), (i, content[i])
            old[i] = content[i]

    # -- all of them ------------------------------------------------------------------------

    def run(self, wait: Any) -> Any:
        async def main() -> Any:
            timer = self.engine.call_later(SECONDS, self.stuck)
            try:
                return await wait
            finally:
                timer.cancel()

        return self.engine.run(main())

    def stuck(self) -> None:
        lines = [f"{info}" for info in self.engine.transfers()]
        raise TimeoutError("still in flight:\n" + "\n".join(lines))

    def drain(self) -> None:
        async def main() -> None:
            timer = self.engine.call_later(SECONDS, self.stuck)
            self.feed_all()
            for move in self.moves:
                if not isinstance(move.transfer, int):
                    await outcome(move)
                    self.feed_all()
            async for done in self.batches.completions():
                self.take(done)
            timer.cancel()

        self.engine.run(main())
        self.look()
        assert not self.moves, self.moves
        self.checker.memory_is()
        for endpoint in self.endpoints:
            endpoint.is_what_the_model_has()
        self.engine.pump()
        self.peer_reads()
        assert self.stream.received == self.stream.sent

    def take(self, done: Any) -> None:
        by_ticket = {m.transfer: m for m in self.moves if isinstance(m.transfer, int)}
        for i in range(done.n):
            move = by_ticket[int(done.ticket[i])]
            assert move.done is None, "completed twice"
            fault = None
            if done.status[i] == Status.FAULT:
                fault = (int(done.fault_offset[i]), int(done.fault_address[i]))
            move.done = Ended(Status(done.status[i]), int(done.moved[i]), int(done.error[i]), fault)

    def look(self) -> None:
        """Judge what has ended, in the order in which it was submitted."""
        over = []
        for move in self.moves:
            if not isinstance(move.transfer, int) and move.transfer.done and move.done is None:
                try:
                    move.done = move.transfer.result
                except iodma.DmaFault as fault:
                    move.done = fault.completion
            if move.done is not None:
                over.append(move)
                move.judge(move, move.done)
        self.moves = [move for move in self.moves if move not in over]
        self.checker.memory_is([move.footprint for move in self.moves])

    def end(self) -> None:
        try:
            if hasattr(self, "stream"):
                self.drain()
                stats = self.engine.stats()
                assert stats.arena[1] == 0, "pieces of the arena were not given back"
                for ram, _ in self.twin.regions:
                    assert ram.leases == 0
        finally:
            self.stack.close()


@dataclass
class Ended:
    """A completion of a batch, in the words of one."""

    status: Status
    moved: int
    error: int
    where: tuple[int, int] | None

    @property
    def fault(self) -> Any:
        raise AttributeError("a batch's completion has only an offset and an address")


async def outcome(move: Move) -> None:
    with contextlib.suppress(iodma.DmaFault):
        await move.transfer
