"""Memory that somebody else moves: what moves, in which messages, and in which order.

How it may end otherwise is in `test_remote_ends`; mixed lists, and every kind of endpoint against a
model, are in `test_transfer_properties`.

Invariants:

- Nothing answers but the test, unless it says `by_turns`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, cast

import pytest

import iodma
from iodma import Status
from iodma.memory import RemoteRequest
from iodma.testing import ScriptedEndpoint
from tests.unit.farmemory import FarMemory
from tests.unit.farsystem import FAR, WINDOW, Far, far_fixture  # noqa: F401
from tests.unit.system import (
    Registers,
    file_fixture,  # noqa: F401
)


def test_what_makes_no_remote_memory() -> None:
    class Half:
        def read(self, *_: object) -> None: ...

    with pytest.raises(iodma.ArgumentTypeError, match="no method write"):
        iodma.RemoteMemory(cast(Any, Half()), 4096)
    for most in (0, 1 << 31):
        with pytest.raises(iodma.ArgumentError, match="most is"):
            FarMemory(4096, most=most)
    for size in (0, 1 << 63):
        with pytest.raises(iodma.ArgumentError):
            iodma.RemoteMemory(Target([]), size)
    assert repr(iodma.RemoteMemory(Target([]), 4096)) == "<RemoteMemory of 4096 bytes>"
    with pytest.raises(iodma.UnsupportedError, match="no host memory"):
        memoryview(iodma.RemoteMemory(Target([]), 4096))


class Target:
    """Keeps what it is asked."""

    def __init__(self, kept: list[RemoteRequest]) -> None:
        self.kept = kept

    def read(self, offset: int, length: int, request: RemoteRequest) -> None:
        self.kept.append(request)

    def write(self, offset: int, data: bytes, request: RemoteRequest) -> None:
        self.kept.append(request)


# --- what moves -----------------------------------------------------------------------------------


def test_loads_stores_and_lists_of_segments(far: Far) -> None:
    far.by_turns()
    port = far.port

    async def main() -> None:
        assert await port.load_bytes(FAR + 254, 4) == b"\xfe\xff\x00\x01"
        await port.store("<IQ", FAR + 3, 7, 1 << 40)
        assert await port.load("<IQ", FAR + 3) == (7, 1 << 40)
        await port.store_bytes(FAR + 100, bytes(10_000))
        assert await port.load_bytes(FAR + 90, 10_020) == bytes(range(90, 100)) + bytes(
            10_000
        ) + bytes(k & 0xFF for k in range(10_100, 10_110))
        await port.store("<QQQQ", FAR, FAR + 64, 16, 0x1000, 32)
        segments: Any = await far.port.load_segments(FAR, 2)
        assert [*segments] == [(FAR + 64, 16), (0x1000, 32)]

    far.run(main())
    assert far.far.leases == 0 and far.engine.stats().bounced.total == 0


def test_copies_of_all_kinds(far: Far) -> None:
    far.by_turns()
    image = bytes(far.far.data)

    async def main() -> None:
        assert (await far.port.copy((FAR, 200_000), (0x1000, 200_000))).moved == 200_000
        assert far.memory.read(0x1000, 200_000) == image[:200_000]
        done = await far.port.copy((0x1000, 100_000), (FAR + 500_001, 100_000))
        assert done.ok and far.far.data[500_001:600_001] == image[:100_000]
        done = await far.port.copy(
            [(FAR + 5, 7), (0x1000, 70_000)], [(FAR + 700_000, 50_000), (0, 20_007)]
        )
        assert done.ok and done.moved == 70_007
        moved = image[5:12] + image[:70_000]
        assert far.far.data[700_000:750_000] == moved[:50_000]
        assert far.memory.read(0, 20_007) == moved[50_000:]

    far.run(main())


@pytest.mark.parametrize("direct", [False, True])
def test_files(far: Far, tmp_path: Path, direct: bool) -> None:
    far.by_turns()
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    image = bytes(far.far.data)

    async def main() -> None:
        with iodma.File(path, direct=direct) as file:
            done = await far.port.from_memory([(FAR + 1, 99_999), (0, 512)], to=file, offset=512)
            assert done.ok and done.moved == 100_511
            done = await far.port.to_memory((FAR + 200_000, 100_000), source=file, offset=512)
            assert done.ok and done.moved == 100_000

    far.run(main())
    assert path.read_bytes()[512 : 512 + 99_999] == image[1:100_000]
    assert far.far.data[200_000:299_999] == image[1:100_000]
    bounced = far.engine.stats().bounced
    assert bounced.remote == 199_999 and bounced.not_ram == 0


def test_streams_packets_buffers_and_nothing(far: Far) -> None:
    far.by_turns()
    image = bytes(far.far.data)
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near, other = far.wire()

    async def main() -> None:
        with ours, iodma.Datagram(ours) as packets:
            done = await far.port.from_memory([(FAR, 14), (0, 4), (FAR + 14, 100)], to=packets)
            assert done.ok and peer.recv(1000) == image[:14] + bytes(4) + image[14:114]
            peer.send(b"x" * 90)
            done = await far.port.to_memory([(FAR, 64), (0, 100)], source=packets)
            assert done.moved == 90 and far.far.data[:65] == b"x" * 64 + image[64:65]
        other.send(b"y" * 5000)
        done = await far.port.to_memory((FAR + 1000, 5000), source=near)
        assert done.moved == 5000 and far.far.data[1000:6000] == b"y" * 5000
        sends = [far.port.from_memory((FAR + 1000 + k, 1), to=near) for k in range(8)]
        assert all([(await each).ok for each in sends]) and other.recv(100) == b"y" * 8
        with iodma.Buffer(300_000) as buffer, iodma.Null() as null:
            done = await far.port.from_memory((FAR + 8192, 250_000), to=buffer, offset=100)
            assert done.ok and bytes(buffer.view(100, 250_000)) == image[8192:258_192]
            done = await far.port.to_memory((FAR, 300_000), source=buffer, offset=100_000)
            assert done.moved == 200_000 and far.far.data[:100] == bytes(buffer.view(100_000, 100))
            done = await far.port.from_memory((FAR, 300_000), to=buffer, offset=200_000)
            assert done.status is Status.IO_ERROR and done.moved == 100_000
            assert (await far.port.to_memory((FAR, 10_000), source=null)).ok
            assert not any(far.far.data[:10_000]) and far.far.data[10_000:10_001] != b"\0"
            assert (await far.port.from_memory((FAR, 10_000), to=null)).ok

    with peer:
        far.run(main())


def test_scripted_endpoints(far: Far) -> None:
    far.by_turns()
    image = bytes(far.far.data)

    async def main() -> None:
        with ScriptedEndpoint(1 << 20) as endpoint:
            done = await far.port.from_memory([(FAR, 70_000), (FAR, 4)], to=endpoint, offset=10)
            assert done.ok and endpoint.content[10:70_014] == image[:70_000] + image[:4]
            done = await far.port.to_memory((FAR + 100_000, 70_000), source=endpoint, offset=10)
            assert done.ok and far.far.data[100_000:170_000] == image[:70_000]

    far.run(main())


def test_batches(far: Far) -> None:
    far.by_turns()
    batch = iodma.Batch(8)

    async def main() -> None:
        with iodma.Buffer(1 << 16) as buffer:
            for k in range(8):
                batch.address[k], batch.length[k] = FAR + 4096 * k, 4096
                batch.first[k], batch.count[k] = k, 1
                batch.id[k], batch.position[k] = k, 4096 * k
            batch.n = 8
            far.port.submit(batch, buffer)
            seen = 0
            async for done in far.port.completions():
                assert done.all_ok
                seen += done.n
            assert seen == 8 and bytes(buffer.view(0, 32_768)) == far.far.data[:32_768]

    far.run(main())


def test_messages_are_no_longer_than_they_may_be_and_neighbours_are_one(far: Far) -> None:
    far.by_turns()

    async def load() -> None:
        await far.port.load_bytes(FAR + 10, 10_000)

    far.run(load())
    assert far.far.log == [(10, 4096, False), (4106, 4096, False), (8202, 1808, False)]
    far.far.log.clear()

    async def main() -> None:
        with iodma.Null() as null:
            await far.port.to_memory([(FAR, 10), (FAR + 10, 10), (FAR + 50, 10)], source=null)

    far.run(main())
    assert far.far.log == [(0, 20, True), (50, 10, True)]


# --- in which order -------------------------------------------------------------------------------


def test_nothing_is_asked_in_the_call_that_submits_and_many_at_once_later(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 5 * 4096)
        assert not far.far.log
        await far.asked(5)
        assert [each.offset for each in far.far.waiting] == [k * 4096 for k in range(5)]
        for each in far.far.waiting[::-1]:
            assert not transfer.done
            far.far.answer(each)
        assert not transfer.done
        assert await transfer == bytes(far.far.data[: 5 * 4096])

    far.run(main())


def test_what_answers_at_once_is_never_waited_for(far: Far) -> None:
    far.far.at_once = 1.0

    async def main() -> None:
        assert (await far.port.copy((FAR, 500_000), (FAR + 500_000, 500_000))).ok

    far.run(main())
    assert far.far.data[500_000:1_000_000] == far.far.data[:500_000]


def test_many_messages_but_not_any_number(far: Far) -> None:
    async def main() -> None:
        transfer = far.port.load_bytes(FAR, 1 << 20)
        await far.asked(64)
        await far.turns()
        assert len(far.far.waiting) == 64 == len(far.far.log)
        far.far.answer(far.far.waiting[17])
        await far.asked(64)
        assert len(far.far.log) == 65
        far.by_turns()
        far.far.answer()
        assert await transfer == far.far.data

    far.run(main())


def test_a_device_window_waits_for_what_stands_before_it(far: Far) -> None:
    log: list[tuple[str, int]] = []

    class Noting(Registers):
        def write(self, offset: int, width: int, value: int) -> bool:
            log.append(("window", len(far.far.waiting)))
            return True

    far.memory.add(WINDOW, iodma.DeviceWindow(Noting(), 4096))

    async def main() -> None:
        with ScriptedEndpoint(b"z" * 64) as endpoint:
            transfer = far.port.to_memory(
                [(FAR, 8), (FAR + 100, 8), (WINDOW, 4), (FAR + 200, 8)], source=endpoint
            )
            await far.asked(2)
            await far.turns()
            assert not log and len(far.far.log) == 2
            far.far.answer(far.far.waiting[1])
            await far.turns()
            assert not log
            far.far.answer()
            await far.asked()
            assert log == [("window", 0)] and far.far.log[-1] == (200, 8, True)
            far.far.answer()
            assert (await transfer).ok

    far.run(main())


def test_an_interrupt_comes_after_the_data_before_it(far: Far) -> None:
    seen: list[bytes] = []
    msi = iodma.MsiWindow(lambda offset, vector: seen.append(bytes(far.far.data[:4])))
    far.memory.add(0xFEE0_0000, msi)
    far.by_turns()

    async def main() -> None:
        with ScriptedEndpoint(b"data\x21\0\0\0") as endpoint:
            done = await far.port.to_memory([(FAR, 4), (0xFEE0_0000, 4)], source=endpoint)
            assert done.ok

    far.run(main())
    assert seen == [b"data"]
