"""The block device under a driver that the test writes, on the real ring."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Access, ArgumentError, ArgumentTypeError, Buffer, File, Iommu, Mapping
from iodma.devices.virtio_blk import BlkFeature, BlkType, VirtioBlk
from iodma.testing import Answer, ScriptedEndpoint
from iodma.virtio import DeviceStatus, Feature
from tests.unit.guestdisk import (  # noqa: F401
    IOERR,
    OK,
    SECTORS,
    SIZE,
    UNSUPP,
    Guest,
    disk_fixture,
    path_fixture,
    ranges,
)

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
