# SPDX-License-Identifier: Apache-2.0
"""An endpoint that does what the test says, when the test says.

Invariants
 - A request is never answered inside the call that makes it: the script is asked in a later turn.
 - What is asked is kept in the order in which it was asked; a request is answered once, and one
   that was answered in part is asked again for the rest, as a kernel's short count is.
 - The bytes that an answer moves are really moved, through the same translation as any other
   endpoint's.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

from iodma._core import Wait
from iodma.endpoints.base import KIND_SCRIPT, Endpoint
from iodma.engine import Engine
from iodma.engine.stats import KINDS
from iodma.errors import ArgumentError, ClosedError, Error
from iodma.types import Constraints, Direction

__all__ = ["Answer", "Request", "Script", "ScriptedEndpoint"]

_MOST = 0x7FFFF000


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint does with a request.

    >>> from iodma.testing import Answer
    >>> Answer.short(100).after(0.5)
    Answer(moved=100, error=0, delay=0.5, held=False)

    Attributes:
        moved: at most so many bytes; None: as many as there are.
        error: an errno, instead of bytes; 0: none.
        delay: seconds before, by the engine's clock.
        held: nothing until the test answers, with `ScriptedEndpoint.answer`.
    """

    moved: int | None = None
    error: int = 0
    delay: float = 0.0
    held: bool = False

    @classmethod
    def all(cls) -> Answer:
        """All that was asked for, or up to the end of the content."""
        return cls()

    @classmethod
    def short(cls, moved: int) -> Answer:
        """At most ``moved`` bytes: the rest is asked for again."""
        return cls(moved=moved)

    @classmethod
    def end(cls) -> Answer:
        """Nothing, and no error: the end of the data.  A read ends with OK and what it has so
        far.
        """
        return cls(moved=0)

    @classmethod
    def fail(cls, error: int) -> Answer:
        """An errno: IO_ERROR, but for those that mean that the other end is gone."""
        return cls(error=error)

    @classmethod
    def gone(cls) -> Answer:
        """The other end is gone: PEER_GONE."""
        return cls(error=errno.ECONNRESET)

    @classmethod
    def hold(cls) -> Answer:
        """None, until the test gives one; perhaps never."""
        return cls(held=True)

    def after(self, seconds: float) -> Answer:
        """The same, ``seconds`` later."""
        return replace(self, delay=seconds)


class Request:
    """What an endpoint was asked.

    Attributes:
        ticket: the transfer's.
        kind: "transfer"; or "flush", "discard" or "write_zeroes", which an answer ends as a whole
            (`Answer.short` and `Answer.end` do what `Answer.all` does).
        direction: a `Direction`; FROM_MEMORY unless it is a transfer.
        offset: where in the endpoint, bytes.
        length: bytes that are still wanted.
        cancelled: the transfer's owner wants it to end.
        over: it was answered.
    """

    __slots__ = ("cancelled", "direction", "kind", "length", "offset", "over", "ticket")

    def __init__(self, ticket: int, direction: int, offset: int, length: int, kind: int) -> None:
        self.ticket = ticket
        self.kind = KINDS[kind]
        self.direction = Direction(direction)
        self.offset = offset
        self.length = length
        self.cancelled = False
        self.over = False

    def __repr__(self) -> str:
        state = " over" if self.over else " cancelled" if self.cancelled else ""
        what = self.direction.name if self.kind == "transfer" else self.kind
        return f"<Request {what} {self.length} bytes at {self.offset}{state}>"


#: One answer for each request, in order (all that is asked for when they run out), or a function
#: that is called with the request, in a turn of its own, and gives the answer (None: all that is
#: asked for).
Script: TypeAlias = Iterable[Answer] | Callable[[Request], Answer | None]


class ScriptedEndpoint(Endpoint):
    """An endpoint with a content of its own, whose answers are scripted: to reads and writes, and
    to `Port.flush`, `Port.discard` and `Port.write_zeroes`.

    >>> from iodma.testing import Answer, FakeMemory, ScriptedEndpoint, strict_engine
    >>> disk = ScriptedEndpoint(b"0123456789", script=[Answer.short(4), Answer.fail(5)])
    >>> with strict_engine() as engine, FakeMemory(4096) as memory, disk:
    ...     port = engine.port(memory)
    ...     async def main():
    ...         return await port.to_memory((0, 10), source=disk)
    ...     done = engine.run(main())
    ...     done, memory.read(0, 10)
    (<Completion IO_ERROR moved=4 error=5>, b'0123\\x00\\x00\\x00\\x00\\x00\\x00')

    To answer in another order than was asked, hold the requests and answer one by one:

    >>> disk = ScriptedEndpoint(16, script=lambda request: Answer.hold())
    >>> with strict_engine() as engine, FakeMemory(4096) as memory, disk:
    ...     port = engine.port(memory)
    ...     async def main():
    ...         first = port.to_memory((0, 8), source=disk)
    ...         second = port.to_memory((8, 8), source=disk, offset=8)
    ...         await disk.asked(2)
    ...         disk.answer(disk.waiting[1])
    ...         await second
    ...         late = first.done
    ...         disk.answer()
    ...         await first
    ...         return late
    ...     engine.run(main())
    False

    A device that flushes has to pass on what becomes of that:

    >>> def no_flush(request):
    ...     return Answer.fail(errno.EIO) if request.kind == "flush" else Answer.all()
    >>> disk = ScriptedEndpoint(b"abcdef", script=no_flush)
    >>> with strict_engine() as engine, FakeMemory(4096) as memory, disk:
    ...     port = engine.port(memory)
    ...     async def main():
    ...         assert (await port.write_zeroes(disk, 1, 3)).ok
    ...         return await port.flush(disk)
    ...     engine.run(main()), bytes(disk.content)
    (<Completion IO_ERROR moved=0 error=5>, b'a\\x00\\x00\\x00ef')

    Args:
        content: its bytes, or how many zeroes it has.
        script: what it does with requests; see `Script`.
        on_cancel: what it does when a transfer is cancelled: "honour" ends it in a later turn,
            "ignore" goes on as if nothing were; a function is called with the request, in a later
            turn.
        limit: bytes it may grow to; a write beyond ends with IO_ERROR (ENOSPC).  None: no limit.
        name: what messages call it.

    Attributes:
        content: its bytes, now.
        requests: all that it was asked, in order.
    """

    content: bytearray
    requests: list[Request]
    limit: int | None
    on_cancel: Literal["honour", "ignore"] | Callable[[Request], object]

    _script: Iterator[Answer] | Callable[[Request], Answer | None]
    _open: dict[int, Request]
    _watchers: list[tuple[int, Callable[[], None]]]

    def __new__(
        cls,
        content: bytes | bytearray | int = b"",
        *,
        script: Script = (),
        on_cancel: Literal["honour", "ignore"] | Callable[[Request], object] = "honour",
        limit: int | None = None,
        name: str = "scripted",
    ) -> Self:
        if isinstance(content, int) and content < 0:
            raise ArgumentError(f"content is {content} bytes; 0 or more would be right")
        if not callable(on_cancel) and on_cancel not in ("honour", "ignore"):
            raise ArgumentError(
                f"on_cancel is {on_cancel!r}; 'honour', 'ignore' or a function would be right"
            )
        self = cls._make(KIND_SCRIPT, name, Constraints())
        self.content = bytearray(content)
        self.requests = []
        self.limit = limit
        self.on_cancel = on_cancel
        self._script = script if callable(script) else iter(script)
        self._open = {}
        self._watchers = []
        # The core's references cannot be followed by the garbage collector: it must not hold this
        # object.
        weak = weakref.ref(self)

        def asked(*request: int) -> None:
            endpoint = weak()
            if endpoint is not None:
                endpoint._ask(Request(*request))

        def cancelled(ticket: int, *_: int) -> None:
            endpoint = weak()
            if endpoint is not None:
                endpoint._cancel(ticket)

        self._set_script(asked, cancelled)
        return self

    @property
    def size(self) -> int:
        """Bytes, now."""
        return len(self.content)

    @property
    def waiting(self) -> list[Request]:
        """What was asked and not answered, in order."""
        return list(self._open.values())

    def asked(self, count: int = 1, *, engine: Engine | None = None) -> Wait[None]:
        """Await it to go on when ``count`` requests were made, since the beginning.

        Args:
            engine: which will use this endpoint; None: the one that has.

        Raises:
            Error: no transfer has used this endpoint yet, and no engine is given.
        """
        wait: Wait[None] = Wait(self._owner() if engine is None else engine)
        if len(self.requests) >= count:
            wait._resolve(None)
        else:
            self._watchers.append((count, lambda: wait._resolve(None)))
        return wait

    def answer(
        self, request: Request | None = None, moved: int | None = None, *, error: int = 0
    ) -> None:
        """Answer a request that waits: the oldest one, or ``request``.

        Args:
            request: one of `waiting`.
            moved: at most so many bytes; None: all that there are.
            error: an errno instead.

        Raises:
            Error: nothing waits, or it is inside the call that makes the request.
            ArgumentError: the request was answered before.
        """
        if request is None:
            if not self._open:
                raise Error(f"{self!r}: no request waits for an answer")
            request = next(iter(self._open.values()))
        if request.over or self._open.get(request.ticket) is not request:
            raise ArgumentError(f"{request!r} was answered already")
        self._give(request, Answer(moved, error))

    def answer_all(self, moved: int | None = None, *, error: int = 0) -> None:
        """Answer all that waits, in order, as `answer` does."""
        for request in self.waiting:
            self.answer(request, moved, error=error)

    # -- what the core asks ---------------------------------------------------

    def _owner(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise Error(f"{self!r} belongs to no engine yet: no transfer has used it")
        if engine.closed:
            raise ClosedError(f"{self!r}: its engine is closed")
        assert isinstance(engine, Engine)
        return engine

    def _ask(self, request: Request) -> None:
        """Called by the core, in the middle of a step: note it, answer nothing."""
        self.requests.append(request)
        before = self._open.pop(request.ticket, None)
        if before is not None:
            before.over = True
        self._open[request.ticket] = request
        engine = self._owner()
        engine.call_soon(self._decide, request)
        due = [each for each in self._watchers if len(self.requests) >= each[0]]
        if due:
            self._watchers = [each for each in self._watchers if each not in due]
            for _, wake in due:
                engine.call_soon(wake)

    def _decide(self, request: Request) -> None:
        if request.over:
            return
        if callable(self._script):
            answer = self._script(request) or Answer()
        else:
            answer = next(self._script, Answer())
        if request.over or answer.held:
            return
        if answer.delay > 0:
            self._owner().call_later(answer.delay, lambda: self._give(request, answer))
        else:
            self._give(request, answer)

    def _cancel(self, ticket: int) -> None:
        """Called by the core, perhaps in the middle of a step."""
        request = self._open.get(ticket)
        if request is None:
            return
        request.cancelled = True
        if callable(self.on_cancel):
            self._owner().call_soon(self.on_cancel, request)
        elif self.on_cancel == "honour":
            self._owner().call_soon(self._give, request, Answer(error=errno.ECANCELED))

    def _give(self, request: Request, answer: Answer) -> None:
        engine = self._engine
        if request.over or engine is None or engine.closed:
            return
        moved = min(request.length, _MOST)
        if answer.moved is not None:
            moved = min(moved, answer.moved)
        ticket, offset = request.ticket, request.offset
        result, data = -answer.error, b""
        if not answer.error and request.kind != "transfer":
            result = self._control(request)
        elif not answer.error and request.direction is Direction.TO_MEMORY:
            data = bytes(self.content[offset : offset + moved])
            result = len(data)
        elif not answer.error:
            room = moved if self.limit is None else max(0, min(moved, self.limit - offset))
            data = self._peek(ticket, room)
            result = room
            if moved and not room:
                result = -errno.ENOSPC
            elif len(data) < room:
                result = -errno.EFAULT
            elif data:
                self._put(offset, data)
        request.over = True
        del self._open[ticket]
        if result > 0 and request.direction is Direction.TO_MEMORY:
            self._finish(ticket, result, data)
        else:
            self._finish(ticket, result)

    def _control(self, request: Request) -> int:
        """Do it, as a file would: 0, or -errno."""
        end = request.offset + request.length
        if request.kind == "write_zeroes":
            if self.limit is not None and end > self.limit:
                return -errno.ENOSPC
            if request.length > _MOST:  # which a guest may ask for, and no test has the memory for
                return -errno.EFBIG
        else:  # a discard makes nothing longer, and a flush has no length
            end = min(end, len(self.content))
        self._put(request.offset, bytes(max(0, end - request.offset)))
        return 0

    def _put(self, offset: int, data: bytes) -> None:
        if data:
            self.content.extend(bytes(max(0, offset + len(data) - len(self.content))))
            self.content[offset : offset + len(data)] = data

    def close(self) -> None:
        """Let go of it.  What waits for an answer ends with an error, as there is nobody left to
        answer.
        """
        super().close()
        for request in self.waiting:
            self._give(request, Answer(error=errno.ECANCELED))
