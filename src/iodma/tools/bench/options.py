# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a benchmark.

Invariants
 - Every benchmark takes the same options, and refuses those that mean nothing to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iodma.tools.bench.harness import LEAST_PAIRS

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is run.

    Attributes:
        name: one of `NAMES`.
        pairs: samples of each side; below 7 is for a quick look.
        seconds: for everything.
        sample_s: seconds of one sample, if there is time.
        cpu: the processor that both sides (or their client) run on; default: the last one that is
            allowed.
        directory: where the file that is read is made; default: one that will do.
        only: rows whose name contains one of these; default: all.
        output: the file that the report is written to; default: none.
        trace: the file for a trace of each row, taken when it was measured; default: none.
        itself: the peer is on both sides, which shows how far pairs differ by themselves.
    """

    name: str
    pairs: int = LEAST_PAIRS
    seconds: float = 240.0
    sample_s: float = 0.4
    cpu: int | None = None
    directory: Path | None = None
    only: Sequence[str] = ()
    output: Path | None = None
    trace: Path | None = None
    itself: bool = False

    def wants(self, row: str) -> bool:
        """Whether the row of that name is to be measured."""
        return not self.only or any(part in row for part in self.only)
