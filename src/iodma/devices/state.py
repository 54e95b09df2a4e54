# SPDX-License-Identifier: Apache-2.0
"""The states of a device, and what it counts of that which it refuses.

    state      bus reads    bus writes   left by
    running    as declared  as declared  request_reset: resetting; an uncaught exception: failed
    resetting  all-ones     dropped      drained: running; an exception in the reset: failed
    failed     all-ones     dropped      request_reset: resetting

Reads during a reset do not give the reset values: to a guest that polls, those would look like the
acknowledgement, which has not been earned yet. A register declared ``always=True`` is read and
written as declared in all three.

Invariants
 - Counters only rise; every access that was refused is in exactly one of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["Counts", "DeviceState"]


class DeviceState(StrEnum):
    """Where a device is; see the table in the module's text."""

    RUNNING = "running"
    RESETTING = "resetting"
    FAILED = "failed"


@dataclass(slots=True)
class Counts:
    """What happened to a device that a guest or its author may want to know, since it was made."""

    #: Accesses that no register answers, or against its rights, or unaligned.
    bad_reads: int = 0
    bad_writes: int = 0
    #: Accesses while the device was in reset or had failed.
    refused_reads: int = 0
    refused_writes: int = 0
    #: Accesses to the device that its own handler or hook caused.
    reentered: int = 0
    #: Rings that found their doorbell full.
    doorbells_dropped: int = 0
    #: Resets that were acknowledged.
    resets: int = 0
    #: Times that the device failed.
    failures: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
