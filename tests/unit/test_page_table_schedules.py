"""Entries change, pages are flushed and memory goes, under transfers in flight: no stale byte.

The schedules of `test_schedules`, with a page table in guest memory in the place of the Iommu: a
page is mapped by writing its entry, and taken back by clearing it and flushing.  What is in flight
through it has ended when the flush is acknowledged, and what comes later walks again.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

import iodma
from iodma import Access, Revocation
from iodma.stages import PageEntry, PageTable
from tests.unit.schedules import run_many
from tests.unit.test_schedules import IOVA, IOVAS, PAGE, Schedule, run_schedule

ENTRY = PageEntry(valid=2, write=4, frame=0xFFFF_FF00, shift=4)
#: Where the table is; the memory that pages are in is elsewhere.
TABLE = 0x90_0000


class Driver:
    """A guest's driver, with the words of an Iommu."""

    misses = ()

    def __init__(self, memory: iodma.Memory, ram: iodma.Ram, rng: random.Random) -> None:
        memory.add(TABLE, ram)
        self.ram = ram
        self.stage = PageTable(
            memory,
            ENTRY,
            table=TABLE,
            first=IOVA,
            length=IOVAS * PAGE,
            cached=rng.choice([1, 4, 64]),
        )

    def put(self, address: int, entry: int) -> None:
        with self.ram.view(0, 4 * IOVAS) as view:
            struct.pack_into(">I", view, (address - IOVA) // PAGE * 4, entry)

    def map(self, address: int, target: int, length: int, access: Access) -> None:
        assert length == PAGE
        self.put(address, target >> 4 | (6 if Access.WRITE in access else 2))

    def unmap(self, address: int, length: int, **how: Any) -> Revocation:
        for page in range(address, address + length, PAGE):
            self.put(page, 0)
        return self.stage.flush(address, length, **how)

    def invalidate(self, address: int, length: int, **how: Any) -> Revocation:
        """Everything is flushed, if that is all there is; or the table is another one."""
        if length < IOVAS * PAGE:
            return self.unmap(address, length, **how)
        for page in range(address, address + length, PAGE):
            self.put(page, 0)
        return self.stage.flush(**how) if address % 2 else self.stage.set(table=TABLE, **how)


class Tables(Schedule):
    """A schedule whose pages are in a table."""

    def stage(self) -> tuple[Any, Any]:
        self.walking = False
        ram = self.stack.enter_context(iodma.Ram(PAGE))
        driver = Driver(self.memory, ram, self.rng)
        return driver, driver.stage


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("part", range(2))
def test_schedules_of_a_page_table(
    engine: str, part: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IODMA_ENGINE", engine)
    run_many(lambda seed: run_schedule(seed, Tables), rng, 100)


@pytest.mark.soak
def test_ten_thousand_schedules_of_a_page_table(rng: random.Random) -> None:
    run_many(lambda seed: run_schedule(seed, Tables), rng, 10_000)
