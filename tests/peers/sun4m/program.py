# SPDX-License-Identifier: Apache-2.0
"""A differential program: steps as plain data, made from a seed, saved as a file, run again.

Invariants:

- A program says everything: the same file gives the same commands, whoever made it.
- Steps end quiescent: what a step began is over when its answer is there. Only `check` and `read`
  are compared.

Steps:

====== =====================================================================================
write  `value` into the register at `address`, `size` bytes wide
read   ... out of it, compared
store  `data` into memory at `address`
fill   `value` into `size` bytes of memory
clock  `value` nanoseconds of the machine's time pass
frame  `data` comes in from the wire
check  memory, registers, interrupt lines and the frames that went out since the last check
====== =====================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

OPERATIONS = ("write", "read", "store", "fill", "clock", "frame", "check")


@dataclass(frozen=True)
class Step:
    op: str
    address: int = 0
    size: int = 0
    value: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise ValueError(f"no step is called {self.op!r}: {', '.join(OPERATIONS)}")

    def __str__(self) -> str:
        match self.op:
            case "write":
                return f"write {self.address:#x} <- {self.value:#0{2 + 2 * self.size}x}"
            case "read":
                return f"read  {self.address:#x} ({self.size} bytes)"
            case "store":
                shown = self.data if len(self.data) <= 32 else self.data[:32]
                more = "" if shown is self.data else f"... ({len(self.data)} bytes)"
                return f"store {self.address:#x} <- {shown.hex(' ', 2)}{more}"
            case "fill":
                return f"fill  {self.address:#x} .. +{self.size:#x} <- {self.value:#04x}"
            case "clock":
                return f"clock {self.value} ns"
            case "frame":
                return f"frame of {len(self.data)} bytes: {self.data[:20].hex()}..."
        return self.op

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"op": self.op}
        for name in ("address", "size", "value"):
            if number := getattr(self, name):
                found[name] = hex(number) if name != "size" else number
        if self.data:
            found["data"] = self.data.hex()
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        address, value = (int(str(found.get(name, 0)), 0) for name in ("address", "value"))
        data = bytes.fromhex(found.get("data", ""))
        return cls(found["op"], address, int(found.get("size", 0)), value, data)


@dataclass(frozen=True)
class Program:
    """Steps, and what they were made from.

    Attributes:
        kind: the generator's name.
        seed: what it drew from; also what memory is filled with beforehand.
    """

    kind: str
    seed: int
    steps: tuple[Step, ...] = field(default=())

    def with_steps(self, steps: Sequence[Step]) -> Program:
        return replace(self, steps=tuple(steps))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n  ".join(json.dumps(step.to_json()) for step in self.steps)
        path.write_text(
            f'{{"kind": {json.dumps(self.kind)}, "seed": {self.seed}, "steps": [\n  {lines}\n]}}\n'
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        found = json.loads(path.read_text())
        steps = tuple(Step.from_json(step) for step in found["steps"])
        return cls(found["kind"], found["seed"], steps)

    def __str__(self) -> str:
        steps = "\n".join(f"  {place:4} {step}" for place, step in enumerate(self.steps))
        return f"{self.kind} {self.seed:#x}, {len(self.steps)} steps\n{steps}"
