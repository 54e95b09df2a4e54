# SPDX-License-Identifier: Apache-2.0
"""What is measured of small segments: both sides move the same bytes, each in its own way."""

from __future__ import annotations

import pytest

from iodma.tools import crossover


@pytest.mark.parametrize(
    ("ratios", "size"),
    [
        ({64: 2.0, 128: 1.5, 256: 0.9, 512: 1.2}, 128),
        ({64: 0.9, 128: 2.0}, 0),
        ({64: 3.0, 128: 1.1}, 128),
    ],
)
def test_the_crossing_is_below_the_first_size_where_the_vector_wins(
    ratios: dict[int, float], size: int
) -> None:
    assert crossover.crossing(ratios) == size


def test_every_size_is_measured_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "ROUNDS", 1)
    monkeypatch.setattr(crossover, "SIZES", (64, 4096))
    found = crossover.measure()
    assert {name: list(sizes) for name, sizes in found.ratios.items()} == {
        "from_memory": [64, 4096],
        "to_memory": [64, 4096],
    }
    assert all(ratio > 0 for sizes in found.ratios.values() for ratio in sizes.values())
