"""Memory that refuses: MERR, wherever in a transfer it is, and DMA that hits the chip itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import iodma
from iodma.devices.lance import CSR0, CSR3, RMD1, TMD1, Lance, Mode
from tests.unit.lancekit import (
    BLOCK,
    MEMORY,
    RX_BUFFERS,
    RX_RING,
    STATION,
    TX_BUFFERS,
    TX_RING,
    Driver,
    lance_machine,
    swapped,
)

SWAPS = [int(CSR3.BSWP), 0]
OWN = int(TMD1.OWN)
ON = CSR0.RXON | CSR0.TXON
ISLAND = 0x200000  # what is mapped there ends where the test says
GONE = 0xF00000


def machine_with(island: int) -> dict[int, int]:
    return {0: MEMORY, ISLAND: island} if island else {0: MEMORY}


def frame(length: int = 100) -> bytes:
    return STATION + bytes(1 + i % 251 for i in range(length - 6))


def check_memory_error(driver: Driver) -> None:
    csr0 = driver.csr0
    assert csr0 & (CSR0.MERR | CSR0.ERR | CSR0.INTR) == CSR0.MERR | CSR0.ERR | CSR0.INTR
    assert not csr0 & (ON | CSR0.STOP)
    assert driver.lance.interrupt.level == bool(csr0 & CSR0.INEA)
    driver.write(0, CSR0.MERR | CSR0.INEA)
    assert not driver.csr0 & (CSR0.MERR | CSR0.ERR | ON)


def check_it_works(driver: Driver, csr3: int = int(CSR3.BSWP)) -> None:
    """After a reinitialization, as the data sheet asks for."""
    driver.sent()
    driver.write(0, CSR0.STOP)
    driver.settle()
    driver.memory.write(TX_RING, bytes(1024))
    driver.memory.write(RX_RING, bytes(1024))
    driver.start(csr3)
    driver.offer()
    driver.transmit(frame())
    driver.wire.send(frame(90))
    driver.settle()
    assert driver.sent() == [frame()]
    assert driver.rmd(0)[3] == 94
    assert driver.csr0 & ON == ON


@pytest.mark.parametrize("readable", range(24))
def test_the_initialization_block(readable: int) -> None:
    with lance_machine(machine_with(readable)) as driver:
        errors: list[iodma.DmaFault | None] = []
        driver.lance.on_memory_error = errors.append
        driver.write(0, CSR0.STOP)
        driver.write(1, ISLAND & 0xFFFF)
        driver.write(2, ISLAND >> 16)
        driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
        driver.settle()
        assert not driver.csr0 & CSR0.IDON
        check_memory_error(driver)
        (error,) = errors
        assert error is not None
        fault = error.completion.fault
        assert fault is not None
        assert fault.offset == readable & ~1 or fault.offset == readable
        check_it_works(driver)


@pytest.mark.parametrize("readable", range(8))
@pytest.mark.parametrize("ring", ["tdra", "rdra"])
def test_a_descriptor(readable: int, ring: str) -> None:
    with lance_machine(machine_with(readable)) as driver:
        fields = {ring: ISLAND, ring.replace("dra", "len"): 1}
        driver.initialize(**fields)
        driver.offer() if ring == "tdra" else None
        if readable > 2:
            driver.memory.write(ISLAND + 2, b"\x83")
        driver.write(0, CSR0.STRT | CSR0.INEA)
        driver.settle()
        driver.wire.send(frame())
        driver.settle()
        check_memory_error(driver)
        check_it_works(driver)


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("readable", [0, 1, 2, 13, 14, 59, 60, 98, 99])
def test_a_transmit_buffer(csr3: int, readable: int) -> None:
    with lance_machine(machine_with(readable)) as driver:
        driver.start(csr3)
        driver.put_tmd(0, ISLAND, 100)
        driver.write(0, CSR0.TDMD | CSR0.INEA)
        driver.settle()
        check_memory_error(driver)
        assert driver.tmd(0)[1] & OWN
        assert driver.sent() == []
        check_it_works(driver, csr3)


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("writable", [0, 1, 2, 59, 60, 99, 100, 101, 102, 103])
def test_a_receive_buffer(csr3: int, writable: int) -> None:
    with lance_machine(machine_with(writable)) as driver:
        driver.start(csr3)
        driver.put_rmd(0, ISLAND, 1536)
        driver.wire.send(frame(100))
        driver.settle()
        check_memory_error(driver)
        assert driver.rmd(0)[1] & OWN
        assert not driver.csr0 & CSR0.RINT
        driver.wire.send(frame(80))  # it passes by: the receiver is off
        driver.settle()
        assert not driver.csr0 & CSR0.MISS
        check_it_works(driver, csr3)


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("shape", ["plain", "chained"])
def test_in_a_batch_what_is_before_goes_out_and_nothing_behind(bad: int, shape: str) -> None:
    with lance_machine() as driver:
        driver.start(tlen=16)
        step = 1 if shape == "plain" else 2
        for i in range(5):
            address = TX_BUFFERS + 0x800 * i
            driver.payload(address, frame(60 + 2 * i))
            if shape == "plain":
                driver.put_tmd(i, GONE if i == bad else address, 60 + 2 * i)
            else:
                half = 30 + i
                driver.put_tmd(2 * i, address, half, OWN | int(TMD1.STP))
                second = GONE if i == bad else address + half
                driver.put_tmd(2 * i + 1, second, half, OWN | int(TMD1.ENP))
        driver.write(0, CSR0.TDMD | CSR0.INEA)
        driver.settle()
        assert driver.sent() == [frame(60 + 2 * i) for i in range(bad)]
        for i in range(5 * step):
            assert bool(driver.tmd(i)[1] & OWN) == (i >= bad * step)
        check_memory_error(driver)


def test_the_next_descriptor_matters_when_its_turn_comes() -> None:
    with lance_machine(machine_with(8)) as driver:
        driver.initialize(tdra=ISLAND, tlen=2)
        driver.payload(TX_BUFFERS, frame())
        driver.put_tmd(0, TX_BUFFERS, 100)
        driver.write(0, CSR0.STRT | CSR0.INEA)
        driver.settle()
        assert driver.sent() == [frame()]
        assert not driver.tmd(0)[1] & OWN
        check_memory_error(driver)


def test_a_chain_into_a_descriptor_that_cannot_be_read() -> None:
    with lance_machine(machine_with(8)) as driver:
        driver.initialize(tdra=ISLAND, tlen=2)
        driver.put_tmd(0, TX_BUFFERS, 100, OWN | int(TMD1.STP))
        driver.write(0, CSR0.STRT | CSR0.INEA)
        driver.settle()
        assert driver.sent() == []
        check_memory_error(driver)
        assert driver.tmd(0)[1] & OWN


@pytest.mark.parametrize("needed", [False, True])
def test_a_receive_descriptor_that_is_not_needed_is_no_error(needed: bool) -> None:
    with lance_machine(machine_with(8)) as driver:
        driver.start(rdra=ISLAND, rlen=2)
        driver.put_rmd(0, RX_BUFFERS, 64 if needed else 1536)
        driver.wire.send(frame())
        driver.settle()
        if needed:
            check_memory_error(driver)
        else:
            assert driver.rmd(0)[3] == 104
            assert driver.csr0 & ON == ON


def read_only(driver: Driver, data: bytes) -> iodma.Rom:
    rom = iodma.Rom(data)
    driver.memory.add(ISLAND, rom)
    return rom


def test_descriptors_that_cannot_be_written() -> None:
    with lance_machine() as driver:
        words = swapped(bytes.fromhex("0000 0883 9cff 0000".replace(" ", "")))
        assert TX_BUFFERS == 0x80000
        with read_only(driver, words) as rom:
            driver.initialize(tdra=ISLAND, tlen=1)
            driver.payload(TX_BUFFERS, frame())
            driver.write(0, CSR0.STRT | CSR0.INEA)
            driver.settle()
            assert driver.sent() == [frame()]
            check_memory_error(driver)
            driver.lance.request_reset()
            driver.settle()
            assert rom.view()[:8] == words


def test_receive_buffers_that_cannot_be_written() -> None:
    with lance_machine() as driver, read_only(driver, bytes(2048)):
        driver.start()
        driver.put_rmd(0, ISLAND, 1536)
        driver.wire.send(frame())
        driver.settle()
        check_memory_error(driver)


def test_an_iommu_that_takes_a_page_away() -> None:
    with lance_machine() as driver:
        memory = driver.memory
        iommu = iodma.Iommu(memory)
        iommu.map(0, 0, MEMORY)
        lance = Lance(
            driver.engine.port(iodma.ByteLanes(iommu, 2)), network=driver.lance.network, poll=3600
        )
        driver.engine.attach(lance)
        driver.lance = lance
        driver.start()
        driver.transmit(frame(), frame())
        driver.settle()
        assert driver.sent() == [frame()] * 2
        iommu.unmap(TX_BUFFERS, 4096)
        driver.transmit(frame(), frame(), first=2)
        driver.settle()
        assert driver.sent() == []
        check_memory_error(driver)
        lance.request_reset()
        driver.settle()


# --- DMA aimed at the chip's own registers --------------------------------------------------------

WINDOW = 0x400000


@contextmanager
def with_window(driver: Driver) -> Iterator[None]:
    bus = iodma.Bus()
    bus.attach(driver.lance, 0)
    driver.memory.add(WINDOW, iodma.DeviceWindow(bus.window(driver.lance), 4))
    yield


def ends(driver: Driver) -> None:
    """Whatever it does, it comes to rest, and can be used again."""
    driver.settle()
    assert driver.lance.counts.failures == 0
    driver.lance.request_reset()
    driver.settle()
    driver.sent()
    check_it_works(driver)


def test_an_initialization_block_in_the_registers() -> None:
    with lance_machine() as driver, with_window(driver):
        driver.write(1, WINDOW & 0xFFFF)
        driver.write(2, WINDOW >> 16)
        driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
        ends(driver)


@pytest.mark.parametrize("ring", ["tdra", "rdra"])
def test_a_ring_in_the_registers(ring: str) -> None:
    with lance_machine() as driver, with_window(driver):
        driver.start(**{ring: WINDOW, ring.replace("dra", "len"): 1})
        driver.wire.send(frame())
        ends(driver)


@pytest.mark.parametrize("csr3", SWAPS)
def test_a_transmit_buffer_in_the_registers(csr3: int) -> None:
    with lance_machine() as driver, with_window(driver):
        driver.start(csr3)
        driver.put_tmd(0, WINDOW, 4)
        driver.write(0, CSR0.TDMD)
        driver.settle()
        assert len(driver.sent()[0]) == 4
        ends(driver)


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("value", [0x0004, 0x0403, 0x7F48, 0x0001, 0xFFFF])
@pytest.mark.parametrize("mode", [0, int(Mode.PROM), int(Mode.LOOP | Mode.INTL | Mode.PROM)])
def test_frames_that_land_in_the_registers(csr3: int, value: int, mode: int) -> None:
    with lance_machine() as driver, with_window(driver):
        driver.start(csr3, mode=mode)
        data = value.to_bytes(2, "little") * 16
        address = STATION if not mode else b""
        for i in range(2):
            driver.put_rmd(2 * i, RX_BUFFERS, 64 if not mode else 6)
            driver.put_rmd(2 * i + 1, WINDOW, 4)
        if mode & Mode.LOOP:
            driver.transmit(data[:6], data[:6])
        else:
            for _ in range(4):
                driver.wire.send(address + data)
        ends(driver)


def test_a_receive_buffer_over_its_own_ring() -> None:
    with lance_machine() as driver:
        driver.start(rlen=128)
        for i in range(128):
            driver.put_rmd(i, RX_RING, 1536)
        for _ in range(20):
            driver.wire.send(STATION + b"\xff\x80" * 700)
        ends(driver)


def test_buffers_over_the_initialization_block() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.put_rmd(0, BLOCK, 1536)
        driver.wire.send(frame())
        driver.settle()
        assert driver.lance.block.padr == STATION
        assert driver.rmd(0)[1] & 0xFF00 == RMD1.STP | RMD1.ENP
