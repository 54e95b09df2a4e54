# SPDX-License-Identifier: Apache-2.0
"""What this side asks of the client: DMA_READ and DMA_WRITE, for memory that it has not shared.

Many are under way at once, and answered in any order. Nothing waits here: whoever asks gives a
request, which is told.

Invariants
 - A request is told exactly once: `done` or `fail`. One that the client has not answered when the
   session ends fails.
 - An id is used again only when its answer has come; what waits for one is asked in order.
 - An answer that nobody waits for is not taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from iodma.transports.vfio_user import messages as wire
from iodma.transports.vfio_user.messages import (
    DMA_ACCESS,
    DMA_ACCESS_SHORT,
    Command,
)

__all__ = ["Remote", "RemoteRequest"]

#: Commands that the client has not answered.
MOST_UNANSWERED = 1024
#: Bytes that one command asks for. QEMU 11 loses the rest of an answer that does not fit into its
#: socket at once: this much is one buffer of the kernel, which fits or waits as a whole.
MOST_BYTES = 32 << 10
_IDS = 1 << 16


class RemoteRequest(Protocol):
    """Whom the outcome is told."""

    def done(self, data: bytes = b"", /) -> None: ...

    def fail(self) -> None: ...


class Remote:
    """Asks the client for bytes of its memory.

    Args:
        ask: sends a command: (id, command, payload).

    Attributes:
        most: bytes that one command can ask for.
        short: the count in these messages has 32 bits, and data follow it: an answer has shown that
            the client has it so, as patches for QEMU had, and not 64 as the specification says.
    """

    def __init__(self, ask: Callable[[int, int, bytes], None]) -> None:
        self._ask = ask
        self.most = MOST_BYTES
        self.short = False
        self._next = 0
        self._asked: dict[int, tuple[int, int, RemoteRequest]] = {}
        self._waiting: deque[tuple[int, int, int, bytes, RemoteRequest]] = deque()
        self.closed = False

    def __len__(self) -> int:
        return len(self._asked) + len(self._waiting)

    def read(self, address: int, length: int, request: RemoteRequest) -> None:
        """Asks for ``length`` bytes, at most `most`, at a bus address."""
        self._add(Command.DMA_READ, address, length, b"", request)

    def write(self, address: int, data: bytes, request: RemoteRequest) -> None:
        """Asks for bytes, at most `most`, to be written to a bus address."""
        self._add(Command.DMA_WRITE, address, len(data), bytes(data), request)

    def _add(
        self, command: int, address: int, length: int, data: bytes, request: RemoteRequest
    ) -> None:
        if self.closed or length > self.most:
            request.fail()
        elif self._waiting or len(self._asked) >= MOST_UNANSWERED:
            self._waiting.append((command, address, length, data, request))
        else:
            self._send(command, address, length, data, request)

    def _send(
        self, command: int, address: int, length: int, data: bytes, request: RemoteRequest
    ) -> None:
        while self._next in self._asked:
            self._next = (self._next + 1) % _IDS
        id, self._next = self._next, (self._next + 1) % _IDS
        self._asked[id] = (command, length, request)
        if not self.short:
            payload = DMA_ACCESS.pack(address, length) + data
        elif command == Command.DMA_READ:
            payload = DMA_ACCESS.pack(address, length)  # the same, with padding
        else:
            payload = DMA_ACCESS_SHORT.pack(address, length) + data + bytes(4)
        self._ask(id, command, payload)

    def take(self, id: int, command: int, flags: int, payload: bytes) -> bool:
        """An answer has come.

        Returns:
            False: nobody waits for it.
        """
        asked = self._asked.get(id)
        if asked is None or asked[0] != command:
            return False
        del self._asked[id]
        _, length, request = asked
        data = None if flags & wire.ERROR else self._data(command, payload, length)
        if data is None:
            request.fail()
        else:
            request.done(data)
        while self._waiting and len(self._asked) < MOST_UNANSWERED:
            self._send(*self._waiting.popleft())
        return True

    def _data(self, command: int, payload: bytes, length: int) -> bytes | None:
        if command == Command.DMA_WRITE:
            return b""  # some clients answer with the address and the count, some with neither
        if len(payload) != DMA_ACCESS.size + length:
            return None
        count = DMA_ACCESS.unpack_from(payload)[1]
        if not self.short and count != length and count & 0xFFFF_FFFF == length:
            self.short = True
        if self.short:
            first = DMA_ACCESS_SHORT.size
            return payload[first : first + length] if count & 0xFFFF_FFFF == length else None
        return payload[DMA_ACCESS.size :] if count == length else None

    def close(self) -> None:
        """Fails all that was not answered, and all that is asked for from now on."""
        self.closed = True
        asked = [request for _, _, request in self._asked.values()]
        asked += [request for *_, request in self._waiting]
        self._asked.clear()
        self._waiting.clear()
        for request in asked:
            request.fail()
