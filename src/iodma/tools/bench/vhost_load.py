# SPDX-License-Identifier: Apache-2.0
"""One side of a row of `iodma bench vhost-user-blk`: a server, and our client that loads it.

Run by `worker`, pinned to the client's processor.

Invariants
 - A request that fails, or comes back with a length that cannot be right, ends the benchmark.
 - While the client sleeps between samples the server is left alone, with its rings running.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from iodma._peer import VhostBlk
from iodma.tools.bench.again import NothingFinished
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.vhost_servers import Server
from iodma.tools.machine import read_text

__all__ = ["Load", "idle", "load", "null"]

Metric = Literal["requests", "processor"]


class Load:
    """The client of one shape; called for a sample.

    Attributes:
        details: of the last sample: requests a second, latencies and the server's processor time in
            microseconds, kicks and wake-ups for each request; how much of the processors others
            used, in percent.
    """

    def __init__(
        self,
        client: VhostBlk,
        server: Server | None,
        cpus: Collection[int],
        *,
        write: bool,
        poll: bool,
        metric: Metric,
    ) -> None:
        self._client = client
        self._server = server
        self._cpus = frozenset(cpus)
        self._write = write
        self._poll = poll
        self._metric = metric
        self._seed = 0
        self.details: dict[str, float] = {}

    def __call__(self, seconds: float) -> float:
        """Requests a second, or the server's microseconds of processor time for each request.

        Raises:
            NothingFinished: no request came back in time.
            BenchError: a request failed.
        """
        self._seed += 1
        before, others = self._processor_ns(), self._others_ns()
        done = self._client.run(
            write=self._write, poll=self._poll, seconds=seconds, seed=0x5EED * self._seed
        )
        used, others = self._processor_ns() - before, self._others_ns() - others
        if done["errors"] or done["wrong_lengths"]:
            raise BenchError(f"the server does not do what it is asked for: {done}")
        if not done["requests"]:
            raise NothingFinished(f"no request came back within {seconds:g} s")
        requests = done["requests"]
        rate = requests / done["ns"] * 1e9
        self.details = {
            "requests_per_second": round(rate, 1),
            "p50_us": done["p50_ns"] / 1000,
            "p99_us": done["p99_ns"] / 1000,
            "server_us_per_request": round(used / 1000 / requests, 4),
            "kicks_per_request": round(done["kicks"] / requests, 4),
            "wakes_per_request": round(done["wakes"] / requests, 4),
            "requests_per_reap": round(requests / max(1, done["reaps"]), 2),
            "others_percent": round(max(0.0, others / len(self._cpus) / done["ns"] * 100), 1),
        }
        return rate if self._metric == "requests" else used / 1000 / requests

    def _processor_ns(self) -> int:
        return self._server.processor_ns() if self._server else 0

    def _others_ns(self) -> int:
        """What the processors did, but for the client and the server; a tick is 10 ms."""
        return busy_ns(self._cpus) - self._processor_ns() - time.process_time_ns()


def busy_ns(cpus: Collection[int]) -> int:
    """Nanoseconds that these processors were not idle, those that a hypervisor took included."""
    ticks = 0
    for line in read_text("/proc/stat").splitlines():
        name, *counts = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, counts[:8])
            ticks += user + nice + system + interrupts + soft + stolen
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@contextmanager
def load(
    *,
    path: str,
    memory: str,
    command: Sequence[str],
    server_cpu: int,
    shape: dict[str, Any],
    write: bool = False,
    poll: bool = True,
    metric: Metric = "requests",
) -> Iterator[Load]:
    """Starts the server and connects.

    Args:
        path: the image.
        memory: where the data of requests is, the same for all sides.
        command: the server's, see `vhost_servers`.
        server_cpu: where it runs.
        shape: the client's depth, segments, segment_bytes.
        write: random writes, else random reads.
        poll: the client watches the used ring, else it sleeps until it is called.
        metric: what a sample gives.
    """
    with ExitStack() as opened:
        server = opened.enter_context(Server(command, Path(path), server_cpu))
        data = os.open(memory, os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, data)
        client = opened.enter_context(server.connect(**shape, data_fd=data))
        cpus = {server_cpu, *os.sched_getaffinity(0)}
        yield Load(client, server, cpus, write=write, poll=poll, metric=metric)


@contextmanager
def null(*, server_cpu: int, shape: dict[str, Any], poll: bool = True) -> Iterator[Load]:
    """The client by itself: a thread answers each request at once."""
    with VhostBlk(None, null_cpu=server_cpu, null_spins=poll, **shape) as client:
        yield Load(client, None, {server_cpu}, write=False, poll=poll, metric="requests")


@contextmanager
def idle(
    *, path: str, command: Sequence[str], server_cpu: int, shape: dict[str, Any]
) -> Iterator[Any]:
    """A server that was under load, and now is not: milliseconds of processor time that it uses."""

    def sample(seconds: float) -> float:
        before = server.processor_ns()
        time.sleep(seconds)
        return (server.processor_ns() - before) / 1e6

    with ExitStack() as opened:
        server = opened.enter_context(Server(command, Path(path), server_cpu))
        client = opened.enter_context(server.connect(**shape))
        client.run(seconds=0.1)
        time.sleep(0.2)  # whatever spins may decay
        yield sample
