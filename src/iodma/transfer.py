# SPDX-License-Identifier: Apache-2.0
"""The states of a transfer: the one table, as the core holds it (`csrc/xfer.h`).

Invariants
 - `TRANSITIONS` is read from the core; it is not a copy, so the documents' diagram cannot drift
   from the code.
 - Nothing in Python changes the state of a transfer.

A transfer that is PENDING or WAITING holds no translation and no lease; it starts again from its
bus addresses.
"""

from __future__ import annotations

from iodma._core import Completion, Transfer, transitions

__all__ = ["TRANSITIONS", "Completion", "Transfer", "diagram"]

#: (from, to, what happened), all edges that there are.
TRANSITIONS: tuple[tuple[str, str, str], ...] = tuple(transitions())


def diagram() -> str:
    """The state table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for here, there, why in TRANSITIONS:
        label = why.replace(":", " -").replace(";", ",")  # both end a label there
        lines.append(f"    {here} --> {there}: {label}")
    return "\n".join(lines)
