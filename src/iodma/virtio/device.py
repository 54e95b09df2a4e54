# SPDX-License-Identifier: Apache-2.0
"""The base of virtio devices: features, status, configuration space, queues that start and stop.

    class Rng(VirtioDevice):
        device_id = 4

        async def serve(self, queue):
            async for chains in queue.batches():
                queue.port.submit(chains, self.source)

A transport talks to this and to nothing else of a device; what it carries (features, addresses of
rings, eventfds) comes in here, and what it must hear of (`on_config_change`, `on_broken`) goes out.
Virtio 1.2, section 2.

Invariants
 - A queue runs from `start_queue` to `stop_queue`, or to a reset: it has a port of its own on the
   space of that start, and tasks of its own in the device's scope.
 - `stop_queue` takes nothing more within the call, and is over when every chain was given back; a
   reset is over when no memory is touched any more. After either, the rings are left alone.
 - What a driver does to a ring breaks that ring; what a device's own code raises breaks the device.
   Both set DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, ClassVar

from iodma._core import Space, Task, Wait
from iodma.devices import Device, DeviceState
from iodma.engine.timers import Timer
from iodma.errors import ArgumentError, BusyError, StaleError
from iodma.log import GuestLog
from iodma.port import Port
from iodma.virtio.config import ConfigField, ConfigSpace
from iodma.virtio.features import DeviceStatus, Feature, names
from iodma.virtio.queue import Queue, QueueLayout, QueueSetup, make_queue

__all__ = ["VirtioDevice"]

log = GuestLog("iodma.virtio")

_FEATURES = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.RING_PACKED
    | Feature.ACCESS_PLATFORM
)


class VirtioDevice(Device):
    """A device model that is driven through virtqueues.

    A device of its own sets the class attributes and writes `serve`. Attributes for transports:

    Attributes:
        device_id: of the virtio specification, section 5.
        queue_max: most entries of a queue.
        queue_count: how many queues this instance has.
        layout: what stands in every chain beside its payload.
        config_layout: the fields of the configuration space.
        config: their values, for the device.
        negotiated: the features that the driver accepted; 0 before it did.
        queues: those that run, by index.
        on_config_change: called when the device has changed its configuration space; None: nobody
            listens.
        on_broken: called with a text when the device has set DEVICE_NEEDS_RESET.
    """

    device_id: ClassVar[int] = 0
    queue_max: ClassVar[int] = 1024
    layout: ClassVar[QueueLayout] = QueueLayout()
    config_layout: ClassVar[Iterable[ConfigField]] = ()

    queue_count: int
    config: ConfigSpace
    negotiated: int
    queues: dict[int, Queue]
    on_config_change: Callable[[], None] | None
    on_broken: Callable[[str], None] | None

    def _set_up(self) -> None:
        super()._set_up()
        self.queue_count = 1
        self.config = ConfigSpace(self.config_layout)
        self.negotiated = 0
        self.queues = {}
        self.on_config_change = None
        self.on_broken = None
        self._status = DeviceStatus(0)
        self._runs: dict[int, _Run] = {}
        self._stopped: dict[int, int] = {}  # index -> its next available entry

    # --- for a device's own code ------------------------------------------------------------------

    @property
    def features(self) -> int:
        """The feature bits that the device offers. A device adds its own to these."""
        return int(_FEATURES)

    async def serve(self, queue: Queue) -> None:
        """Takes chains and has them moved, until the queue ends; one for each queue that runs.

        What it submits on `queue.port` with `submit` is given back by `complete`; what it answers
        in other ways, with `queue.finish`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no serve(queue)")

    async def complete(self, queue: Queue) -> None:
        """Gives back the chains that were submitted as batches, as they finish."""
        async for done in queue.port.completions(limit=32, forever=True):
            queue.push(done)

    def features_chosen(self) -> None:
        """Hook: `negotiated` has changed."""

    def config_written(self, field: ConfigField, value: int) -> None:
        """Hook: the driver writes a field. The device sets it, or refuses.

        Raises:
            ArgumentError: drivers may not write that.
        """
        raise ArgumentError(f"{self.name}: {field.name} of the configuration space is read-only")

    def config_changed(self) -> None:
        """Tells the driver that the configuration space has changed."""
        if self.on_config_change is not None:
            self.on_config_change()

    def needs_reset(self, reason: str) -> None:
        """Sets DEVICE_NEEDS_RESET, and tells the transport; once until the next reset."""
        if self._status & DeviceStatus.DEVICE_NEEDS_RESET:
            return
        self._status |= DeviceStatus.DEVICE_NEEDS_RESET
        log.warning("%s: needs a reset: %s", self.name, reason)
        if self.on_broken is not None:
            self.on_broken(reason)

    def failure(self, error: Exception) -> None:
        self.needs_reset(f"{type(error).__name__}: {error}")

    # --- for transports: features, status, configuration ------------------------------------------

    def set_features(self, bits: int) -> None:
        """The driver accepts these features.

        Raises:
            ArgumentError: some of them were not offered.
        """
        if unknown := bits & ~self.features:
            raise ArgumentError(f"{self.name}: features that were not offered: {names(unknown)}")
        self.negotiated = bits
        self.features_chosen()

    @property
    def status(self) -> DeviceStatus:
        """The device status field."""
        return self._status

    def set_status(self, value: int) -> Awaitable[None]:
        """The driver writes the device status field; bits stay set until a reset.

        Args:
            value: 0 resets the device.

        Returns:
            For a reset, its acknowledgement: the status reads 0 from then on. Else nothing to
            wait for.
        """
        if value == 0:
            return self.reset_device()
        self._status |= DeviceStatus(value) & ~DeviceStatus.DEVICE_NEEDS_RESET
        return _Nothing()

    @property
    def config_size(self) -> int:
        """Bytes of the configuration space."""
        return self.config.size

    def read_config(self, offset: int, length: int) -> bytes:
        """Bytes of the configuration space; what lies past its end reads as zero.

        Raises:
            ArgumentError: a negative offset or length.
        """
        return self.config.read(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes one field.

        Raises:
            ArgumentError: that is not one field, or the device does not let it be written.
        """
        field = self.config.at(offset, len(data))
        if field is None:
            raise ArgumentError(
                f"{self.name}: a write of {len(data)} bytes at {offset} of the configuration space"
                " is not one field"
            )
        self.config_written(field, int.from_bytes(data, "little"))

    # --- for transports: queues -------------------------------------------------------------------

    def start_queue(self, setup: QueueSetup, space: Space) -> None:
        """Starts to serve a ring.

        Args:
            space: what the ring's addresses, and those in its descriptors, are in.

        Raises:
            ArgumentError: an index or size that the device does not have, or what
                `_core.Virtqueue` finds wrong with the ring.
            BusyError: that queue runs, or is not yet drained.
            StaleError: the device is in reset, or has failed and was not reset.
        """
        index = setup.index
        if not self._open:
            raise StaleError(f"{self.name}: queue {index} while the device is {self.state.value}")
        if not 0 <= index < self.queue_count:
            raise ArgumentError(f"{self.name}: queue {index}; it has {self.queue_count}, from 0 on")
        if not 1 <= setup.size <= self.queue_max:
            raise ArgumentError(
                f"{self.name}: queue {index} of {setup.size} entries; 1 to {self.queue_max} would"
                " be right"
            )
        if index in self._runs:
            raise BusyError(f"{self.name}: queue {index} runs already")
        name = f"{self.name}.{index}"
        port = self.engine.port(space, name, depth=max(4096, 2 * setup.size))
        try:
            queue = self.make_queue(port, setup)
        except BaseException:
            port.close()
            raise
        run = self._runs[index] = _Run(self, index, queue, port)
        self._stopped.pop(index, None)
        self._ports.append(port)
        self.queues[index] = queue
        run.tasks = [
            self.start(self._serve(queue), name=f"serve{index}"),
            self.start(self.complete(queue), name=f"complete{index}"),
        ]

    def make_queue(self, port: Port, setup: QueueSetup) -> Queue:
        """The queue object; tests put their own here."""
        return make_queue(port, setup, self.layout, self.negotiated)

    def stop_queue(self, index: int, deadline: float = 10.0) -> Awaitable[int]:
        """Stops a queue: takes nothing more, and lets what is in flight be given back.

        Args:
            deadline: seconds; what is in flight after that makes the stop fail, and goes on.

        Returns:
            Await it for the next available index, from which the ring can be started again. It
            raises BusyError past the deadline. A reset or a failure of the device ends it too; of
            a queue that such a failure has stopped before, the index is known as well.

        Raises:
            ArgumentError: that queue does not run.
        """
        run = self._runs.get(index)
        if run is not None:
            return run.stop(deadline)
        if index not in self._stopped:
            raise ArgumentError(f"{self.name}: queue {index} does not run")
        wait: Wait[int] = Wait(self.engine)
        wait._resolve(self._stopped[index])
        return wait

    def reset_device(self) -> Awaitable[None]:
        """Resets the device: what is in flight is cancelled, queues are gone, features forgotten.

        Returns:
            The acknowledgement: no memory is touched any more.
        """
        return self.request_reset()

    # --- within -----------------------------------------------------------------------------------

    async def _serve(self, queue: Queue) -> None:
        await self.serve(queue)
        if queue.broken is not None:
            self.needs_reset(f"queue {queue.index}: {queue.broken}")

    def _stop(self, state: DeviceState) -> list[Awaitable[object]]:
        for run in self._runs.values():
            run.queue.stop()
        drains = super()._stop(state)
        if state is DeviceState.FAILED and self._runs:
            self.engine.start(self._let_go(drains), name=f"{self.name}.failed")
        return drains

    async def _let_go(self, drains: list[Awaitable[object]]) -> None:
        """The device has failed: its queues go when their transfers are over."""
        runs = list(self._runs.values())
        for drain in drains:
            await drain
        for run in runs:
            run.end()

    def _restart(self) -> None:
        for run in list(self._runs.values()):
            run.end()
        self._stopped.clear()
        self.negotiated = 0
        self._status = DeviceStatus(0)
        super()._restart()


class _Run:
    """One queue, from its start to its end.

    Invariants
     - Every wait that `stop` gave is resolved once: with the next available index when ring and
       buffers are left alone, or failed by its own deadline.
    """

    __slots__ = ("device", "drained", "index", "port", "queue", "tasks", "waits")

    def __init__(self, device: VirtioDevice, index: int, queue: Queue, port: Port) -> None:
        self.device = device
        self.index = index
        self.queue = queue
        self.port = port
        self.tasks: list[Task[None]] = []
        self.drained: Wait[Any] | None = None
        self.waits: list[tuple[Wait[int], Timer]] = []

    def stop(self, deadline: float) -> Wait[int]:
        engine = self.device.engine
        if self.drained is None:
            self.queue.stop()
            self.drained = self.queue.drained()
            # Not inside of what resolves it: that may be a push, which still has the ring.
            self.drained._when_done(lambda wait: engine.call_soon(self.settle))
        wait: Wait[int] = Wait(engine)
        timer = engine.call_later(deadline, lambda: wait._fail(self.late(deadline)))
        self.waits.append((wait, timer))
        return wait

    def late(self, deadline: float) -> BusyError:
        return BusyError(
            f"{self.device.name}: queue {self.index} still has {self.queue.in_flight} requests in"
            f" flight, {deadline:g} s after it was stopped"
        )

    def settle(self) -> None:
        """Every chain was given back, or the ring is broken and none can be."""
        if self.port.outstanding and not self.port.closed:
            self.device.engine.start(self.cancelled(), name=f"{self.port.name}.cancelled")
        else:
            self.end()

    async def cancelled(self) -> None:
        await self.port.reset()
        self.end()

    def end(self) -> None:
        """Nothing is in flight: the tasks, the port and the ring go."""
        device = self.device
        if device._runs.get(self.index) is not self:
            return
        del device._runs[self.index], device.queues[self.index]
        device._ports.remove(self.port)
        for task in self.tasks:
            if not task.done:
                task.cancel()
        index = device._stopped[self.index] = self.queue.next
        self.queue.release()
        self.port.close()
        if self.drained is not None:
            self.drained._resolve(None)  # where chains were cancelled: it holds this until it is
        for wait, timer in self.waits:
            timer.cancel()
            wait._resolve(index)


class _Nothing:
    """Awaited, it goes straight on."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield
