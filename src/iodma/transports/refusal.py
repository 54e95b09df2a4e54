# SPDX-License-Identifier: Apache-2.0
"""What the other side of a conversation said cannot be.

Invariant: nothing that a peer says raises anything else out of the code that judges it.
"""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):
    """What a peer said cannot be. The text says what and why."""
