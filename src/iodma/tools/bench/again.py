# SPDX-License-Identifier: Apache-2.0
"""Samples in which nothing finished.

On a busy machine a side may get no processor at all while a short sample lasts. That is no figure:
not a zero, which it would be unfair to count, and no reason to throw away all that was measured.

Invariants
 - Such a sample is taken again, each time for twice as long, up to `LONGEST_AGAIN_S`; a side that
   finishes nothing in that either ends the benchmark.
 - How often that was is counted, told, and in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from iodma.tools.bench.harness import BenchError

__all__ = ["LONGEST_AGAIN_S", "Again", "NothingFinished", "note_again", "taken_again"]

LONGEST_AGAIN_S = 4.0


class NothingFinished(BenchError):
    """Nothing finished while a sample lasted."""


class Again:
    """Takes a side's samples.

    Attributes:
        count: how many had to be taken again.
    """

    def __init__(self) -> None:
        self.count = 0

    def take(self, sample: Callable[[float], float], seconds: float) -> float:
        """The figure of a sample in which something finished.

        Args:
            sample: takes one; raises `NothingFinished`.
            seconds: how long the first one lasts.

        Raises:
            NothingFinished: nothing did, not in the longest one either.
            BenchError: what else `sample` raises.
        """
        while True:
            try:
                return sample(seconds)
            except NothingFinished:
                seconds *= 2
                if seconds > LONGEST_AGAIN_S:
                    raise
                self.count += 1


def taken_again(
    counts: Mapping[str, int], before: Mapping[str, int] | None = None
) -> dict[str, int]:
    """By the names of sides, how many samples were taken again since `before`, where there are."""
    return dict(Counter(counts) - Counter(before or {}))


def note_again(again: Mapping[str, int]) -> str:
    """What is told of them, of each side that there is in `again`."""
    each = ", ".join(f"{count} of {name}" for name, count in again.items())
    return f"note: samples in which nothing finished were taken again, longer: {each}"
