"""LANCE's loopback modes, by the MODE register's bits and the data sheet's section on them."""

from __future__ import annotations

from zlib import crc32

import pytest

from iodma.devices.lance import CSR0, CSR3, RMD1, TMD1, TMD3, Mode
from iodma.devices.lance.address_filter import logical_bit
from tests.unit.lancekit import BROADCAST, RX_BUFFERS, STATION, TX_BUFFERS, Driver, lance_machine

SWAPS = [int(CSR3.BSWP), 0]
INTERNAL = int(Mode.LOOP | Mode.INTL)
EXTERNAL = int(Mode.LOOP)
DTCR, COLL, DRTY, PROM = (int(bit) for bit in (Mode.DTCR, Mode.COLL, Mode.DRTY, Mode.PROM))
OWN, STP, ENP, ERR = (int(bit) for bit in (TMD1.OWN, TMD1.STP, TMD1.ENP, TMD1.ERR))
MULTICAST = bytes.fromhex("01005e0000fb")


def packet(length: int = 32, to: bytes = STATION) -> bytes:
    return (to + bytes(range(1, 64)))[:length]


def fcs(data: bytes) -> bytes:
    return crc32(data).to_bytes(4, "little")


def loop(driver: Driver, data: bytes) -> None:
    driver.offer()
    driver.transmit(data)
    driver.settle()


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("length", [8, 9, 14, 31, 32])
@pytest.mark.parametrize("mode", [INTERNAL, EXTERNAL])
def test_a_packet_comes_back_with_the_fcs_that_the_chip_made(
    csr3: int, length: int, mode: int
) -> None:
    with lance_machine() as driver:
        driver.start(csr3, mode=mode)
        data = packet(length)
        loop(driver, data)
        assert driver.loaded(RX_BUFFERS, length + 4) == data + fcs(data)
        assert driver.rmd(0)[1] & 0xFF00 == RMD1.STP | RMD1.ENP
        assert driver.rmd(0)[3] == length + 4
        assert driver.tmd(0)[1] & 0xFF00 == STP | ENP
        assert driver.csr0 & (CSR0.RINT | CSR0.TINT) == CSR0.RINT | CSR0.TINT
        assert driver.sent() == ([] if mode == INTERNAL else [data])


@pytest.mark.parametrize("good", [True, False])
def test_with_dtcr_the_receiver_checks_the_driver_s_fcs(good: bool) -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL | DTCR)
        data = packet(32)
        data += fcs(data) if good else b"\0\1\2\3"
        loop(driver, data)
        assert driver.loaded(RX_BUFFERS, 36) == data
        assert driver.rmd(0)[3] == 36
        wrong = 0 if good else int(RMD1.ERR | RMD1.CRC)
        assert driver.rmd(0)[1] & 0xFF00 == int(RMD1.STP | RMD1.ENP) | wrong


@pytest.mark.parametrize(("mode", "longest"), [(INTERNAL, 32), (INTERNAL | DTCR, 36)])
def test_a_packet_that_the_fifo_cannot_hold_underflows(mode: int, longest: int) -> None:
    with lance_machine() as driver:
        driver.start(mode=mode)
        loop(driver, packet(longest + 1))
        assert driver.tmd(0)[1] & 0xFF00 == ERR | STP | ENP
        assert driver.tmd(0)[3] == TMD3.UFLO
        assert not driver.csr0 & CSR0.TXON
        assert driver.csr0 & CSR0.TINT
        assert driver.rmd(0)[1] & OWN


@pytest.mark.parametrize("retries", [0, DRTY])
def test_coll_ends_in_a_retry_error(retries: int) -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL | COLL | retries)
        loop(driver, packet())
        assert driver.tmd(0)[1] & 0xFF00 == ERR | STP | ENP
        assert driver.tmd(0)[3] == TMD3.RTRY
        assert driver.csr0 & (CSR0.TXON | CSR0.TINT) == CSR0.TXON | CSR0.TINT
        assert driver.rmd(0)[1] & OWN


@pytest.mark.parametrize("mode", [COLL, COLL | EXTERNAL, int(Mode.INTL) | COLL])
def test_coll_and_intl_mean_nothing_elsewhere(mode: int) -> None:
    with lance_machine() as driver:
        driver.start(mode=mode)
        loop(driver, packet())
        assert driver.sent() == [packet()]
        assert not driver.tmd(0)[1] & ERR


@pytest.mark.parametrize(
    ("to", "mode", "taken"),
    [
        (BROADCAST, INTERNAL, True),
        (MULTICAST, INTERNAL, False),  # the CRC logic makes the FCS
        (MULTICAST, INTERNAL | DTCR, True),
        (bytes(6), INTERNAL, False),
        (bytes(6), INTERNAL | PROM, True),
    ],
)
def test_the_address_filter_works_in_loopback(to: bytes, mode: int, taken: bool) -> None:
    with lance_machine() as driver:
        driver.start(mode=mode, ladrf=1 << logical_bit(MULTICAST))
        loop(driver, packet(24, to))
        assert bool(driver.rmd(0)[1] & OWN) != taken
        assert not driver.tmd(0)[1] & (OWN | ERR)


def test_without_a_buffer_the_packet_is_missed() -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL)
        driver.transmit(packet())
        driver.settle()
        assert driver.csr0 & (CSR0.MISS | CSR0.TINT | CSR0.RINT) == CSR0.MISS | CSR0.TINT


def test_with_the_receiver_off_nothing_comes_back() -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL | int(Mode.DRX))
        loop(driver, packet())
        assert driver.csr0 & (CSR0.MISS | CSR0.TINT | CSR0.RINT) == CSR0.TINT


def test_a_packet_may_be_chained_both_ways() -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL)
        data = packet(32)
        for i in range(2):
            driver.put_rmd(i, RX_BUFFERS + 0x100 * i, 20)
            driver.payload(TX_BUFFERS + 0x100 * i, data[16 * i :][:16])
        driver.put_tmd(0, TX_BUFFERS, 16, OWN | STP)
        driver.put_tmd(1, TX_BUFFERS + 0x100, 16, OWN | ENP)
        driver.write(0, CSR0.TDMD)
        driver.settle()
        both = driver.loaded(RX_BUFFERS, 20) + driver.loaded(RX_BUFFERS + 0x100, 16)
        assert both == data + fcs(data)
        assert driver.rmd(1)[3] == 36


@pytest.mark.parametrize(("mode", "heard"), [(INTERNAL, False), (EXTERNAL, True)])
def test_other_stations_are_heard_in_external_loopback_only(mode: int, heard: bool) -> None:
    with lance_machine() as driver:
        driver.start(mode=mode)
        driver.offer()
        driver.wire.send(STATION + bytes(54))
        driver.settle()
        assert bool(driver.rmd(0)[1] & OWN) != heard


def test_without_a_cable_only_internal_loopback_works() -> None:
    with lance_machine(network=False) as driver:
        driver.start(mode=INTERNAL)
        loop(driver, packet())
        assert driver.rmd(0)[3] == 36
        driver.start(mode=EXTERNAL)
        loop(driver, packet())
        assert driver.tmd(0)[3] == TMD3.LCAR
        assert driver.rmd(0)[1] & OWN


def test_a_whole_ring_is_looped_back_in_order() -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL, rlen=16, tlen=16)
        driver.offer()
        driver.transmit(*[packet(16 + i) for i in range(16)])
        driver.settle()
        assert [driver.rmd(i)[3] for i in range(16)] == [20 + i for i in range(16)]


@pytest.mark.parametrize("fault", ["rx", "tx", "rx ring"])
def test_memory_errors_in_loopback(fault: str) -> None:
    with lance_machine() as driver:
        driver.start(mode=INTERNAL)
        driver.payload(TX_BUFFERS, packet())
        driver.put_rmd(0, 0xF00000 if fault == "rx" else RX_BUFFERS, 64)
        driver.put_tmd(0, 0xF00000 if fault == "tx" else TX_BUFFERS, 32)
        if fault == "rx ring":
            driver.lance.receiver.ring.base = 0xF00000
        driver.write(0, CSR0.TDMD)
        driver.settle()
        assert driver.csr0 & (CSR0.MERR | CSR0.TXON | CSR0.RXON) == CSR0.MERR
        assert driver.tmd(0)[1] & OWN
