# SPDX-License-Identifier: Apache-2.0
"""Taking a range back from the transfers that hold it.

Invariants
 - The range has left its map before a revocation begins: nothing new can reach it.
 - A revocation is acknowledged (`await` gives True) when the last transfer that holds the range has
   given it back.
 - One whose deadline passes is never acknowledged: `await` gives False, memory stays mapped and
   quarantined, and the log says what holds it.
"""

from __future__ import annotations

import logging

from iodma._core import Revocation, Space
from iodma.errors import ArgumentError

__all__ = ["DEADLINE_S", "Revocation", "check_deadline", "revoke"]

log = logging.getLogger("iodma.lease")

#: Seconds: below the five after which VMMs give up on a device.
DEADLINE_S = 4.0


def check_deadline(deadline: float | None) -> None:
    """Before anything leaves a map.  Raises ArgumentError."""
    if deadline is not None and (not isinstance(deadline, int | float) or not deadline >= 0):
        raise ArgumentError(f"deadline is {deadline!r}; seconds from 0, or None for no deadline")


def revoke(
    space: Space, first: int, length: int, *, cancel: bool, deadline: float | None
) -> Revocation:
    """Begin to revoke ``length`` bytes at ``first`` of ``space``, which have just left its map.

    Args:
        cancel: ask the transfers in flight there to end, instead of waiting for them.
        deadline: seconds until it fails; None: never.
    """
    revocation = Revocation(space, first, length, cancel)
    engine = revocation._engine
    if revocation.done or deadline is None or engine is None:
        return revocation

    def expire() -> None:
        holders = revocation.held_by
        if revocation._expire():
            what = (
                f"{length} bytes at {first:#x} are" if length else f"what is from {first:#x} on is"
            )
            log.error(
                "%s: %s still held %.1f s after it was revoked, by %s",
                space.name,
                what,
                deadline,
                ", ".join(f"transfer {ticket:#x}" for ticket in holders),
            )

    timer = engine.call_later(deadline, expire)
    revocation._when_done(lambda _: timer.cancel())
    return revocation
