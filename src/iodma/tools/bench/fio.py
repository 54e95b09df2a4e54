# SPDX-License-Identifier: Apache-2.0
"""fio, the peer for what a block benchmark can do.

fio's own options move it by a factor of 1.5, so all that matter are given, and the whole command
line goes into the report. It gets what we have: the descriptor and the buffers registered, the very
same pages to read into, the same number of requests submitted at once, the same number of
completions waited for, the same processor; and is spared what would slow it down for nothing (clock
reads for its latency statistics, the map of blocks already read).

Invariants
 - Every run starts fio afresh, about 0.4 s that are not part of its figure.
 - A run that reports an error raises, with its words in the message; one that read nothing is
   repeated, longer.
 - fio is one process (`--thread`): when we end, it has ended.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iodma.tools.bench.again import Again, NothingFinished
from iodma.tools.bench.harness import BenchError
from iodma.tools.machine import find_program, program_version

__all__ = ["STARTUP_S", "Fio", "FioJob", "find_fio"]

#: What a run costs beside its run time.
STARTUP_S = 0.45


@dataclass(frozen=True, slots=True)
class FioJob:
    """What fio is asked to do.

    Attributes:
        block_bytes: of one request.
        order: of the positions.
        depth: requests in flight (io_uring).
        batch: most requests submitted, and completions taken, at once (io_uring).
        complete_min: completions that a wait asks for (io_uring).
        engine: "io_uring", or "psync" for one pread after the other.
        direct: past the page cache.
        fixed: the memory is registered, and so pinned (io_uring).
    """

    block_bytes: int
    order: Literal["randread", "read"] = "randread"
    depth: int = 1
    batch: int = 1
    complete_min: int = 1
    engine: Literal["io_uring", "psync"] = "io_uring"
    direct: bool = False
    fixed: bool = True

    @property
    def name(self) -> str:
        return f"fio {self.engine}"

    def options(self) -> list[str]:
        """The options that say what is measured."""
        options = [
            f"--rw={self.order}",
            f"--bs={self.block_bytes}",
            f"--ioengine={self.engine}",
            f"--direct={int(self.direct)}",
            "--gtod_reduce=1",
            "--norandommap",
            "--invalidate=0",
            "--fadvise_hint=0",
        ]
        if self.engine == "io_uring":
            options += [
                f"--iodepth={self.depth}",
                f"--iodepth_batch_submit={self.batch}",
                f"--iodepth_batch_complete_min={self.complete_min}",
                f"--iodepth_batch_complete_max={self.batch}",
                "--registerfiles",
                *(["--fixedbufs"] if self.fixed else []),
            ]
        return options


def find_fio() -> tuple[str, str]:
    """fio's path and version.

    Raises:
        BenchError: there is none.
    """
    path = find_program("fio")
    if path is None:
        raise BenchError("fio is not installed, and is the peer of this benchmark: install fio")
    return path, program_version(path)


class Fio:
    """One side of a row: every sample is a run of fio.

    Args:
        path: the program.
        job: what it does.
        file: an existing file of `file_bytes`, only ever read.
        cpu: the processor it runs on.
        memory: a path to the memory that it reads into, as large as all its blocks in flight.
    """

    def __init__(
        self, path: str, job: FioJob, file: Path, file_bytes: int, cpu: int, memory: str
    ) -> None:
        self._path = path
        self._job = job
        self._file = file
        self._size = file_bytes
        self._cpu = cpu
        self._memory = memory
        self._again = Again()

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def command(self) -> str:
        """The command line, as the report has it."""
        return shlex.join(self._arguments("RUNTIME", "FILE", "MEMORY"))

    @property
    def again(self) -> int:
        """How many runs were repeated."""
        return self._again.count

    def warm(self) -> None:
        """Nothing: each run starts afresh."""

    def sample(self, seconds: float) -> float:
        """Requests a second.

        Raises:
            BenchError: fio failed.
        """
        return self._again.take(self._run, seconds)

    def _run(self, seconds: float) -> float:
        command = self._arguments(f"{int(seconds * 1000)}ms", str(self._file), self._memory)
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=30 + 10 * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"fio did not end: {shlex.join(command)}") from None
        if done.returncode != 0:
            raise BenchError(f"fio failed ({done.returncode}): {last_line(done.stderr)}")
        return requests_per_second(done.stdout)

    def close(self) -> None:
        """Nothing: each run has ended."""

    def _arguments(self, runtime: str, file: str, memory: str) -> list[str]:
        return [
            self._path,
            "--name=peer",
            f"--filename={file}",
            f"--size={self._size}",
            "--readonly",
            f"--mem=mmapshared:{memory}",
            *self._job.options(),
            "--time_based",
            f"--runtime={runtime}",
            "--thread",
            f"--cpus_allowed={self._cpu}",
            "--output-format=json",
        ]


def requests_per_second(output: str) -> float:
    """The figure out of fio's JSON, before which it may have printed notes.

    Raises:
        NothingFinished: it read nothing.
        BenchError: no figure there, or the job had an error.
    """
    try:
        report: dict[str, Any] = json.loads(output[output.index("{") :])
        job = report["jobs"][0]
        read = job["read"]
        error, requests, milliseconds = job["error"], read["total_ios"], read["runtime"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise BenchError(f"fio's report cannot be read: {last_line(output)}") from None
    if error:
        raise BenchError(f"fio measured nothing: error {error}, {requests} requests")
    if not requests or not milliseconds:
        raise NothingFinished(f"fio read nothing: {requests} requests in {milliseconds} ms")
    return float(requests) / float(milliseconds) * 1000


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
