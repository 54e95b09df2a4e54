# SPDX-License-Identifier: Apache-2.0
"""Memory that somebody else has, and moves the bytes of when asked.

Invariants
 - What is asked of a target is answered once; a request that is dropped unanswered is a refusal.
 - Nothing waits in a call of the target: whoever it asks answers later, in any order.
"""

from __future__ import annotations

from typing import Protocol, Self

from iodma._core import Region, RemoteRequest
from iodma.errors import ArgumentError, ArgumentTypeError, integer

__all__ = ["RemoteMemory", "RemoteRequest", "RemoteTarget"]

_REMOTE = 3
#: Bytes of a message, if nothing else is said.
MOST = 1 << 20


class RemoteTarget(Protocol):
    """Who has the memory of a `RemoteMemory`.

    Both are plain, are called in a turn of the engine, and may answer at once or later, in the
    engine's thread and in any order: with ``request.done(data)``, or ``request.fail()``, which
    makes the transfer fault at these bytes.
    """

    def read(self, offset: int, length: int, request: RemoteRequest, /) -> object:
        """Read ``length`` bytes at ``offset``; ``request.done`` takes so many."""

    def write(self, offset: int, data: bytes, request: RemoteRequest, /) -> object:
        """Write bytes at ``offset``; then ``request.done()``."""


class RemoteMemory(Region):
    """``size`` bytes of memory that is not mapped here: its owner moves them, by messages.

        memory.add(0x8000_0000, iodma.RemoteMemory(client, 1 << 30))

    A transfer's bytes that lie here are bounced (`Reason.REMOTE`). Messages are sent in the list's
    order, many at once; a device window in the list is not accessed before all that stand before
    it are answered. A cancelled transfer sends no more, and is over when what it sent is answered.

    Args:
        target: who is asked.
        size: bytes, 1 to 2^63 - 1.
        most: bytes of one message.

    Raises:
        ArgumentTypeError: the target has no method ``read`` or ``write``.
    """

    def __new__(cls, target: RemoteTarget, size: int, *, most: int = MOST) -> Self:
        for method in ("read", "write"):
            if not callable(getattr(target, method, None)):
                raise ArgumentTypeError(f"{target!r} has no method {method}: it cannot be asked")
        if not 1 <= integer(most, "most", "bytes") < 1 << 31:
            raise ArgumentError(f"most is {most} bytes; it must be 1 to 2^31 - 1")
        return super().__new__(cls, _REMOTE, -1, 0, size, target, most)

    def close(self) -> None:
        """Let nothing new reach it."""
        self._close()

    def __repr__(self) -> str:
        return f"<RemoteMemory of {self.size} bytes>"
