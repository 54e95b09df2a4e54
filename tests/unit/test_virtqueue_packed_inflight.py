# SPDX-License-Identifier: Apache-2.0
"""Chains of a packed ring that are in flight as a process dies: the next one takes them first
(vhost-user, "Inflight I/O tracking").

Invariant: a queue that is released without an answer is as good as dead; what it would have left at
one moment or another of its last step is put together here from before and after that step.
"""

from __future__ import annotations

import random
import struct

import pytest

import iodma
from iodma.virtio.queue import Virtqueue
from tests.unit.ringdriver import (
    AVAIL,
    BASE,
    BUFFERS,
    USED,
    WRITE,
    PackedDriver,
    packed_driver,
    signalled,
)

AREA = 0x20000  # of the same memory, for once
HEAD, ENTRY = 32, 32
FREE_HEAD, OLD_FREE_HEAD, POSITION = 12, 14, 16
SIZE = 8
#: What a front-end knows of a ring whose server was killed: where it began.
STALE = 0x8000_8000


def queue(d: PackedDriver, next: int = STALE) -> Virtqueue:
    return d.queue(inflight=d.ram, inflight_at=AREA, next=next)


def area(d: PackedDriver) -> bytes:
    return bytes(d.view[AREA : AREA + HEAD + ENTRY * d.size])


def put(d: PackedDriver, at: int, data: bytes) -> None:
    d.view[at : at + len(data)] = data


def recorded(d: PackedDriver) -> list[int]:
    """The numbers of the chains that the area has in flight, by age."""
    found = []
    for i in range(d.size):
        entry = AREA + HEAD + ENTRY * i
        if d.view[entry]:
            (last,) = struct.unpack_from("<H", d.view, entry + 4)
            (counter,) = struct.unpack_from("<Q", d.view, entry + 8)
            (id,) = struct.unpack_from("<H", d.view, AREA + HEAD + ENTRY * last + 16)
            found.append((counter, id))
    return [id for _, id in sorted(found)]


def test_the_area_is_as_the_specification_has_it() -> None:
    with packed_driver(size=SIZE) as d:
        first = queue(d)
        d.read(5, 77)
        assert first.pop(1) is not None
        version, count, free, old_free = struct.unpack_from("<HHHH", d.view, AREA + 8)
        assert (version, count, free, old_free) == (1, SIZE, 3, 3)
        assert struct.unpack_from("<HHBB", d.view, AREA + POSITION) == (0, 0, 1, 1)
        inflight, _, next, last, num, counter = struct.unpack_from("<BBHHHQ", d.view, AREA + HEAD)
        assert (inflight, next, last, num, counter) == (1, 1, 2, 3, 0)
        second = struct.unpack_from("<HHIQ", d.view, AREA + HEAD + ENTRY + 16)
        assert second == (5, AVAIL | WRITE | 1, 512, BASE + BUFFERS + 0x5200)
        first.finish(5, 512, b"\0")
        assert recorded(d) == []
        assert struct.unpack_from("<HHBB", d.view, AREA + POSITION) == (3, 3, 1, 1)
        first.release()


def test_deaths_at_any_time(rng: random.Random) -> None:
    """A driver and a device, which is killed now and then, over many laps."""
    with packed_driver(size=11) as d:
        device = queue(d)
        made: list[int] = []  # available; the first of them were taken, once or more
        taken: list[int] = []  # by the device that lives
        noted = 0
        sectors: dict[int, int] = {}
        deaths = 0
        for step in range(4000):
            what = rng.random()
            if what < 0.4 and 3 * len(sectors) + 3 <= d.size:
                id = rng.choice([id for id in range(d.size) if id not in sectors])
                sectors[id] = step
                made.append(id)
                d.read(id, step)
            elif what < 0.6:
                chains = device.pop(rng.randrange(1, 4))
                if chains is not None:
                    ids = chains.id.tolist()
                    assert chains.position.tolist() == [sectors[id] for id in ids]
                    assert ids == [id for id in made if id not in taken][: len(ids)]
                    taken += ids
                    noted = max(noted, made.index(ids[-1]) + 1)
            elif what < 0.95 and taken:
                id = taken.pop(rng.randrange(len(taken)))
                made.remove(id)
                noted -= 1
                del sectors[id]
                device.finish(id, 512, b"\0")
                assert d.used() == [(id, 513)]
            elif what > 0.97:
                assert recorded(d) == made[:noted]
                device.release()
                device = queue(d)
                taken.clear()  # and taken again
                deaths += 1
        assert deaths > 50 and device.broken is None
        device.release()


def test_indirect_tables_and_chains_that_make_no_sense() -> None:
    with packed_driver(size=SIZE, flags=2) as d:
        table = BASE + BUFFERS + 0x800
        at = BASE + BUFFERS
        for i, (address, length, flags) in enumerate(
            [(at, 16, 0), (at + 0x200, 512, WRITE), (at + 16, 1, WRITE)]
        ):
            struct.pack_into("<QIHH", d.view, BUFFERS + 0x800 + 16 * i, address, length, 0, flags)
        first = queue(d)
        d.offer(3, [(table, 48, 4)])
        d.offer(4, [(at, 16, WRITE), (at, 16, 0)])
        chains = first.pop(4)
        assert chains is not None and chains.id.tolist() == [3]
        assert d.used() == [(4, 0)] and recorded(d) == [3]  # in the first one's place
        first.release()
        again = queue(d)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [3]
        assert (chains.readable.tolist(), chains.writable.tolist()) == ([0], [512])
        again.finish(3, 512, b"\0")
        assert d.used() == [(3, 513)]
        again.release()


@pytest.mark.parametrize("died", ["before", "seen", "unmarked", "freed"])
def test_death_as_chains_are_used(died: str) -> None:
    """Until the driver can see the first of them, none was used; from then on all were."""
    with packed_driver(size=SIZE) as d:
        first = queue(d)
        d.read(1, 1)
        d.read(2, 2)
        assert first.pop(2) is not None
        before = area(d)
        ring = bytes(d.view[PackedDriver.RING : PackedDriver.RING + 16 * d.size])
        first.finish(2, 512, b"\0")
        first.release()
        half = bytearray(area(d))
        if died != "freed":
            half[OLD_FREE_HEAD : OLD_FREE_HEAD + 2] = before[OLD_FREE_HEAD : OLD_FREE_HEAD + 2]
        used, _, wrap, _ = struct.unpack_from("<HHBB", half, POSITION)
        _, old, _, old_wrap = struct.unpack_from("<HHBB", before, POSITION)
        struct.pack_into("<HHBB", half, POSITION, used, old, wrap, old_wrap)
        if died in ("before", "seen"):
            half[HEAD + ENTRY * 3] = 1
        put(d, AREA, bytes(half))
        if died == "before":
            put(d, PackedDriver.RING, ring)
        if died != "before":
            assert d.used() == [(2, 513)]
        again = queue(d)
        chains = again.pop(4)
        assert chains is not None
        left = [1, 2] if died == "before" else [1]
        assert chains.id.tolist() == left
        for id in left:
            again.finish(id, 512, b"\0")
        assert d.used() == [(id, 513) for id in left]
        d.read(0, 7)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [0]
        assert recorded(d) == [0]
        again.release()


def test_death_with_half_a_batch_in_the_ring() -> None:
    """The flags of all but the first are there: they must not be seen before their chains are used
    again."""
    with packed_driver(size=SIZE) as d:
        first = queue(d)
        d.read(1, 1)
        d.read(2, 2)
        assert first.pop(2) is not None
        before = area(d)
        first.release()
        half = bytearray(before)
        struct.pack_into("<HHBB", half, POSITION, 6, 0, 1, 1)
        put(d, AREA, bytes(half))
        both = AVAIL | USED
        struct.pack_into("<IHH", d.view, 16 * 3 + 8, 513, 1, both)  # the second of the batch
        again = queue(d)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [1, 2]
        again.finish(2, 512, b"\0")
        assert d.used() == [(2, 513)]  # and not what stands behind it
        again.finish(1, 512, b"\0")
        assert d.used() == [(1, 513)]
        again.release()


def test_the_driver_is_told_again() -> None:
    """Whoever died may have used chains and told nobody."""
    with packed_driver(size=SIZE) as d:
        first = queue(d)
        d.read(1, 1)
        assert first.pop(1) is not None
        first.finish(1, 512, b"\0")
        first.release()
        assert signalled(d.call)
        again = queue(d)
        assert again.pop(1) is None and signalled(d.call)
        again.release()


def test_death_as_a_chain_is_taken() -> None:
    """Marked, and still on the free list: it is in the ring, and taken from there."""
    with packed_driver(size=SIZE) as d:
        first = queue(d)
        d.read(1, 1)
        assert first.pop(0) is None
        before = area(d)
        assert first.pop(1) is not None
        first.release()
        half = bytearray(area(d))
        half[FREE_HEAD : FREE_HEAD + 4] = before[FREE_HEAD : FREE_HEAD + 4]
        put(d, AREA, bytes(half))
        again = queue(d)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [1]
        assert again.pop(4) is None
        again.finish(1, 512, b"\0")
        assert d.used() == [(1, 513)]
        again.release()


@pytest.mark.parametrize("seed", range(60))
def test_an_area_full_of_nonsense(seed: int) -> None:
    """Whatever a front-end leaves there, at most the queue breaks."""
    rng = random.Random(seed)
    with packed_driver(size=SIZE) as d:
        if seed % 2:  # a good one, but for a few bytes
            first = queue(d)
            for id in (1, 2):
                d.read(id, id)
            assert first.pop(1) is not None
            first.release()
            for _ in range(3):
                d.view[AREA + 12 + rng.randrange(len(area(d)) - 12)] = rng.randrange(256)
        else:
            put(d, AREA, rng.randbytes(len(area(d))))
            struct.pack_into("<HH", d.view, AREA + 8, 1, SIZE)
        again = queue(d)
        for _ in range(4):
            chains = again.pop(SIZE)
            for id in [] if chains is None else chains.id.tolist():
                again.finish(id, 0, b"\0")
        again.release()


def test_an_area_that_leads_round_in_a_circle_breaks_the_queue() -> None:
    with packed_driver(size=SIZE) as d:
        queue(d).pop(1)  # nothing, and it is gone
        struct.pack_into("<H", d.view, AREA + HEAD + ENTRY * 2 + 2, 1)
        again = queue(d)
        assert again.pop(1) is None
        assert again.broken is not None and "makes no sense" in again.broken
        again.release()


def test_more_descriptors_than_the_ring_has() -> None:
    """A driver that overwrites descriptors of chains in flight: there is no entry left for them."""
    with packed_driver(size=SIZE) as d:
        device = queue(d)
        for id in range(4):
            d.read(id, id)
            device.pop(1)
        assert device.broken is not None and "more descriptors" in device.broken
        device.release()


def test_an_area_that_is_too_small() -> None:
    with packed_driver(size=SIZE) as d:
        most = (1 << 20) - HEAD - ENTRY * SIZE
        d.queue(inflight=d.ram, inflight_at=most).release()
        with pytest.raises(iodma.AddressRangeError, match="in flight"):
            d.queue(inflight=d.ram, inflight_at=most + 8)
