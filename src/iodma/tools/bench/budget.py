# SPDX-License-Identifier: Apache-2.0
"""How long a benchmark may take, and what that leaves for each sample.

Invariants
 - The plan is made before the first sample and told; a benchmark does not run longer because the
   machine is slow, its samples get shorter. What is beside the plan: samples in which nothing
   finished, see `again`.
 - A sample is never shorter than what gives a figure worth having: then the budget is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iodma.errors import ArgumentError

__all__ = ["LONGEST_SAMPLE_S", "SHORTEST_SAMPLE_S", "Budget", "plan"]

SHORTEST_SAMPLE_S = 0.1
LONGEST_SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """The plan of a run.

    Attributes:
        rows: how many.
        pairs: of each row.
        sample_s: seconds that each timed sample runs.
        overhead_s: seconds that all starting up and warming takes, estimated.
        total_s: what it should come to.
        sides: samples of a pair.
    """

    rows: int
    pairs: int
    sample_s: float
    overhead_s: float
    total_s: float
    sides: int = 2

    def __str__(self) -> str:
        return (
            f"{self.rows} rows x {self.pairs} pairs x {self.sides} samples"
            f" of {self.sample_s:.2f} s, about {self.total_s:.0f} s in all"
        )


def plan(
    costs: Iterable[tuple[bool, float, float]],
    *,
    pairs: int,
    total_s: float,
    sample_s: float,
    sides: int = 2,
) -> Budget:
    """Shares `total_s` out.

    Args:
        costs: for each row: whether its samples are timed; seconds to set it up once; seconds that
            the samples of a pair cost beside the time they are told to run.
        pairs: of each row.
        total_s: seconds for everything.
        sample_s: seconds a sample should take, if there is time.
        sides: samples of a pair.

    Raises:
        ArgumentError: the time is too short for samples worth having.
    """
    rows = list(costs)
    overhead = sum(setup + pairs * per_pair for _, setup, per_pair in rows)
    samples = sides * pairs * sum(timed for timed, _, _ in rows)
    if samples:
        sample_s = min(sample_s, LONGEST_SAMPLE_S, (total_s - overhead) / samples)
        if sample_s < SHORTEST_SAMPLE_S:
            least = overhead + samples * SHORTEST_SAMPLE_S
            raise ArgumentError(
                f"{total_s:.0f} s are too few for {len(rows)} rows of {pairs} pairs:"
                f" give at least {least:.0f} s, fewer rows or fewer pairs"
            )
    return Budget(len(rows), pairs, sample_s, overhead, overhead + samples * sample_s, sides)
