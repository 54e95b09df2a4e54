# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of a client and a server beside it share: where the two run, what the report says
of the machine, samples whose details are kept, and the middle of what those have told."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy

from iodma._version import __version__
from iodma.errors import ArgumentError
from iodma.tools.bench.budget import Budget
from iodma.tools.bench.options import Options
from iodma.tools.bench.workers import Worker
from iodma.tools.machine import kernel_release, processor, read_text

__all__ = ["check_pairs", "facts", "middle", "processors", "sampler"]


def processors(wanted: int | None) -> tuple[int, int | None]:
    """Where the client runs, and the last other processor that there is for a server.

    Raises:
        ArgumentError: this process may not use the processor that is asked for.
    """
    allowed = os.sched_getaffinity(0)
    client = max(allowed) if wanted is None else wanted
    if client not in allowed:
        raise ArgumentError(f"processor {client} is not one of {sorted(allowed)}")
    return client, max(allowed - {client}, default=None)


def check_pairs(options: Options) -> None:
    """Raises ArgumentError: a number of pairs that cannot be right."""
    if options.pairs < 1:
        raise ArgumentError(f"pairs is {options.pairs}, must be at least 1")


def middle(seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each detail over the samples of a side."""
    return {key: round(median(each[key] for each in seen), 4) for key in seen[0]} if seen else {}


def sampler(
    side: Worker, seconds: float, seen: list[dict[str, Any]], others: list[float]
) -> Callable[[], float]:
    """Samples of a side, of so many seconds.

    Args:
        seen: gets the details of each.
        others: gets how much of the processors others had meanwhile, in percent.
    """

    def sample() -> float:
        value = side.sample(seconds)
        if details := side.details:
            seen.append(details)
            others.append(details["others_percent"])
        return value

    return sample


def facts(budget: Budget, client: int, server: object, **more: object) -> dict[str, Any]:
    """What it runs on, and how.

    Args:
        client, server: the processors that they run on.
        more: what only this benchmark has to tell.
    """
    return {
        "kernel": kernel_release()[0],
        "processor": processor(),
        "processors": os.cpu_count(),
        # Under haltpoll a processor polls before it stops, and waking it costs little.
        "idle_governor": read_text("/sys/devices/system/cpu/cpuidle/current_governor"),
        "client_on": client,
        "server_on": server,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "iodma": __version__,
        **more,
        "load_at_start": round(os.getloadavg()[0], 2),
        "sample_seconds": round(budget.sample_s, 3),
    }
