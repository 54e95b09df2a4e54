# SPDX-License-Identifier: Apache-2.0
"""Answers of a walker that are older than an invalidation: none is installed.

Invariants:

- Whatever takes an answer - a coroutine's end, `update`, `refuse` - a page that was invalidated
  since it was asked for is asked for again.
- An invalidation of other pages disturbs nobody.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

import iodma
from iodma import Access, Mapping, Status
from tests.unit.walked import PAGE, READ, RW, WRITE, Guest, guest_fixture, settle  # noqa: F401


def test_an_answer_from_before_an_invalidation_is_thrown_away(guest: Guest) -> None:
    """The guest changes its table and invalidates while a walk of the old one is on its way."""
    gates = [iodma.Event(guest.engine) for _ in range(2)]
    table = {0: 8 * PAGE}

    async def slow(address: int, access: Access) -> Mapping:
        target = table[address]
        await gates[len(guest.walks) - 1].wait()
        return Mapping(address, target, PAGE, access)

    guest.answer = slow

    async def main() -> None:
        writing = guest.write(0)
        await guest.engine.sleep(0.005)
        table[0] = 9 * PAGE
        assert await guest.iommu.invalidate(0, PAGE)
        gates[0].set()
        await guest.engine.sleep(0.005)
        assert guest.walks == [(0, WRITE)] * 2 and not writing.done
        gates[1].set()
        assert (await writing).ok

    guest.zeroes.view()[:PAGE] = b"\xff" * PAGE
    guest.run(main())
    assert bytes(guest.ram.view(8 * PAGE, 1)) == b"\0"
    assert bytes(guest.ram.view(9 * PAGE, 1)) == b"\xff"


@pytest.mark.parametrize("what", ["invalidate", "unmap", "all"])
def test_an_update_from_before_an_invalidation_is_not_installed(guest: Guest, what: str) -> None:
    """The answer is on its way in somebody's queue while the guest invalidates."""
    guest.answer = lambda address, access: None

    async def main() -> None:
        writing = guest.write(0, PAGE)
        await settle(guest, 2)
        if what == "invalidate":
            assert await guest.iommu.invalidate(PAGE, PAGE)
        elif what == "unmap":
            assert await guest.iommu.unmap(PAGE, PAGE)
        else:
            assert await guest.iommu.invalidate()
        assert guest.iommu.update(Mapping(0, 8 * PAGE, 2 * PAGE, RW)) is None
        await settle(guest, 4)
        assert guest.walks == [(0, WRITE), (PAGE, WRITE)] * 2 and not writing.done
        guest.iommu.update(Mapping(0, 10 * PAGE, 2 * PAGE, RW))
        assert (await writing).ok
        assert guest.iommu.misses == ()

    guest.zeroes.view()[: 2 * PAGE] = b"\xff" * (2 * PAGE)
    guest.run(main())
    assert bytes(guest.ram.view(8 * PAGE, 2 * PAGE)) == bytes(2 * PAGE)
    assert bytes(guest.ram.view(10 * PAGE, 2 * PAGE)) == b"\xff" * (2 * PAGE)


def test_a_refusal_from_before_an_invalidation_is_asked_for_again(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        writing = guest.write(0)
        await settle(guest, 1)
        guest.iommu.invalidate(0, PAGE)
        guest.iommu.refuse(0, WRITE)
        await settle(guest, 2)
        assert guest.walks == [(0, WRITE)] * 2 and not writing.done
        guest.iommu.refuse(0, WRITE)
        assert (await writing).status is Status.FAULT

    guest.run(main())


def test_a_large_page_is_out_of_date_if_any_of_it_is(guest: Guest) -> None:
    """Also where what was invalidated is another page than the one that was asked for."""
    gates = [iodma.Event(guest.engine) for _ in range(2)]

    async def slow(address: int, access: Access) -> Mapping:
        number = len(guest.walks)
        await gates[number - 1].wait()
        return Mapping(0, number * 64 * PAGE, 16 * PAGE, RW)

    guest.answer = slow

    async def main() -> None:
        writing = guest.write(0)
        await settle(guest, 1)
        guest.iommu.invalidate(5 * PAGE, PAGE)
        gates[0].set()
        await settle(guest, 2)
        assert not writing.done
        gates[1].set()
        assert (await writing).ok
        assert (await guest.write(5 * PAGE)).ok

    guest.zeroes.view()[:PAGE] = b"\xff" * PAGE
    guest.run(main())
    assert len(guest.walks) == 2
    assert bytes(guest.ram.view(133 * PAGE, 1)) == b"\xff"
    assert bytes(guest.ram.view(64 * PAGE, 16 * PAGE)) == bytes(16 * PAGE)


def test_an_answer_outlasts_many_invalidations_elsewhere(guest: Guest) -> None:
    """What is remembered of them is bounded; past that, the page is asked for again."""
    guest.answer = lambda address, access: None

    async def main() -> None:
        reading = guest.read(0)
        await settle(guest, 1)
        for _ in range(500):
            guest.iommu.invalidate(PAGE, PAGE)
        guest.iommu.update(Mapping(0, 0, PAGE, RW))
        assert (await reading).ok and guest.walks == [(0, READ)]
        other = guest.read(8 * PAGE)
        await settle(guest, 2)
        for _ in range(3000):
            guest.iommu.invalidate(PAGE, PAGE)
        assert guest.iommu._asked is not None
        assert len(guest.iommu._asked._invalidations) <= 1024
        guest.iommu.update(Mapping(8 * PAGE, 0, PAGE, RW))
        await settle(guest, 3)
        assert guest.walks[1:] == [(8 * PAGE, READ)] * 2 and not other.done
        guest.iommu.update(Mapping(8 * PAGE, 0, PAGE, RW))
        assert (await other).ok

    guest.run(main())


def test_what_nobody_asked_for_is_installed_after_an_invalidation(guest: Guest) -> None:
    async def main() -> None:
        guest.iommu.invalidate()
        guest.iommu.update(Mapping(0, 8 * PAGE, PAGE, RW))
        assert (await guest.read(0)).ok and guest.walks == []

    guest.run(main())


def test_a_walker_that_invalidates_what_it_answers_is_believed(guest: Guest) -> None:
    def walk(address: int, access: Access) -> Mapping:
        guest.iommu.invalidate()
        return Mapping(address, address, PAGE, access)

    guest.answer = walk

    async def main() -> None:
        assert (await guest.read(0)).ok and guest.walks == [(0, READ)]

    guest.run(main())


def test_an_invalidation_elsewhere_does_not_disturb(guest: Guest) -> None:
    gate = iodma.Event(guest.engine)

    async def slow(address: int, access: Access) -> Mapping:
        await gate.wait()
        return Mapping(address, address, PAGE, access)

    guest.answer = slow

    async def main() -> None:
        reading = guest.read(0)
        await guest.engine.sleep(0.005)
        assert await guest.iommu.invalidate(PAGE, 1 << 40)
        gate.set()
        assert (await reading).ok and guest.walks == [(0, READ)]

    guest.run(main())


# --- a model ---


def test_random_tables_walks_and_invalidations(guest: Guest, rng: random.Random) -> None:
    """No byte through a translation that was invalidated; what is not mapped faults at its byte."""
    pages = 16
    table: dict[int, tuple[int, Access]] = {}
    engine = guest.engine

    def lookup(address: int, access: Access) -> Mapping | bool:
        found = table.get(address)
        if found is None or access not in found[1]:
            return False
        return Mapping(address, found[0], PAGE, found[1])

    async def later(address: int, access: Access) -> Mapping | bool:
        found = lookup(address, access)
        await engine.sleep(rng.random() / 2000)
        return found

    async def update(address: int, access: Access) -> None:
        found = await later(address, access)
        if isinstance(found, Mapping):
            guest.iommu.update(found)
        else:
            guest.iommu.refuse(address, access)

    def answer(address: int, access: Access) -> Any:
        how = rng.randrange(3)
        if how == 0:
            return lookup(address, access)
        if how == 1:
            return later(address, access)
        engine.start(update(address, access))
        return None

    guest.answer = answer

    async def main() -> None:
        for round in range(150):
            for _ in range(rng.randrange(4)):
                page = rng.randrange(pages) * PAGE
                if rng.random() < 0.3:
                    table.pop(page, None)
                else:
                    table[page] = (rng.randrange(64) * PAGE, rng.choice((READ, RW, RW)))
                if rng.random() < 0.8:
                    revocation = guest.iommu.invalidate(page, PAGE)
                else:
                    revocation = guest.iommu.invalidate()
                assert await revocation
            wanted = [rng.randrange(pages) * PAGE for _ in range(rng.randrange(1, 6))]
            mark = bytes([round % 255 + 1])
            guest.zeroes.view()[: len(wanted) * PAGE] = mark * (len(wanted) * PAGE)
            before = bytes(guest.ram.view(0, 64 * PAGE))
            done = await guest.write(*wanted)
            bad = next(
                (i for i, p in enumerate(wanted) if p not in table or WRITE not in table[p][1]),
                None,
            )
            expected = bytearray(before)
            if bad is None:
                assert (done.status, done.moved) == (Status.OK, len(wanted) * PAGE)
                for page in wanted:
                    target = table[page][0]
                    expected[target : target + PAGE] = mark * PAGE
            else:
                assert done.status is Status.FAULT and done.fault is not None
                assert done.fault.offset == bad * PAGE and done.fault.address == wanted[bad]
            assert guest.ram.view(0, 64 * PAGE) == expected

    guest.run(main())
