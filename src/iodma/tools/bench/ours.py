# SPDX-License-Identifier: Apache-2.0
"""Our side of each row, as cases of a worker (see `workers.py`): written as a user would.

`Stream` is also the example of the batch interface: the segments of every request are written once,
a batch is filled with whatever has finished, and one call a batch goes to the core.

Invariants
 - Only public names are used, and every completion is looked at: one that is not OK ends the run.
 - What is counted finished before the clock was read for the last time; the rest is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

import iodma
from iodma.tools.bench.again import NothingFinished
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.lists import Positions, segment_table
from iodma.tools.bench.maps import LISTS, address_lists, scattered_memory

__all__ = ["coroutines", "footprint", "idle", "reads", "swapped", "translations"]

Sample = Callable[[float], float]


class Stream:
    """Keeps requests in flight through the batch interface.

    Args:
        port: where the device's DMA goes.
        endpoint: what is read.
        table: rows of (address, length): the segments of request 0, of request 1, ...
        segments: of each request.
        positions: in the endpoint.
        batch: most requests submitted, and completions taken, at once.
        at_least: completions to wait for.
    """

    def __init__(
        self,
        port: iodma.Port,
        endpoint: Any,
        table: np.ndarray[Any, np.dtype[np.uint64]],
        segments: int,
        positions: Positions,
        batch: int,
        at_least: int,
    ) -> None:
        self._port = port
        self._endpoint = endpoint
        self._positions = positions
        self._limit = batch
        self._at_least = at_least
        self._segments = segments
        self._depth = len(table) // segments
        # What every request is, is written once; a request is submitted again by its row.
        depth = self._depth
        self._batch = iodma.Batch(requests=depth, segments=len(table))
        self._batch.address[:] = table[:, 0]
        self._batch.length[:] = table[:, 1]
        self._batch.id[:] = np.arange(depth)
        self._batch.first[:] = np.arange(depth) * segments
        self._batch.count[:] = segments
        self._batch.direction[:] = iodma.Direction.TO_MEMORY

    def run(self, seconds: float) -> Coroutine[Any, Any, float]:
        """Keeps all requests in flight for a while: requests a second."""
        return (self._one_at_a_time if self._depth == 1 else self._many)(seconds)

    async def _many(self, seconds: float) -> float:
        port, endpoint, batch, limit = self._port, self._endpoint, self._batch, self._limit
        take = self._positions.take
        begin = now = perf_counter_ns()
        end = begin + int(seconds * 1e9)
        ids = np.arange(self._depth, dtype=np.uint64)
        for first in range(0, self._depth, limit):
            rows = ids[first : first + limit]
            port.submit(batch, endpoint, take(len(rows)), rows=rows)
        finished = 0
        async for done in port.completions(limit=limit, at_least=self._at_least):
            if not done.all_ok:
                raise failed(done)
            count = len(done)
            finished += count
            now = perf_counter_ns()
            if now >= end:
                break
            # The same requests again, each at the next position, into its own segments.
            port.submit(batch, endpoint, take(count), rows=done)
        async for done in port.completions(limit=limit):
            if not done.all_ok:
                raise failed(done)
        return finished / (now - begin) * 1e9

    async def _one_at_a_time(self, seconds: float) -> float:
        """The same with one request: all that changes is its position."""
        port, endpoint, batch = self._port, self._endpoint, self._batch
        batch.n = 1
        positions = cycle(self._positions.all.tolist())
        finished = 0
        begin = now = perf_counter_ns()
        end = begin + int(seconds * 1e9)
        port.submit(batch, endpoint, next(positions))
        async for done in port.completions(limit=1):
            if not done.all_ok:
                raise failed(done)
            finished += 1
            now = perf_counter_ns()
            if now >= end:
                break
            port.submit(batch, endpoint, next(positions))
        return finished / (now - begin) * 1e9


def failed(done: iodma.Completions) -> BenchError:
    """A request was not served: the run ends."""
    return BenchError(f"requests failed: status {done.status}, bytes moved {done.moved}")


@contextmanager
def reads(
    path: str,
    memory: str,
    file_bytes: int,
    depth: int,
    batch: int,
    complete_min: int,
    longest: int,
    shortest: int = 0,
    segments: int = 1,
    unit: int = 4096,
    random: bool = True,
    direct: bool = False,
    engine: str = "uring",
    fixed: bool = True,
) -> Iterator[Sample]:
    """Reads of a file into scatter lists: requests a second."""
    table = segment_table(depth, segments, shortest or longest, longest)
    with (
        iodma.Engine(engine, depth=max(depth, 64)) as running,
        iodma.Ram.from_file(memory) as ram,
        iodma.File(path, read_only=True, direct=direct) as file,
    ):
        if fixed and running.kind == "uring":
            running.register(ram)
        port = running.port(iodma.Memory({0: ram}))
        largest = int(table[:, 1].reshape(depth, segments).sum(axis=1).max())
        positions = Positions(file_bytes, largest, unit, random)
        stream = Stream(port, file, table, segments, positions, batch, complete_min)
        yield lambda seconds: running.run(stream.run(seconds))


class Reader(iodma.Device):
    """A device whose every request is a coroutine of its own."""

    disk: iodma.File

    def begin(self, depth: int, positions: list[int], seconds: float) -> None:
        """Starts the first requests; each one that ends starts the next."""
        self.positions = cycle(positions)
        self.finished = 0
        self.running = depth
        self.idle = iodma.Event(self.engine)
        self.began = self.now = perf_counter_ns()
        self.end = self.began + int(seconds * 1e9)
        for slot in range(depth):
            self.start(self.request(slot * 4096))

    async def request(self, address: int) -> None:
        """One request, from its first byte to its last."""
        position = next(self.positions)
        done = await self.port.to_memory((address, 4096), source=self.disk, offset=position)
        if not done.ok:
            raise BenchError(f"a request failed: {done}")
        now = perf_counter_ns()
        if now < self.end:
            self.finished += 1
            self.now = now
            self.start(self.request(address))
            return
        self.running -= 1
        if not self.running:
            self.idle.set()


@contextmanager
def coroutines(
    path: str, memory: str, file_bytes: int, depth: int, fixed: bool = True
) -> Iterator[Sample]:
    """4 KiB random reads, one coroutine each: requests a second."""
    with (
        iodma.Engine("uring", depth=max(depth, 64)) as engine,
        iodma.Ram.from_file(memory) as ram,
        iodma.File(path, read_only=True) as disk,
    ):
        if fixed:
            engine.register(ram)
        device = Reader(engine.port(iodma.Memory({0: ram})), disk=disk)
        engine.attach(device)
        positions = Positions(file_bytes, 4096, 4096, True).all.tolist()

        async def measure(seconds: float) -> float:
            device.begin(depth, positions, seconds)
            await device.idle.wait()
            if not device.finished:
                raise NothingFinished(f"no request finished within {seconds:g} s")
            return device.finished / (device.now - device.began) * 1e9

        yield lambda seconds: engine.run(measure(seconds))


@contextmanager
def swapped(piece: int, pieces: int, batch: int) -> Iterator[Sample]:
    """From a memory endpoint through a 16-bit byte swap: pieces a second."""
    size = piece * pieces
    with (
        iodma.Engine("uring") as engine,
        iodma.Ram(size) as ram,
        iodma.Buffer(size) as source,
    ):
        port = engine.port(iodma.ByteLanes(iodma.Memory({0: ram}), width=2))
        table = segment_table(pieces, 1, piece, piece)
        stream = Stream(port, source, table, 1, Positions(size, piece, piece, False), batch, batch)
        yield lambda seconds: engine.run(stream.run(seconds))


@contextmanager
def translations(regions: int, segments: int) -> Iterator[Sample]:
    """Translations of whole lists, called from Python: nanoseconds a segment."""
    with scattered_memory(regions) as memory:
        lists = [
            iodma.ScatterList([(int(address), int(length)) for address, length in one])
            for one in address_lists(regions, segments)
        ]

        def sample(seconds: float) -> float:
            walk, access = memory.walk, iodma.Access.WRITE
            rounds = 0
            begin = now = perf_counter_ns()
            end = begin + int(seconds * 1e9)
            while now < end:
                for one in lists:
                    walk(one, access)
                rounds += 1
                now = perf_counter_ns()
            return (now - begin) / (rounds * LISTS * segments)

        yield sample


def resident_mib() -> float:
    """The memory that this process has in use, that of its guest included."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise BenchError("/proc/self/smaps_rollup does not say how much memory is in use")


@contextmanager
def idle(ram_bytes: int) -> Iterator[Sample]:
    """A process that has imported all it needs and a guest's RAM: MiB in use."""
    with iodma.Ram(ram_bytes) as ram:
        ram.view()[:] = bytes(ram_bytes)
        yield lambda seconds: resident_mib()


@contextmanager
def footprint(path: str, file_bytes: int, ram_bytes: int, requests: int) -> Iterator[Sample]:
    """The same process with that many requests of 8 pages in flight: MiB in use."""
    segments, batch_size = 8, 16
    table = segment_table(ram_bytes // 4096 // segments, segments, 4096, 4096)
    with (
        iodma.Ram(ram_bytes) as ram,
        iodma.Engine("uring", slow_step=None) as engine,
        iodma.File(path, read_only=True, direct=True) as file,
    ):
        ram.view()[:] = bytes(ram_bytes)
        port = engine.port(iodma.Memory({0: ram}), depth=requests)
        batch = iodma.Batch(requests=batch_size, segments=batch_size * segments)
        batch.count[:] = segments
        batch.first[:] = np.arange(batch_size) * segments
        batch.direction[:] = iodma.Direction.TO_MEMORY
        batch.n = batch_size
        positions = Positions(file_bytes, segments * 4096, 4096, True)
        per_batch = batch_size * segments

        async def run() -> float:
            for number in range(requests // batch_size):
                rows = np.arange(number * per_batch, (number + 1) * per_batch) % len(table)
                batch.address[:] = table[rows, 0]
                batch.length[:] = table[rows, 1]
                batch.position[:] = positions.take(batch_size)
                port.submit(batch, file)
            if port.outstanding != requests:
                raise BenchError(f"{port.outstanding} requests are in flight, not {requests}")
            used = resident_mib()
            async for done in port.completions(limit=256):
                if not done.all_ok:
                    raise failed(done)
            return used

        yield lambda seconds: engine.run(run())
