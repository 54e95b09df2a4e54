"""Translation agrees with the byte-by-byte model: which host bytes, or which byte faults and where.

A list's pieces are compared as runs of host addresses, so that how they are cut does not matter,
except through byte lanes, where the cut decides which units are swapped.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iodma
from iodma import Access
from tests.conftest import SOAK
from tests.unit import model
from tests.unit.chains import TOP, Plan, Twin, fill_iommu, fill_memory, good_list, lists_for, plans


def examples(n: int) -> Any:
    return settings(
        max_examples=50 * n if SOAK else n,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def runs(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joined where one goes on where the other ended."""
    out: list[tuple[int, int]] = []
    for at, length in pieces:
        if out and out[-1][0] + out[-1][1] == at:
            out[-1] = (out[-1][0], out[-1][1] + length)
        elif length:
            out.append((at, length))
    return out


def compare(twin: Twin, segments: model.Segments, access: int) -> None:
    wanted = model.translate(twin.model, segments, access)
    got = twin.real.translate(segments, Access(access))
    counted = twin.real.walk(segments, Access(access))
    if isinstance(wanted, model.Fault):
        assert isinstance(got, iodma.Fault), (wanted, got)
        assert (got.offset, got.address, int(got.access), got.stage) == wanted
        assert counted == got
        return
    assert isinstance(got, list), (got, wanted)
    assert counted == len(got)
    hosts = {id(piece.region): twin.host(piece.region) for piece in wanted}
    assert sum(piece[1] for piece in got) == model.total(segments)
    assert runs([(at, length) for at, length, _, _ in got]) == runs(
        [(hosts[id(piece.region)] + piece.offset, piece.length) for piece in wanted]
    )
    for at, length, offset, lanes in got:
        assert length > 0
        assert lanes == wanted[0].mask
        assert any(at - offset == host for host in hosts.values())


@examples(80)
@given(plans(), st.integers(0, 1 << 32), st.integers(1, 3))
def test_any_list_through_any_chain(plan: Plan, seed: int, access: int) -> None:
    rng = random.Random(seed)
    with plan.build() as twin:
        for _ in range(6):
            compare(twin, lists_for(twin, rng, 8), access)
            compare(twin, good_list(twin, rng, 40, access), access)
            if twin.gates:
                twin.shut(rng.randrange(len(twin.gates)), rng.random() < 0.5)


@examples(2)
@given(st.integers(0, 1 << 32))
def test_maps_of_thousands_of_ranges(seed: int) -> None:
    rng = random.Random(seed)
    with Twin([70000, 4096]) as twin:
        fill_memory(twin, rng, 4096)
        twin.iommu(8)
        fill_iommu(twin, rng, 8, 300)
        for _ in range(4):
            compare(twin, good_list(twin, rng, 20, 3), 3)
            compare(twin, lists_for(twin, rng, 4), rng.randint(1, 3))
        twin.real, twin.model = twin.memory
        for _ in range(4):
            compare(twin, good_list(twin, rng, 64, 1), 1)
            compare(twin, lists_for(twin, rng, 4), 1)


@examples(40)
@given(st.integers(0, 1 << 32))
def test_after_every_change_of_the_maps(seed: int) -> None:
    """Regions come and go, pages are mapped and unmapped in parts: no stale answer."""
    rng = random.Random(seed)
    with Twin([5000, 70000]) as twin:
        fill_memory(twin, rng, rng.randint(1, 20))
        twin.iommu(8)
        fill_iommu(twin, rng, 8, 20)
        memory, flat = twin.memory
        iommu, pages = twin.iommus[0]
        for _ in range(12):
            compare(twin, lists_for(twin, rng, 6), 1)
            what = rng.randrange(4)
            if what == 0 and flat.ranges:
                base = rng.choice(flat.ranges).first
                assert memory.remove(base).done
                flat.remove(base)
            elif what == 1:
                fill_memory_at_random(twin, rng)
            elif what == 2 and pages.ranges:
                r = rng.choice(pages.ranges)
                first = r.first + 8 * rng.randrange(-2, 3)
                length = 8 * rng.randint(1, 20)
                if first >= 0 and first + length <= TOP:
                    assert iommu.unmap(first, length).done
                    pages.unmap(first, length)
            else:
                first, length = 8 * rng.randrange(3000), 8 * rng.randint(1, 50)
                hit = any(
                    first < r.first + r.length and r.first < first + length for r in pages.ranges
                )
                if hit:
                    with pytest.raises(iodma.AddressRangeError):
                        iommu.map(first, 0, length)
                else:
                    twin.map(first, 8 * rng.randrange(1000), length, 3)
            compare(twin, good_list(twin, rng, 10, 1), 1)


def fill_memory_at_random(twin: Twin, rng: random.Random) -> None:
    base, length = rng.randrange(20_000), rng.randint(1, 3000)
    memory, flat = twin.memory
    if any(base < r.first + r.length and r.first < base + length for r in flat.ranges):
        with pytest.raises(iodma.AddressRangeError):
            memory.add(base, twin.regions[0][0], 0, length)
    else:
        twin.add(base, 0, rng.randrange(5000 - length + 1), length)


def test_a_fault_of_dma_is_the_fault_of_translate(rng: random.Random) -> None:
    """The same words from `translate` and from the completion of a transfer."""
    with iodma.Engine(strict=True) as engine, iodma.Null() as null:
        for _ in range(40):
            with Twin([70000]) as twin:
                fill_memory(twin, rng, 10)
                twin.window(0, TOP)
                port = engine.port(twin.real)

                async def moves(
                    port: Any = port, twin: Twin = twin
                ) -> list[tuple[iodma.Fault | None, Any]]:
                    out = []
                    for _ in range(10):
                        segments = lists_for(twin, rng, 5)
                        done = await port.to_memory(segments, source=null)
                        found = twin.real.translate(segments, Access.WRITE)
                        out.append((done.fault, found if not isinstance(found, list) else None))
                    return out

                for got, wanted in engine.run(moves()):
                    assert got == wanted
                port.close()


def test_what_a_map_refuses_is_named() -> None:
    with Twin([64]) as twin:
        memory = twin.memory[0]
        ram = twin.regions[0][0]
        with pytest.raises(iodma.AddressRangeError, match="0xfffffffffffffff0 and length 64 run"):
            memory.add(TOP - 16, ram)
        memory.add(0x1234, ram)
        with pytest.raises(iodma.AddressRangeError, match="at 0x1200 overlap"):
            memory.add(0x1200, ram)
        with pytest.raises(iodma.ArgumentError, match="offset is 0x10;"):
            iodma.Ram.from_fd(ram.fd, 16, 16)
