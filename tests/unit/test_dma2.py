"""The DMA2's two halves, by the manual's registers (NCR89C100/STP2001)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iodma
from iodma.devices.dma2 import EspDma, Ledma, csr
from tests.unit.engines import WatchedEngine

CSR, ADDR, BCNT, TST, BASE = 0x0, 0x4, 0x8, 0xC, 0xC
ID = 0xA000_0000


def raised(half: Ledma | EspDma) -> bool:
    return half.interrupt.level


@pytest.fixture
def ram() -> Iterator[iodma.Memory]:
    with iodma.Ram(1 << 20) as low, iodma.Ram(1 << 20) as high:
        yield iodma.Memory({0x0: low, 0x2000_0000: high})


@pytest.fixture
def ledma(engine: WatchedEngine, ram: iodma.Memory) -> Ledma:
    ledma = Ledma(ram)
    engine.attach(ledma)
    return ledma


@pytest.fixture
def espdma(engine: WatchedEngine, ram: iodma.Memory) -> EspDma:
    espdma = EspDma(engine.port(ram, "espdma"))
    engine.attach(espdma)
    return espdma


# --- both halves ----------------------------------------------------------------------------------


def test_power_on(ledma: Ledma, espdma: EspDma) -> None:
    for half in (ledma, espdma):
        assert [half.bus_read(at, 4) for at in (0, 4, 8, 12)] == [ID, 0, 0, 0]
        assert not raised(half) and not half.held and not half.busy


def test_identification_and_state_cannot_be_written(ledma: Ledma, espdma: EspDma) -> None:
    for half in (ledma, espdma):
        half.bus_write(CSR, 4, 0xFFFF_FFFF)
        value = half.bus_read(CSR, 4)
        assert value >> 28 == 0xA
        assert not value & (csr.ERR_PEND | csr.DRAINING | csr.SLAVE_ERR | csr.INVALIDATE)
        assert value & (csr.INT_EN | csr.RESET) == csr.INT_EN | csr.RESET


def test_the_interrupt_is_pending_and_enabled(ledma: Ledma, espdma: EspDma) -> None:
    for half in (ledma, espdma):
        half.chip_interrupt(True)
        assert half.bus_read(CSR, 4) & csr.INT_PEND and not raised(half)
        half.bus_write(CSR, 4, csr.INT_EN)
        assert raised(half)
        half.bus_write(CSR, 4, 0)
        assert not raised(half)
        half.bus_write(CSR, 4, csr.INT_EN)
        half.chip_interrupt(False)
        assert not raised(half)
        assert half.bus_read(CSR, 4) == ID | csr.INT_EN


@pytest.mark.parametrize("clears", [csr.INVALIDATE, csr.RESET])
def test_a_memory_error_is_pending_until_the_cache_is_invalidated(
    ledma: Ledma, espdma: EspDma, clears: int
) -> None:
    for half in (ledma, espdma):
        half.bus_write(CSR, 4, csr.INT_EN)
        half.memory_error()
        assert half.bus_read(CSR, 4) & csr.ERR_PEND and raised(half)
        half.bus_write(CSR, 4, csr.INT_EN)
        assert half.bus_read(CSR, 4) & csr.ERR_PEND, "a plain write keeps it"
        half.bus_write(CSR, 4, csr.INT_EN | clears)
        assert not half.bus_read(CSR, 4) & csr.ERR_PEND and not raised(half)


def test_a_narrower_access_is_a_slave_error(ledma: Ledma, espdma: EspDma) -> None:
    for half in (ledma, espdma):
        for width in (1, 2):
            assert half.bus_read(0, width) == (1 << 8 * width) - 1
            assert half.bus_read(CSR, 4) & csr.SLAVE_ERR
            half.bus_write(CSR, 4, csr.INVALIDATE)
            assert half.bus_read(CSR, 4) == ID
            half.bus_write(8, width, 0)
            assert half.bus_read(CSR, 4) & csr.SLAVE_ERR
            half.bus_write(CSR, 4, csr.SLAVE_ERR)
            assert half.bus_read(CSR, 4) == ID
        assert not raised(half), "it is no interrupt"


def test_reset_is_the_chips_line(ledma: Ledma, espdma: EspDma) -> None:
    for half in (ledma, espdma):
        resets: list[int] = []
        half.on_reset = partial(resets.append, 1)
        half.bus_write(CSR, 4, csr.INT_EN)
        assert not resets
        half.bus_write(CSR, 4, csr.INT_EN | csr.RESET)
        assert len(resets) == 1 and half.held
        assert half.bus_read(CSR, 4) & csr.RESET, "it holds as long as it is set"
        half.bus_write(CSR, 4, csr.INT_EN)
        assert len(resets) == 1 and not half.held


# --- LEDMA ----------------------------------------------------------------------------------------


def test_the_base_is_the_high_byte_of_every_address(ledma: Ledma, engine: WatchedEngine) -> None:
    port = engine.port(ledma.stage, "lance")

    async def main() -> None:
        await port.store_bytes(0x100, b"low")
        ledma.bus_write(BASE, 4, 0x20FF_FFFF)
        assert ledma.bus_read(BASE, 4) == 0x2000_0000, "eight bits of it"
        await port.store_bytes(0x100, b"high")
        assert await port.load_bytes(0x100, 4) == b"high"
        ledma.bus_write(BASE, 4, 0)
        assert await port.load_bytes(0x100, 3) == b"low"
        with pytest.raises(iodma.DmaFault):
            await port.load_bytes(1 << 24, 1)
        with pytest.raises(iodma.DmaFault):
            ledma.bus_write(BASE, 4, 0xFF00_0000)
            await port.load_bytes(0x100, 1)

    engine.run(main())


def test_a_transfer_keeps_the_base_that_it_was_translated_with(
    ledma: Ledma, engine: WatchedEngine, ram: iodma.Memory
) -> None:
    """The latch is written while a receive waits for its data."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    port, there = engine.port(ledma.stage, "lance"), engine.port(ram, "check")

    async def main() -> None:
        receiving = port.to_memory((0x40, 5), source=network)
        while not engine.stats().requests:
            await engine.sleep(0)
        ledma.bus_write(BASE, 4, 0x2000_0000)
        theirs.send(b"frame")
        assert (await receiving).moved == 5
        assert await there.load_bytes(0x40, 5) == b"frame"
        assert await there.load_bytes(0x2000_0040, 5) == bytes(5)

    with ours, theirs, iodma.Datagram(ours) as network:
        engine.run(main())


def test_a_reset_moves_the_window_back(ledma: Ledma, engine: WatchedEngine) -> None:
    ledma.bus_write(BASE, 4, 0x2000_0000)

    async def main() -> None:
        await ledma.request_reset()

    engine.run(main())
    assert ledma.bus_read(BASE, 4) == 0 and ledma.stage._offset == 0


@pytest.mark.parametrize("offset", [1, 4, -8, 1 << 64, (1 << 64) - 8])
def test_a_window_moves_by_whole_lanes_and_inside_64_bits(ram: iodma.Memory, offset: int) -> None:
    window = iodma.Window(ram, 0, 1 << 24)
    changes = window.changes
    with pytest.raises(iodma.AddressRangeError):
        window.move(offset)
    assert window._offset == 0 and window.changes == changes
    window.move(0x2000_0000)
    assert window._offset == 0x2000_0000 and window.changes == changes + 1


# --- ESPDMA ---------------------------------------------------------------------------------------


def test_requests_are_answered_while_enabled_in_the_direction_of_write(espdma: EspDma) -> None:
    told: list[int] = []
    espdma.on_ready = lambda: told.append(1)
    espdma.bus_write(ADDR, 4, 0x1000)
    assert not espdma.answers(True) and not espdma.answers(False) and not told
    espdma.bus_write(CSR, 4, csr.D_EN_DMA)
    assert espdma.answers(False) and not espdma.answers(True) and told
    assert espdma.bus_read(CSR, 4) == ID | csr.D_EN_DMA | csr.D_DMA_ON | csr.D_A_LOADED
    espdma.bus_write(CSR, 4, csr.D_EN_DMA | csr.D_WRITE)
    assert espdma.answers(True) and not espdma.answers(False) and len(told) == 2


def test_the_address_counts_what_was_moved(espdma: EspDma) -> None:
    espdma.bus_write(CSR, 4, csr.D_EN_DMA)
    espdma.bus_write(ADDR, 4, 0xFFFF_FF00)
    assert espdma.segments(0x80) == [(0xFFFF_FF00, 0x80)]
    espdma.advance(0x80)
    assert espdma.bus_read(ADDR, 4) == 0xFFFF_FF80
    assert espdma.segments(0x100) == [(0xFFFF_FF80, 0x80), (0, 0x80)], "the counter wraps"
    espdma.advance(0x100)
    assert espdma.bus_read(ADDR, 4) == 0x80
    assert espdma.bus_read(BCNT, 4) == 0, "without EN_CNT it does not count"


def test_the_byte_counter_expires(espdma: EspDma) -> None:
    enabled = csr.D_EN_DMA | csr.D_EN_CNT | csr.INT_EN
    espdma.bus_write(ADDR, 4, 0x1000)
    espdma.bus_write(BCNT, 4, 0xFF00_0010)
    assert espdma.bus_read(BCNT, 4) == 0x10, "24 bits"
    espdma.bus_write(CSR, 4, enabled)
    assert espdma.segments(0x100) == [(0x1000, 0x10)]
    espdma.advance(0xF)
    assert not raised(espdma)
    espdma.advance(1)
    value = espdma.bus_read(CSR, 4)
    assert value & csr.D_TC and value & csr.INT_PEND and not value & csr.D_DMA_ON
    assert raised(espdma) and not espdma.answers(False)
    espdma.bus_write(CSR, 4, enabled | csr.D_TCI_DIS)
    assert not raised(espdma) and not espdma.bus_read(CSR, 4) & csr.INT_PEND
    espdma.bus_write(BCNT, 4, 0x20)
    assert not espdma.bus_read(CSR, 4) & csr.D_TC and espdma.answers(False)


def test_a_count_of_0_is_2_to_the_24th(espdma: EspDma) -> None:
    espdma.bus_write(CSR, 4, csr.D_EN_DMA | csr.D_EN_CNT)
    assert espdma.segments(1 << 25) == [(0, 1 << 24)]
    espdma.advance(1)
    assert espdma.bus_read(BCNT, 4) == 0xFF_FFFF


def test_the_next_registers_are_chained(espdma: EspDma) -> None:
    espdma.bus_write(CSR, 4, csr.D_EN_DMA | csr.D_EN_CNT | csr.D_EN_NEXT | csr.D_TCI_DIS)
    for address, count in ((0x1000, 0x10), (0x8000, 0x20)):
        espdma.bus_write(BCNT, 4, count)
        espdma.bus_write(ADDR, 4, address)
    assert espdma.bus_read(CSR, 4) & csr.D_NA_LOADED
    assert espdma.bus_read(ADDR, 4) == 0x1000 and espdma.bus_read(BCNT, 4) == 0x10
    assert espdma.segments(0x100) == [(0x1000, 0x10), (0x8000, 0x20)]
    espdma.advance(0x18)
    assert espdma.bus_read(ADDR, 4) == 0x8008 and espdma.bus_read(BCNT, 4) == 0x18
    assert not espdma.bus_read(CSR, 4) & csr.D_NA_LOADED and espdma.answers(False)
    espdma.bus_write(BCNT, 4, 0x4)
    espdma.bus_write(ADDR, 4, 0x9000)
    espdma.advance(0x18)
    assert espdma.segments(8) == [(0x9000, 4)]
    espdma.advance(4)
    assert not espdma.answers(False) and espdma.segments(0) == [(0x9004, 0)]


def test_after_a_memory_error_nothing_is_answered(espdma: EspDma) -> None:
    espdma.bus_write(CSR, 4, csr.D_EN_DMA)
    espdma.memory_error()
    assert not espdma.answers(False) and not espdma.bus_read(CSR, 4) & csr.D_DMA_ON
    espdma.bus_write(CSR, 4, csr.D_EN_DMA | csr.INVALIDATE)
    assert espdma.answers(False)


WRITES = st.tuples(st.sampled_from([CSR, ADDR, BCNT, TST]), st.integers(0, (1 << 32) - 1))


@given(st.lists(st.one_of(WRITES, st.integers(0, 1 << 17)), max_size=30))
def test_what_is_offered_is_what_is_counted(steps: list[tuple[int, int] | int]) -> None:
    """Whatever was written: segments lie below 2^32, and advancing by them uses them up."""
    espdma = EspDma(None)  # type: ignore[arg-type]
    for step in steps:
        if isinstance(step, tuple):
            espdma.bus_write(step[0], 4, step[1])
        elif espdma.answers(bool(espdma.bus_read(CSR, 4) & csr.D_WRITE)):
            pieces = espdma.segments(step)
            offered = sum(length for _, length in pieces)
            assert offered <= step
            assert all(at >= 0 and at + length <= 1 << 32 for at, length in pieces)
            first = espdma.segments(offered)
            espdma.advance(offered)
            assert first == pieces and not espdma.counts.failures
