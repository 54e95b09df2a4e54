"""Whatever is written to ESP and ESPDMA: nothing hangs, fails, or goes on when it is not busy."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import iodma
from iodma.devices.dma2 import csr
from iodma.devices.esp.registers import COMMANDS
from tests.unit.engines import device_engine
from tests.unit.espkit import (
    BLOCK,
    BUSID,
    CMD,
    DATA,
    FDATA,
    FLUSH,
    INTRPT,
    RC,
    RS,
    TARGET,
    OwnRegisters,
    System,
    go,
    read10,
    system,
    write10,
)

CDBS = (
    bytes(6),
    b"\x12\0\0\0\x24\0",
    b"\x03\0\0\0\x12\0",
    read10(0, 1),
    read10(3, 40),
    read10(1 << 30, 9),
    write10(5, 2),
    b"\x35" + bytes(9),
    b"\x15\x10\0\0\x18\0",
    b"\x60\0\0",
    b"\xff" * 12,
)
MESSAGES = (
    b"\x80",
    b"\xc0",
    b"\xc1",
    b"\x80\x20\x01",
    b"\xc0\x21\x02",
    b"\x06",
    b"\x0c",
    b"\x01\x03\x01\x19\x0f",
)
ADDRESSES = (BLOCK, BLOCK + 4090, DATA, DATA + 0x3F000, 0, 0xFFFF_FFF0, 0x7000_0000)

byte = st.integers(0, 255)
#: What a driver might do next, or might not.
STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 15), byte),
    st.tuples(st.just("command"), st.sampled_from(sorted(COMMANDS)), st.booleans()),
    st.tuples(st.just("count"), st.sampled_from([1, 2, 7, 11, 512, 4096, 0]), st.just(0)),
    st.tuples(st.just("say"), st.sampled_from(MESSAGES), st.sampled_from(CDBS)),
    st.tuples(st.just("block"), st.sampled_from(MESSAGES), st.sampled_from(CDBS)),
    st.tuples(st.just("csr"), st.integers(0, (1 << 32) - 1), st.just(0)),
    st.tuples(st.just("go"), st.booleans(), st.sampled_from(ADDRESSES)),
    st.tuples(st.just("turns"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, 15), st.just(0)),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
)


async def step(kit: System, what: str, first: Any, second: Any) -> None:
    if what == "write":
        kit.write(first, second)
    elif what == "command":
        kit.write(CMD, first | 0x80 * second)
    elif what == "count":
        kit.write(0, first & 0xFF)
        kit.write(1, first >> 8)
    elif what == "say":
        for each in first + second:
            kit.write(FDATA, each)
    elif what == "block":
        kit.poke(BLOCK, first + second)
        kit.write(0, len(first + second))
        kit.write(1, 0)
        kit.write(BUSID, TARGET)
    elif what == "csr":
        kit.espdma.bus_write(0, 4, first)
    elif what == "go":
        kit.espdma.bus_write(0, 4, csr.INT_EN | csr.D_EN_DMA | csr.INVALIDATE | first << 8)
        kit.espdma.bus_write(4, 4, second)
    elif what == "turns":
        for _ in range(first):
            await kit.engine.sleep(0)
    elif what == "read":
        kit.read(first)
    else:
        await rests(kit)


async def rests(kit: System) -> None:
    """When it is not busy, nothing goes on."""
    await kit.settle()
    before = seen(kit)
    for _ in range(8):
        await kit.engine.sleep(0)
    assert seen(kit) == before, "it was not busy, and yet"


def seen(kit: System) -> object:
    with kit.ram.view() as view:
        memory = hash(bytes(view))
    esp = kit.esp
    return (
        *(esp.read_status(), esp._intr, esp.step, bytes(esp.fifo), esp.count, len(esp.away)),
        *(kit.espdma.read_csr(), kit.espdma.addr, kit.engine.stats().in_flight, memory),
    )


@given(st.lists(STEP, min_size=1, max_size=25))
def test_whatever_is_written(steps: list[tuple[str, Any, Any]]) -> None:
    with device_engine(strict=True) as engine, system(engine, size=1 << 16) as kit:
        window = iodma.DeviceWindow(OwnRegisters(kit), 4096)
        kit.memory.add(1 << 40, window)
        kit.iommu.map(0x7000_0000, 1 << 40, 4096)

        async def main() -> None:
            for each in steps:
                await step(kit, *each)
            await rests(kit)
            # However that left it, a driver that resets everything can use it.
            kit.espdma.bus_write(0, 4, csr.RESET)
            kit.espdma.bus_write(0, 4, csr.INT_EN)
            kit.command(RC)
            kit.command(RS)
            await kit.settle()
            kit.read(INTRPT)
            kit.command(FLUSH)
            assert await kit.run(bytes(6)) == 2
            assert await kit.run(read10(0, 1), [(DATA, 512)]) == 0
            await kit.memory.remove(1 << 40, cancel=True)
            window.close()

        go(kit, main())
