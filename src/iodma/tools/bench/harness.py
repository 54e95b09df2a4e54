# SPDX-License-Identifier: Apache-2.0
"""What a measurement is, and how it is told.

The machine's clock drifts by tens of percent within minutes, so nothing is ever reported alone:
each figure is the median over *pairs*, ours and the peer's taken one right after the other.

Invariants
 - The two sides of a pair alternate in which goes first, so that a drift favours neither.
 - `value` is the median of the pairs' own ratios (or differences), not the ratio of two medians;
   `low` and `high` are the least and the greatest pair, nothing left out.
 - A row that does not hold is a result, not an error: it is reported so, and the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from iodma.errors import ArgumentError, Error

__all__ = [
    "LEAST_PAIRS",
    "BenchError",
    "Better",
    "Compare",
    "Pair",
    "Report",
    "Row",
    "run_pairs",
    "run_rounds",
    "summarize",
    "table",
]

#: Fewer pairs than this are for a quick look, not for a result.
LEAST_PAIRS = 7

Better = Literal["higher", "lower"]
#: How a pair becomes one number: ours / peer, or ours - peer.
Compare = Literal["ratio", "difference"]
Sample = Callable[[], float]


class BenchError(Error):
    """A benchmark could not run: a peer is missing, there is no room, or a side failed."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample of each side, taken one after the other."""

    ours: float
    peer: float

    def compared(self, how: Compare) -> float:
        """The pair as one number."""
        return self.ours / self.peer if how == "ratio" else self.ours - self.peer


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    Attributes:
        work: what was done.
        peer: what it was compared with.
        value: the median of the pairs.
        unit: "x" for a ratio ours / peer, else the unit of the difference.
        better: whether a "higher" or a "lower" value is better.
        must: the value to reach; `holds` tells whether it was.
        pairs: how many pairs were run.
        low: the least of the pairs; `high` the greatest.
    """

    work: str
    peer: str
    value: float
    unit: str
    better: Better
    must: float
    holds: bool
    pairs: int
    low: float
    high: float


def run_pairs(
    ours: Sample, peer: Sample, pairs: int, progress: Callable[[int, Pair], None] | None = None
) -> list[Pair]:
    """Runs both sides `pairs` times, ours first in every other pair.

    Raises:
        ArgumentError: `pairs` is below 1.
        BenchError: a side measured nothing.
    """

    def each(number: int, values: list[float]) -> None:
        if progress is not None:
            progress(number, Pair(*values))

    return [Pair(*values) for values in run_rounds([ours, peer], pairs, each)]


def run_rounds(
    sides: Sequence[Sample],
    rounds: int,
    progress: Callable[[int, list[float]], None] | None = None,
) -> list[list[float]]:
    """Runs all sides `rounds` times, each first in its turn: for each round, a figure of each side.

    Raises:
        ArgumentError: `rounds` is below 1.
        BenchError: a side measured nothing.
    """
    if rounds < 1:
        raise ArgumentError(f"pairs is {rounds}, must be at least 1")
    result = []
    for number in range(rounds):
        values = [0.0] * len(sides)
        for step in range(len(sides)):
            side = (number + step) % len(sides)
            values[side] = sides[side]()
        if not all(value > 0 for value in values):
            raise BenchError(f"pair {number + 1} measured nothing: {values}")
        result.append(values)
        if progress is not None:
            progress(number + 1, values)
    return result


def summarize(
    pairs: Sequence[Pair],
    *,
    work: str,
    peer: str,
    must: float,
    better: Better = "higher",
    compare: Compare = "ratio",
    unit: str = "x",
) -> Row:
    """The row that these pairs make.

    Raises:
        ArgumentError: there are no pairs.
    """
    if not pairs:
        raise ArgumentError(f"{work}: no pairs to summarize")
    values = [pair.compared(compare) for pair in pairs]
    value = median(values)
    return Row(
        work=work,
        peer=peer,
        value=round(value, 4),
        unit=unit,
        better=better,
        must=must,
        holds=value >= must if better == "higher" else value <= must,
        pairs=len(values),
        low=round(min(values), 4),
        high=round(max(values), 4),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        bench: the benchmark's name.
        rows: its rows, in the order of the benchmark.
        peers: how each row's peer was run, by the row's `work`.
        machine: what it ran on.
        extra: what else was seen, beside what must be reached.
    """

    bench: str
    rows: Sequence[Row]
    peers: dict[str, str]
    machine: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "bench": self.bench,
            "rows": [asdict(row) for row in self.rows],
            "peers": self.peers,
            "machine": self.machine,
            "extra": self.extra,
        }

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    @property
    def failing(self) -> list[Row]:
        """The rows that do not hold."""
        return [row for row in self.rows if not row.holds]


def table(rows: Iterable[Row], *, judge: bool = True) -> str:
    """The rows as text for a terminal; `judge`: with what each must reach."""
    lines = [("work", "peer", "value", "must" if judge else "", "", "low .. high", "pairs")]
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        lines.append(
            (
                row.work,
                row.peer,
                f"{row.value:.2f} {row.unit}",
                f"{sign} {row.must:g} {row.unit}" if judge else "",
                ("holds" if row.holds else "MISSED") if judge else "",
                f"{row.low:.2f} .. {row.high:.2f}",
                str(row.pairs),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
