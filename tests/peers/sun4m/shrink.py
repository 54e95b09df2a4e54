# SPDX-License-Identifier: Apache-2.0
"""A failing program made short: steps are dropped as long as it fails in the same way.

Invariants:

- What remains fails; each try is a run of its own, from a reset machine.
- The number of tries is bounded.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.peers.sun4m.program import Program


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 200) -> Program:
    """Drops runs of steps, half the program at a time at first, then ever fewer.

    Args:
        fails: runs a program; True when it still fails.
        tries: of `fails`, at most.
    """
    steps = list(program.steps)
    size = max(1, len(steps) // 2)
    while tries > 0:
        begin, dropped = 0, False
        while begin < len(steps) and tries > 0:
            shorter = steps[:begin] + steps[begin + size :]
            tries -= 1
            if shorter and fails(program.with_steps(shorter)):
                steps, dropped = shorter, True
            else:
                begin += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return program.with_steps(steps)
