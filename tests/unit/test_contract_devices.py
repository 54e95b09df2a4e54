"""The completion contract, rules 5 to 8: reset, failures, messages to devices, order.

Invariants: as in `test_contract`.
"""

from __future__ import annotations

import logging
import random
import socket
import sys
import threading
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import FakeMemory, ScriptedEndpoint, strict_engine
from tests.unit.system import (  # noqa: F401
    MIB,
    WINDOW,
    System,
    connection,
    content,
    file_fixture,
    hold,
    shuffled,
    system_fixture,
)

# -- 5: reset ------------------------------------------------------------------


def test_rule_5_no_byte_lands_after_a_reset_was_acknowledged(
    system: System, file: iodma.File, rng: random.Random
) -> None:
    left, right = socket.socketpair()
    right.settimeout(5)
    with left, right, iodma.Socket(left) as wire:
        port = system.port

        async def main() -> None:
            for trial in range(40):
                generation = port.generation
                transfers = [
                    port.to_memory((i * 65536, 65536), source=file, offset=i * 65536)
                    for i in range(8)
                ]
                transfers.append(port.to_memory((MIB, 4096), source=wire))
                transfers.append(port.copy((2 * MIB, MIB), (3 * MIB, MIB)))
                await system.turns(rng.randrange(4))
                if trial % 2:
                    right.send(b"x" * 100)
                await port.reset()
                assert port.generation == generation + 1
                assert port.in_flight == 0 and system.ram.leases == 0
                system.memory.place_canaries()
                if not trial % 2:
                    right.send(b"y" * 100)
                await system.turns(3)
                assert all(transfer.done for transfer in transfers)
                system.memory.check_canaries()
                left.setblocking(False)
                try:
                    left.recv(4096)
                except BlockingIOError:
                    pass
                finally:
                    left.setblocking(True)

        system.run(main())


def test_rule_5_a_reset_is_acknowledged_only_when_all_is_drained(system: System) -> None:
    with ScriptedEndpoint(bytes(64), script=hold, on_cancel="ignore") as disk:
        port = system.port

        async def main() -> None:
            transfers = [port.to_memory((i * 8, 8), source=disk) for i in range(3)]
            await disk.asked(3)
            reset = port.reset()
            assert port.resetting
            with pytest.raises(iodma.StaleError, match="being reset"):
                port.copy((0, 8), (8, 8))
            for left in (2, 1, 0):
                await system.turns()
                assert not reset.done and port.in_flight == left + 1
                disk.answer()
            await reset
            assert [(await each).status for each in transfers] == [Status.OK] * 3
            assert (await port.copy((0, 8), (8, 8))).ok, "and then it goes on"

        system.run(main())


def test_rule_5_a_late_cancel_hits_nothing_and_nobody_else(system: System) -> None:
    with ScriptedEndpoint(bytes(64), script=hold) as disk:
        port = system.port

        async def main() -> None:
            old = port.to_memory((0, 8), source=disk)
            await disk.asked(1)
            await port.reset()
            assert (await old).status is Status.CANCELLED
            assert not port.cancel(old.ticket)
            fresh = [port.to_memory((0, 8), source=disk) for _ in range(64)]
            await disk.asked(65)
            assert old.ticket not in {each.ticket for each in fresh}
            assert not port.cancel(old.ticket) and not old.cancel()
            assert not any(request.cancelled for request in disk.waiting)
            disk.answer_all()
            assert all([(await each).ok for each in fresh])
            assert not port.cancel(fresh[0].ticket)
            assert not port.cancel((1 << 64) - 1) and not port.cancel(0)

        system.run(main())


class Worker(iodma.Device):
    """Reads its disk into memory, over and over, until it is reset."""

    go = iodma.Doorbell(0x0, run="work")
    count = iodma.Register(0x4, access="rw")

    disk: iodma.Endpoint

    def reset(self) -> None:
        self.log: list[str] = getattr(self, "log", [])

    async def work(self, value: int) -> None:
        try:
            while True:
                await self.port.to_memory((0, 8), source=self.disk)
                self.count += 1
        except iodma.Cancelled:
            self.log.append("cancelled")
            for what, refused in (
                ("submit", lambda: self.port.copy((0, 8), (8, 8))),
                ("register", lambda: setattr(self, "count", 77)),
                ("start", lambda: self.start(self.work(0))),
            ):
                try:
                    refused()
                except iodma.StaleError:
                    self.log.append(f"{what} refused")
            try:
                await self.engine.sleep(0)
            except iodma.StaleError:
                self.log.append("await refused")
            raise
        finally:
            self.log.append("finally")


def test_rule_5_coroutines_of_the_old_generation_get_cancelled_and_can_only_end(
    system: System,
) -> None:
    with ScriptedEndpoint(bytes(8)) as disk:
        device = Worker(system.port, disk=disk)
        bus = iodma.Bus()
        bus.attach(device, 0x1000)

        async def main() -> None:
            bus.write32(0x1000, 1)
            while bus.read32(0x1004) < 3:
                await system.turns(1)
            await device.request_reset()
            assert device.log == [
                "cancelled",
                "submit refused",
                "register refused",
                "start refused",
                "await refused",
                "finally",
            ]
            assert bus.read32(0x1004) == 0, "registers have their reset values"
            asked = len(disk.requests)
            await system.turns()
            assert len(disk.requests) == asked

        system.run(main())
        assert not isinstance(iodma.Cancelled(), Exception)


# -- 6: an uncaught exception fails that device alone --------------------------


class Fragile(iodma.Device):
    go = iodma.Doorbell(0x0, run="work")
    done = iodma.Register(0x4, access="ro")
    poke = iodma.Register(0x8, write="poked")

    def poked(self, value: int) -> None:
        raise ZeroDivisionError("a bug in a handler")

    async def work(self, value: int) -> None:
        await self.port.copy((0, 8), (8, 8))
        if value == 13:
            raise ZeroDivisionError("a bug in a coroutine")
        self.done = value


@pytest.mark.parametrize("where", ["handler", "coroutine"])
def test_rule_6_an_uncaught_exception_fails_that_device_alone(
    caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with iodma.Engine() as engine, FakeMemory(4096) as memory:
        bus = iodma.Bus()
        broken = Fragile(engine.port(memory), name="broken")
        sound = Fragile(engine.port(memory), name="sound")
        bus.attach(broken, 0x0)
        bus.attach(sound, 0x1000)

        async def main() -> None:
            for value in range(20):
                bus.write32(0x1000, value + 20)
                if value == 5:
                    if where == "handler":
                        bus.write32(0x8, 1)
                    else:
                        bus.write32(0x0, 13)
                while bus.read32(0x1004) != value + 20:
                    await engine.sleep(0)
            assert bus.read32(0x4) == 0xFFFF_FFFF, "all-ones"

        with caplog.at_level(logging.ERROR, "iodma"):
            engine.run(main())
    told = [record for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert len(told) == 1, "once"
    assert told[0].exc_info and told[0].exc_info[2] is not None, "with its traceback"
    assert (broken.counts.failures, sound.counts.failures) == (1, 0)


@pytest.mark.parametrize("where", ["handler", "coroutine"])
def test_rule_6_a_strict_engine_lets_it_out(where: str) -> None:
    with strict_engine() as engine, FakeMemory(4096) as memory:
        bus = iodma.Bus()
        bus.attach(Fragile(engine.port(memory), name="broken"), 0)

        async def main() -> None:
            bus.write32(0x8 if where == "handler" else 0, 13)
            await engine.sleep(1)

        with pytest.raises(ZeroDivisionError, match=f"a bug in a {where}"):
            engine.run(main())


# -- 7: DMA that hits a device window is a message -----------------------------


class Log:
    """A window's target that notes what it sees, and perhaps does something."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []
        self.also: Any = None

    def read(self, offset: int, width: int) -> int:
        value = sum((offset + i & 0xFF) << 8 * i for i in range(width))
        self.seen.append(("r", offset, width, value))
        return value

    def write(self, offset: int, width: int, value: int) -> bool | None:
        self.seen.append(("w", offset, width, value))
        return None if self.also is None else self.also(offset)


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31])
def test_rule_7_each_access_once_ascending_and_naturally_aligned(
    system: System, first: int, length: int
) -> None:
    log = Log()
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    data = bytes(range(100, 100 + length))
    system.memory.write(0, data)

    async def main() -> None:
        done = await system.port.copy((0, length), (WINDOW + first, length))
        assert (done.status, done.moved) == (Status.OK, length)

    system.run(main())
    at, written = first, b""
    for verb, offset, width, value in log.seen:
        assert verb == "w" and offset == at and width in (1, 2, 4, 8) and offset % width == 0
        written += value.to_bytes(width, "little")
        at += width
    assert written == data, "each byte once, in order"


def test_rule_7_a_message_comes_after_the_pieces_before_it(
    system: System, file: iodma.File
) -> None:
    log, seen = Log(), []
    log.also = lambda offset: seen.append(system.memory.read(0, 4096))
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        done = await system.port.to_memory(
            [(0, 4096), (WINDOW, 8), (8192, 4096), (WINDOW + 8, 8)], source=file
        )
        assert (done.status, done.moved) == (Status.OK, 8208)

    system.run(main())
    assert seen == [content(file)[:4096]] * 2
    assert system.memory.read(8192, 4096) == content(file)[4104:8200]


def test_rule_7_a_window_that_refuses_is_a_fault_at_that_offset(system: System) -> None:
    log = Log()
    log.also = lambda offset: offset < 16
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        done = await system.port.copy([(0, 100)], [(0x1000, 50), (WINDOW, 50)])
        assert done.status is Status.FAULT and done.fault is not None
        assert (done.moved, done.fault.offset, done.fault.address) == (66, 66, WINDOW + 16)

    system.run(main())
    assert [offset for _, offset, _, _ in log.seen] == [0, 8, 16], "and nothing is retried"


def test_rule_7_past_the_depth_limit_it_ends_in_a_bus_error(system: System) -> None:
    """A window whose handler stores to the window again."""
    log, transfers = Log(), list[Any]()
    log.also = lambda offset: transfers.append(system.port.store("<Q", WINDOW, 5))
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        transfers.append(system.port.copy((0, 4), (WINDOW + 4, 4)))
        for transfer in transfers:  # it grows
            try:
                await transfer
            except iodma.DmaFault as error:
                fault = error.completion.fault
        assert fault is not None and (fault.offset, fault.address) == (0, WINDOW)
        assert "bus error" in fault.reason

    system.run(main())
    assert len(log.seen) == 8, "so many nested messages"
    assert len(transfers) == 9, "and the ninth was refused"


def test_rule_7_a_handler_is_never_entered_again_from_its_own_messages(system: System) -> None:
    busy, entered = False, 0
    log = Log()

    def handler(offset: int) -> None:
        nonlocal busy, entered
        assert not busy
        busy = True
        entered += 1
        if entered < 5:
            system.port.store("<I", WINDOW, entered)
            system.port.copy((0, 16), (WINDOW + 64, 16))
        busy = False

    log.also = handler
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))

    async def main() -> None:
        await system.port.store("<I", WINDOW, 1)
        while system.engine.stats().in_flight:
            await system.turns(1)

    system.run(main())
    assert entered > 5


@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_rule_7_a_handler_may_end_the_transfer_that_it_is_a_message_of(
    system: System, how: str
) -> None:
    log, transfers = Log(), list[Any]()

    def handler(offset: int) -> None:
        if how == "cancel":
            assert transfers[0].cancel() in (True, False)
        else:
            system.port.reset()

    log.also = handler
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    with ScriptedEndpoint(bytes(64)) as disk, iodma.Buffer(64) as buffer:

        async def one(submit: Any) -> None:
            transfers[:] = [submit()]
            assert (await transfers[0]).status in (Status.OK, Status.CANCELLED)
            await system.port.reset()

        for submit in (
            lambda: system.port.copy((0, 16), (WINDOW, 16)),
            lambda: system.port.to_memory((WINDOW, 16), source=buffer),
            lambda: system.port.to_memory((WINDOW, 16), source=disk),
        ):
            system.run(one(submit))


def test_rule_7_a_handler_may_cancel_what_is_read_from_it(system: System) -> None:
    transfers: list[Any] = []

    class Reader(Log):
        def read(self, offset: int, width: int) -> int:
            transfers[0].cancel()
            return super().read(offset, width)

    log = Reader()
    system.memory.add(WINDOW, iodma.DeviceWindow(log, 4096))
    left, right = socket.socketpair()
    with left, right, iodma.Socket(left) as wire:

        async def main() -> None:
            transfers.append(system.port.from_memory((WINDOW, 16), to=wire))
            assert (await transfers[0]).status is Status.CANCELLED

        system.run(main())
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            right.recv(1)


def test_rule_7_an_msi_comes_after_the_data_before_it(system: System, file: iodma.File) -> None:
    seen: list[tuple[int, bytes]] = []
    msi = iodma.MsiWindow(lambda offset, vector: seen.append((vector, system.memory.read(0, 4096))))
    system.memory.add(0xFEE0_0000, msi)

    async def main() -> None:
        await system.port.to_memory((0, 4096), source=file)
        await system.port.store("<I", 0xFEE0_0000, 0x41)

    system.run(main())
    assert seen == [(0x41, content(file)[:4096])]


# -- 8: order --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_rule_8_two_sends_on_one_stream_never_interleave(system: System, kind: str) -> None:
    near, far = connection(kind)
    size, trials = 256 << 10, 40
    system.memory.fill(b"a", 0, size)
    system.memory.fill(b"b", MIB, size)
    received = bytearray()

    def receive() -> None:
        while len(received) < trials * 2 * size:
            received.extend(far.recv(1 << 20))

    with near, far, iodma.Socket(near) as wire:
        peer = threading.Thread(target=receive)
        peer.start()

        async def send(base: int) -> None:
            segments = [(base + i * 4096, 4096) for i in range(size // 4096)]
            assert (await system.port.from_memory(segments, to=wire)).ok

        async def main() -> None:
            for _ in range(trials):
                both = [system.engine.start(send(base)) for base in (0, MIB)]
                for task in both:
                    await task

        system.run(main())
        peer.join()
        assert system.engine.stats().waited["order"] >= trials
    assert received == (b"a" * size + b"b" * size) * trials


def test_rule_8_receives_on_one_stream_are_filled_in_order(system: System) -> None:
    near, far = socket.socketpair()
    with near, far, iodma.Socket(near) as wire:

        async def main() -> None:
            transfers = [system.port.to_memory((i * 100, 100), source=wire) for i in range(50)]
            await system.turns()
            data = bytes(i // 100 for i in range(5000))
            for at in range(0, 5000, 77):
                far.sendall(data[at : at + 77])
                await system.turns(1)
            for transfer in transfers:
                assert (await transfer).moved == 100
            assert system.memory.read(0, 5000) == data

        system.run(main())


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_rule_8_a_packet_endpoint_keeps_order_and_packets(
    system: System, kind: socket.SocketKind
) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far, iodma.Datagram(near) as out, iodma.Datagram(far) as into:
        sizes = [1 + i * 37 % 900 for i in range(60)]

        async def main() -> None:
            for i, size in enumerate(sizes):
                system.memory.fill(i + 1, i * 1000, size)
            receives = [
                system.port.to_memory((MIB + i * 1000, 1000), source=into) for i in range(60)
            ]
            sends = [
                system.port.from_memory(
                    [(i * 1000, size // 2), (i * 1000 + size // 2, size - size // 2)], to=out
                )
                for i, size in enumerate(sizes)
            ]
            for transfer, size in zip(sends + receives, sizes + sizes, strict=True):
                assert (await transfer).moved == size
            for i, size in enumerate(sizes):
                assert system.memory.read(MIB + i * 1000, size) == bytes([i + 1]) * size

        system.run(main())


def test_rule_8_a_flush_covers_what_completed_before_it(system: System, file: iodma.File) -> None:
    async def main() -> None:
        for i in range(16):
            system.memory.fill(i + 1, 0, 4096)
            assert (await system.port.from_memory((0, 4096), to=file, offset=i * 4096)).ok
            done = await system.port.flush(file)
            assert (done.status, done.moved) == (Status.OK, 0)

    system.run(main())
    assert system.engine.stats().requests == 32
    assert content(file)[: 16 * 4096] == b"".join(bytes([i + 1]) * 4096 for i in range(16))


def test_rule_8_data_is_visible_before_the_descriptor_that_says_so(
    system: System, file: iodma.File
) -> None:
    """A guest on a processor of its own, that polls the descriptor."""
    data, rounds = content(file), 100
    bad: list[int] = []
    flags = system.ram.view(4096 + 4 * MIB, 4)
    payload = system.ram.view(4096, 4096)
    over = False

    def guest() -> None:
        last = 0
        while last < rounds and not over:
            now = int.from_bytes(flags[:2], "little")
            if now != last:
                at = (now - 1) * 1000
                if bytes(payload[:1000]) != data[at : at + 1000]:
                    bad.append(now)
                last = now
                flags[2] = 1  # seen

    async def main() -> None:
        for i in range(rounds):
            await system.port.to_memory((0, 1000), source=file, offset=i * 1000)
            await system.port.store("<H", 4 * MIB, i + 1)
            while not flags[2]:
                await system.turns(1)
            flags[2] = 0

    processor = threading.Thread(target=guest)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that they meet at more places, and sooner
    processor.start()
    try:
        system.run(main())
    finally:
        over = True
        processor.join()
        sys.setswitchinterval(interval)
        flags.release()
        payload.release()
    assert bad == []
