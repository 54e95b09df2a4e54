"""Page tables in guest memory: a walker behind an Iommu, answers that take time, invalidation."""

from __future__ import annotations

import logging
import random
import struct
from typing import Any

import pytest

import iodma
from iodma import Access, Mapping, Status
from tests.unit.walked import PAGE, READ, RW, WRITE, Guest, guest_fixture  # noqa: F401

# --- a page table as a guest has it ---------------------------------------------------------------


class PageTable:
    """Two levels of 1024 big-endian entries in guest RAM, 4 MiB an entry of the first.

    Entry: bits 31..12 the page or table, bit 1 writable, bit 0 valid (much as SPARC, PowerPC and
    m68k have it).
    """

    ROOT = 0x10_0000

    def __init__(self, ram: iodma.Ram) -> None:
        self.view = ram.view().cast("B")
        self.free = self.ROOT + PAGE

    def entry(self, at: int) -> int:
        return int(struct.unpack_from(">I", self.view, at)[0])

    def map(self, address: int, target: int, access: Access) -> None:
        first = self.ROOT + (address >> 22) * 4
        if not self.entry(first) & 1:
            struct.pack_into(">I", self.view, first, self.free | 1)
            self.free += PAGE
        table = self.entry(first) & ~0xFFF
        valid = 3 if WRITE in access else 1
        struct.pack_into(">I", self.view, table + (address >> 12 & 1023) * 4, target | valid)

    def unmap(self, address: int) -> None:
        table = self.entry(self.ROOT + (address >> 22) * 4) & ~0xFFF
        struct.pack_into(">I", self.view, table + (address >> 12 & 1023) * 4, 0)

    def walk(self, address: int, access: Access) -> Mapping | bool:
        """The walker: plain reads of guest RAM."""
        if address >> 32:
            return False
        first = self.entry(self.ROOT + (address >> 22) * 4)
        if not first & 1:
            return False
        entry = self.entry((first & ~0xFFF) + (address >> 12 & 1023) * 4)
        if not entry & 1:
            return False
        return Mapping(address, entry & ~0xFFF, PAGE, RW if entry & 2 else READ)

    async def walk_by_dma(self, port: iodma.Port, address: int, access: Access) -> Mapping | bool:
        """The same by DMA of the Iommu's own, below itself."""
        if address >> 32:
            return False
        (first,) = await port.load(">I", self.ROOT + (address >> 22) * 4)
        if not first & 1:
            return False
        (entry,) = await port.load(">I", (first & ~0xFFF) + (address >> 12 & 1023) * 4)
        if not entry & 1:
            return False
        return Mapping(address, entry & ~0xFFF, PAGE, RW if entry & 2 else READ)


@pytest.mark.parametrize("by", ["view", "dma"])
def test_a_two_level_big_endian_page_table(guest: Guest, rng: random.Random, by: str) -> None:
    table = PageTable(guest.ram)
    if by == "view":
        guest.answer = table.walk
    else:
        below = guest.engine.port(guest.memory, "walker")
        guest.answer = lambda address, access: table.walk_by_dma(below, address, access)
    targets = [page * PAGE for page in range(64)]
    rng.shuffle(targets)
    virtual = [rng.randrange(1 << 20) * PAGE for _ in range(48)]
    for address, target in zip(virtual, targets, strict=False):
        table.map(address, target, RW)
    table.map(0x7000_0000, targets[60], READ)
    data = rng.randbytes(48 * PAGE)
    guest.zeroes.view()[: len(data)] = data

    async def main() -> None:
        done = await guest.write(*virtual)
        assert (done.status, done.moved) == (Status.OK, len(data))
        for at, target in enumerate(targets[:48]):
            assert guest.ram.view(target, PAGE) == data[at * PAGE : (at + 1) * PAGE]
        assert len(guest.walks) == 48  # each page once
        assert (await guest.read(0x7000_0000)).ok
        done = await guest.write(0x7000_0000)
        assert done.status is Status.FAULT and done.fault is not None
        assert (done.fault.stage, done.fault.access) == ("iommu", WRITE)
        assert (await guest.read(virtual[0], 0x7800_0000)).fault.offset == PAGE
        # The guest takes a page away: nothing gets there once the invalidation is done.
        table.unmap(virtual[5])
        assert await guest.iommu.invalidate(virtual[5], PAGE)
        done = await guest.read(virtual[4], virtual[5])
        assert done.status is Status.FAULT and done.fault.address == virtual[5]
        # ... and puts another there.
        table.map(virtual[5], targets[50], RW)
        assert (await guest.write(virtual[5])).ok
        assert guest.ram.view(targets[50], PAGE) == data[:PAGE]

    guest.run(main())
    table.view.release()


# --- what is asked, and how often -----------------------------------------------------------------


def test_one_question_for_many_transfers(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        waiting = [guest.read(0) for _ in range(100)]
        await guest.engine.sleep(0.005)
        assert guest.walks == [(0, READ)]
        assert guest.iommu.misses == ((0, READ),)
        assert {each.state for each in guest.engine.transfers()} == {"PENDING"}
        guest.iommu.update(Mapping(0, 0, PAGE, READ))
        assert all([(await each).ok for each in waiting])
        assert guest.walks == [(0, READ)] and len(guest.iommu.misses) == 0

    guest.run(main())


def test_a_refusal_reaches_all_that_wait_and_no_later_one(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        waiting = [guest.read(0) for _ in range(100)]
        await guest.engine.sleep(0.005)
        guest.iommu.refuse(0, READ)
        for each in waiting:
            done = await each
            assert done.status is Status.FAULT and "refused" in done.fault.reason
        assert guest.walks == [(0, READ)]
        await guest.engine.sleep(0.005)
        guest.answer = guest.identity  # the guest has mapped it since
        assert (await guest.read(0)).ok
        assert guest.walks == [(0, READ)] * 2

    guest.run(main())


def test_exactly_the_access_that_is_needed(guest: Guest) -> None:
    guest.answer = lambda address, access: Mapping(address, address, PAGE, access | READ)

    async def main() -> None:
        assert (await guest.read(0)).ok
        assert (await guest.write(0)).ok
        assert (await guest.read(0)).ok
        assert guest.walks == [(0, READ), (0, WRITE)]
        with pytest.raises(iodma.DmaFault):
            guest.answer = lambda address, access: Mapping(address, address, PAGE, READ)
            await guest.port.store("<I", 2 * PAGE, 1)

    guest.run(main())


def test_too_few_rights_refuse_only_who_wanted_more(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        reader, writer = guest.read(0), guest.write(0)
        await guest.engine.sleep(0.005)
        assert set(guest.walks) == {(0, READ), (0, WRITE)}
        guest.iommu.update(Mapping(0, 0, PAGE, READ))
        assert (await reader).ok
        assert (await writer).status is Status.FAULT
        # No rights at all: everyone is refused, and nothing is mapped.
        reader = guest.read(PAGE)
        await guest.engine.sleep(0.005)
        guest.iommu.update(Mapping(PAGE, PAGE, PAGE, Access.NONE))
        assert (await reader).status is Status.FAULT
        assert "1 mappings" in repr(guest.iommu)

    guest.run(main())


def test_a_list_asks_for_all_it_misses_together(guest: Guest) -> None:
    pages = [page * 3 * PAGE for page in range(100)]

    async def main() -> None:
        turns = guest.engine.stats().turns
        assert (await guest.read(*pages)).ok
        assert guest.walks == [(page, READ) for page in pages]
        assert guest.engine.stats().turns - turns < 20
        # One segment of many pages, too.
        guest.walks.clear()
        turns = guest.engine.stats().turns
        done = await guest.port.from_memory((300 * PAGE, 500 * PAGE), to=guest.null)
        assert done.ok and len(guest.walks) == 500
        assert guest.engine.stats().turns - turns < 60

    guest.run(main())


def test_a_guest_cannot_ask_for_the_whole_address_space(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        going = guest.port.from_memory((0, 1 << 62), to=guest.null)
        rest = guest.port.from_memory(
            [(page << 32, 1 << 30) for page in range(1000)], to=guest.null
        )
        await guest.engine.sleep(0.005)
        assert len(guest.walks) <= 65 * 64
        going.cancel()
        rest.cancel()
        assert (await going).status is Status.CANCELLED
        assert (await rest).status is Status.CANCELLED

    guest.run(main())


def test_one_answer_for_many_pages(guest: Guest) -> None:
    guest.answer = lambda address, access: Mapping(0, 0, 64 * PAGE, RW)

    async def main() -> None:
        assert (await guest.port.from_memory((0, 64 * PAGE), to=guest.null)).ok
        assert guest.walks == [(0, READ)]
        assert (await guest.write(63 * PAGE)).ok
        assert len(guest.walks) == 1

    guest.run(main())


@pytest.mark.parametrize("top", [False, True])
def test_pages_at_both_ends_of_the_address_space(guest: Guest, top: bool) -> None:
    page = (1 << 64) - PAGE if top else 0
    guest.answer = lambda address, access: Mapping(address, 0, PAGE, access)

    async def main() -> None:
        assert (await guest.read(page)).ok
        assert guest.walks == [(page, READ)]
        assert await guest.iommu.invalidate(page, PAGE)
        assert (await guest.read(page)).ok
        assert await guest.iommu.invalidate()
        assert (await guest.read(page)).ok
        assert guest.walks == [(page, READ)] * 3

    guest.run(main())


def test_map_answers_a_miss_as_well(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        waiting = guest.read(0)
        await guest.engine.sleep(0.005)
        guest.iommu.map(0, 0, PAGE, READ)
        assert (await waiting).ok
        assert await guest.iommu.unmap(0, PAGE)
        again = guest.read(0)
        await guest.engine.sleep(0.005)
        assert guest.walks == [(0, READ)] * 2  # it is asked for again
        guest.iommu.refuse(0, READ)
        assert (await again).status is Status.FAULT

    guest.run(main())


# --- answers that are wrong ---------------------------------------------------------


def raising(address: int, access: Access) -> Mapping:
    raise RuntimeError("the walker is broken")


async def raising_later(address: int, access: Access) -> Mapping:
    raise RuntimeError("the walker is broken")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (raising, "the walker is broken"),
        (raising_later, "the walker is broken"),
        (lambda address, access: True, "gave True"),
        (lambda address, access: 0x1000, "gave 4096"),
        (lambda address, access: Mapping(address + PAGE, 0, PAGE, RW), "does not hold it"),
        (lambda address, access: Mapping(address, 12, PAGE, RW), "not a multiple of the page"),
        (lambda address, access: Mapping(address, (1 << 64) - PAGE, 2 * PAGE, RW), "fit 64 bits"),
        (lambda address, access: Mapping(address, 0, 0, RW), "fit 64 bits"),
        (lambda address, access: Mapping(address, -PAGE, PAGE, RW), "fit 64 bits"),
    ],
)
def test_a_walker_that_is_wrong_refuses(
    guest: Guest, caplog: pytest.LogCaptureFixture, answer: Any, words: str
) -> None:
    guest.answer = answer

    async def main() -> None:
        with caplog.at_level(logging.ERROR, "iodma"):
            done = await guest.read(0)
        assert done.status is Status.FAULT and done.fault.stage == "iommu"
        guest.answer = guest.identity
        await guest.engine.sleep(0.002)
        assert (await guest.read(0)).ok

    guest.run(main())
    assert words in caplog.text


def test_a_target_that_is_not_there_faults_below(guest: Guest) -> None:
    guest.answer = lambda address, access: Mapping(address, 1 << 40, PAGE, access)

    async def main() -> None:
        done = await guest.read(0)
        assert done.status is Status.FAULT and done.fault.stage == "memory"

    guest.run(main())


# --- cancel, reset, close -------------------------------------------------------------------------


def test_cancel_and_reset_while_pending(guest: Guest) -> None:
    guest.answer = lambda address, access: None

    async def main() -> None:
        first, second = guest.read(0), guest.read(0)
        await guest.engine.sleep(0.005)
        first.cancel()
        assert (await first).status is Status.CANCELLED
        assert not second.done
        await guest.port.reset()
        assert (await second).status is Status.CANCELLED
        guest.iommu.update(Mapping(0, 0, PAGE, READ))  # nobody waits any more
        assert (await guest.read(0)).ok

    guest.run(main())


def test_an_engine_may_close_while_something_is_pending() -> None:
    memory_guest = Guest(lambda address, access: None)

    async def main() -> None:
        memory_guest.read(0)
        await memory_guest.engine.sleep(0.005)

    memory_guest.run(main())
    memory_guest.engine.close()
    # The next engine asks afresh.
    memory_guest.answer = memory_guest.identity
    with iodma.Engine(strict=True) as engine:
        port = engine.port(memory_guest.iommu)

        async def again() -> None:
            assert (await port.from_memory((0, PAGE), to=iodma.Null())).ok

        engine.run(again())
    assert memory_guest.walks == [(0, READ)] * 2
    memory_guest.close()


def test_two_stages_that_both_miss(guest: Guest) -> None:
    outer_walks: list[tuple[int, Access]] = []

    def outer_walk(address: int, access: Access) -> Mapping:
        outer_walks.append((address, access))
        return Mapping(address, address ^ PAGE, PAGE, access)

    port = guest.engine.port(iodma.Iommu(guest.iommu, walk=outer_walk, name="outer"))

    async def main() -> None:
        done = await port.from_memory((0, 16 * PAGE), to=guest.null)
        assert done.ok
        assert outer_walks == [(page * PAGE, READ) for page in range(16)]
        assert sorted(guest.walks) == outer_walks

    guest.run(main())


def test_more_rights_for_the_same_page_revoke_nothing(guest: Guest) -> None:
    async def main() -> None:
        assert guest.iommu.update(Mapping(0, 0, PAGE, READ)) is None
        assert guest.iommu.update(Mapping(0, 0, PAGE, RW)) is None
        less = guest.iommu.update(Mapping(0, 0, PAGE, READ))
        assert less is not None and await less
        other = guest.iommu.update(Mapping(0, PAGE, PAGE, READ))
        assert other is not None and await other

    guest.run(main())


def test_misuse_is_told(guest: Guest) -> None:
    with pytest.raises(iodma.AddressRangeError, match="length is 0"):
        guest.iommu.invalidate(PAGE, 0)
    with pytest.raises(iodma.ArgumentTypeError, match="cannot be called"):
        iodma.Iommu(guest.memory, walk=3)  # type: ignore[arg-type]
