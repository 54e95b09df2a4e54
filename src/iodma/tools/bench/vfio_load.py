# SPDX-License-Identifier: Apache-2.0
"""One side of a row of `iodma bench vfio-user`: a server, and our client that loads it.

Run by `worker`, pinned to the client's processor; the server has the other one.

Invariants
 - Both sides of a row are asked for the same by the same client, and both have the same memory.
 - While the client sleeps between samples the server is left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from iodma import _peer
from iodma.tools.bench import vfio_layout as layout
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.peers import mapped
from iodma.tools.bench.servers import Server
from iodma.tools.bench.vfio_client import Session
from iodma.tools.bench.vhost_load import busy_ns

__all__ = ["copies", "doorbells", "lists", "mappings", "payload", "reads", "regions"]


class Load:
    """A client and what it does; called for a sample.

    Attributes:
        details: of the last sample: what the loop told; the server's processor time for a request
            in microseconds; how much of the processors others used, in percent.
    """

    def __init__(
        self,
        server: Server,
        cpus: Collection[int],
        run: Callable[[float], tuple[float, dict[str, float]]],
    ) -> None:
        self._server = server
        self._cpus = frozenset(cpus)
        self._run = run
        self.details: dict[str, float] = {}

    def __call__(self, seconds: float) -> float:
        used, others, begin = self._server.processor_ns(), self._others_ns(), time.monotonic_ns()
        value, details = self._run(seconds)
        used, others = self._server.processor_ns() - used, self._others_ns() - others
        passed = time.monotonic_ns() - begin
        requests = max(1, details.get("requests", 1))
        self.details = {
            **details,
            "server_us_per_request": round(used / 1000 / requests, 4),
            "others_percent": round(max(0.0, others / len(self._cpus) / passed * 100), 1),
        }
        return value

    def _others_ns(self) -> int:
        """What the processors did, but for the client and the server; a tick is 10 ms."""
        return busy_ns(self._cpus) - self._server.processor_ns() - time.process_time_ns()


@contextmanager
def session(
    command: Sequence[str], server_cpu: int, memory: str, *, shared: bool = True
) -> Iterator[tuple[Server, Session, Collection[int]]]:
    """A server, and a client that is connected to it."""
    with ExitStack() as opened:
        server = opened.enter_context(Server(command, None, server_cpu))
        client = server.reach(lambda socket: Session(socket, memory, shared=shared))
        opened.enter_context(client)
        yield server, client, {server_cpu, *os.sched_getaffinity(0)}


def median_us(done: dict[str, int]) -> tuple[float, dict[str, float]]:
    """The median of a run, in microseconds, and what else is known of it."""
    details = {
        "requests": float(done["requests"]),
        "p50_us": done["p50_ns"] / 1000,
        "p99_us": done["p99_ns"] / 1000,
        "requests_per_second": round(done["requests"] / done["ns"] * 1e9, 1),
    }
    return done["p50_ns"] / 1000, details


@contextmanager
def reads(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """Reads of a register: the median, in microseconds."""
    with session(command, server_cpu, memory) as (server, client, cpus):
        yield Load(server, cpus, lambda seconds: median_us(client.reads(seconds)))


@contextmanager
def doorbells(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """From the write of a doorbell to the interrupt, with a copy of a page: the median, in us."""
    with session(command, server_cpu, memory) as (server, client, cpus):
        client.prepare_page()
        yield Load(server, cpus, lambda seconds: median_us(client.doorbells(seconds)))


@contextmanager
def lists(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """Copies by lists: MB/s."""
    with session(command, server_cpu, memory) as (server, client, cpus):
        client.prepare_lists()

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            done = client.run_lists(seconds)
            rate = done["requests"] / done["ns"] * 1e9
            per_interrupt = done["requests"] / max(1, done["waits"])
            details = {
                "requests": float(done["requests"]),
                "lists_per_second": round(rate, 1),
                "lists_per_interrupt": round(per_interrupt, 2),
            }
            return rate * layout.LIST_BYTES / 1e6, details

        yield Load(server, cpus, run)


@contextmanager
def copies(*, memory: str) -> Iterator[Callable[[float], float]]:
    """memcpy of the same lists, in the same memory: MB/s."""
    sources, targets = layout.list_tables()
    with mapped(memory) as area:

        def sample(seconds: float) -> float:
            ns, _, moved = _peer.list_copy_loop(
                area, sources, targets, segments=layout.SEGMENTS, seconds=seconds
            )
            return moved / ns * 1e3

        pages = np.frombuffer(area, np.uint8)  # mapped once, before what is measured
        pages[:: layout.PAGE] += 0
        del pages
        yield sample


@contextmanager
def regions(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """All of the small regions mapped and then unmapped: milliseconds."""
    with session(command, server_cpu, memory, shared=False) as (server, client, cpus):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            mapped, unmapped = client.map_regions(), client.unmap_regions()
            details = {
                "requests": 2.0 * layout.REGIONS,
                "map_us": round(mapped / layout.REGIONS / 1000, 3),
                "unmap_us": round(unmapped / layout.REGIONS / 1000, 3),
            }
            return (mapped + unmapped) / 1e6, details

        yield Load(server, cpus, run)


@contextmanager
def mappings(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """How often the server has the file mapped, of which all those regions are."""
    with session(command, server_cpu, memory, shared=False) as (server, client, cpus):

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            before = client.mappings(server.pid)
            client.map_regions()
            count = client.mappings(server.pid)
            client.unmap_regions()
            details = {"requests": 2.0 * layout.REGIONS, "before": float(before)}
            if not count:
                raise BenchError("the server has mapped nothing of the file")
            return float(count), details

        yield Load(server, cpus, run)


@contextmanager
def payload(*, command: Sequence[str], server_cpu: int, memory: str) -> Iterator[Load]:
    """Bytes that became Python objects, or came from them, while the pages and lists were copied.

    The engine's own counter, without the descriptors and tables that the device reads and the
    results that it writes: those are known to the byte.
    """
    with session(command, server_cpu, memory) as (server, client, cpus):
        client.prepare_page()
        client.prepare_lists()

        def counters() -> dict[str, Any]:
            return {
                "python": client.read(layout.PYTHON_BYTES, 8),
                "copied": client.read(layout.COPIED_BYTES, 8),
            }

        def run(seconds: float) -> tuple[float, dict[str, float]]:
            before = counters()
            pages = client.doorbells(seconds)["requests"]
            chains = client.run_lists(seconds)["requests"]
            after = counters()
            moved = pages * layout.PAGE + chains * layout.LIST_BYTES
            if (counted := after["copied"] - before["copied"]) < moved:
                raise BenchError(f"{moved} bytes were copied; the server has counted {counted}")
            control = chains * layout.CONTROL_BYTES
            python = after["python"] - before["python"]
            details = {
                "requests": float(pages + chains),
                "payload_bytes": float(moved),
                "control_bytes": float(control),
                "python_bytes": float(python),
            }
            return float(python - control), details

        yield Load(server, cpus, run)
