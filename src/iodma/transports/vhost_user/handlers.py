# SPDX-License-Identifier: Apache-2.0
"""What each message does: a method for every handler that `messages.MESSAGES` names.

A handler gives nothing (an acknowledgement, if one is asked for), or the payload of its answer; one
that has to wait gives a function whose coroutine gives one of them. It raises `Refusal` for what
cannot be, which ends the session, and `Failure` for what was refused and ends nothing.

Invariants
 - A ring runs exactly while it is `Ring.ready` and nobody stops it: every message that can change
   that ends in `_update` or `_stop`.
 - What depends on the device's features - which space a ring is in, whose addresses it has - is
   asked for here alone: `space` and `ring_address`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from iodma._core import Space
from iodma.engine import Engine
from iodma.engine.timers import Timer
from iodma.errors import Error
from iodma.log import GuestLog
from iodma.transports.descriptors import Descriptor, is_our_front_end
from iodma.transports.sharing import SHARE
from iodma.transports.vhost_user import messages as wire
from iodma.transports.vhost_user.backend import BackendChannel
from iodma.transports.vhost_user.channel import Message
from iodma.transports.vhost_user.inflight import Inflight, make_area
from iodma.transports.vhost_user.iotlb import PAGE, Iotlb, IotlbType
from iodma.transports.vhost_user.log import DirtyLog
from iodma.transports.vhost_user.memory import MOST_SLOTS, MemoryTable
from iodma.transports.vhost_user.messages import ProtocolFeature, Refusal
from iodma.transports.vhost_user.rings import Ring
from iodma.transports.vhost_user.silence import Silence
from iodma.types import Access
from iodma.virtio import Feature, VirtioDevice

__all__ = ["OFFERED", "Answer", "Failure", "Handlers", "Later"]

log = GuestLog("iodma.vhost_user")

#: The protocol features that work.
OFFERED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
# As plain numbers: the complement of an `IntFlag` has only the bits that it has names for.
_PROTOCOL, _PLATFORM = int(Feature.VHOST_USER_PROTOCOL), int(Feature.ACCESS_PLATFORM)
_PACKED = int(Feature.RING_PACKED)
#: Of vhost, not of virtio: what is written to guest memory is logged.
_LOG_ALL = 1 << 26
#: Seconds that a ring may take to drain while the front-end waits for it.
DRAIN_S = 30.0
#: Seconds after which a stop gives up on translations: a front-end that waits for the stop may be
#: unable to answer.
MISSES_S = 1.0
_TOP = 1 << 64
#: The position of a packed ring that was never used: both entries 0, both wrap counters 1.
_FIRST_PACKED = 0x8000_8000


class Answer(NamedTuple):
    """A payload, and a descriptor that goes with it."""

    payload: bytes
    descriptor: Descriptor


Later = Callable[[], Coroutine[Any, Any, bytes | None]]


class Failure(Exception):
    """It was refused, and the session goes on: the acknowledgement says so."""


class Handlers:
    """The state of a session, and what messages do to it.

    Attributes:
        table: guest memory.
        rings: one for each of the device's queues.
        features: as the front-end has accepted them.
        protocol_features: those that both sides use.
        iotlb: there once VIRTIO_F_ACCESS_PLATFORM was accepted.
    """

    def __init__(self, engine: Engine, device: VirtioDevice, name: str) -> None:
        self.engine = engine
        self.device = device
        self.name = name
        self.table = MemoryTable(f"{name} memory")
        self.rings = [Ring(index, device.queue_max) for index in range(device.queue_count)]
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self.iotlb: Iotlb | None = None
        self._backend: BackendChannel | None = None
        self._inflight: Inflight | None = None
        self._log: DirtyLog | None = None
        self._silence = Silence(engine, self._tell_of_private_memory)
        #: Of this end of the connection.
        self._address: object = None

    # --- features, status, configuration ----------------------------------------------------------

    @property
    def _device_features(self) -> int:
        """What is offered now.

        VIRTIO_F_ACCESS_PLATFORM needs a front-end that can be asked. One that has its features
        before it gives a channel - User Mode Linux - passes on what its guest accepts of them, and
        has no IOMMU; one that has - QEMU - asks for features again when it has given it. The same
        holds for VIRTIO_F_RING_PACKED: User Mode Linux starts such a ring at position 0, whose wrap
        counter is not the one that its driver begins with.
        """
        offered = int(self.device.features)
        return offered if self._backend is not None else offered & ~(_PLATFORM | _PACKED)

    def _get_features(self, message: Message) -> bytes:
        return wire.u64(self._device_features | _PROTOCOL | _LOG_ALL)

    def _set_features(self, message: Message) -> None:
        value = wire.parse_u64(message.payload)
        bits = value & ~(_PROTOCOL | _LOG_ALL)
        if unknown := bits & ~self._device_features:
            raise Refusal(f"features {unknown:#x}, which were not offered")
        if bits != self.device.negotiated:
            if self._running():
                raise Refusal("features change while rings run")
            self.device.set_features(bits)
        self.features = value
        self._update_log()
        if bits & _PLATFORM and self.iotlb is None:
            self.iotlb = Iotlb(self.table, self._miss, self.name)
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

    def _set_status(self, message: Message) -> Later | None:
        value = wire.parse_u64(message.payload)
        if value > 0xFF:
            raise Refusal(f"status {value:#x}; it has eight bits")
        if value:
            self.device.set_status(value)
            return None
        return lambda: self._reset(disable=False)

    def _reset_device(self, message: Message) -> Later:
        return lambda: self._reset(disable=True)

    async def _reset(self, *, disable: bool) -> None:
        await self._stop(self._running())
        for ring in self.rings:
            ring.forget_kick()
            ring.next = 0
            if disable:
                ring.enabled = False
        await self.device.reset_device()
        if self.iotlb is not None:
            self.iotlb.refuse_all()  # nobody waits; whoever needs such a page asks again

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
            raise Failure(str(error)) from None

    def _set_backend_req_fd(self, message: Message) -> None:
        descriptor = message.take()
        assert descriptor is not None
        backend = BackendChannel(
            self.engine, descriptor, self._address, self._miss_done, self._channel_lost
        )
        if self._backend is not None:
            self._backend.close()
        self._backend = backend

    def _config_changed(self) -> None:
        if self._backend is not None and self.protocol_features & ProtocolFeature.CONFIG:
            self._backend.config_changed()

    # --- the IOTLB --------------------------------------------------------------------------------

    @property
    def _translates(self) -> bool:
        return self.iotlb is not None and bool(self.device.negotiated & _PLATFORM)

    def _iotlb_msg(self, message: Message) -> Later | None:
        if self.iotlb is None:
            raise Refusal("VIRTIO_F_ACCESS_PLATFORM was not accepted")
        said = wire.parse_iotlb(message.payload)
        try:
            if said.type == IotlbType.UPDATE:
                self.iotlb.update(said)
                return None
            if said.type == IotlbType.INVALIDATE:
                revocation = self.iotlb.invalidate(said)
                if revocation.ok:
                    return None
                return lambda: self.table.let_go([revocation])
        except Refusal as why:
            raise Failure(str(why)) from None
        raise Refusal(f"type {said.type}; an update or an invalidation would be right")

    def _miss(self, address: int, access: Access) -> bool:
        if self._backend is None:
            return False
        acknowledged = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        assert self.iotlb is not None
        self.iotlb.acknowledged = acknowledged
        return self._backend.miss(address, access, PAGE, acknowledged=acknowledged)

    def _miss_done(self, address: int, access: Access, failed: bool) -> None:
        self._read_on()  # what was sent before that, on the other connection
        if self.iotlb is not None:
            self.iotlb.done(address, access, failed)

    def _read_on(self) -> None:
        """Does the messages that have come."""

    def _channel_lost(self, why: str) -> None:
        log.warning("%s: the back-end's channel is closed: %s", self.name, why)
        if self.iotlb is not None:
            self.iotlb.refuse_all()

    def _give_up(self) -> None:
        if self.iotlb is not None and (count := self.iotlb.refuse_all()):
            log.warning(
                "%s: rings stop, and the front-end has not answered %d misses: they are faults",
                self.name,
                count,
            )

    # --- what is in flight ------------------------------------------------------------------------

    def _get_inflight_fd(self, message: Message) -> Answer:
        asked = wire.parse_inflight(message.payload)
        area, descriptor = make_area(asked, len(self.rings), self.device.queue_max, self._packed)
        return Answer(wire.inflight(area, len(message.payload)), descriptor)

    def _set_inflight_fd(self, message: Message) -> None:
        if self._running():
            raise Refusal("what is in flight changes while rings run")
        area = wire.parse_inflight(message.payload)
        (descriptor,) = message.descriptors
        new = Inflight(area, descriptor, len(self.rings), self.device.queue_max, self._packed)
        if self._inflight is not None:
            self._inflight.close()
        self._inflight = new

    # --- the dirty log ----------------------------------------------------------------------------

    def _set_log_base(self, message: Message) -> bytes:
        area = wire.parse_log(message.payload)
        if not message.descriptors:
            raise Refusal("a log without a descriptor")
        before, self._log = self._log, DirtyLog(area, message.descriptors[0])
        self._update_log()
        if before is not None:
            before.close()
        return wire.u64(0)

    def _set_log_fd(self, message: Message) -> None:
        """Something to be told by that the log has changed, which nobody waits for."""

    def _update_log(self) -> None:
        if self.features & _LOG_ALL and self._log is not None:
            self.table.start_log(self._log)
        else:
            self.table.stop_log()

    # --- memory -----------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message) -> Later:
        regions = wire.parse_regions(message.payload)

        async def replace() -> None:
            if self.table.must_stop(regions):
                await self._stop(self._running())
            await self.table.replace(regions, message.descriptors)
            self._forget()
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

    def _rem_mem_reg(self, message: Message) -> Later:
        revocation = self.table.remove(wire.parse_region(message.payload))
        self._forget()

        async def let_go() -> None:
            await self.table.let_go([revocation])
            await self._follow()

        return let_go

    async def _follow(self) -> None:
        """The table has changed: rings that run are where they were, or go on from where they are
        now."""
        moved = []
        for ring in self._running():
            setup = ring.make_setup(self.ring_address, self._packed)
            assert ring.setup is not None
            before = (ring.setup.descriptor, ring.setup.available, ring.setup.used)
            if before != (setup.descriptor, setup.available, setup.used):
                moved.append(ring)
        await self._stop(moved)
        self._update()

    def _forget(self) -> None:
        if self.iotlb is not None:
            self.iotlb.forget()

    def space(self, index: int) -> Space:
        """What the addresses of a ring, and those in its descriptors, are in."""
        if self._translates:
            assert self.iotlb is not None
            return self.iotlb.iommu
        return self.table.memory

    def ring_address(self, address: int, length: int, what: str) -> int:
        """An address of SET_VRING_ADDR, as one of `space`. Raises Refusal."""
        if not self._translates:
            return self.table.guest_address(address, length, what)
        if address + length > _TOP:
            raise Refusal(f"{what}, {length} bytes at {address:#x}, reaches past 2^64")
        return address

    # --- rings ------------------------------------------------------------------------------------

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise Refusal(f"ring {index}; there are {len(self.rings)}, from 0 on")
        return self.rings[index]

    @property
    def _packed(self) -> bool:
        return bool(self.device.negotiated & Feature.RING_PACKED)

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
        self._ring(index).set_next(next, self._packed)

    def _get_vring_base(self, message: Message) -> Later:
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
        if message.descriptors and is_our_front_end(message.descriptors[0].fileno(), self._address):
            raise Refusal("a connection to this server")
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

    def _set_vring_enable(self, message: Message) -> Later | None:
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
        setup = ring.make_setup(self.ring_address, self._packed)
        if self._inflight is not None:
            at = self._inflight.at(ring.index, ring.size, self._packed)
            if at is not None:
                setup = replace(setup, inflight=self._inflight.ram, inflight_at=at)
        self.device.start_queue(setup, self.space(ring.index))
        ring.setup = setup
        ring.running = True
        if setup.next == (_FIRST_PACKED if self._packed else 0) and setup.kick >= 0:
            queue = self.device.queues[ring.index]
            self._silence.watch(
                ring.index, setup.kick, lambda: queue.next if queue.running else None
            )

    def _tell_of_private_memory(self, index: int) -> None:
        log.warning(
            "%s: ring %d is kicked, and there is nothing in it: %s", self.name, index, SHARE
        )

    async def _stop(self, rings: Iterable[Ring], deadline: float = DRAIN_S) -> None:
        """Stops rings that run, and waits until what they had in flight is over.

        Raises:
            BusyError: some of it was not, before the deadline.
        """
        tasks = []
        for ring in list(rings):
            ring.running = False
            self._silence.forget(ring.index)
            tasks.append(
                self.engine.start(self._stop_one(ring, deadline), name=f"{self.name}.stop")
            )
        failed = [error for task in tasks if (error := await task) is not None]
        if failed:
            raise failed[0]

    async def _stop_one(self, ring: Ring, deadline: float) -> Error | None:
        if ring.index not in self.device.queues:
            return None  # the device has failed, and let go of it
        timer: Timer

        def give_up() -> None:
            nonlocal timer
            self._give_up()
            timer = self.engine.call_later(MISSES_S, give_up)

        timer = self.engine.call_later(MISSES_S, give_up)
        try:
            ring.next = ring.stopped_at = await self.device.stop_queue(ring.index, deadline)
        except Error as error:
            return error
        finally:
            timer.cancel()
        return None
