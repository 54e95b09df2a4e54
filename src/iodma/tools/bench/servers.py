# SPDX-License-Identifier: Apache-2.0
"""A server as a process: how it is started and reached, and what it has used of its processor.

Invariants
 - A server belongs to the process that started it and does not outlive it, however that one ends.
 - It is pinned before its first instruction; what it says goes to a file, for the error message.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from iodma.tools.bench.harness import BenchError

__all__ = ["IMAGE", "SOCKET", "Server"]

#: Stand for the two paths in a command, and are what the report shows.
SOCKET, IMAGE = "%SOCKET%", "%IMAGE%"
START_S = 15.0
STOP_S = 2.0
PR_SET_PDEATHSIG = 1

T = TypeVar("T")


class Server:
    """A server with its socket in a directory of its own.

    Args:
        command: with `SOCKET` and `IMAGE` where the paths go.
        image: the file that it serves; default: none.
        cpu: the processor it is pinned to; default: as we are.
        descriptors: that it inherits, by what stands for their numbers in the command.
    """

    def __init__(
        self,
        command: Sequence[str],
        image: Path | None,
        cpu: int | None = None,
        descriptors: Mapping[str, int] | None = None,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="iodma-serve-")
        self.socket = Path(self._directory.name) / "s"
        self._errors = Path(self._directory.name) / "errors"
        paths = {SOCKET: str(self.socket), IMAGE: str(image)}
        inherited = descriptors or {}
        paths |= {name: str(number) for name, number in inherited.items()}
        words = []
        for word in command:
            for name, path in paths.items():
                word = word.replace(name, path)
            words.append(word)
        self._command = shlex.join(command)
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    preexec_fn=prepare(cpu),
                    pass_fds=list(inherited.values()),
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )
        except BaseException:
            self._directory.cleanup()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def reach(self, connect: Callable[[Path], T]) -> T:
        """What `connect` gives, called with the socket's path as soon as the server listens.

        Raises:
            BenchError: it has ended, or did not listen in time.
            Exception: what `connect` raises, but for a socket that is not there yet.
        """
        deadline = time.monotonic() + START_S
        while True:
            try:
                return connect(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                if (status := self._process.poll()) is not None:
                    reason = f"ended with {status}: {self.said()}"
                elif time.monotonic() > deadline:
                    reason = f"did not listen within {START_S:.0f} s: {self.said()}"
                else:
                    time.sleep(0.01)
                    continue
            raise BenchError(f"{self._command} {reason}")

    def processor_ns(self) -> int:
        """Nanoseconds of processor time that its threads have used, the kernel's for them included.

        Raises:
            OSError: it has ended.
        """
        return time.clock_gettime_ns(process_clock(self._process.pid))

    def said(self) -> str:
        """The last line that it wrote."""
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """Ends it, by SIGTERM, and when that does not do by SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(OSError):
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def process_clock(pid: int) -> int:
    """The clock of another process's processor time, as clock_getcpuclockid(3) makes it."""
    CPUCLOCK_SCHED = 2
    return (~pid << 3) | CPUCLOCK_SCHED


def prepare(cpu: int | None) -> Callable[[], None]:
    """What the server's process does before it becomes the server."""
    prctl = ctypes.CDLL(None).prctl

    def run() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return run
