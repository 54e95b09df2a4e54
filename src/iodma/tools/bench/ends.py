# SPDX-License-Identifier: Apache-2.0
"""Both ends of a run: which rows it has, what it tells first, and what it leaves.

Invariants
 - Where the report goes is seen to be writable before the first sample, and a busy machine is told.
 - How much of the processors others had is in the report, and told where it is much.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Protocol, TypeVar

from iodma.errors import ArgumentError
from iodma.tools.bench.budget import Budget
from iodma.tools.bench.harness import Report
from iodma.tools.bench.options import Options

__all__ = ["begin", "chosen", "end"]

#: Of the processors, in percent: above this there is a warning.
MOST_OTHERS = 3.0
#: For each processor: above this there is a warning, too.
MOST_LOAD = 0.5


class Named(Protocol):
    """A row before it is measured."""

    @property
    def name(self) -> str: ...


Work = TypeVar("Work", bound=Named)


def chosen(options: Options, works: Iterable[Work]) -> list[Work]:
    """The rows that are asked for.

    Raises:
        ArgumentError: there is no such row.
    """
    wanted = [work for work in works if options.wants(work.name)]
    if not wanted:
        raise ArgumentError(f"no row of {options.name} contains any of {', '.join(options.only)}")
    return wanted


def begin(options: Options, budget: Budget, where: str, tell: Callable[[str], None]) -> None:
    """What comes before the first sample.

    Args:
        options: what and how.
        budget: the plan.
        where: which processors the sides run on.
        tell: gets lines of progress.

    Raises:
        OSError: the report cannot be written.
    """
    if options.output:
        options.output.touch()
    tell(f"{options.name}: {budget}; {where}")
    if (load := os.getloadavg()[0]) > MOST_LOAD * len(os.sched_getaffinity(0)):
        tell(f"note: others use this machine (load {load:.1f}): expect the pairs to differ more")


def end(
    options: Options,
    report: Report,
    tell: Callable[[str], None],
    others: Sequence[float] | None = None,
) -> Report:
    """What comes after the last sample: the report, written.

    Args:
        options: what and how.
        report: of the run; what others had is added.
        tell: gets lines of progress.
        others: how much of the processors others had in each sample, in percent; default: it was
            not looked at.

    Raises:
        OSError: the report could not be written.
    """
    if others is not None:
        report.machine["others_percent"] = percent = round(median(others or [0.0]), 1)
        if percent > MOST_OTHERS:
            tell(f"note: others had {percent:.0f} % of the processors: these figures tell little")
    if options.output:
        report.write(options.output)
    return report
