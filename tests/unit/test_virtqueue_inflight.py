# SPDX-License-Identifier: Apache-2.0
"""Chains of a split ring that are in flight as a process dies: the next one takes them first
(vhost-user, "Inflight I/O tracking")."""

from __future__ import annotations

import random
import struct

import pytest

import iodma
from tests.unit.ringdriver import (
    BASE,
    BUFFERS,
    NEXT,
    WRITE,
    SplitDriver,
    split_driver,
)

INFLIGHT = 0x8000  # of the same memory, for once


def recorded(d: SplitDriver) -> tuple[list[int], int]:
    """The heads that the area has in flight, and its used index."""
    heads = [i for i in range(d.size) if d.view[INFLIGHT + 16 + 16 * i]]
    return heads, struct.unpack_from("<H", d.view, INFLIGHT + 14)[0]


def test_chains_in_flight_outlive_the_queue() -> None:
    with split_driver() as d:
        first = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        for slot in (1, 0):
            d.read(slot, slot)
        assert first.pop(1) is not None and first.pop(1) is not None
        assert recorded(d) == ([0, 3], 0)
        d.describe(6, BASE + BUFFERS, 16, NEXT, 7)
        d.describe(7, BASE + BUFFERS + 16, 1, WRITE)
        d.offer(6)
        assert first.pop(4) is not None
        first.finish(0, 512, b"\0")
        assert recorded(d) == ([3, 6], 1)
        first.release()  # as good as dead: two were not answered

        again = d.queue(inflight=d.ram, inflight_at=INFLIGHT, next=1)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [3, 6]  # in the order of old
        assert again.next == 3
        again.finish(6, 0, b"\0")
        again.finish(3, 512, b"\0")
        assert recorded(d) == ([], 3)
        assert d.used() == [(0, 513), (6, 1), (3, 513)]
        d.read(0, 0)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [0]
        again.release()


def test_death_between_the_used_index_and_the_marks() -> None:
    with split_driver() as d:
        first = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        d.read(0, 0)
        d.read(1, 1)
        assert first.pop(2) is not None
        first.finish(3, 512, b"\0")
        first.release()
        # As if it had died just before it took the mark off.
        d.view[INFLIGHT + 16 + 16 * 3] = 1
        struct.pack_into("<H", d.view, INFLIGHT + 14, 0)
        again = d.queue(inflight=d.ram, inflight_at=INFLIGHT, next=1)
        chains = again.pop(4)
        assert chains is not None and chains.id.tolist() == [0]
        assert recorded(d) == ([0], 1)
        again.release()


@pytest.mark.parametrize("seed", range(20))
def test_an_area_full_of_nonsense(seed: int) -> None:
    rng = random.Random(seed)
    with split_driver() as d:
        area = bytearray(rng.randbytes(16 + 16 * d.size))
        struct.pack_into("<HH", area, 8, 1, d.size)
        d.view[INFLIGHT : INFLIGHT + len(area)] = area
        queue = d.queue(inflight=d.ram, inflight_at=INFLIGHT)
        d.read(0, 0)
        for _ in range(4):
            chains = queue.pop(d.size)
            for head in [] if chains is None else chains.id.tolist():
                queue.finish(head, 0, b"\0")
        queue.release()


def test_an_area_that_is_too_small() -> None:
    with split_driver() as d:
        for at in (4, (1 << 20) - 16, 1 << 40):
            with pytest.raises(iodma.AddressRangeError, match="in flight"):
                d.queue(inflight=d.ram, inflight_at=at)
