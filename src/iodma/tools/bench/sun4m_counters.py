# SPDX-License-Identifier: Apache-2.0
"""What `iodma bench sun4m` reads of our machine's copies: payload that was copied in user space.

Invariants
 - What the machine says that it moved is held against what the driver asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.sun4m_guest import Machine

__all__ = ["FRAME", "READ", "copied", "counters"]


class Counters(NamedTuple):
    """Of our machine, in bytes."""

    copied: int
    python: int
    from_memory: int
    to_memory: int


@dataclass(frozen=True, slots=True)
class Request:
    """What is counted, one.

    Attributes:
        name: of many.
        moved: the counter that it moves.
        payload: its bytes.
        control: of the bytes that are copied for it, and of those that pass through Python, at most
            so many are no payload.
    """

    name: str
    moved: Literal["from_memory", "to_memory"]
    payload: int
    control: int


#: A frame's descriptor is looked at more than once; a read has a command, a status and its sense.
FRAME = Request("frames", "from_memory", layout.FRAME_BYTES, 64)
READ = Request("reads", "to_memory", layout.READ_BYTES, 512)


def counters(guest: Machine) -> Counters:
    """What they are now."""
    at = layout.COUNTERS
    return Counters(*guest.do(*(f"readq {at + each:#x}" for each in range(0, 32, 8))))


def copied(
    before: Counters, after: Counters, count: int, what: Request
) -> tuple[float, dict[str, float]]:
    """Payload bytes of so many requests that were copied, and what else is known of them.

    Raises:
        BenchError: the machine has moved less than that.
    """
    moved = getattr(after, what.moved) - getattr(before, what.moved)
    if moved < count * what.payload:
        raise BenchError(f"{count} {what.name} were made; the machine has counted {moved} bytes")
    core, python = after.copied - before.copied, after.python - before.python
    control = count * what.control
    details = {
        "requests": float(count),
        "payload_bytes": float(count * what.payload),
        "copied_bytes": float(core),
        "python_bytes": float(python),
    }
    return float(max(0, core - control) + max(0, python - control)), details
