# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: our side and a peer, measured in pairs on one processor, one row a promise.

| file | its one concept |
|---|---|
| `harness` | pairs, rows, the report |
| `budget` | how long it may take |
| `core` | the rows of `iodma bench core`, as data |
| `ours`, `peers` | what each side does, run by `worker` in processes that `workers` starts |
| `fio` | the peer that is a program |
| `lists`, `maps`, `files` | what both sides are given |
| `run` | puts them together |

Invariants
 - Importing this package imports nothing else of it.
"""

from __future__ import annotations

__all__ = ["NAMES"]

#: The benchmarks there are: a name for the command line -> what it measures.
NAMES = {"core": "the core against fio and against C loops: throughput, latency, memory"}
