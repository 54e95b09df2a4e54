# SPDX-License-Identifier: Apache-2.0
"""One process for our side of a row and one for a C peer, kept for all its samples.

Starting Python costs more than a sample takes, so a worker is started once, pinned to a processor,
told which *case* to open, and then asked for samples. A case is a function in this package that
returns a context manager; what it gives is called with seconds and returns the figure.

The conversation is lines of JSON over the worker's standard input and output:

    {"open": "iodma.tools.bench.ours:reads", "options": {...}}  ->  {"value": 0}
    {"sample": 0.4}                                            ->  {"value": 7e5, "details": {}}
    {"sample": 0.002, "trace": "FILE"}                         ->  {"value": 1}  (0: no engine)

and an error is {"error": "what went wrong", "traceback": "..."}. Details are what else a case knows
of its last sample: the attribute of that name, where what the case gave has one. A sample in which
nothing finished is answered by {"nothing": "why"}, and asked for again, longer.

Invariants
 - While one side is sampled the other one sleeps in a read of its pipe.
 - A worker ends when its input does: none outlives the benchmark. One that does not answer in time
   is killed, and the benchmark fails with what it had said.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from iodma.tools.bench.again import Again, NothingFinished
from iodma.tools.bench.harness import BenchError

__all__ = ["Case", "Fresh", "Worker"]

WARM_UP_S = 0.1
#: Beside the time that a sample is told to run.
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Case:
    """What a worker runs.

    Attributes:
        name: a short name, as the table has it.
        function: "module:function" of this package.
        options: its keyword arguments, as JSON can hold them.
        reads_file: it takes the path of the file to read, as `path`.
        shares_memory: it takes the path of the memory that both sides map, as `memory`.
    """

    name: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reads_file: bool = False
    shares_memory: bool = False

    def described(self) -> str:
        """The case as the report has it."""
        arguments = [f"{key}={value!r}" for key, value in self.options.items()]
        if self.shares_memory:
            arguments.insert(0, "memory=MEMORY")
        if self.reads_file:
            arguments.insert(0, "path=FILE")
        return f"{self.function.replace(':', '.')}({', '.join(arguments)})"


class Worker:
    """One side of a row: a process that keeps its case open between samples.

    Attributes:
        details: what else the case told of the last sample.
    """

    def __init__(self, case: Case, file: Path, cpu: int, memory: str = "") -> None:
        self._again = Again()
        self._process = start(cpu)
        self._memory = memory
        self.open(case, file)

    def open(self, case: Case, file: Path) -> None:
        """Opens a case instead of the one that was open; when that fails the process has ended.

        Raises:
            BenchError: as `sample`.
        """
        self._case = case
        self.details: dict[str, Any] = {}
        options = dict(case.options)
        if case.reads_file:
            options["path"] = str(file)
        if case.shares_memory:
            options["memory"] = self._memory
        try:
            self._ask({"open": case.function, "options": options}, 0.0)
        except BaseException:
            self.close()
            raise

    @property
    def case(self) -> Case:
        """The case that is open."""
        return self._case

    @property
    def name(self) -> str:
        return self._case.name

    @property
    def command(self) -> str:
        return self._case.described()

    @property
    def again(self) -> int:
        """How many samples were taken again, of all cases that were open."""
        return self._again.count

    def warm(self) -> None:
        """A sample that nobody looks at."""
        self.sample(WARM_UP_S)

    def sample(self, seconds: float) -> float:
        """The case's figure.

        Raises:
            BenchError: the worker failed, died or did not answer in time.
        """
        return self._again.take(lambda each: self._ask({"sample": each}, each), seconds)

    def trace(self, seconds: float, path: Path) -> bool:
        """A sample that is not measured, with a trace of it. False: the case runs no engine.

        Raises:
            BenchError: as `sample`.
        """
        return bool(self._ask({"sample": seconds, "trace": str(path)}, PATIENCE_S))

    def close(self) -> None:
        """Ends the process."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # when it had not read what was written
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _ask(self, request: Mapping[str, Any], seconds: float) -> float:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = read_line(process.stdout, PATIENCE_S + 10 * seconds)
        except BrokenPipeError:
            line = ""
        except TimeoutError:
            process.kill()
            raise BenchError(f"{self.command}: no answer to {request}; killed") from None
        if not line:
            raise BenchError(f"{self.command}: its process ended with {process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "nothing" in reply:
            raise NothingFinished(f"{self.command}: {reply['nothing']}")
        if "error" in reply:
            error = BenchError(f"{self.command}: {reply['error']}")
            error.add_note(str(reply.get("traceback", "")))
            raise error
        self.details = reply.get("details", {})
        return float(reply["value"])


class Fresh:
    """One side of a row that needs a new process for every sample.

    Attributes:
        again: how many samples were taken again.
    """

    def __init__(self, case: Case, file: Path, cpu: int, memory: str = "") -> None:
        self._case = case
        self._file = file
        self._cpu = cpu
        self._memory = memory
        self.again = 0

    @property
    def name(self) -> str:
        return self._case.name

    @property
    def command(self) -> str:
        return self._case.described()

    def warm(self) -> None:
        """Nothing: each sample starts afresh."""

    def sample(self, seconds: float) -> float:
        """The case's figure, from a process that had no other."""
        worker = Worker(self._case, self._file, self._cpu, self._memory)
        try:
            return worker.sample(seconds)
        finally:
            self.again += worker.again
            worker.close()

    def close(self) -> None:
        """Nothing: each sample's process has ended."""


def start(cpu: int) -> subprocess.Popen[str]:
    """A worker in a session of its own: a Ctrl-C is ours to handle."""
    return subprocess.Popen(
        [sys.executable, "-m", "iodma.tools.bench.worker", str(cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # NumPy's linear algebra starts threads that spin for a while, on the processor we measure.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def read_line(pipe: IO[str], seconds: float) -> str:
    """The next line. A worker answers with exactly one, so none can be waiting in the buffer.

    Raises:
        TimeoutError: there was none in time.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        if not selector.select(seconds):
            raise TimeoutError
    return pipe.readline()
