# SPDX-License-Identifier: Apache-2.0
"""How the harness starts what must not outlive it.

Invariant: the process is the one that was asked for, under the id that it is started with.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.peers.guests.root import find_program


def mortal(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the thread that starts it has ended (prctl(2)).

    That is for a test run that is itself killed; what goes on longer is ended by its id.
    """
    return [find_program("setpriv"), "--pdeathsig", "KILL", "--", *command]
