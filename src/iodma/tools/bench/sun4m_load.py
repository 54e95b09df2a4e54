# SPDX-License-Identifier: Apache-2.0
"""One side of a row of `iodma bench sun4m`: a machine that a driver drives, or a loop.

Run by `worker`. A driver is on the client's processor, its machine on the other one; a side without
a machine runs on the machine's.

Invariants
 - Both machines get the same lines from the same driver, and what they do is looked at: frames and
   blocks before the first sample, the count of frames and the descriptors after each.
 - The frames' other end is taken care of by a thread in C, so that it is never what is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

import iodma
from iodma import _peer
from iodma.boards.sun4m import Sun4m
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.peers import mapped
from iodma.tools.bench.servers import Server
from iodma.tools.bench.sun4m_counters import FRAME, READ, copied, counters
from iodma.tools.bench.sun4m_guest import DiskDriver, Machine, NetworkDriver
from iodma.tools.bench.sun4m_servers import NETWORK
from iodma.tools.bench.vfio_load import Load
from iodma.types import Direction

__all__ = [
    *("copied_frames", "copied_reads", "reads", "sends", "swap_sends", "table_walks", "transmit"),
    "walks",
]

#: For a socket that is to take whole batches.
SOCKET_BYTES = 4 << 20
FRAMES_S = 5.0
SEED = 20070625


def frames() -> list[bytes]:
    """What is sent."""
    data = np.random.default_rng(SEED).bytes(layout.FRAMES * layout.FRAME_BYTES)
    size = layout.FRAME_BYTES
    return [data[at : at + size] for at in range(0, len(data), size)]


class Sink:
    """The other end of a network: takes frames in, and counts them."""

    def __init__(self) -> None:
        self.near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (self.near, self._far):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._far.settimeout(FRAMES_S)
        self._counter = np.zeros(1, np.uint64)
        self._thread = threading.Thread(target=self._drain)
        self.expected = 0

    def _drain(self) -> None:
        _peer.packet_drain(self._far.fileno(), self._counter)

    def check(self, wanted: Sequence[bytes]) -> None:
        """Sees that these come first.

        Raises:
            BenchError: others came, or none.
        """
        try:
            got = [self._far.recv(1 << 16) for _ in wanted]
        except OSError as error:
            raise BenchError(f"frames that were sent did not come: {error}") from None
        if got != list(wanted):
            raise BenchError("the frames that came are not those that were sent")

    def start(self) -> None:
        """From now on they are only counted."""
        self._far.settimeout(None)
        self._thread.start()

    def wait(self, more: int) -> None:
        """Until so many more have come.

        Raises:
            BenchError: they did not, or there were too many.
        """
        self.expected += more
        end = time.monotonic() + FRAMES_S
        while self._counter[0] < self.expected:
            if time.monotonic() > end:
                raise BenchError(f"{self.expected} frames were sent, {self._counter[0]} came")
            time.sleep(0)
        if self._counter[0] != self.expected:
            raise BenchError(f"{self.expected} frames were sent, {self._counter[0]} came")

    def close(self) -> None:
        """Ends the thread."""
        if self._thread.is_alive():
            with socket.socket(fileno=os.dup(self.near.fileno())) as near:
                near.send(b"")
            self._thread.join(FRAMES_S)
        self.near.close()
        self._far.close()


@contextmanager
def machine(
    command: Sequence[str], server_cpu: int, *, disk: Path | None = None, sink: Sink | None = None
) -> Iterator[tuple[Server, Machine, Collection[int]]]:
    """A machine, and a connection to it; its IOMMU is on."""
    with ExitStack() as opened:
        descriptors = {NETWORK: sink.near.fileno()} if sink else {}
        server = opened.enter_context(Server(command, disk, server_cpu, descriptors))
        guest = opened.enter_context(closing(server.reach(Machine)))
        guest.set_up()
        yield server, guest, {server_cpu, *os.sched_getaffinity(0)}


@contextmanager
def network(
    command: Sequence[str], server_cpu: int
) -> Iterator[tuple[Server, Machine, Collection[int], Sink, NetworkDriver]]:
    """A machine with a driver of its LANCE, whose frames were seen to come."""
    with closing(Sink()) as sink, machine(command, server_cpu, sink=sink) as (server, guest, cpus):
        driver = NetworkDriver(guest, frames())
        driver.batch()
        sink.check(frames())
        sink.start()
        yield server, guest, cpus, sink, driver


def run_batches(driver: NetworkDriver, sink: Sink, seconds: float) -> tuple[int, float]:
    """Batches for so long: how many frames, and how long until the last one had come."""
    begin, sent = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        driver.batch()
        sent += layout.FRAMES
    sink.wait(sent)
    passed = time.monotonic() - begin
    driver.check()
    return sent, passed


@contextmanager
def transmit(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """Whole rings given to LANCE: frames a second."""
    with network(command, server_cpu) as (server, _, cpus, sink, driver):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            sent, passed = run_batches(driver, sink, seconds)
            return sent / passed, {"requests": float(sent)}

        yield Load(server, cpus, run)


@contextmanager
def copied_frames(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """Payload bytes of frames that were copied in user space, the core's and Python's together."""
    with network(command, server_cpu) as (server, guest, cpus, sink, driver):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            before = counters(guest)
            sent, _ = run_batches(driver, sink, seconds)
            return copied(before, counters(guest), sent, FRAME)

        yield Load(server, cpus, run)


@contextmanager
def disk(
    command: Sequence[str], server_cpu: int, path: str
) -> Iterator[tuple[Server, Machine, Collection[int], Callable[[float], tuple[int, float]]]]:
    """A machine with a driver of its ESP whose blocks were seen to come; reads for so long."""
    with machine(command, server_cpu, disk=Path(path)) as (server, guest, cpus):
        driver = DiskDriver(guest)
        size = layout.READ_BYTES
        positions = [size * 7, layout.BLOCK * 1001, 0]
        with open(path, "rb") as file:
            for position in positions:
                driver.read(position)
                file.seek(position)
                if guest.get(layout.DATA, size) != file.read(size):
                    raise BenchError(f"other blocks were read than are at {position}")

        def run(seconds: float) -> tuple[int, float]:
            begin, count = time.monotonic(), 0
            while time.monotonic() - begin < seconds:
                driver.read(count * size % layout.DISK_BYTES)
                count += 1
            return count, time.monotonic() - begin

        yield server, guest, cpus, run


@contextmanager
def reads(*, command: Sequence[str], server_cpu: int, memory: str, path: str) -> Iterator[Load]:
    """READ(10) of 64 KiB: MB/s."""
    with disk(command, server_cpu, path) as (server, _, cpus, read):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            count, passed = read(seconds)
            return count * layout.READ_BYTES / passed / 1e6, {"requests": float(count)}

        yield Load(server, cpus, run)


@contextmanager
def copied_reads(
    *, command: Sequence[str], server_cpu: int, memory: str, path: str
) -> Iterator[Load]:
    """Payload bytes of READ(10) that were copied in user space."""
    with disk(command, server_cpu, path) as (server, guest, cpus, read):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            before = counters(guest)
            count, _ = read(seconds)
            return copied(before, counters(guest), count, READ)

        yield Load(server, cpus, run)


def buffers() -> list[tuple[int, int]]:
    """Where the frames are, for a side without a machine."""
    return [(number * layout.STRIDE, layout.FRAME_BYTES) for number in range(layout.FRAMES)]


@contextmanager
def sends(*, memory: str) -> Iterator[Callable[[float], float]]:
    """Batches of frames through byte lanes to a socket: frames a second."""
    with (
        closing(Sink()) as sink,
        iodma.Engine() as engine,
        open(memory, "r+b") as file,
        iodma.Ram.from_fd(file.fileno()) as ram,
        iodma.Datagram(sink.near) as link,
    ):
        for number, frame in enumerate(frames()):
            ram.view(number * layout.STRIDE, len(frame))[:] = frame
        port = engine.port(iodma.ByteLanes(iodma.Memory({0: ram}), 2), "lance")
        batch = iodma.Batch(layout.FRAMES)
        batch.address[:], batch.length[:] = np.array(buffers(), np.uint64).T
        batch.first[:] = range(layout.FRAMES)
        batch.count[:] = 1
        batch.direction[:] = Direction.FROM_MEMORY
        batch.n = layout.FRAMES
        sink.start()

        async def run(seconds: float) -> float:
            begin, sent = time.monotonic(), 0
            while time.monotonic() - begin < seconds:
                port.submit(batch, link)
                async for done in port.completions(limit=layout.FRAMES, at_least=layout.FRAMES):
                    if not done.all_ok:
                        raise BenchError("a frame was not sent")
                    sent += len(done)
            passed = time.monotonic() - begin
            sink.wait(sent)
            return sent / passed

        yield lambda seconds: engine.run(run(seconds))


@contextmanager
def swap_sends(*, memory: str) -> Iterator[Callable[[float], float]]:
    """memcpy, a swap of 16-bit words, sendmsg: frames a second."""
    places = np.array(buffers(), np.uint64)
    with closing(Sink()) as sink, mapped(memory) as area:
        sink.start()

        def sample(seconds: float) -> float:
            ns, count, _ = _peer.packet_send_loop(
                sink.near.fileno(), area, places, swap=True, seconds=seconds
            )
            sink.wait(count)
            return count / ns * 1e9

        yield sample


@contextmanager
def walks(*, memory: str) -> Iterator[Callable[[float], float]]:
    """Lists of pages through the board's IOMMU, called from Python: nanoseconds a list."""
    with ExitStack() as opened:
        engine = opened.enter_context(iodma.Engine())
        file = opened.enter_context(open(memory, "r+b"))
        ram = opened.enter_context(iodma.Ram.from_fd(file.fileno(), size=layout.RAM_BYTES))
        ram.view(layout.TABLE, 4 * layout.PAGES)[:] = layout.page_table()
        board = opened.enter_context(Sun4m(engine, memory=ram))
        board.store(layout.IOMMU_BASE, 4, layout.TABLE >> 4)
        board.store(layout.IOMMU_CONTROL, 4, 1)
        lists = [iodma.ScatterList(each) for each in page_lists()]
        walk, access = board.iommu.stage.walk, iodma.Access.WRITE
        if any(walk(each, access) != layout.LIST_PAGES for each in lists):
            raise BenchError("the IOMMU refuses a list")

        def sample(seconds: float) -> float:
            begin, count = time.perf_counter_ns(), 0
            end = begin + int(seconds * 1e9)
            while (now := time.perf_counter_ns()) < end:
                for each in lists:
                    walk(each, access)
                count += len(lists)
            return (now - begin) / count

        yield sample


@contextmanager
def table_walks(*, memory: str) -> Iterator[Callable[[float], float]]:
    """The same lists and the same table, walked in C: nanoseconds a list."""
    places = np.array([segment for each in page_lists() for segment in each], np.uint64)
    with mapped(memory) as area:
        area[layout.TABLE : layout.TABLE + 4 * layout.PAGES] = layout.page_table()

        def sample(seconds: float) -> float:
            ns, count, _ = _peer.table_walk_loop(
                area,
                places,
                segments=layout.LIST_PAGES,
                table=layout.TABLE,
                first=layout.WINDOW,
                length=layout.WINDOW_BYTES,
                seconds=seconds,
            )
            return ns / count

        yield sample


def page_lists() -> list[list[tuple[int, int]]]:
    """Lists of whole pages of the window, in no order."""
    pages = np.random.default_rng(SEED).permutation(layout.PAGES)
    chosen = pages[: layout.LISTS * layout.LIST_PAGES].reshape(layout.LISTS, layout.LIST_PAGES)
    size = layout.PAGE
    return [[(layout.WINDOW + int(page) * size, size) for page in each] for each in chosen]
