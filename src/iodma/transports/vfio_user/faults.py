# SPDX-License-Identifier: Apache-2.0
"""Reports to the client what has faulted.

DMA to an address where the client has no memory ends here, with FAULT, and the client knows
nothing of it; but it may have the guest's IOMMU, which logs such a thing and tells the guest. So
the client is asked for one byte there, by DMA_READ: it finds, as it would for any device of its
own, that nothing is mapped. Nobody waits for the answer, and whatever it says, nothing comes of it.

A write is reported by a read, too: a page that the guest maps after the fault, and before the
client comes to the message, must not be written to. So the guest's log tells of a read there; and
a write to what may be read, but not written, cannot be reported.

Invariants
 - No transfer, lease or command waits for a report or its answer.
 - One report is under way at most, and `INTERVAL_S` lies between an answer and the next report:
   that tells of the first fault since then. A client that never answers hears of one.
 - None is sent while a command waits for transfers to end: QEMU holds its big lock meanwhile, and
   would answer in heaps afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

from iodma.engine import Engine
from iodma.engine.timers import Timer
from iodma.log import GuestLog
from iodma.memory import Memory
from iodma.transports.vfio_user.remote import Remote
from iodma.types import Access

__all__ = ["Faults"]

log = GuestLog("iodma.vfio_user")

#: Seconds after an answer in which nothing is reported.
INTERVAL_S = 0.02


class Faults:
    """The faults of one session; none is reported before `start`.

    Args:
        memory: what the client has mapped.
        remote: asks the client.
        name: for messages.
        may_ask: whether no command waits; who said no calls `go_on` when that has changed.

    Attributes:
        reported: how many were.
    """

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        remote: Remote,
        name: str,
        may_ask: Callable[[], bool],
    ) -> None:
        self.reported = 0
        self._engine = engine
        self._name = name
        self._memory = memory
        self._remote = remote
        self._may_ask = may_ask
        self._next: int | None = None  # where: the first that was not reported
        self._asked = False  # a report is under way, or its answer came just now
        self._timer: Timer | None = None
        self._closed = False

    def start(self) -> None:
        """Reports from now on: the client takes commands at any time."""
        self._memory._tell_faults(self._refused)

    def _refused(self, address: int, access: int, unmapped: bool) -> None:
        """A transfer has ended by this. Called inside of whatever it is that it ended in."""
        if self._next is None and (unmapped or access == Access.READ):
            self._next = address
            self.go_on()

    def go_on(self) -> None:
        """Reports what there is to report, if it may."""
        if self._next is not None and not self._asked and self._timer is None and not self._closed:
            self._timer = self._engine.call_later(0, self._report)

    def _report(self) -> None:
        self._timer = None
        if self._next is None or not self._may_ask():
            return
        address, self._next = self._next, None
        self._asked = True
        self.reported += 1
        log.info("%s: DMA to %#x, where nothing is mapped; the client is told", self._name, address)
        self._remote.read(address, 1, self)

    def done(self, data: bytes = b"", /) -> None:
        """The client has answered: something is mapped there by now."""
        self._answered()

    def fail(self) -> None:
        """The client has answered: so it is."""
        self._answered()

    def _answered(self) -> None:
        if not self._closed:
            self._timer = self._engine.call_later(INTERVAL_S, self._rested)

    def _rested(self) -> None:
        self._timer = None
        self._asked = False
        self.go_on()

    def reset(self) -> None:
        """What was not reported is forgotten: the function is as new."""
        self._next = None

    def close(self) -> None:
        """Reports no more; to be called before what asks the client is closed."""
        if self._closed:
            return
        self._closed = True
        self._memory._tell_faults(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
