# SPDX-License-Identifier: Apache-2.0
"""One front-end, from its first message to the last thing that is left of it.

Messages are done one after the other, and answered in that order. One that has to wait - a ring
that drains, a region that transfers still hold - holds up those behind it, which stay in the
socket; that the front-end is gone is noticed all the same. Only answers to misses and
invalidations of the IOTLB are done meanwhile: what drains may wait for them.

Invariants
 - What a front-end says that cannot be ends the session, with one line in the log that names the
   message and the reason; nothing that it says raises out of here.
 - A session that ends has let go of everything before the next one begins: its rings are drained,
   the device reset, its memory unmapped, its descriptors closed.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from iodma._core import Task
from iodma.engine import Engine, Event
from iodma.errors import Error
from iodma.log import GuestLog
from iodma.transports.ending import ended, in_words
from iodma.transports.vhost_user import messages as wire
from iodma.transports.vhost_user.channel import Channel, EndOfStream, Message
from iodma.transports.vhost_user.handlers import OFFERED, Answer, Failure, Handlers, Later
from iodma.transports.vhost_user.messages import ProtocolFeature, Refusal, Request, title
from iodma.virtio import VirtioDevice

__all__ = ["Session"]

T = TypeVar("T")

log = GuestLog("iodma.vhost_user")

#: Seconds that rings may take to drain when the front-end is gone.
LAST_DRAIN_S = 5.0
#: Messages that are done before others have their turn; that are read while one waits.
_AT_ONCE, _MOST_HELD = 32, 16


class Session(Handlers):
    """A front-end that is connected.

    Args:
        sock: the connection; the session's from now on.
        name: for messages.
        ended: called when nothing is left of it.

    Attributes:
        over: set when nothing is left of it.
    """

    def __init__(
        self,
        engine: Engine,
        device: VirtioDevice,
        sock: socket.socket,
        name: str,
        ended: Callable[[], None],
    ) -> None:
        super().__init__(engine, device, name)
        self._on_end = ended
        self._task: Task[None] | None = None  # does the message that waits
        self._held: deque[Message] = deque()  # the next ones, which wait for that
        self._meanwhile: set[Task[None]] = set()  # IOTLB messages that came while it waits
        self._ending = False
        self.over = Event(engine)
        device.on_config_change = self._config_changed
        self._address = sock.getsockname()
        self._channel = Channel(engine, sock, self._readable, self.end)

    # --- messages ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if self._ending or self._waits():
                return
            message = self._guard(lambda: self._channel.read(OFFERED))
            if message is None:
                return
            if self._task is None or message.request == Request.IOTLB_MSG:
                self._guard(partial(self._do, message))
            else:
                self._held.append(message)
                if self._waits():
                    self._channel.pause()

    def _read_on(self) -> None:
        self._readable()

    def _guard(self, do: Callable[[], T]) -> T | None:
        """Does it, and ends the session where that raises: None."""
        try:
            return do()
        except EndOfStream as gone:
            self.end(str(gone))
        except (Refusal, Error, OSError) as error:
            self._refuse(self._channel.request, error)
        except Exception:
            self.end("an error of this program")
            raise
        return None

    def _do(self, message: Message) -> None:
        try:
            result = getattr(self, f"_{message.kind.handler}")(message)
        except Failure as failure:
            message.close()
            self._fail(message, failure)
            return
        except BaseException:
            message.close()
            raise
        if not callable(result):
            message.close()
            self._answer(message, result)
            return
        name = f"{self.name}.{title(message.request)}"
        task = self.engine.start(self._wait_for(message, result), name=name)
        task._when_done(lambda _: message.close())
        if self._task is not None:
            self._meanwhile.add(task)
            task._when_done(self._meanwhile.discard)
            return
        self._task = task
        if self.iotlb is None:
            self._channel.pause()

    async def _wait_for(self, message: Message, later: Later) -> None:
        mine = self.engine.current_task
        try:
            self._answer(message, await later())
        except Failure as failure:
            self._fail(message, failure)
        except (Refusal, Error, OSError) as error:
            self._refuse(message.request, error)
        except Exception:
            self.end("an error of this program")
            raise
        if self._task is not mine:
            return
        self._task = None
        while self._held and self._task is None and not self._ending:
            held = self._held.popleft()
            self._channel.request = held.request
            self._guard(partial(self._do, held))
        if not (self._ending or self._waits()):
            self._channel.resume()

    def _waits(self) -> bool:
        """Nothing can be read until the message that waits is done."""
        return self._task is not None and (self.iotlb is None or len(self._held) >= _MOST_HELD)

    def _answer(self, message: Message, answer: bytes | Answer | None) -> None:
        request = message.request
        if isinstance(answer, Answer):
            self._channel.send(wire.pack(request, answer.payload), [answer.descriptor])
        elif message.kind.answered:
            assert answer is not None
            self._channel.send(wire.pack(request, answer))
        elif message.needs_reply and (
            self.protocol_features & ProtocolFeature.REPLY_ACK or request == Request.IOTLB_MSG
        ):
            self._channel.send(wire.pack(request, answer or wire.u64(0)))

    def _fail(self, message: Message, why: Failure) -> None:
        log.warning("%s: %s failed: %s", self.name, title(message.request), why)
        self._answer(message, wire.u64(1))

    def _refuse(self, request: int, why: Exception) -> None:
        if not self._ending:
            log.warning(
                "%s: the connection is closed: %s: %s", self.name, title(request), in_words(why)
            )
            self.end("it was refused")

    # --- the end ----------------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Ends it: the connection is closed at once, the rest follows; `over` tells of that."""
        if self._ending:
            return
        self._ending = True
        log.info("%s: the session ends: %s", self.name, why)
        self._channel.close()
        self.engine.start(self._wind_up(), name=f"{self.name}.end")

    async def _wind_up(self) -> None:
        for task in [*self._meanwhile, *([self._task] if self._task is not None else [])]:
            task.cancel()
            await ended(task)
        for message in self._held:
            message.close()
        self._held.clear()
        if self.device.on_config_change == self._config_changed:
            self.device.on_config_change = None
        self._silence.close()
        if self._backend is not None:
            self._backend.close()
        if self.iotlb is not None:
            self.iotlb.refuse_all()  # and what is asked for from now on, as nobody is there
        for ring in self.rings:
            # A stop that was under way is joined.
            ring.running = ring.index in self.device.queues
        try:
            await self._stop(self._running(), LAST_DRAIN_S)
        except Error as error:
            log.warning("%s: what is in flight is cancelled: %s", self.name, error)
        try:
            await self.device.reset_device()
        except Exception as error:
            log.error("%s: the device cannot be reset: %r", self.name, error)
        if not await self.table.close():
            log.error("%s: transfers still hold guest memory, which stays mapped", self.name)
        for ring in self.rings:
            ring.reset()
        if self._inflight is not None:
            self._inflight.close()
            self._inflight = None  # whoever keeps the session does not keep the mapping
        if self._log is not None:
            self._log.close()
        self._on_end()
        self.over.set()
