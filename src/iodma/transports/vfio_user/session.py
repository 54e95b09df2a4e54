# SPDX-License-Identifier: Apache-2.0
"""One client, from its first message to the last thing that is left of it.

Commands are done one after the other, and answered in that order. One that has to wait - an unmap
for the transfers that have the region, a write to the configuration space for what is in flight -
holds up those behind it, but not answers to what this side has asked the client for: what drains
may wait for them. Unmaps that come together wait together.

Invariants
 - What a client says that cannot be is answered with an errno and changes nothing; nothing that it
   says raises out of here. The session ends where its first message is none, or messages cannot be
   told from each other any more.
 - Every command is answered once, unless it says that it wants no answer, inside `DEADLINE_S`: past
   that with ETIMEDOUT, and what it began goes on.
 - A session that ends has let go of everything before the next one begins: the function is reset,
   its memory unmapped, its descriptors closed.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from iodma._core import Task
from iodma.engine import Engine, Event
from iodma.engine.timers import Timer
from iodma.errors import Error
from iodma.log import GuestLog
from iodma.pci import Function
from iodma.transports.descriptors import Descriptor, close_all
from iodma.transports.ending import ended, in_words
from iodma.transports.refusal import Refusal as AnyRefusal
from iodma.transports.sharing import SHARE, is_private, peer_of
from iodma.transports.vfio_user import messages as wire
from iodma.transports.vfio_user import version
from iodma.transports.vfio_user.channel import Channel, EndOfStream, Message
from iodma.transports.vfio_user.handlers import Answer, Handlers, Later
from iodma.transports.vfio_user.messages import Command, Refusal, title
from iodma.transports.vfio_user.unshared import Unshared

__all__ = ["Session"]

log = GuestLog("iodma.vfio_user")

#: Seconds after which a command is answered, whatever it waits for: a client gives up after 5.
DEADLINE_S = 4.5
#: Seconds that a function may take to drain when the client is gone.
LAST_DRAIN_S = 5.0
#: Messages that are done before others have their turn; that are kept while one waits.
_AT_ONCE, _MOST_HELD = 64, 1024
_PLAIN = wire.COMMAND


class _Pending:
    """A command that has begun and is not answered."""

    __slots__ = ("answer", "command", "flags", "id", "task", "timer")

    def __init__(self, id: int, command: int, flags: int) -> None:
        self.id = id
        self.command = command
        self.flags = flags
        self.task: Task[None] | None = None
        self.timer: Timer | None = None
        self.answer: bytes | int | None = None  # a payload, or an errno


class Session(Handlers):
    """A client that is connected.

    Args:
        sock: the connection; the session's from now on.
        name: for messages.
        ended: called when nothing is left of it.
        mapped: whether a region of its memory is mapped; None: each that can be.

    Attributes:
        over: set when nothing is left of it.
    """

    def __init__(
        self,
        engine: Engine,
        function: Function,
        sock: socket.socket,
        name: str,
        ended: Callable[[], None],
        mapped: Callable[[int, int], bool] | None = None,
    ) -> None:
        super().__init__(engine, function, name, mapped)
        self._on_end = ended
        self._agreed = False  # on a version
        self._pending: deque[_Pending] = deque()  # begun, in the order of their answers
        self._held: deque[Message] = deque()  # not begun
        self._tasks: set[Task[None]] = set()
        self._ending = False
        self.over = Event(engine)
        self._twin: Channel | None = None
        self._peer = peer_of(sock)
        self._told_private = False
        self._unshared = Unshared(engine, self._tell_unshared)
        self._channel = Channel(engine, sock, self._readable, self.end)

    def _is_private(self, file: tuple[int, int], fd: int) -> bool:
        private = is_private(self._peer, file)
        if private is None:  # time will tell
            self._unshared.watch(fd)
        elif private and not self._told_private:
            self._told_private = True
            self._unshared.close()
            log.warning(
                "%s: the client's memory cannot be seen: DMA is messages to it, which is slow: %s",
                self.name,
                SHARE,
            )
        return private is True

    def _tell_unshared(self) -> None:
        log.warning("%s: all that DMA can reach is zeros: %s", self.name, SHARE)

    # --- messages ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        read = self._channel.read
        try:
            for _ in range(_AT_ONCE):
                message = read()
                if message is None:
                    return
                self._take(message)
                if self._ending or len(self._held) >= _MOST_HELD:
                    return
        except EndOfStream as gone:
            self.end(str(gone))
        except BaseException:
            self.end("an error of this program")
            raise

    def _take(self, message: Message) -> None:
        id, command, flags, _, payload, descriptors = message
        kind = flags & wire.TYPE_MASK
        if kind == wire.COMMAND and payload is not None and self._agreed:
            if self._pending and not self._may_begin(command):
                self._held.append(message)
                if len(self._held) >= _MOST_HELD:
                    self._channel.pause()
                return
            self._do(id, command, flags, payload, descriptors)
        elif payload is None:
            self._fail(id, command, flags, Refusal(errno.EINVAL, "a message of that size"))
            if self._channel.has_more or not self._agreed:
                self.end("messages cannot be told from each other any more")
        elif not self._agreed:
            self._negotiate(id, command, flags, payload, descriptors)
        elif kind != wire.REPLY or self._twin or not self.remote.take(id, command, flags, payload):
            self._fail(id, command, flags, Refusal(errno.EINVAL, "an answer nobody waits for"))
        if descriptors:
            close_all(descriptors)

    def _may_begin(self, command: int) -> bool:
        """While others wait: unmaps wait together."""
        return (
            command == Command.DMA_UNMAP
            and not self._held
            and self._pending[-1].command == Command.DMA_UNMAP
        )

    def _do(
        self, id: int, command: int, flags: int, payload: bytes, descriptors: list[Descriptor]
    ) -> None:
        try:
            entry = self._handlers.get(command)
            if entry is None or len(payload) < entry[0]:
                wire.check(command, len(payload))
                raise Refusal(errno.EINVAL, "it was done already")
            result = entry[1](payload, descriptors)
        except (AnyRefusal, Error, OSError) as why:
            self._answer(id, command, flags, self._refused(command, why))
            return
        if result.__class__ is bytes or not callable(result):
            self._answer(id, command, flags, result)
        else:
            self._wait(id, command, flags, result)

    def _answer(self, id: int, command: int, flags: int, answer: bytes | Answer | int) -> None:
        """Answers a command that is done at once, with an errno if it is a number; behind those
        that began before it."""
        if self._pending:  # an unmap that did not have to wait
            assert not isinstance(answer, Answer)
            pending = _Pending(id, command, flags)
            pending.answer = answer
            self._pending.append(pending)
        elif isinstance(answer, Answer):
            if flags & wire.NO_REPLY:
                close_all(answer.descriptors)
            else:
                self._channel.reply(id, command, *answer)
        elif flags & wire.NO_REPLY:
            pass
        elif isinstance(answer, int):
            self._channel.fail(id, command, answer)
        else:
            self._channel.reply(id, command, answer)

    def _fail(self, id: int, command: int, flags: int, why: Exception) -> None:
        number = self._refused(command, why)
        if not flags & wire.NO_REPLY:
            self._channel.fail(id, command, number)

    def _refused(self, command: int, why: Exception) -> int:
        """Tells of it; gives its errno."""
        number = why.errno if isinstance(why, Refusal | OSError) else None
        said = (self.name, title(command), in_words(why))
        if command == Command.DMA_UNMAP and number == errno.ENOENT:
            # QEMU unmaps the whole address space of a guest's IOMMU, in pieces mostly empty.
            log.info("%s: %s: %s", *said)
        else:
            log.warning("%s: %s: %s", *said)
        return number or errno.EINVAL

    # --- messages that wait -----------------------------------------------------------------------

    def _wait(self, id: int, command: int, flags: int, later: Later) -> None:
        pending = _Pending(id, command, flags)
        self._pending.append(pending)
        pending.timer = self.engine.call_later(DEADLINE_S, partial(self._late, pending))
        name = f"{self.name}.{title(command)}"
        pending.task = task = self.engine.start(self._wait_for(pending, later), name=name)
        self._tasks.add(task)
        task._when_done(self._tasks.discard)

    async def _wait_for(self, pending: _Pending, later: Later) -> None:
        try:
            answer: bytes | int = await later()
        except (AnyRefusal, Error, OSError) as why:
            answer = self._refused(pending.command, why)
            why.__traceback__ = why.__context__ = None  # they have this session, and are kept
        except Exception:
            self.end("an error of this program")
            raise
        self._settle(pending, answer)

    def _late(self, pending: _Pending) -> None:
        log.error("%s: %s is not done after %g s", self.name, title(pending.command), DEADLINE_S)
        self._settle(pending, errno.ETIMEDOUT)

    def _settle(self, pending: _Pending, answer: bytes | int) -> None:
        if pending.answer is not None or self._ending:
            return
        pending.answer = answer
        if pending.timer is not None:
            pending.timer.cancel()
        while self._pending and (done := self._pending[0]).answer is not None:
            self._pending.popleft()
            if done.flags & wire.NO_REPLY:
                continue
            if isinstance(done.answer, int):
                self._channel.fail(done.id, done.command, done.answer)
            else:
                self._channel.reply(done.id, done.command, done.answer or b"")
        while self._held and not self._ending and self._may_begin_held():
            id, command, flags, _, payload, descriptors = self._held.popleft()
            try:
                self._do(id, command, flags, payload or b"", descriptors)
            finally:
                close_all(descriptors)
        if not self._ending and len(self._held) < _MOST_HELD:
            self._channel.resume()
        if self.faults is not None and not self._pending:
            self.faults.go_on()

    def _may_ask(self) -> bool:
        return not self._pending

    def _may_begin_held(self) -> bool:
        return not self._pending or (
            self._held[0][1] == Command.DMA_UNMAP and self._pending[-1].command == Command.DMA_UNMAP
        )

    # --- the first message ------------------------------------------------------------------------

    def _negotiate(
        self, id: int, command: int, flags: int, payload: bytes, descriptors: list[Descriptor]
    ) -> None:
        try:
            if command != Command.VERSION or flags & wire.TYPE_MASK:
                raise Refusal(errno.EINVAL, "the first message is VERSION")
            wire.check(command, len(payload))
            if descriptors:
                raise Refusal(errno.EINVAL, f"{len(descriptors)} descriptors; none is right")
            self.client = version.parse(payload)
        except Refusal as why:
            self._fail(id, command, flags, why)
            self.end("no version was agreed on")
            return
        self._agreed = True
        if self.faults is not None and self.client.takes_commands:
            self.faults.start()
        self.remote.most = min(self.remote.most, self.client.transfer)
        theirs: list[Descriptor] = []
        if self.client.twin_socket and self.client.descriptors:
            mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            other.setblocking(True)
            self._twin = Channel(self.engine, mine, self._twin_readable, self.end)
            theirs.append(Descriptor(other.detach()))
        if flags & wire.NO_REPLY:
            close_all(theirs)
            return
        self._channel.reply(id, command, version.answer(self.client, bool(theirs)), theirs)

    # --- commands to the client -------------------------------------------------------------------

    def _ask(self, id: int, command: int, payload: bytes) -> None:
        (self._twin or self._channel).ask(id, command, payload)

    def _twin_readable(self) -> None:
        twin = self._twin
        assert twin is not None
        try:
            for _ in range(_AT_ONCE):
                message = None if self._ending else twin.read()
                if message is None:
                    return
                id, command, flags, _, payload, descriptors = message
                close_all(descriptors)
                is_reply = flags & wire.TYPE_MASK == wire.REPLY
                if payload is None:
                    self.end("messages of the twin socket cannot be told from each other any more")
                elif is_reply and self.remote.take(id, command, flags, payload):
                    pass
                elif not flags & wire.NO_REPLY:
                    twin.fail(id, command, errno.EINVAL)
        except EndOfStream as gone:
            self.end(f"of the twin socket: {gone}")

    # --- the end ----------------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Ends it: the connection is closed at once, the rest follows; `over` tells of that."""
        if self._ending:
            return
        self._ending = True
        log.info("%s: the session ends: %s", self.name, why)
        self._channel.close()
        if self._twin is not None:
            self._twin.close()
        self.engine.start(self._wind_up(), name=f"{self.name}.end")

    async def _wind_up(self) -> None:
        if self.faults is not None:
            self.faults.close()
        self.remote.close()
        for pending in self._pending:
            if pending.timer is not None:
                pending.timer.cancel()
        for task in [*self._tasks]:
            task.cancel()
            await ended(task)
        for held in self._held:
            close_all(held[5])
        self._held.clear()
        self._doorbells.close()
        self.irqs.close()
        self._unshared.close()
        await self._reset_function()
        if self.table is not None and not await self.table.close():
            log.error("%s: transfers still hold guest memory, which stays mapped", self.name)
        self._on_end()
        self.over.set()

    async def _reset_function(self) -> None:
        """Resets it, and waits for that, but not for ever."""
        over = Event(self.engine)

        async def reset() -> None:
            try:
                await self.function.request_reset()
            except Exception as error:
                log.error("%s: the device cannot be reset: %r", self.name, error)
            over.set()

        def late() -> None:
            log.error("%s: the device has not drained after %g s", self.name, LAST_DRAIN_S)
            over.set()

        timer = self.engine.call_later(LAST_DRAIN_S, late)
        self.engine.start(reset(), name=f"{self.name}.reset")
        await over.wait()
        timer.cancel()
