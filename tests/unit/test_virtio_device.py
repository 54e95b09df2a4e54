"""The base of virtio devices: features, status, configuration space, queues that start and stop.

The ring is a stand-in whose chains the test makes and whose answers it looks at.
"""

from __future__ import annotations

from typing import Any

import pytest

import iodma
from iodma import ArgumentError, Batch, Buffer, BusyError, Completions, Memory, Port, Ram
from iodma._core import Wait
from iodma.errors import StaleError
from iodma.virtio import (
    ConfigField,
    ConfigSpace,
    DeviceStatus,
    Feature,
    Queue,
    QueueLayout,
    QueueSetup,
    VirtioDevice,
)
from iodma.virtio.features import names
from iodma.virtio.queue import ring_flags
from tests.unit.engines import Held, WatchedEngine, run, settle
from tests.unit.fakequeue import FakeQueue

CAPACITY = ConfigField("capacity", 0, 8)
MODE = ConfigField("mode", 9, 1)


class OfferedQueue(FakeQueue):
    """`offer` makes chains available."""

    def __init__(self, port: Port, setup: QueueSetup) -> None:
        super().__init__(port, setup)
        self.pushed: dict[int, int] = {}
        self._chains: list[int] = []

    def offer(self, *ids: int) -> None:
        self._chains += ids
        self._ready._resolve(None)

    def break_down(self, why: str) -> None:
        self.broken = why
        self.stop()

    def pop(self, limit: int) -> Batch | None:
        ids, self._chains = self._chains[:limit], self._chains[limit:]
        if not ids:
            return None
        batch = Batch(len(ids))
        batch.n = len(ids)
        for row, id in enumerate(ids):
            batch.id[row], batch.first[row], batch.count[row] = id, row, 1
            batch.direction[row] = 1
            batch.address[row], batch.length[row] = id * 64, 64
            batch.position[row] = id
        self.next += len(ids)
        self.in_flight += len(ids)
        return batch

    async def batches(self, limit: int = 16) -> Any:
        while self.running:
            if (batch := self.pop(limit)) is not None:
                yield batch
                continue
            self._ready = Wait(self.port.engine)
            await self._ready

    def push(self, done: Completions, ok: int = 0, error: int = 1) -> None:
        for id, status in zip(done.id.tolist(), done.status.tolist(), strict=True):
            self._give_back(id, ok if status == 0 else error)

    def finish(self, id: int, written: int, trailer: bytes) -> None:
        self._give_back(id, trailer[0])

    def _give_back(self, id: int, status: int) -> None:
        self.pushed[id] = status
        self.in_flight -= 1
        self.gave_back()

    def release(self) -> None:
        super().release()
        del self._ready, self._drained  # a wait holds its engine, unseen by the collector


class Rng(VirtioDevice):
    """Fills what it is given from its source."""

    device_id = 4
    queue_max = 8
    layout = QueueLayout(header=4)
    config_layout = (CAPACITY, MODE)
    source: iodma.Endpoint

    def __init__(self, **endpoints: Any) -> None:
        super().__init__(name="rng", **endpoints)
        self.queue_count = 2
        self.config["capacity"] = 5

    @property
    def features(self) -> int:
        return super().features | 2

    def make_queue(self, port: Port, setup: QueueSetup) -> Queue:
        return OfferedQueue(port, setup)

    def config_written(self, field: ConfigField, value: int) -> None:
        if field.name != "mode":
            super().config_written(field, value)
        self.config[field.name] = value

    async def serve(self, queue: Queue) -> None:
        async for chains in queue.batches(4):
            if 7 in chains.id[: chains.n].tolist():
                raise ZeroDivisionError("a mistake of the device's")
            queue.port.submit(chains, self.source)


SETUP = QueueSetup(1, 8, 0x1000, 0x2000, 0x3000, next=3)


@pytest.fixture
def memory() -> Any:
    with Ram(1 << 16) as ram:
        yield Memory({0: ram})


@pytest.fixture
def device(engine: WatchedEngine) -> Any:
    with Buffer(1 << 16) as source:
        source.view()[:] = bytes(range(256)) * 256
        device = Rng(source=source)
        engine.attach(device)
        yield device
        run(engine, lambda: finished(device.reset_device()))


async def finished(awaitable: Any) -> Any:
    return await awaitable


def started(device: VirtioDevice, space: Memory, setup: QueueSetup = SETUP) -> OfferedQueue:
    device.start_queue(setup, space)
    queue = device.queues[setup.index]
    assert isinstance(queue, OfferedQueue)
    return queue


def at_work(engine: WatchedEngine, memory: Memory, held: Held) -> tuple[Rng, OfferedQueue]:
    """A device whose source gives nothing yet, and a queue of which two requests are in flight."""
    device = Rng(source=held)
    engine.attach(device)
    queue = started(device, memory)
    queue.offer(1, 2)
    settle(engine)
    return device, queue


# --- features, status, configuration --------------------------------------------------------------


def test_features_are_those_that_were_offered(device: Rng) -> None:
    assert device.features & Feature.VERSION_1 and device.features & 2
    assert device.negotiated == 0
    device.set_features(Feature.VERSION_1 | 2)
    assert device.negotiated == Feature.VERSION_1 | 2
    with pytest.raises(ArgumentError, match="not offered: RING_RESET, bit 63"):
        device.set_features(Feature.VERSION_1 | Feature.RING_RESET | 1 << 63)
    assert device.negotiated == Feature.VERSION_1 | 2


def test_bits_have_names() -> None:
    assert names(0) == "none"
    assert names(1 << 5 | Feature.EVENT_IDX | 1 << 45) == "bit 5, EVENT_IDX, bit 45"
    assert names(5, DeviceStatus) == "ACKNOWLEDGE, DRIVER_OK"
    assert ring_flags(Feature.EVENT_IDX | Feature.VERSION_1) == 1
    assert ring_flags(Feature.INDIRECT_DESC | Feature.EVENT_IDX) == 3


def test_status_bits_stay_until_a_reset(engine: WatchedEngine, device: Rng) -> None:
    told: list[str] = []
    device.on_broken = told.append

    async def main() -> None:
        await device.set_status(DeviceStatus.ACKNOWLEDGE)
        await device.set_status(DeviceStatus.DRIVER | DeviceStatus.DEVICE_NEEDS_RESET)
        assert device.status == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
        device.needs_reset("it is tired")
        device.needs_reset("it is still tired")
        assert device.status & DeviceStatus.DEVICE_NEEDS_RESET
        device.set_features(2)
        await device.set_status(0)
        assert device.status == device.negotiated == 0

    run(engine, main)
    assert told == ["it is tired"]


def test_the_configuration_space(device: Rng) -> None:
    changes: list[int] = []
    device.on_config_change = lambda: changes.append(1)
    assert device.config_size == 10
    assert device.read_config(0, 10) == (5).to_bytes(8, "little") + b"\0\0"
    assert device.read_config(6, 300) == bytes(300)
    device.write_config(9, b"\x02")
    assert device.read_config(9, 1) == b"\x02"
    for offset, data in ((0, bytes(8)), (8, b"\1"), (9, b"\1\2"), (500, b"\1"), (9, b"")):
        with pytest.raises(ArgumentError):
            device.write_config(offset, data)
    with pytest.raises(ArgumentError):
        device.read_config(-1, 2)
    device.config["capacity"] = 7
    device.config_changed()
    assert changes == [1]
    with pytest.raises(ArgumentError, match="mode is 256; 0 to 255 would fit"):
        device.config["mode"] = 256
    with pytest.raises(ArgumentError, match="begins at byte 9"):
        ConfigSpace((ConfigField("a", 0, 10), MODE))


# --- queues ---------------------------------------------------------------------------------------


def test_a_queue_is_served_and_stopped(engine: WatchedEngine, device: Rng, memory: Memory) -> None:
    queue = started(device, memory)
    queue.offer(*range(1, 7))
    settle(engine)
    assert queue.pushed == dict.fromkeys(range(1, 7), 0)
    assert run(engine, lambda: finished(queue.port.load_bytes(5 * 64, 3))) == b"\5\6\7"
    assert run(engine, lambda: finished(device.stop_queue(1))) == 9
    assert queue.released and queue.port.closed and device.tasks == 0 and not device.queues
    again = started(device, memory, QueueSetup(1, 4, 0, 0, 0, next=9))
    again.offer(2)
    settle(engine)
    assert again.pushed == {2: 0}
    run(engine, lambda: finished(device.stop_queue(1)))


def test_what_cannot_be_started(device: Rng, memory: Memory) -> None:
    started(device, memory)
    for setup, error, text in (
        (SETUP, BusyError, "queue 1 runs already"),
        (QueueSetup(2, 8, 0, 0, 0), ArgumentError, "queue 2; it has 2"),
        (QueueSetup(-1, 8, 0, 0, 0), ArgumentError, "queue -1"),
        (QueueSetup(0, 9, 0, 0, 0), ArgumentError, "of 9 entries; 1 to 8"),
    ):
        with pytest.raises(error, match=text):
            device.start_queue(setup, memory)
    with pytest.raises(ArgumentError, match="queue 0 does not run"):
        device.stop_queue(0)
    assert list(device.queues) == [1]


def test_a_stop_takes_nothing_more_and_waits_for_what_is_in_flight(
    engine: WatchedEngine, memory: Memory, held: Held
) -> None:
    device, queue = at_work(engine, memory, held)
    stopped = device.stop_queue(1)
    again = device.stop_queue(1)  # who asks twice gets the same answer
    queue.offer(3)
    settle(engine)
    assert (queue.in_flight, queue.released) == (2, False)
    with pytest.raises(BusyError, match="runs already"):
        device.start_queue(SETUP, memory)
    held.finish()
    assert run(engine, lambda: finished(stopped)) == 5
    assert run(engine, lambda: finished(again)) == 5
    assert queue.pushed == {1: 0, 2: 0} and queue.released
    assert device.tasks == 0


def test_a_stop_fails_past_its_deadline_and_can_be_repeated(
    engine: WatchedEngine, memory: Memory, held: Held
) -> None:
    device, _ = at_work(engine, memory, held)

    async def main() -> int:
        with pytest.raises(BusyError, match=r"queue 1 still has 2 requests in flight, 0\.01 s"):
            await device.stop_queue(1, deadline=0.01)
        held.finish()
        return await device.stop_queue(1)

    assert engine.run(main()) == 5
    assert device.tasks == 0


def test_a_reset_ends_what_is_in_flight_and_every_queue(
    engine: WatchedEngine, memory: Memory, held: Held
) -> None:
    device = Rng(source=held)
    engine.attach(device)
    queue = started(device, memory)
    other = started(device, memory, QueueSetup(0, 8, 0, 0, 0))
    queue.offer(1, 2)
    settle(engine)
    stopped = device.stop_queue(1)
    reset = device.reset_device()
    with pytest.raises(StaleError):
        device.start_queue(SETUP, memory)
    settle(engine)
    assert (queue.released, len(held.cancelled)) == (False, 2), "the endpoint still has the memory"
    held.finish()
    run(engine, lambda: finished(reset))
    assert queue.released and other.released and not device.queues and device.tasks == 0
    assert queue.pushed == {}
    assert run(engine, lambda: finished(stopped)) == 5
    with pytest.raises(ArgumentError, match="does not run"):
        device.stop_queue(1)
    started(device, memory)
    run(engine, lambda: finished(device.stop_queue(1)))


def test_a_broken_ring_breaks_no_other(engine: WatchedEngine, device: Rng, memory: Memory) -> None:
    told: list[str] = []
    device.on_broken = told.append
    bad = started(device, memory)
    good = started(device, memory, QueueSetup(0, 8, 0, 0, 0))
    bad.break_down("the available index jumped by 9")
    good.offer(4)
    settle(engine)
    assert told == ["queue 1: the available index jumped by 9"]
    assert device.status & DeviceStatus.DEVICE_NEEDS_RESET
    assert device.state == "running" and good.pushed == {4: 0}
    assert run(engine, lambda: finished(device.stop_queue(1))) == 3


def test_a_device_that_fails_lets_go_of_its_rings(
    engine: WatchedEngine, device: Rng, memory: Memory
) -> None:
    told: list[str] = []
    device.on_broken = told.append
    queue = started(device, memory)
    queue.offer(1, 7)
    settle(engine)
    assert told == ["ZeroDivisionError: a mistake of the device's"]
    assert device.state == "failed" and len(engine.failures) == 1
    assert device.status & DeviceStatus.DEVICE_NEEDS_RESET
    assert queue.released and not device.queues and device.tasks == 0
    assert run(engine, lambda: finished(device.stop_queue(1))) == 5
    with pytest.raises(StaleError, match="while the device is failed"):
        device.start_queue(SETUP, memory)
    run(engine, lambda: finished(device.set_status(0)))
    assert (device.status, device.state) == (0, "running")
    started(device, memory).offer(1)
    settle(engine)


def test_a_device_without_serve_fails(engine: WatchedEngine, memory: Memory) -> None:
    class Empty(VirtioDevice):
        def make_queue(self, port: Port, setup: QueueSetup) -> Queue:
            return OfferedQueue(port, setup)

    device = Empty()
    engine.attach(device)
    device.start_queue(QueueSetup(0, 8, 0, 0, 0), memory)
    settle(engine)
    assert isinstance(engine.failures[0][1], NotImplementedError)
    run(engine, lambda: finished(device.reset_device()))


def test_a_queue_that_cannot_be_made_leaves_nothing(engine: WatchedEngine, memory: Memory) -> None:
    class Broken(VirtioDevice):
        def make_queue(self, port: Port, setup: QueueSetup) -> Queue:
            raise ArgumentError("the used ring is misaligned")

    device = Broken()
    engine.attach(device)
    with pytest.raises(ArgumentError, match="misaligned"):
        device.start_queue(QueueSetup(0, 8, 0, 0, 0), memory)
    assert not device.queues and device.tasks == 0
