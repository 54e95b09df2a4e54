# SPDX-License-Identifier: Apache-2.0
"""How the harness starts what must not outlive it.

Invariants:

- The process is the one that was asked for, under the id that it is started with.
- A `Deadline` counts only time in which this run itself was running: whatever stops it (a signal, a
  busy host, a measurement that must not be disturbed) stops its guests as well, and no more of
  their time is over than of ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.peers.guests.root import find_program


def mortal(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the thread that starts it has ended (prctl(2)).

    That is for a test run that is itself killed; what goes on longer is ended by its id.
    """
    return [find_program("setpriv"), "--pdeathsig", "KILL", "--", *command]


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
