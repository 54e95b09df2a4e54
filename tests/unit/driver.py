"""A device that does everything at once, and a model that knows what must come of it.

Invariants:

- Each method named in `ACTS` does one thing: submit, cancel, reset, change a map. None waits for
  more than it must, so that much is in flight at any time.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import iodma
from iodma import Status
from tests.unit import model
from tests.unit.chains import good_list, lists_for
from tests.unit.flight import Ended, Endpoint, Flight, Move
from tests.unit.transfers import Footprint, gather, indices, span

#: What it can do, and how often it should.
ACTS = {
    "to_memory": 20,
    "from_memory": 20,
    "batch": 20,
    "turn": 10,
    "copy": 6,
    "send": 5,
    "receive": 5,
    "peer_sends": 5,
    "cancel": 5,
    "write_zeroes": 4,
    "load": 3,
    "store": 3,
    "unmap": 3,
    "flush": 2,
    "remove": 2,
    "reset": 1,
}
READ, WRITE = model.READ, model.WRITE


class Driver(Flight):
    """The acts, each a method."""

    def act(self, name: str, rng: random.Random) -> None:
        getattr(self, name)(rng)

    # -- submitting -------------------------------------------------------------------------

    def drain_if_busy(self, rng: random.Random) -> None:
        if len(self.moves) > 12 or rng.random() < 0.05:
            self.drain()

    def segments(self, rng: random.Random, access: int) -> model.Segments:
        if rng.random() < 0.08:
            segments = lists_for(self.twin, rng, 4)
            found = model.translate(self.twin.model, segments, access)
            if isinstance(found, model.Fault) or model.total(segments) < 50_000:
                return segments
        many = rng.choice([1, 1, 2, 4, 30, 60])
        longest = {1: rng.choice([5000, 60_000]), 2: 3000, 4: 600}.get(
            many, rng.choice([3, 40, 130])
        )
        return good_list(self.twin, rng, many, access, longest)

    def position(self, rng: random.Random, endpoint: Endpoint) -> int:
        end = len(endpoint.model.data)
        return max(
            0,
            rng.choice([0, 0, 512, 4096, end, end // 2, end - end % 512, rng.randrange(50_000)])
            + rng.choice([0, 0, 0, 1, -1, 100, 511]),
        )

    def faults(self, segments: model.Segments, access: int) -> model.Fault | list[model.Piece]:
        return model.translate(self.twin.model, segments, access)

    def to_memory(self, rng: random.Random) -> None:
        self.drain_if_busy(rng)
        segments, endpoint = self.segments(rng, WRITE), rng.choice(self.endpoints)
        position = self.position(rng, endpoint)
        footprint, judge = self.to_memory_plan(segments, endpoint, position)
        self.submit(
            lambda: self.port.to_memory(segments, source=endpoint.real, offset=position),
            footprint,
            judge,
            f"to_memory {segments} from {endpoint.real} at {position}",
        )

    def to_memory_plan(
        self, segments: model.Segments, endpoint: Endpoint, position: int
    ) -> tuple[Footprint, Callable[[Move, Any], None]]:
        found = self.faults(segments, WRITE)
        if isinstance(found, model.Fault):
            return Footprint(), self.refused(found)
        places, n = indices(found), model.total(segments)
        footprint = Footprint([(endpoint, span(position, position + n))], list(places))

        def judge(move: Move, done: Any) -> None:
            data = endpoint.model.read(position, n)
            self.ending(move, done, len(data))
            if endpoint.direct and len(data) < n:
                # The kernel reads the last block whole: behind the end of the file it has zeroes.
                data, move.loose = data.ljust(n, b"\0"), True
            self.checker.written(places, data, done.moved, loose=move.loose)

        return footprint, judge

    def from_memory(self, rng: random.Random) -> None:
        self.drain_if_busy(rng)
        segments, endpoint = self.segments(rng, READ), rng.choice(self.endpoints)
        position = self.position(rng, endpoint)
        footprint, judge = self.from_memory_plan(segments, endpoint, position)
        self.submit(
            lambda: self.port.from_memory(segments, to=endpoint.real, offset=position),
            footprint,
            judge,
            f"from_memory {segments} to {endpoint.real} at {position}",
        )

    def from_memory_plan(
        self, segments: model.Segments, endpoint: Endpoint, position: int
    ) -> tuple[Footprint, Callable[[Move, Any], None]]:
        found = self.faults(segments, READ)
        if isinstance(found, model.Fault):
            return Footprint(), self.refused(found)
        places, n = indices(found), model.total(segments)
        # A write that makes a file longer also decides what lies between its old end and itself.
        first = min(position, len(endpoint.model.data)) if n else position
        footprint = Footprint(list(places), [(endpoint, span(first, position + n))])
        if isinstance(endpoint.model, model.Null):
            footprint.writes.clear()

        def judge(move: Move, done: Any) -> None:
            data = gather(places)
            if move.loose and done.status != Status.OK:
                assert done.moved <= n
                self.loose_file(endpoint, position, data, done.moved)
                return
            taken = endpoint.model.write(position, data)
            status = Status.OK if taken == n else Status.IO_ERROR
            self.ending(move, done, taken, status)
            if status:
                assert done.error == errno.ENOSPC

        return footprint, judge

    def copy(self, rng: random.Random) -> None:
        self.drain_if_busy(rng)
        source, target = self.segments(rng, READ), self.segments(rng, WRITE)
        n = min(model.total(source), model.total(target))
        source, target = cut(source, n), cut(target, n)
        read, write = self.faults(source, READ), self.faults(target, WRITE)
        fault = read if isinstance(read, model.Fault) else write
        if isinstance(fault, model.Fault) or isinstance(read, model.Fault):
            assert isinstance(fault, model.Fault)
            footprint, judge = Footprint(), self.refused(fault)
        else:
            assert not isinstance(write, model.Fault)
            sources, targets = indices(read), indices(write)
            footprint = Footprint(list(sources), list(targets))
            if Footprint(list(sources)).disturbs(Footprint([], list(targets))):
                return  # what a copy onto itself gives is not specified

            def judge(move: Move, done: Any) -> None:
                self.ending(move, done, n)
                self.checker.written(targets, gather(sources), done.moved, loose=move.loose)

        self.submit(
            lambda: self.port.copy(source, target), footprint, judge, f"copy {source} {target}"
        )

    def load(self, rng: random.Random) -> None:
        segments = self.segments(rng, READ)[:1]
        address, n = segments[0] if segments else (0, 1)
        if n > 1 << 20:
            return
        found = self.faults([(address, n)], READ)
        if isinstance(found, model.Fault):
            self.submit(
                lambda: self.port.load_bytes(address, n),
                Footprint(),
                self.refused(found),
                f"load {n} at {address:#x}",
            )
            return
        places = indices(found)

        def judge(move: Move, done: Any) -> None:
            if not (move.loose and isinstance(done, iodma.Completion)):
                assert done == gather(places), move

        self.submit(
            lambda: self.port.load_bytes(address, n),
            Footprint(list(places)),
            judge,
            f"load {n} at {address:#x}",
        )

    def store(self, rng: random.Random) -> None:
        segments = self.segments(rng, WRITE)[:1]
        address, n = segments[0] if segments else (0, 1)
        data = rng.randbytes(min(n, 6000))
        found = self.faults([(address, len(data))], WRITE)
        if isinstance(found, model.Fault):
            footprint, judge = Footprint(), self.refused(found)
        else:
            places = indices(found)
            footprint = Footprint([], list(places))

            def judge(move: Move, done: Any) -> None:
                self.ending(move, done, len(data))
                self.checker.written(places, data, done.moved, loose=move.loose)

        self.submit(
            lambda: self.port.store_bytes(address, data),
            footprint,
            judge,
            f"store {len(data)} at {address:#x}",
        )

    def batch(self, rng: random.Random) -> None:
        """Several requests with one call; those that would disturb others are left out."""
        self.drain_if_busy(rng)
        plans: list[Any] = []
        batch = iodma.Batch(16, 16 * 64)
        at = 0
        endpoint = rng.choice(self.endpoints)
        for i in range(rng.randint(1, 16)):
            to_memory = rng.random() < 0.5
            segments = self.segments(rng, WRITE if to_memory else READ)
            position = self.position(rng, endpoint)
            plan = self.to_memory_plan if to_memory else self.from_memory_plan
            footprint, judge = plan(segments, endpoint, position)
            others = [move.footprint for move in self.moves] + [each[0] for each in plans]
            if any(footprint.disturbs(each) for each in others):
                continue
            k = len(plans)
            for n, (address, length) in enumerate(segments):
                batch.address[at + n], batch.length[at + n] = address, length
            batch.first[k], batch.count[k] = at, len(segments)
            batch.id[k], batch.position[k], batch.direction[k] = k, position, to_memory
            at += len(segments)
            plans.append((footprint, judge, f"batch {i}: {segments} {endpoint.real} {position}"))
        if not plans:
            return
        batch.n = len(plans)
        tickets = self.batches.submit(batch, endpoint.real)
        for (footprint, judge, text), ticket in zip(plans, tickets.tolist(), strict=False):
            self.moves.append(Move(ticket, footprint, judge, text))

    def write_zeroes(self, rng: random.Random) -> None:
        discard = rng.random() < 0.4
        endpoint = rng.choice(self.endpoints)
        if not endpoint.path:
            return
        position, n = self.position(rng, endpoint), rng.randint(1, 5000)
        size = len(endpoint.model.data)
        first, end = min(position, size), position + n
        if discard:  # which never makes a file longer
            first = position

        def judge(move: Move, done: Any) -> None:
            if done.status == Status.IO_ERROR and done.error == errno.EOPNOTSUPP:
                return  # not every file system can
            self.ending(move, done, n)
            zeroes = bytes(max(0, min(end, len(endpoint.model.data)) - position) if discard else n)
            if done.status == Status.OK:
                endpoint.model.write(position, zeroes)
            else:
                self.loose_file(endpoint, position, zeroes, 0)

        act = self.port.discard if discard else self.port.write_zeroes
        self.submit(
            lambda: act(endpoint.real, position, n),
            Footprint([], [(endpoint, span(first, end))]),
            judge,
            f"{'discard' if discard else 'write_zeroes'} {n} at {position} of {endpoint.real}",
        )

    def flush(self, rng: random.Random) -> None:
        endpoint = rng.choice(self.endpoints)
        if endpoint.path:
            self.submit(
                lambda: self.port.flush(endpoint.real),
                Footprint(),
                lambda move, done: self.ending(move, done, 0),
                "flush",
            )

    # -- streams ----------------------------------------------------------------------------

    def send(self, rng: random.Random) -> None:
        """One, or several that wait for each other and may go together."""
        for _ in range(rng.choice([1, 1, 8])):
            self.send_one(self.segments(rng, READ))

    def send_one(self, segments: model.Segments) -> None:
        found = self.faults(segments, READ)
        if isinstance(found, model.Fault):
            return
        places = indices(found)

        def judge(move: Move, done: Any) -> None:
            data = gather(places)
            if move.loose and done.status in (Status.CANCELLED, Status.FAULT):
                self.stream.sent += data[: done.moved]
            else:
                self.ending(move, done, len(data))
                self.stream.sent += data

        self.submit(
            lambda: self.port.from_memory(segments, to=self.stream.real),
            Footprint(list(places)),
            judge,
            f"send {segments}",
        )

    def receive(self, rng: random.Random) -> None:
        segments = self.segments(rng, WRITE)
        found = self.faults(segments, WRITE)
        n = model.total(segments)
        if isinstance(found, model.Fault) or not n:
            return
        places = indices(found)
        minimum = rng.choice([None, 1, n, rng.randint(1, n)])

        def judge(move: Move, done: Any) -> None:
            if not move.loose:
                assert done.status == Status.OK, (move, done)
                assert (n if minimum is None else minimum) <= done.moved <= n, (move, done)
            coming = self.stream.coming
            assert done.moved <= len(coming)
            # What was received is gone from the stream, and only that.
            self.checker.written(places, bytes(coming[:n]), done.moved)
            del coming[: done.moved]
            self.stream.asked -= n

        self.stream.asked += n
        self.submit(
            lambda: self.port.to_memory(segments, source=self.stream.real, minimum=minimum),
            Footprint([], list(places)),
            judge,
            f"receive {segments}, at least {minimum}",
        )

    def peer_sends(self, rng: random.Random) -> None:
        if len(self.stream.coming) < self.stream.asked + 1000:
            self.feed(rng.randint(1, 3000))

    # -- what happens in between ----------------------------------------------------------------

    def turn(self, rng: random.Random) -> None:
        self.engine.pump()
        self.look()

    def cancel(self, rng: random.Random) -> None:
        if not self.moves:
            return
        move = rng.choice(self.moves)
        if isinstance(move.transfer, int):
            took = self.batches.cancel(move.transfer)
        else:
            took = move.transfer.cancel()
        move.loose |= took

    def reset(self, rng: random.Random) -> None:
        """After a reset is acknowledged nothing is in flight and nothing lands any more."""
        batches = rng.random() < 0.5
        port = self.batches if batches else self.port
        gone = [move for move in self.moves if isinstance(move.transfer, int) == batches]
        for move in gone:
            move.loose = True
        self.run(port.reset())
        assert port.in_flight == 0
        if batches:
            # The stream gives no completions of what was before, so how they ended is not known.
            for move in gone:
                move.done = move.done or Ended(Status.CANCELLED, 0, 0, None)
            assert not port.outstanding
        else:
            assert all(move.transfer.done for move in gone)
        self.look()

    def unmap(self, rng: random.Random) -> None:
        """Take pages away under what is in flight; map others once that is over."""
        if not self.twin.iommus:
            return
        which = rng.randrange(len(self.twin.iommus))
        real, twin = self.twin.iommus[which]
        if not twin.ranges:
            return
        r = rng.choice(twin.ranges)
        first = r.first + real.page * rng.randrange(0, r.length // real.page)
        length = min(real.page * rng.randint(1, 4), model.TOP - first)
        for move in self.moves:
            move.loose = True
        revoked = real.unmap(first, length, cancel=rng.random() < 0.5)
        twin.unmap(first, length)
        for _ in range(rng.randint(0, 2)):
            self.engine.pump()
        if rng.random() < 0.5:
            self.feed_all()
            assert self.run(revoked) is True
        self.drain()
        assert revoked.done and revoked.ok
        if rng.random() < 0.7:
            overlap = any(
                first < e.first + e.length and e.first < first + length for e in twin.ranges
            )
            assert not overlap
            target = r.target if rng.random() < 0.5 else rng.choice(sorted(twin.next.edges()))
            target -= target % real.page
            if target + length <= model.TOP:
                self.twin.map(first, target, length, rng.choice([1, 2, 3, 3]), which)

    def remove(self, rng: random.Random) -> None:
        """Take a region away under what is in flight, and put another there."""
        r = rng.choice(self.twin.memory[1].ranges)
        for move in self.moves:
            move.loose = True
        revoked = self.twin.memory[0].remove(r.first, cancel=rng.random() < 0.5)
        self.twin.memory[1].remove(r.first)
        self.feed_all()
        assert self.run(revoked) is True
        self.drain()
        which = rng.randrange(len(self.twin.regions))
        offset, length = 0, min(r.length, len(self.twin.regions[which][1].data))
        gone = [i for i in self.twin.tables if self.twin.regions[i][1] is r.region]
        if gone:  # it comes back, perhaps cut; meanwhile nothing has a translation
            which, offset, length = gone[0], r.target, rng.randint(1, r.length)
            assert self.run(self.twin.tables[which].flush()) is True
            self.to_memory(rng)
            self.from_memory(rng)
            self.drain()
        self.twin.add(r.first, which, offset, length)


def cut(segments: model.Segments, n: int) -> model.Segments:
    out = []
    for address, length in segments:
        out.append((address, min(length, n)))
        n -= out[-1][1]
    return out
