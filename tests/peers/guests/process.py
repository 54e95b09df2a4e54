# SPDX-License-Identifier: Apache-2.0
"""How the harness starts what must not outlive it, how it ends that, and how long it waits.

Invariants:

- The process is the one that was asked for, under the id that it is started with.
- What is started here is in a group of its own, and the group is gone when it has been ended. A
  test run that is killed takes it along.
- A `Deadline` counts only time in which this run itself was running: whatever stops it (a signal, a
  busy host, a measurement that must not be disturbed) stops its guests as well, and no more of
  their time is over than of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.peers.guests.root import find_program


def mortal(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the thread that starts it has ended (prctl(2)).

    That is for a test run that is itself killed; what goes on longer is ended by its id.
    """
    return [find_program("setpriv"), "--pdeathsig", "KILL", "--", *command]


def group_lives(group: int) -> bool:
    """Is there a process of this group? Zombies, which are their parent's, do not count."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    return True
    return False


class Child:
    """One process at a time, with a log; gone when the `with` is left."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(
        self,
        command: Sequence[str],
        output: IO[bytes],
        *,
        errors: IO[bytes] | None = None,
        fds: Sequence[int] = (),
        folder: Path | None = None,
    ) -> None:
        """Starts it.

        Args:
            output: where its output goes; and its errors, if there is no place for these.
            fds: descriptors that it inherits.
            folder: where it runs.
        """
        self._process = subprocess.Popen(
            mortal(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if errors is None else errors,
            pass_fds=fds,
            start_new_session=True,
            cwd=folder,
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The one that was started last."""
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, at any time, to all of its group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            while group_lives(self._process.pid):
                time.sleep(0.005)

    def close(self) -> None:
        """What leaving the `with` does."""
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Deadline:
    """Seconds that something may take.

    Whoever waits looks at `left` at least once a `STEP`, and so waits for no longer than `step`: of
    the time between two looks no more than twice that is counted.
    """

    STEP = 1.0

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    @property
    def left(self) -> float:
        """What is left, in seconds; never negative."""
        now = time.monotonic()
        self._left -= min(now - self._looked, 2 * self.STEP)
        self._looked = now
        return max(0.0, self._left)

    @property
    def step(self) -> float:
        """How long to wait until the next look."""
        return min(self.left, self.STEP)
