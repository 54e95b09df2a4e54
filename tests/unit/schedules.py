# SPDX-License-Identifier: Apache-2.0
"""Schedules drawn from one number each: many of them, and which one failed."""

from __future__ import annotations

import random
from collections.abc import Callable

from iodma.testing import no_leaks


def run_many(run_schedule: Callable[[int], None], rng: random.Random, count: int) -> None:
    """Each leaves nothing behind; a failure prints the call that replays it."""
    with no_leaks():
        for _ in range(count):
            seed = rng.getrandbits(40)
            try:
                run_schedule(seed)
            except BaseException as error:
                error.add_note(f"run_schedule({seed})")
                raise
