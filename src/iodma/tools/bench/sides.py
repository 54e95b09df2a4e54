# SPDX-License-Identifier: Apache-2.0
"""A row of two sides, before it is measured.

Invariants
 - A row without a peer is a count: what ours gives.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from iodma.tools.bench.harness import Better

__all__ = ["COUNTED", "Side", "Work", "described"]

#: Of what is counted, in place of a peer.
COUNTED = "a count"


@dataclass(frozen=True, slots=True)
class Side:
    """A side of a row.

    Attributes:
        name: a short one, as the table has it.
        function: the case, "module:function" of this package.
        command: of the server; empty: there is none, and the case runs on the server's processor.
        reads_file: the case takes the path of the benchmark's file.
    """

    name: str
    function: str
    command: tuple[str, ...] = ()
    reads_file: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """A row.

    Attributes:
        name: what is done.
        must: the value to reach.
        ours: our side.
        peer: the other side; None: what ours gives is a count.
        timed: a sample takes the time that it is told to; else `seconds`, about.
        told_s: what a sample is told that is not timed; the longer, the longer it is waited for.
        start_s: what setting a side up takes, about.
    """

    name: str
    must: float
    ours: Side
    peer: Side | None
    better: Better = "lower"
    unit: str = "x"
    timed: bool = True
    seconds: float = 0.0
    told_s: float = 0.1
    start_s: float = 1.0

    @property
    def loads_both(self) -> bool:
        """Both sides are servers."""
        return bool(self.ours.command and self.peer and self.peer.command)

    def itself(self) -> Work:
        """With the peer on both sides."""
        assert self.peer is not None
        return replace(self, ours=self.peer)


def described(side: Side | None, cpu: int) -> str:
    """A side's command as the report has it."""
    if side is None:
        return f"none: {COUNTED} of what the server did"
    if side.command:
        return f"taskset -c {cpu} {shlex.join(side.command)}"
    return f"taskset -c {cpu} {side.function.replace(':', '.')}(memory=MEMORY)"
