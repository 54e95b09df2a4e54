"""Chains for the property tests: the same one built twice, of the package and of the model.

Invariants:

- A `Twin` changes both sides at once, so that they describe the same address space at all times.
- A device cannot write to a page table, wherever its memory is added: what is cached of an entry
  holds until it is flushed, and the model has no cache.
- Big maps are drawn from one number, so that hypothesis has little to shrink; small ones piece by
  piece.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

import iodma
from iodma import Access
from iodma.stages import PageEntry, PageTable, TableMode
from tests.unit import model
from tests.unit.farmemory import FarMemory

TOP = model.TOP
PAGES = (8, 64, 4096)


class Twin:
    """One chain, twice: `real` and `model` are its tops."""

    def __init__(self, sizes: list[int], rom: bytes = b"", far: Sequence[int] = ()) -> None:
        self.regions: list[tuple[Any, model.Region]] = []
        for i, size in enumerate(sizes):
            self.regions.append((iodma.Ram(size), model.Region(bytearray(size), name=f"ram{i}")))
        if rom:
            self.regions.append((iodma.Rom(rom), model.Region(bytearray(rom), False, "rom")))
        for i, size in enumerate(far):
            memory = FarMemory(size, most=(64, 1000, 1 << 20)[i % 3], seed=size + i)
            self.regions.append((memory, model.Region(bytearray(size), name=f"far{i}")))
        self.memory = (iodma.Memory(), model.Memory())
        self.real: Any = self.memory[0]
        self.model: model.Stage = self.memory[1]
        self.iommus: list[tuple[iodma.Iommu, model.Iommu]] = []
        self.tables: dict[int, PageTable] = {}  # by the index of the region that a table is in
        self.gates: list[tuple[iodma.PciSlot, model.Gate]] = []
        self.aligned = True  # byte lanes may stand on top

    def close(self) -> None:
        for real, _ in self.regions:
            real.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def host(self, region: model.Region) -> int:
        return int(next(real._host for real, each in self.regions if each is region))

    def add(self, base: int, which: int, offset: int, length: int, read_only: bool = False) -> None:
        real, region = self.regions[which]
        read_only |= which in self.tables
        self.memory[0].add(base, real, offset, length, read_only=read_only)
        self.memory[1].add(base, region, offset, length, read_only)

    def window(self, offset: int, limit: int) -> None:
        name = f"window{offset:x}"
        self.real = iodma.Window(self.real, offset, limit, name=name)
        self.model = model.Window(self.model, offset, limit, name)
        self.aligned &= offset % 8 == 0

    def lanes(self, width: int) -> None:
        self.real = iodma.ByteLanes(self.real, width, name=f"lanes{width}")
        self.model = model.ByteLanes(self.model, width, f"lanes{width}")

    def gate(self) -> None:
        self.real = slot = iodma.PciSlot(self.real, name=f"slot{len(self.gates)}")
        self.model = gate = model.Gate(self.model, slot.name)
        self.gates.append((slot, gate))
        self.shut(-1, False)

    def shut(self, which: int, shut: bool) -> None:
        slot, gate = self.gates[which]
        slot.set_bus_master(not shut)
        gate.shut = shut

    def iommu(self, page: int) -> None:
        name = f"iommu{len(self.iommus)}"
        real = iodma.Iommu(self.real, page, name=name)
        twin = model.Iommu(self.model, name)
        self.iommus.append((real, twin))
        self.real, self.model = real, twin

    def page_table(self, rng: random.Random) -> None:
        """Directly above the memory, where its table is, too: mostly in a Ram of its own."""
        page = rng.choice([512, 4096, 8192])
        pages = rng.randint(1, 24)
        width = rng.choice([4, 8])
        size = pages * width
        base = 0x77_0000_0000 + rng.randrange(64) * width  # where `fill_memory` puts nothing
        name = f"table{base:x}"
        ram, region = iodma.Ram(size), model.Region(bytearray(size), name=name)
        self.regions.append((ram, region))
        there = max(1, size - rng.choice([0, 0, 0, width, width - 1]))
        self.add(base, len(self.regions) - 1, 0, there, read_only=True)
        first = rng.choice([0, page * 7, 1 << 32, TOP - pages * page])
        shift = (page // 8).bit_length() - 1
        entry = PageEntry(
            width=width,
            byteorder=rng.choice(["big", "little"]),
            valid=1,
            write=2,
            frame=(1 << min(8 * width, 64 - shift)) - 8,
            shift=shift,
        )
        below = sorted(edge for edge in self.model.edges() if edge < TOP)
        for number in range(pages):
            at = rng.choice(below) // page * page
            bits = at >> entry.shift | rng.choice([3, 3, 3, 1, 2, 0])
            bits &= (1 << 8 * width) - 1
            data = bits.to_bytes(width, entry.byteorder)
            region.data[number * width : (number + 1) * width] = data
        with ram.view() as view:
            view[:] = region.data

        def look_up(number: int) -> tuple[()] | tuple[int, int] | None:
            place, run = self.memory[1].look(base + number * width, model.READ)
            if not isinstance(place, model.Place) or run < width:
                return None
            data = place.region.data[place.offset : place.offset + width]
            bits = int.from_bytes(data, entry.byteorder)
            if not bits & entry.valid:
                return ()
            return (bits & entry.frame) << entry.shift, 3 if bits & entry.write else 1

        outside = rng.random() < 0.3
        self.real = table = PageTable(
            self.real,
            entry,
            page=page,
            table=base,
            first=first,
            length=pages * page,
            outside=TableMode.PASS if outside else TableMode.REFUSE,
            cached=rng.choice([1, 8, 64]),
            name=name,
        )
        self.tables[len(self.regions) - 1] = table
        self.model = model.PageTable(self.model, page, first, pages, look_up, outside, name)

    def map(self, address: int, target: int, length: int, access: int, which: int = -1) -> None:
        real, twin = self.iommus[which]
        real.map(address, target, length, Access(access))
        twin.map(address, target, length, access)


def fill_memory(twin: Twin, rng: random.Random, count: int) -> None:
    """`count` regions, some of them neighbours in memory and in their Ram, the last up to 2^64."""
    sizes = [region.data for _, region in twin.regions]
    at = rng.choice([0, 3, 8, 0x1000])
    for i in range(count):
        which = rng.randrange(len(sizes))
        size = len(sizes[which])
        length = rng.randint(1, min(size, rng.choice([7, 64, 5000, 5000, 70_000])))
        offset = rng.randrange(size - length + 1)
        if twin.memory[1].ranges and rng.random() < 0.4:  # goes on where the last one ended
            last = twin.memory[1].ranges[-1]
            region = twin.regions[which][1]
            if last.region is region and last.target + last.length + length <= size:
                offset = last.target + last.length
        elif rng.random() < 0.7:
            at += rng.choice([1, 8, 16, 0x1000, 1 << 40 if count < 100 else 32])
        if i == count - 1 and rng.random() < 0.5:
            at = TOP - length
        twin.add(at, which, offset, length, rng.random() < 0.15)
        at += length


def fill_iommu(twin: Twin, rng: random.Random, page: int, count: int) -> None:
    """`count` mappings of pages, mostly onto what the space below has."""
    _, twin_iommu = twin.iommus[-1]
    below = sorted(edge for edge in twin_iommu.next.edges() if edge < TOP)
    at = rng.choice([0, page, 1 << 32])
    for i in range(count):
        target = rng.choice(below) // page * page
        length = page * rng.choice([1, 1, 2, 3, 16])
        if twin_iommu.ranges and rng.random() < 0.4:
            target = twin_iommu.ranges[-1].target + twin_iommu.ranges[-1].length
        else:
            at += page * rng.choice([0, 1, 2, 1 << 20])
        if i == count - 1 and rng.random() < 0.5:
            at = TOP - length
        if target + length > TOP or at + length > TOP:
            continue
        twin.map(at, target, length, rng.choice([3, 3, 3, 1, 2]))
        at += length


@dataclass(frozen=True)
class Plan:
    """What a twin is made from: hypothesis draws it and shrinks it."""

    seed: int
    sizes: tuple[int, ...]
    rom: bytes
    regions: int
    stages: tuple[str, ...]
    far: tuple[int, ...] = ()

    def build(self) -> Twin:
        rng = random.Random(self.seed)
        twin = Twin(list(self.sizes), self.rom, self.far)
        fill_memory(twin, rng, self.regions)
        if "table" in self.stages:
            twin.page_table(rng)
        for kind in self.stages:
            if kind == "table":
                continue
            if kind == "window":
                below = sorted(edge for edge in twin.model.edges() if edge < TOP)
                offset = rng.choice([0, *below[:4], 5, 8, 0x1000])
                if rng.random() < 0.7:
                    offset -= offset % 8
                twin.window(offset, rng.choice([TOP - offset, min(100_000, TOP - offset)]))
            elif kind == "iommu":
                page = rng.choice(PAGES)
                twin.iommu(page)
                fill_iommu(twin, rng, page, rng.randint(1, 64))
            elif kind == "gate":
                twin.gate()
            elif twin.aligned:
                twin.lanes(rng.choice([2, 4, 8]))
        return twin


def plans(most: int = 64, depth: int = 6) -> st.SearchStrategy[Plan]:
    """Regions, then up to `depth` stages of every kind in any order."""
    return st.builds(
        Plan,
        seed=st.integers(0, 1 << 32),
        sizes=st.lists(st.sampled_from([16, 4096, 70000]), min_size=1, max_size=3).map(tuple),
        rom=st.sampled_from([b"", b"rom" * 100]),
        regions=st.integers(1, most),
        stages=st.lists(
            st.sampled_from(["window", "iommu", "table", "lanes", "gate"]), max_size=depth
        ).map(tuple),
        far=st.lists(st.sampled_from([16, 5000, 70000]), max_size=2).map(tuple),
    )


def lists_for(twin: Twin, rng: random.Random, most: int) -> model.Segments:
    """Segments whose ends lie at or beside every kind of edge; now and then wild ones."""
    edges = sorted(twin.model.edges())
    segments = []
    for _ in range(rng.randint(0, most)):
        address = rng.choice(edges)
        address += rng.choice([0, 0, 0, 1, -1, 2, 7, 8, -8, 100])
        if rng.random() < 0.02:
            address = rng.randrange(TOP)
        address %= TOP
        nexts = edges[bisect_right(edges, address) :][:3]
        length = rng.choice([0, 1, 3, 8, 16, 33, 64, 5000])
        if nexts and rng.random() < 0.5:
            length = rng.choice(nexts) - address + rng.choice([0, 0, 0, 1, -1])
        if rng.random() < 0.02:
            length = rng.choice([TOP - 1, 1 << 63, 1 << 62, rng.randrange(TOP)])
        segments.append((address, min(max(0, length), TOP - 1)))
    return segments


def good_list(
    twin: Twin, rng: random.Random, most: int, access: int, longest: int = 5000
) -> model.Segments:
    """Segments that translate, cut at what the chain allows; possibly none."""
    segments = []
    edges = sorted(twin.model.edges())
    for _ in range(4 * most):
        address = (rng.choice(edges) + rng.choice([0, 0, 1, 3, 8, 50])) % TOP
        found, run = twin.model.look(address, access)
        if isinstance(found, model.Place) and address < TOP:
            segments.append((address, min(run, TOP - address, rng.randint(1, longest))))
        if len(segments) == most:
            break
    return segments
