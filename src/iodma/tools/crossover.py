# SPDX-License-Identifier: Apache-2.0
"""Where, on this host, one copy is as cheap as a vector of small segments.

The planner bounces a list whose segments are smaller than that on the average. What it assumes was
measured on one machine; this measures it here, so that ``Engine(small=...)`` can be told.

Invariants
 - Both sides move the same lists through the same file, in turns; only the planner is told to do
   the one or the other.
 - It is bounded: a second or two, and 16 MiB in a file that is removed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from iodma.endpoints import File
from iodma.engine import Engine
from iodma.memory import Memory, Ram
from iodma.port import Port
from iodma.sg import Batch
from iodma.types import Direction

__all__ = ["Crossover", "measure"]

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SEGMENTS = 64
REQUESTS = 16
ROUNDS = 9
#: Neither: every list goes as a vector; every list is copied.
VECTOR, COPY = (0, 0), (1 << 30, 1 << 30)


@dataclass(frozen=True, slots=True)
class Crossover:
    """What was measured.

    Attributes:
        from_memory, to_memory: bytes a segment up to which the copy was the cheaper.
        ratios: for each direction, segment size -> cost of the vector over that of the copy.
    """

    from_memory: int
    to_memory: int
    ratios: dict[str, dict[int, float]]


def requests_of(size: int, direction: Direction) -> Batch:
    """Requests of `SEGMENTS` segments of `size` bytes, which do not touch."""
    count = REQUESTS * SEGMENTS
    batch = Batch(REQUESTS, count)
    batch.n = REQUESTS
    batch.address[:] = np.random.default_rng(1).permutation(count) * (2 * size)
    batch.length[:] = size
    batch.first[:] = np.arange(REQUESTS) * SEGMENTS
    batch.count[:] = SEGMENTS
    batch.direction[:] = direction
    batch.position[:] = np.arange(REQUESTS) * (SEGMENTS * size)
    return batch


async def nanoseconds(port: Port, file: File, batch: Batch) -> int:
    """Of one batch, from its submission to its last completion."""
    begin = perf_counter_ns()
    port.submit(batch, file)
    async for _ in port.completions(limit=REQUESTS, at_least=REQUESTS):
        pass
    return perf_counter_ns() - begin


def measure(kind: str = "auto") -> Crossover:
    """Measures both directions with the engine that `kind` gives.

    Raises:
        OSError: there is no room for the file.
    """
    ratios: dict[str, dict[int, float]] = {"from_memory": {}, "to_memory": {}}
    most = SIZES[-1] * SEGMENTS * REQUESTS
    with (
        tempfile.NamedTemporaryFile(prefix="iodma-") as place,
        Ram(2 * most) as ram,
        Engine(kind, small=VECTOR) as vectors,
        Engine(kind, small=COPY) as copies,
    ):
        place.write(bytes(most))
        place.flush()
        with File(place.name) as one, File(place.name) as other:
            sides = [
                (vectors, vectors.port(Memory({0: ram})), one),
                (copies, copies.port(Memory({0: ram})), other),
            ]
            for direction in Direction:
                for size in SIZES:
                    batch = requests_of(size, direction)
                    least = [
                        min(engine.run(nanoseconds(port, file, batch)) for _ in range(ROUNDS))
                        for engine, port, file in sides
                    ]
                    ratios[direction.name.lower()][size] = least[0] / least[1]
    return Crossover(
        crossing(ratios["from_memory"]),
        crossing(ratios["to_memory"]),
        ratios,
    )


def crossing(ratios: dict[int, float]) -> int:
    """The largest size up to which the vector cost more at every size."""
    best = 0
    for size, ratio in sorted(ratios.items()):
        if ratio <= 1:
            break
        best = size
    return best
