# SPDX-License-Identifier: Apache-2.0
"""One front-end, from its first message to the last thing that is left of it.

Messages are done one after the other, and answered in that order. One that has to wait - a ring
that drains, a region that transfers still hold - holds up those behind it, which stay in the
socket; that the front-end is gone is noticed all the same.

Invariants
 - A ring runs exactly while it is `Ring.ready` and nobody stops it: every message that can change
   that ends in `_update` or `_stop`.
 - What a front-end says that cannot be ends the session, with one line in the log that names the
   message and the reason; nothing that it says raises out of here.
 - A session that ends has let go of everything before the next one begins: its rings are drained,
   the device reset, its memory unmapped, its descriptors closed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from iodma._core import Space, Task
from iodma.engine import Engine, Event
from iodma.errors import Cancelled, Error
from iodma.log import GuestLog
from iodma.transports.vhost_user import messages as wire
from iodma.transports.vhost_user.backend import BackendChannel
from iodma.transports.vhost_user.channel import Channel, EndOfStream, Message
from iodma.transports.vhost_user.memory import MOST_SLOTS, SHARE, MemoryTable
from iodma.transports.vhost_user.messages import ProtocolFeature, Refusal, title
from iodma.transports.vhost_user.rings import Ring
from iodma.virtio import Feature, VirtioDevice

__all__ = ["OFFERED", "Session"]

log = GuestLog("iodma.vhost_user")

#: The protocol features that work.
OFFERED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
# As plain numbers: the complement of an `IntFlag` has only the bits that it has names for.
_PROTOCOL, _PLATFORM = int(Feature.VHOST_USER_PROTOCOL), int(Feature.ACCESS_PLATFORM)
#: Seconds that a ring may take to drain while the front-end waits for it, and when it is gone.
DRAIN_S, LAST_DRAIN_S = 30.0, 5.0
#: Messages that are done before others have their turn.
_AT_ONCE = 32

#: What a handler gives: nothing (an acknowledgement, if one is asked for), the payload of the
#: answer, or a function whose coroutine gives one of them.
_Later = Callable[[], Coroutine[Any, Any, "bytes | None"]]
_Result = bytes | None | _Later


class _Failure(Exception):
    """It was refused, and the session goes on: the acknowledgement says so."""


class Session:
    """A front-end that is connected.

    Args:
        sock: the connection; the session's from now on.
        name: for messages.
        ended: called when nothing is left of it.

    Attributes:
        table: guest memory.
        rings: one for each of the device's queues.
        features: as the front-end has accepted them.
        protocol_features: those that both sides use.
    """

    def __init__(
        self,
        engine: Engine,
        device: VirtioDevice,
        sock: socket.socket,
        name: str,
        ended: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.device = device
        self.name = name
        self._on_end = ended
        self.table = MemoryTable(f"{name} memory")
        self.rings = [Ring(index, device.queue_max) for index in range(device.queue_count)]
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self._backend: BackendChannel | None = None
        self._task: Task[None] | None = None  # does the message that waits
        self._ending = False
        self._told_of_private_memory = False
        self.over = Event(engine)
        device.on_config_change = self._config_changed
        self._channel = Channel(engine, sock, self._readable, self.end)

    # --- messages ---------------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if self._ending or self._task is not None:
                return
            try:
                message = self._channel.read(OFFERED)
                if message is None:
                    return
                self._do(message)
            except EndOfStream as gone:
                self.end(str(gone))
            except (Refusal, Error, OSError) as error:
                self._refuse(self._channel.request, error)
            except Exception:
                self.end("an error of this program")
                raise

    def _do(self, message: Message) -> None:
        try:
            result: _Result = getattr(self, f"_{message.kind.handler}")(message)
        except _Failure as failure:
            message.close()
            self._fail(message, failure)
            return
        except BaseException:
            message.close()
            raise
        if callable(result):
            self._channel.pause()
            name = f"{self.name}.{title(message.request)}"
            task = self._task = self.engine.start(self._wait_for(message, result), name=name)
            task._when_done(lambda _: message.close())
        else:
            message.close()
            self._answer(message, result)

    async def _wait_for(self, message: Message, later: _Later) -> None:
        try:
            self._answer(message, await later())
        except _Failure as failure:
            self._fail(message, failure)
        except (Refusal, Error, OSError) as error:
            self._refuse(message.request, error)
        except Exception:
            self.end("an error of this program")
            raise
        self._task = None
        if not self._ending:
            self._channel.resume()

    def _answer(self, message: Message, payload: bytes | None) -> None:
        if message.kind.answered:
            assert payload is not None
            self._channel.send(wire.pack(message.request, payload))
        elif message.needs_reply and self.protocol_features & ProtocolFeature.REPLY_ACK:
            self._channel.send(wire.pack(message.request, payload or wire.u64(0)))

    def _fail(self, message: Message, why: _Failure) -> None:
        log.warning("%s: %s failed: %s", self.name, title(message.request), why)
        self._answer(message, wire.u64(1))

    def _refuse(self, request: int, why: Exception) -> None:
        if not self._ending:
            log.warning(
                "%s: the connection is closed: %s: %s", self.name, title(request), _in_words(why)
            )
            self.end("it was refused")

    # --- features, status, configuration ----------------------------------------------------------

    @property
    def _device_features(self) -> int:
        return int(self.device.features) & ~_PLATFORM

    def _get_features(self, message: Message) -> bytes:
        return wire.u64(self._device_features | _PROTOCOL)

    def _set_features(self, message: Message) -> None:
        value = wire.parse_u64(message.payload)
        bits = value & ~_PROTOCOL
        if unknown := bits & ~self._device_features:
            raise Refusal(f"features {unknown:#x}, which were not offered")
        if bits != self.device.negotiated:
            if self._running():
                raise Refusal("features change while rings run")
            self.device.set_features(bits)
        self.features = value
        if not value & _PROTOCOL:
            for ring in self.rings:
                ring.enabled = True
            self._update()

    def _get_protocol_features(self, message: Message) -> bytes:
        return wire.u64(OFFERED)

    def _set_protocol_features(self, message: Message) -> None:
        value = wire.parse_u64(message.payload)
        if unknown := value & ~int(OFFERED):
            raise Refusal(f"protocol features {unknown:#x}, which were not offered")
        self.protocol_features = ProtocolFeature(value)

    def _set_owner(self, message: Message) -> None:
        """There is one front-end, and it owns the session by being there."""

    def _reset_owner(self, message: Message) -> None:
        """Obsolete; what it means differs, and to ignore it is recommended."""

    def _get_queue_num(self, message: Message) -> bytes:
        return wire.u64(len(self.rings))

    def _get_status(self, message: Message) -> bytes:
        return wire.u64(self.device.status)

    def _set_status(self, message: Message) -> _Later | None:
        value = wire.parse_u64(message.payload)
        if value > 0xFF:
            raise Refusal(f"status {value:#x}; it has eight bits")
        if value:
            self.device.set_status(value)
            return None
        return lambda: self._reset(disable=False)

    def _reset_device(self, message: Message) -> _Later:
        return lambda: self._reset(disable=True)

    async def _reset(self, *, disable: bool) -> None:
        await self._stop(self._running())
        for ring in self.rings:
            ring.forget_kick()
            ring.next = 0
            if disable:
                ring.enabled = False
        await self.device.reset_device()

    def _get_config(self, message: Message) -> bytes:
        piece = wire.parse_config(message.payload)
        return wire.config(piece, self.device.read_config(piece.offset, piece.size))

    def _set_config(self, message: Message) -> None:
        piece = wire.parse_config(message.payload)
        if piece.flags > 1:
            raise Refusal(f"flags {piece.flags:#x}; 0 or 1 would be right")
        try:
            self.device.write_config(piece.offset, piece.data)
        except Error as error:  # a guest may cause this, so it ends nothing
            raise _Failure(str(error)) from None

    def _set_backend_req_fd(self, message: Message) -> None:
        descriptor = message.take()
        assert descriptor is not None
        backend = BackendChannel(self.engine, descriptor, self._channel.name)
        if self._backend is not None:
            self._backend.close()
        self._backend = backend

    def _config_changed(self) -> None:
        if self._backend is not None and self.protocol_features & ProtocolFeature.CONFIG:
            self._backend.config_changed()

    # --- memory -----------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message) -> _Later:
        regions = wire.parse_regions(message.payload)

        async def replace() -> None:
            if self.table.must_stop(regions):
                await self._stop(self._running())
            await self.table.replace(regions, message.descriptors)
            await self._follow()

        return replace

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return wire.u64(MOST_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        descriptor = message.take()
        try:
            self.table.add(wire.parse_region(message.payload), descriptor)
        finally:
            if descriptor is not None:
                descriptor.close()
        self._update()

    def _rem_mem_reg(self, message: Message) -> _Later:
        revocation = self.table.remove(wire.parse_region(message.payload))

        async def let_go() -> None:
            await self.table.let_go([revocation])
            await self._follow()

        return let_go

    async def _follow(self) -> None:
        """The table has changed: rings that run are where they were, or go on from where they are
        now."""
        moved = []
        for ring in self._running():
            setup = ring.make_setup(self.ring_address)
            assert ring.setup is not None
            before = (ring.setup.descriptor, ring.setup.available, ring.setup.used)
            if before != (setup.descriptor, setup.available, setup.used):
                moved.append(ring)
        await self._stop(moved)
        self._update()

    def space(self, index: int) -> Space:
        """What the addresses of a ring, and those in its descriptors, are in."""
        return self.table.memory

    def ring_address(self, address: int, length: int, what: str) -> int:
        """An address of SET_VRING_ADDR, as one of `space`. Raises Refusal."""
        return self.table.guest_address(address, length, what)

    # --- rings ------------------------------------------------------------------------------------

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise Refusal(f"ring {index}; there are {len(self.rings)}, from 0 on")
        return self.rings[index]

    def _running(self) -> list[Ring]:
        return [ring for ring in self.rings if ring.running]

    def _set_vring_num(self, message: Message) -> None:
        index, size = wire.parse_state(message.payload)
        self._ring(index).set_size(size)
        self._update()

    def _set_vring_addr(self, message: Message) -> None:
        addresses = wire.parse_ring_addresses(message.payload)
        self._ring(addresses.ring).set_addresses(addresses)
        self._update()

    def _set_vring_base(self, message: Message) -> None:
        index, next = wire.parse_state(message.payload)
        self._ring(index).set_next(next)

    def _get_vring_base(self, message: Message) -> _Later:
        ring = self._ring(wire.parse_state(message.payload)[0])

        async def drain() -> bytes:
            if ring.running:
                await self._stop([ring])
            ring.forget_kick()
            return wire.state(ring.index, ring.stopped_at)

        return drain

    def _notifier(self, message: Message) -> Ring:
        """The ring of a message that brings a notifier, or says that there is none."""
        value = wire.parse_u64(message.payload)
        if unknown := value & ~(wire.INDEX_MASK | wire.NO_DESCRIPTOR):
            raise Refusal(f"bits {unknown:#x}, which there are not")
        if bool(value & wire.NO_DESCRIPTOR) == bool(message.descriptors):
            has = "a descriptor" if message.descriptors else "no descriptor"
            raise Refusal(f"{has} comes with it, and it says the contrary")
        return self._ring(value & wire.INDEX_MASK)

    def _set_vring_kick(self, message: Message) -> None:
        ring = self._notifier(message)
        fd = ring.set_kick(message.take())
        if ring.running and (queue := self.device.queues.get(ring.index)):
            queue.set_kick(fd)
        self._update()

    def _set_vring_call(self, message: Message) -> None:
        ring = self._notifier(message)
        fd = ring.set_call(message.take())
        if ring.running and (queue := self.device.queues.get(ring.index)):
            queue.set_call(fd)

    def _set_vring_err(self, message: Message) -> None:
        ring = self._notifier(message)
        fd = ring.set_error(message.take())
        if ring.running and (queue := self.device.queues.get(ring.index)):
            queue.set_error(fd)

    def _set_vring_enable(self, message: Message) -> _Later | None:
        index, value = wire.parse_state(message.payload)
        ring = self._ring(index)
        if value > 1:
            raise Refusal(f"ring {index}: {value}; 0 or 1 would be right")
        ring.enabled = bool(value)
        if ring.running and not ring.enabled:
            return lambda: self._stop([ring])
        self._update()
        return None

    def _update(self) -> None:
        """Starts the rings that can run."""
        for ring in self.rings:
            if ring.ready and not ring.running:
                self._start(ring)

    def _start(self, ring: Ring) -> None:
        setup = ring.make_setup(self.ring_address)
        if not self._told_of_private_memory and self.table.never_written(setup.available):
            self._told_of_private_memory = True
            log.warning(
                "%s: nobody has written to ring %d, as far as this process sees; if it stays"
                " silent: %s",
                self.name,
                ring.index,
                SHARE,
            )
        self.device.start_queue(setup, self.space(ring.index))
        ring.setup = setup
        ring.running = True

    async def _stop(self, rings: Iterable[Ring], deadline: float = DRAIN_S) -> None:
        """Stops rings that run, and waits until what they had in flight is over.

        Raises:
            BusyError: some of it was not, before the deadline.
        """
        tasks = []
        for ring in list(rings):
            ring.running = False
            tasks.append(
                self.engine.start(self._stop_one(ring, deadline), name=f"{self.name}.stop")
            )
        failed = [error for task in tasks if (error := await task) is not None]
        if failed:
            raise failed[0]

    async def _stop_one(self, ring: Ring, deadline: float) -> Error | None:
        if ring.index not in self.device.queues:
            return None  # the device has failed, and let go of it
        try:
            ring.next = ring.stopped_at = await self.device.stop_queue(ring.index, deadline)
        except Error as error:
            return error
        return None

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
        if self._task is not None:
            self._task.cancel()
            await _ended(self._task)
        if self.device.on_config_change == self._config_changed:
            self.device.on_config_change = None
        if self._backend is not None:
            self._backend.close()
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
        self._on_end()
        self.over.set()


async def _ended(task: Task[None]) -> None:
    """Waits until a task has ended, however it does."""
    try:
        await task
    except (Exception, Cancelled):
        if not task.done:
            raise  # it was the waiting that was cancelled


def _in_words(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
