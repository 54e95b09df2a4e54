"""The block device under a driver that the test writes, on the real ring."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Access, ArgumentError, ArgumentTypeError, Buffer, File, Iommu, Mapping
from iodma._core import Wait, completion
from iodma.devices.virtio_blk import BlkFeature, BlkStatus, BlkType, VirtioBlk
from iodma.endpoints.flushes import Flushes
from iodma.testing import Answer, LossyDisk, ScriptedEndpoint
from iodma.virtio import DeviceStatus, Feature
from tests.unit.guestdisk import Guest

OK, IOERR, UNSUPP = BlkStatus
SECTORS = 256
SIZE = SECTORS * 512


@pytest.fixture
def path(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(SIZE))
    return path


@pytest.fixture
def disk(path: Path) -> Iterator[File]:
    with File(path) as disk:
        yield disk


def ranges(*each: tuple[int, int, int]) -> bytes:
    """Of a discard or write-zeroes request: (sector, sectors, flags)."""
    return b"".join(struct.pack("<QII", *one) for one in each)


# --- what a driver reads and writes ---------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("event_idx", [False, True])
def test_reads_and_writes(path: Path, disk: File, indirect: bool, event_idx: bool) -> None:
    before = path.read_bytes()
    with Guest(disk, indirect=indirect, event_idx=event_idx, serial="a serial number") as guest:

        async def main() -> None:
            assert await guest.request(BlkType.IN, 3, into=1024) == (OK, before[1536:2560], 1025)
            assert await guest.request(BlkType.OUT, 4, out=b"\x11" * 512) == (OK, b"", 1)
            assert await guest.request(BlkType.FLUSH) == (OK, b"", 1)
            expected = before[1536:2048] + b"\x11" * 512
            assert await guest.request(BlkType.IN, 3, into=1024) == (OK, expected, 1025)
            serial = b"a serial number\0\0\0\0\0"
            assert await guest.request(BlkType.GET_ID, into=20) == (OK, serial, 21)
            assert await guest.request(BlkType.GET_ID, into=5) == (OK, serial[:5], 6)
            status, data, length = await guest.request(BlkType.GET_ID, into=30)
            assert (status, data[:20], length) == (OK, serial, 21)

        guest.run(main())
    assert path.read_bytes() == before[:2048] + b"\x11" * 512 + before[2560:]


def model_of(
    content: bytearray, type: int, sector: int, data: bytes, into: int
) -> tuple[int, bytes | None]:
    """What a disk of such content answers: the status, and what it reads. Changes the content."""
    at, sectors = sector * 512, len(content) // 512
    if type in (BlkType.IN, BlkType.OUT):
        n = len(data) if type == BlkType.OUT else into
        if (data and into) or (data and type == BlkType.IN) or (into and type == BlkType.OUT):
            return IOERR, None
        if n % 512 or at + n > len(content):
            return IOERR, None
        if type == BlkType.OUT:
            content[at : at + n] = data
        return OK, bytes(content[at : at + into])
    if type == BlkType.FLUSH:
        return (IOERR if data or into else OK), None
    if type == BlkType.GET_ID:
        return (IOERR if data or not into else OK), None
    if type not in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
        return UNSUPP, None
    if into or not data or len(data) % 16 or len(data) > 16 * 32:
        return IOERR, None
    found = list(struct.iter_unpack("<QII", data))
    if any(flags > (type == BlkType.WRITE_ZEROES) for _, _, flags in found):
        return UNSUPP, None
    if any(count > 1 << 21 or first + count > sectors for first, count, _ in found):
        return IOERR, None
    for first, count, _ in found:
        content[first * 512 : (first + count) * 512] = bytes(count * 512)
    return OK, None


class Rounds:
    """Random requests, many at a time, in ranges of their own within a round."""

    def __init__(self, rng: random.Random, guest: Guest, content: bytearray) -> None:
        self.rng, self.guest, self.content = rng, guest, content

    def make(self, low: int, high: int) -> tuple[int, int, bytes, int]:
        """(type, sector, data, bytes to read) of a request within these sectors, or a wrong one."""
        rng = self.rng
        first = rng.randrange(low, high)
        count = rng.randrange(0, min(high - first, 96) + 1)
        kind = rng.randrange(16)
        if kind < 5:
            return BlkType.IN, first, b"", count * 512
        if kind < 10:
            return BlkType.OUT, first, rng.randbytes(count * 512), 0
        if kind == 10:
            return BlkType.FLUSH, 0, b"", 0
        if kind == 11:
            return BlkType.GET_ID, 0, b"", rng.choice((20, 64))
        if kind < 14:
            type = BlkType.WRITE_ZEROES if kind == 12 else BlkType.DISCARD
            flags = rng.choice((0, 0, 1)) if kind == 12 else 0
            half = count // 2
            return type, 0, ranges((first, half, flags), (first + half, count - half, flags)), 0
        return self.wrong(rng)

    def wrong(self, rng: random.Random) -> tuple[int, int, bytes, int]:
        """A request that makes no sense, and changes nothing."""
        far = rng.choice((SECTORS, SECTORS + 1, 1 << 54, 1 << 55, (1 << 64) - 1))
        return rng.choice(
            (
                (BlkType.IN, far, b"", 512),
                (BlkType.OUT, far, bytes(512), 0),
                (BlkType.IN, SECTORS - 1, b"", 1024),
                (BlkType.OUT, SECTORS - 1, bytes(1024), 0),
                (BlkType.IN, 0, b"", rng.choice((1, 100, 513))),
                (BlkType.OUT, 0, bytes(rng.choice((1, 100, 513))), 0),
                (BlkType.IN, 0, bytes(512), 512),
                (BlkType.OUT, 0, bytes(512), 512),
                (BlkType.IN, 0, bytes(512), 0),
                (BlkType.OUT, 0, b"", 512),
                (BlkType.FLUSH, 0, bytes(8), 0),
                (BlkType.GET_ID, 0, b"", 0),
                (rng.choice((2, 3, 10, 14, 62, 63, 64, 0x80000000, 0xFFFFFFFF)), 0, b"", 0),
                (rng.choice((2, 10, 14, 99)), 0, bytes(64), 0),
                (BlkType.DISCARD, 0, ranges((far, 1, 0)), 0),
                (BlkType.DISCARD, 0, ranges((0, 1, rng.choice((1, 2, 3, 1 << 31)))), 0),
                (BlkType.DISCARD, 0, ranges((0, (1 << 32) - 1, 0)), 0),
                (BlkType.DISCARD, 0, ranges((0, 1, 0), (far, 1, 0)), 0),
                (BlkType.WRITE_ZEROES, 0, ranges((0, 1, 1), (far, 8, 1)), 0),
                (BlkType.WRITE_ZEROES, 0, ranges((0, 1, rng.choice((2, 3, 1 << 31)))), 0),
                (BlkType.WRITE_ZEROES, 0, bytes(rng.choice((0, 1, 15, 17))), 0),
                (BlkType.WRITE_ZEROES, 0, ranges(*[(0, 0, 0)] * 33), 0),
                (BlkType.WRITE_ZEROES, 0, ranges((0, 1, 0)), 16),
            )
        )

    async def round(self, requests: int) -> None:
        rng, guest = self.rng, self.guest
        edges = sorted(rng.sample(range(1, SECTORS), requests - 1))
        spans = list(zip([0, *edges], [*edges, SECTORS], strict=True))
        rng.shuffle(spans)
        asked = []
        for low, high in spans:
            type, sector, data, into = self.make(low, high)
            expected = model_of(self.content, type, sector, data, into)
            queue = rng.randrange(len(guest.rings))
            task = guest.engine.start(
                guest.request(
                    type, sector, data, into, queue=queue, pieces=rng, kick=rng.random() < 0.7
                )
            )
            asked.append((task, (type, sector, len(data), into), *expected))
        await guest.engine.sleep(0)
        for ring in guest.rings:
            ring.kick()
        for task, what, status, content in asked:
            got, read, length = await task
            assert got == status, what
            if content is not None:
                assert read == content, what
                assert length == len(read) + 1, what
            elif status != OK:
                assert length <= len(read) + 1, what


@pytest.mark.parametrize("kind", ["file", "direct", "memory"])
@pytest.mark.parametrize(
    "rings",  # how many, their size, event index, tables, packed
    [
        (1, 64, True, True, False),
        (3, 16, False, True, False),
        (2, 64, True, False, False),
        (2, 16, True, True, True),
        (1, 64, False, False, True),
    ],
)
def test_random_requests_against_a_model(
    path: Path, rng: random.Random, kind: str, rings: tuple[int, int, bool, bool, bool]
) -> None:
    content = bytearray(path.read_bytes())
    disk: Any
    if kind == "memory":
        disk = Buffer(SIZE)
        with disk.view() as view:
            view[:] = content
    else:
        try:
            disk = File(path, direct=kind == "direct")
        except OSError as error:
            pytest.skip(f"cannot be opened so: {error}")
    queues, size, event_idx, indirect, packed = rings
    shape: dict[str, Any] = {
        "queues": queues,
        "size": size,
        "event_idx": event_idx,
        "indirect": indirect,
    }
    with disk, Guest(disk, **shape, packed=packed) as guest:
        rounds = Rounds(rng, guest, content)

        async def main() -> None:
            for _ in range(25):
                # A chain may be of nine buffers; a ring without tables must hold them all.
                await rounds.round(rng.randrange(2, 5 if not indirect or size < 64 else 20))

        guest.run(main())
        assert not any(ring.broken() for ring in guest.rings)
        assert guest.device.status == 0
        if kind == "memory":
            with disk.view() as view:
                assert view == content
    if kind != "memory":
        assert path.read_bytes() == content


@pytest.mark.parametrize("packed", [False, True])
def test_behind_an_iommu_whose_translations_come_and_go(
    path: Path, disk: File, rng: random.Random, packed: bool
) -> None:
    """Each page is asked for when it is needed, answered late, and taken away under load."""
    content = bytearray(path.read_bytes())
    with Guest(disk, queues=2, packed=packed, start=False) as guest:
        asked = [0]

        async def walk(address: int, access: Access) -> Mapping:
            asked[0] += 1
            if rng.random() < 0.5:
                await guest.engine.sleep(rng.choice((0, 0.0002)))
            page = address & ~4095
            return Mapping(page, page, 4096, Access.RW)

        iommu = guest.space = Iommu(guest.memory, walk=walk)
        guest.start()
        rounds = Rounds(rng, guest, content)
        over = [False]

        async def invalidate() -> None:
            while not over[0]:
                await guest.engine.sleep(0.0005)
                page = rng.randrange(0, 8 << 20, 4096)
                whole = rng.random() < 0.3
                assert await (iommu.invalidate() if whole else iommu.invalidate(page, 1 << 20))

        async def main() -> None:
            taker = guest.engine.start(invalidate())
            for _ in range(25):
                await rounds.round(rng.randrange(2, 12))
            over[0] = True
            await taker

        guest.run(main())
        assert asked[0] > 20 and guest.device.status == 0
    assert path.read_bytes() == content


def test_a_bad_request_holds_up_no_other(path: Path, disk: File) -> None:
    """Chains that have no place for a status byte, or lie outside of memory, are given back."""
    with Guest(disk) as guest:

        async def main() -> None:
            at = guest.slots.pop()
            guest.view[at : at + 16] = struct.pack("<IIQ", BlkType.IN, 0, 0)
            outside = 1 << 40
            waits = [
                guest.chain([(at, 16)], []),  # no status byte
                guest.chain([(at, 15)], [(at + 64, 1)]),  # no whole header
                guest.chain([], [(at + 65, 1)]),
                guest.chain([(at, 16)], [(outside, 512), (at + 66, 1)]),
                guest.chain([(outside, 16)], [(at + 67, 1)]),
                guest.chain([(at, 16)], [(at + 512, 512), (outside, 1)]),
            ]
            ask = guest.request
            good = [guest.engine.start(ask(BlkType.IN, k, into=512)) for k in range(8)]
            lengths = [await wait for wait in waits]
            assert [(await each)[0] for each in good] == [OK] * 8
            assert lengths[0] == 0 and lengths[5] in (0, 512)
            assert [guest.view[at + 64 + k] for k in range(4)] == [IOERR] * 4
            await guest.request(BlkType.FLUSH)

        guest.run(main())
        assert guest.device.status == 0


def test_a_read_only_disk(path: Path) -> None:
    before = path.read_bytes()
    with File(path, read_only=True) as disk, Guest(disk) as guest:
        features = guest.device.features
        assert features & BlkFeature.RO
        assert not features & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)

        async def main() -> None:
            assert (await guest.request(BlkType.IN, 1, into=512))[0] == OK
            assert (await guest.request(BlkType.OUT, 1, out=bytes(512)))[0] == IOERR
            assert (await guest.request(BlkType.OUT, 1))[0] == IOERR
            assert (await guest.request(BlkType.FLUSH))[0] == OK
            for type in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
                assert (await guest.request(type, out=ranges((0, 1, 0))))[0] == UNSUPP

        guest.run(main())
    assert path.read_bytes() == before


def test_a_disk_is_served_read_only_though_its_file_is_not(path: Path, disk: File) -> None:
    before = path.read_bytes()
    with Guest(disk, read_only=True) as guest:

        async def main() -> None:
            for _ in range(2):
                assert (await guest.request(BlkType.OUT, 1, out=bytes(512)))[0] == IOERR

        guest.run(main())
    assert path.read_bytes() == before


# --- the configuration space ----------------------------------------------------------------------


def test_the_configuration_space_is_as_specified(disk: File) -> None:
    device = VirtioBlk(disk, queues=4, block_size=1024, seg_max=62, size_max=65536)
    layout = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
    assert device.config_size == layout.size == 60
    assert layout.unpack(device.read_config(0, 60)) == (
        *(SECTORS, 65536, 62, 0, 0, 0, 1024, 2, 0, 4, 0, 1, 4),
        *(1 << 21, 32, 8, 1 << 21, 32, 1),
    )
    offered = device.features
    for feature in (
        *(BlkFeature.SIZE_MAX, BlkFeature.SEG_MAX, BlkFeature.BLK_SIZE, BlkFeature.TOPOLOGY),
        *(BlkFeature.MQ, BlkFeature.FLUSH, BlkFeature.CONFIG_WCE, BlkFeature.DISCARD),
        *(BlkFeature.WRITE_ZEROES, Feature.VERSION_1, Feature.INDIRECT_DESC),
    ):
        assert offered & feature
    plain = VirtioBlk(disk, seg_max=None)
    assert not plain.features & (BlkFeature.SEG_MAX | BlkFeature.SIZE_MAX | BlkFeature.MQ)


def test_part_of_a_block_at_the_end_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(1025))
    with File(path) as disk:
        assert VirtioBlk(disk).size == 1024
        assert VirtioBlk(disk, block_size=1024).config["capacity"] == 2
        assert VirtioBlk(disk, block_size=2048).config["capacity"] == 0


def test_what_a_disk_cannot_be(disk: File) -> None:
    for options, text in (
        ({"block_size": 1000}, "block_size is 1000; a power of two"),
        ({"block_size": 256}, "block_size is 256"),
        ({"queues": 0}, "queues is 0; 1 to 256"),
        ({"seg_max": 0}, "seg_max is 0"),
        ({"size_max": 1}, "size_max is 1"),
        ({"serial": "x" * 21}, "21 bytes; 20 are the most"),
    ):
        with pytest.raises(ArgumentError, match=text):
            VirtioBlk(disk, **options)
    with iodma.Null() as null, pytest.raises(ArgumentTypeError, match="has no size"):
        VirtioBlk(null)


def test_a_resize_is_told(path: Path, disk: File) -> None:
    with Guest(disk) as guest:
        device, told = guest.device, list[int]()
        device.on_config_change = lambda: told.append(device.config["capacity"])
        assert not device.resize()

        async def main() -> None:
            assert (await guest.request(BlkType.IN, SECTORS, into=512))[0] == IOERR
            disk.grow(SIZE + 512)
            assert device.resize()
            assert (await guest.request(BlkType.IN, SECTORS, into=512))[:2] == (OK, bytes(512))
            os.truncate(path, SIZE // 2)
            assert (await guest.request(BlkType.IN, SECTORS // 2, into=512))[0] == IOERR
            assert device.resize()

        guest.run(main())
        assert told == [SECTORS + 1, SECTORS // 2]


# --- the write cache ------------------------------------------------------------------------------

FLUSH, WCE = BlkFeature.FLUSH, BlkFeature.CONFIG_WCE


@pytest.mark.parametrize(
    ("features", "write_cache", "through"),
    [
        (0, True, True),  # neither accepted, flush offered
        (FLUSH, True, False),
        (FLUSH, False, True),
        (FLUSH | WCE, True, False),
        (FLUSH | WCE, False, True),
        (WCE, True, True),
    ],
)
def test_the_mode_that_the_features_say(
    disk: File, features: int, write_cache: bool, through: bool
) -> None:
    device = VirtioBlk(disk, write_cache=write_cache)
    assert disk.write_through, "until the driver has said what it can do"
    device.set_features(Feature.VERSION_1 | features)
    assert disk.write_through is through
    if features & WCE:
        assert device.read_config(32, 1) == bytes((not through,))
        for value in (0, 1, 0):
            device.write_config(32, bytes((value,)))
            assert disk.write_through is (value == 0)
    else:
        with pytest.raises(ArgumentError, match="read-only"):
            device.write_config(32, b"\0")
    with pytest.raises(ArgumentError, match="capacity of the configuration space is read-only"):
        device.write_config(0, bytes(8))


def test_a_reset_forgets_the_mode(disk: File) -> None:
    with Guest(disk, features=FLUSH | WCE) as guest:
        guest.device.write_config(32, b"\0")

        async def main() -> None:
            await guest.device.set_status(0)

        guest.run(main())
        assert guest.device.config["writeback"] == 1 and disk.write_through
        guest.device.set_features(Feature.VERSION_1 | FLUSH | WCE)
        assert not disk.write_through


@pytest.mark.parametrize("through", [False, True])
def test_zeroes_and_writes_in_either_mode(path: Path, disk: File, through: bool) -> None:
    with Guest(disk, features=FLUSH | WCE) as guest:
        guest.device.write_config(32, bytes((not through,)))

        async def main() -> None:
            for flags in (0, 1):
                out = ranges((8 + 16 * flags, 8, flags))
                assert (await guest.request(BlkType.WRITE_ZEROES, out=out))[0] == OK
            assert (await guest.request(BlkType.OUT, 0, out=b"\x22" * 512))[0] == OK
            assert (await guest.request(BlkType.FLUSH))[0] == OK

        guest.run(main())
    content = path.read_bytes()
    assert content[:512] == b"\x22" * 512
    assert content[4096:8192] == content[12288:16384] == bytes(4096)
    assert content[8192:12288] != bytes(4096)


def test_after_a_flush_that_failed_all_fail() -> None:
    # The disk says so once: the next flush of a file, say, would find nothing left to write.
    with ScriptedEndpoint(SIZE, script=[Answer.fail(5)]) as disk, Guest(disk) as guest:

        async def main() -> None:
            for _ in range(3):
                assert (await guest.request(BlkType.FLUSH))[0] == IOERR
                assert (await guest.request(BlkType.OUT, 1, out=bytes(512)))[0] == OK
            await guest.device.set_status(0)

        guest.run(main())
        assert guest.device.flushes.lost, "also after a reset"


class FlushPort:
    """Flushes end when the test says so."""

    def __init__(self, engine: iodma.Engine) -> None:
        self.engine = engine
        self.asked: list[Wait[Any]] = []

    def flush(self, disk: Any) -> Wait[Any]:
        self.asked.append(Wait(self.engine))
        return self.asked[-1]

    def end(self, error: int = 0) -> None:
        self.asked[-1]._resolve(completion(2 if error else 0, 0, error))


def flushing(steps: Callable[[Any], Any]) -> None:
    with iodma.Engine(strict=True) as engine, Buffer(512) as disk:
        port: Any = FlushPort(engine)
        flushes = Flushes(disk)

        async def main() -> None:
            async def rest() -> None:
                for _ in range(5):
                    await engine.sleep(0)

            def ask() -> Any:
                return engine.start(flushes.flush(engine, port))

            await steps((flushes, port, ask, rest))

        engine.run(main())


def test_flushes_go_one_at_a_time_and_share_the_next() -> None:
    async def steps(have: Any) -> None:
        _, port, ask, rest = have
        first = ask()
        await rest()
        others = [ask() for _ in range(3)]
        await rest()
        assert len(port.asked) == 1
        port.end()
        assert await first
        await rest()
        assert len(port.asked) == 2 and not any(each.done for each in others)
        port.end()
        assert [await each for each in others] == [True] * 3
        assert len(port.asked) == 2

    flushing(steps)


def test_a_flush_that_fails_fails_those_that_wait_for_it() -> None:
    async def steps(have: Any) -> None:
        flushes, port, ask, rest = have
        first = ask()
        await rest()
        second = ask()
        await rest()
        port.end(error=5)
        assert [await first, await second, await ask()] == [False] * 3
        assert (len(port.asked), flushes.lost) == (1, 5)

    flushing(steps)


def test_a_flush_whose_request_was_reset_is_remembered() -> None:
    async def steps(have: Any) -> None:
        flushes, port, ask, rest = have
        first = ask()
        await rest()
        first.cancel()
        await rest()
        assert first.done
        port.end(error=28)
        assert flushes.lost == 28 and not await ask()

    flushing(steps)


# --- starting, stopping, resetting ----------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_ring_is_stopped_and_resumed_under_load(path: Path, disk: File, packed: bool) -> None:
    before = path.read_bytes()
    with Guest(disk, packed=packed) as guest:
        ring = guest.rings[0]

        async def reader() -> None:
            for k in range(200):
                got = await guest.request(BlkType.IN, k % SECTORS, into=512)
                at = k % SECTORS * 512
                assert got[:2] == (OK, before[at : at + 512])

        async def main() -> None:
            readers = [guest.engine.start(reader()) for _ in range(4)]
            for _ in range(20):
                await guest.engine.sleep(0.0005)
                index = await guest.device.stop_queue(0)
                while ring.pending():
                    await guest.engine.sleep(0)
                assert index == ring.setup().next, "all that was taken was given back"
                guest.start_ring(0)
            for each in readers:
                await each

        guest.run(main())


def test_a_reset_leaves_memory_alone(disk: File) -> None:
    held = ScriptedEndpoint(SIZE, script=lambda request: Answer.hold(), on_cancel="ignore")
    with held, Guest(held) as guest:

        async def main() -> None:
            at = guest.slots.pop()
            guest.view[at : at + 16] = struct.pack("<IIQ", BlkType.IN, 0, 0)
            guest.chain([(at, 16)], [(at + 512, 512), (at + 64, 1)])
            guest.rings[0].kick()
            await guest.engine.sleep(0.01)
            reset = guest.device.set_status(0)
            assert len(held.requests) == 1
            held.answer_all()
            await reset
            guest.view[at + 512 : at + 1024] = bytes(512)
            await guest.engine.sleep(0.01)
            assert guest.view[at + 64] == 0xA5, "no status: the driver has forgotten the request"

        guest.run(main())
        guest.waits.clear()


def test_a_ring_that_makes_no_sense_breaks_itself_alone(disk: File) -> None:
    with Guest(disk, queues=2) as guest:
        told: list[str] = []
        guest.device.on_broken = told.append

        async def main() -> None:
            ring = guest.rings[0]
            struct.pack_into("<H", guest.view, ring.available + 2, 5000)
            ring.told = 0
            ring.kick()
            while not told:
                await guest.engine.sleep(0.001)
            assert ring.broken()
            assert guest.device.status & DeviceStatus.DEVICE_NEEDS_RESET
            assert (await guest.request(BlkType.IN, 1, into=512, queue=1))[0] == OK
            await guest.device.stop_queue(0)

        guest.run(main())
        assert told[0].startswith("queue 0: ")


# --- a disk that loses what was not flushed -------------------------------------------------------


class Sector:
    """What may be on the medium: the last value known to be durable, or any written since."""

    def __init__(self) -> None:
        self.values: list[bytes] = [bytes(512)]
        self.floor = 0  # the first of them that may be there

    def may_be(self, data: bytes) -> bool:
        return data in self.values[self.floor :]


@pytest.mark.parametrize("mode", ["flush", "through", "neither"])
def test_what_was_flushed_outlives_a_power_failure(rng: random.Random, mode: str) -> None:
    """Writers, flushes that take their time, and a power failure at any moment."""

    def later(request: Any) -> Answer:
        return Answer.all().after(rng.choice((0, 0, 0.0002, 0.001)))

    features = {"flush": FLUSH, "through": FLUSH | WCE, "neither": 0}[mode]
    with LossyDisk(SIZE, script=later) as disk, Guest(disk, features=features) as guest:
        if mode == "through":
            guest.device.write_config(32, b"\0")
        sectors = [Sector() for _ in range(SECTORS)]
        stop = [False]
        flushed = [0]

        async def writer(mine: range) -> None:
            while not stop[0]:
                at = rng.choice(mine)
                count = rng.randrange(1, min(4, mine.stop - at) + 1)
                data = rng.randbytes(512 * count)
                covered = sectors[at : at + count]
                for k, sector in enumerate(covered):
                    sector.values.append(data[512 * k : 512 * k + 512])
                if stop[0] or (await guest.request(BlkType.OUT, at, data))[0] != OK:
                    return
                if mode != "flush":
                    for sector in covered:
                        sector.floor = len(sector.values) - 1
                else:
                    for sector in covered:
                        complete[sector] = len(sector.values) - 1

        complete: dict[Sector, int] = {}

        async def flusher() -> None:
            while not stop[0]:
                covers = dict(complete)
                if (await guest.request(BlkType.FLUSH))[0] == OK:
                    flushed[0] += 1
                    for sector, floor in covers.items():
                        sector.floor = max(sector.floor, floor)
                await guest.engine.sleep(0.0005)

        async def main() -> None:
            for _ in range(6):
                stop[0] = False
                tasks = [
                    guest.engine.start(writer(range(first, first + 64)))
                    for first in range(0, SECTORS, 64)
                ]
                tasks.append(guest.engine.start(flusher()))
                await guest.engine.sleep(0.01)
                disk.fail(rng)
                for at, sector in enumerate(sectors):
                    kept = bytes(disk.medium[at * 512 : at * 512 + 512])
                    assert sector.may_be(kept), f"sector {at} lost what was durable"
                # What is under way goes on into the disk that came back; then all is quiet.
                stop[0] = True
                for task in tasks:
                    await task
                assert (await guest.request(BlkType.FLUSH))[0] == OK
                complete.clear()
                for at, sector in enumerate(sectors):
                    sector.values = [bytes(disk.medium[at * 512 : at * 512 + 512])]
                    sector.floor = 0

        guest.run(main())
        assert disk.failures == 6 and flushed[0] > 0


def test_the_disk_that_loses_loses() -> None:
    """What is not flushed is gone, so the test above can fail."""
    with LossyDisk(SIZE) as disk, Guest(disk, features=FLUSH) as guest:

        async def main() -> None:
            await guest.request(BlkType.OUT, 0, b"\1" * 512)
            await guest.request(BlkType.FLUSH)
            await guest.request(BlkType.OUT, 1, b"\2" * 512)
            zeroes = ranges((0, 1, 0))
            assert (await guest.request(BlkType.WRITE_ZEROES, out=zeroes))[0] == OK
            disk.fail()
            data = b"\1" * 512 + bytes(512)
            assert (await guest.request(BlkType.IN, 0, into=1024))[1] == data

        guest.run(main())


def test_a_failed_flush_is_never_made_good() -> None:
    def script(request: Any) -> Answer:
        flushes = sum(each.kind == "flush" for each in lossy.requests)
        return Answer.fail(5) if request.kind == "flush" and flushes == 2 else Answer.all()

    lossy = LossyDisk(SIZE, script=script)
    with lossy, Guest(lossy, features=FLUSH) as guest:

        async def main() -> None:
            statuses = [(await guest.request(BlkType.FLUSH))[0] for _ in range(4)]
            assert statuses == [OK, IOERR, IOERR, IOERR]

        guest.run(main())
        assert sum(each.kind == "flush" for each in lossy.requests) == 2
