"""What the queues of a test have in common: they are no rings, and the test says what becomes of
them.

Invariant: it is drained when it was stopped and nothing is in flight.
"""

from __future__ import annotations

from typing import Any

from iodma._core import Wait
from iodma.virtio import QueueSetup


class FakeQueue:
    """What `iodma.virtio.queue.Queue` says, but for the chains."""

    def __init__(self, port: Any, setup: QueueSetup) -> None:
        self.port = port
        self.setup = setup
        self.index = setup.index
        self.size = setup.size
        self.next = setup.next
        self.in_flight = 0
        self.running = True
        self.released = False
        self.broken: str | None = None
        self._ready: Wait[None] = Wait(port.engine)
        self._drained: Wait[None] = Wait(port.engine)

    def route(self, endpoint: Any, **how: Any) -> None:
        raise NotImplementedError

    def gave_back(self) -> None:
        """Something was given back: perhaps it was the last."""
        if not self.running and not self.in_flight and not self._drained.done:
            self._drained._resolve(None)

    def stop(self) -> None:
        if self.running:
            self.running = False
            self._ready._resolve(None)
            self.gave_back()

    def drained(self) -> Wait[None]:
        return self._drained

    def release(self) -> None:
        self.released = True

    def set_call(self, fd: int) -> None: ...
    def set_kick(self, fd: int) -> None: ...
    def set_error(self, fd: int) -> None: ...
