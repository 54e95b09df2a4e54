"""LANCE's receiver and address filter, by the data sheet's sections on them."""

from __future__ import annotations

import pytest

from iodma.devices.lance import CSR0, CSR3, RMD1, Mode
from iodma.devices.lance.address_filter import logical_bit
from tests.unit.lancekit import (
    BROADCAST,
    RX_BUFFERS,
    RX_RING,
    STATION,
    Driver,
    lance_machine,
)

SWAPS = [int(CSR3.BSWP), 0]
OWN, STP, ENP, ERR = (int(bit) for bit in (RMD1.OWN, RMD1.STP, RMD1.ENP, RMD1.ERR))
RUNNING = CSR0.INIT | CSR0.STRT | CSR0.RXON | CSR0.TXON | CSR0.INEA


def frame(length: int = 100, to: bytes = STATION, first: int = 1) -> bytes:
    return to + bytes(1 + (first + i) % 251 for i in range(length - len(to)))


def chained(driver: Driver, sizes: list[int], at: int = RX_BUFFERS) -> list[int]:
    """Receive buffers of these sizes, apart from each other. Their addresses."""
    addresses = []
    for i, size in enumerate(sizes):
        driver.put_rmd(i, at, size)
        addresses.append(at)
        at += size + 16 & ~1
    return addresses


def received(driver: Driver, addresses: list[int], sizes: list[int], length: int) -> bytes:
    found = b""
    for address, size in zip(addresses, sizes, strict=True):
        part = min(size, length - len(found))
        found += driver.loaded(address, part)
    return found


def wanted(data: bytes) -> bytes:
    return data.ljust(60, b"\0") + bytes(4)


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("length", [14, 59, 60, 61, 200, 1514])
@pytest.mark.parametrize(
    "sizes", [[1536], [64, 1536], [128, 128, 1536], [100] * 20, [63, 65, 1601], [61, 4096]]
)
def test_a_frame_is_chained_through_its_buffers(csr3: int, length: int, sizes: list[int]) -> None:
    with lance_machine() as driver:
        driver.start(csr3, rlen=32)
        addresses = chained(driver, sizes)
        data = wanted(frame(length))
        used, room = 0, 0
        while room < len(data):
            room += sizes[used]
            used += 1
        areas = [(a, s) for a, s in zip(addresses, sizes, strict=True)][:used]
        driver.memory.place_canaries(except_for=[*areas, (RX_RING, 8 * len(sizes)), (0x1000, 24)])
        driver.wire.send(frame(length))
        driver.settle()
        assert received(driver, addresses, sizes, len(data)) == data
        for i in range(used):
            first, last = i == 0, i == used - 1
            assert driver.rmd(i)[1] & 0xFF00 == (STP if first else 0) | (ENP if last else 0)
            assert driver.rmd(i)[3] == (len(data) if last else 0)
        if used < len(sizes):
            assert driver.rmd(used)[1] & OWN
        assert driver.csr0 == RUNNING | CSR0.RINT | CSR0.INTR
        driver.memory.check_canaries()


@pytest.mark.parametrize("csr3", SWAPS)
def test_behind_a_frame_nothing_is_written(csr3: int) -> None:
    with lance_machine() as driver:
        driver.start(csr3)
        driver.offer()
        driver.memory.write(RX_BUFFERS, b"\xee" * 1536)
        for length in (61, 64, 77):
            driver.memory.write(RX_BUFFERS, b"\xee" * 1536)
            driver.put_rmd(0, RX_BUFFERS, 1536)
            driver.lance.receiver.ring.index = 0
            driver.wire.send(frame(length))
            driver.settle()
            assert (
                driver.loaded(RX_BUFFERS, 1536)[: length + 4 & ~1]
                == wanted(frame(length))[: length + 4 & ~1]
            )
            assert driver.memory.read(RX_BUFFERS + length + 4, 64) == b"\xee" * 64


@pytest.mark.parametrize("entries", [1, 2, 4, 8, 16, 32, 64, 128])
def test_the_ring_goes_around(entries: int) -> None:
    with lance_machine() as driver:
        driver.start(rlen=entries)
        for n in range(entries + 3):
            i = n % entries
            driver.put_rmd(i, RX_BUFFERS + 0x800 * i, 1536)
            driver.wire.send(frame(60 + n))
            driver.settle()
            assert driver.rmd(i)[3] == 64 + n
            assert driver.loaded(RX_BUFFERS + 0x800 * i, 60 + n) == frame(60 + n)
        assert not driver.csr0 & CSR0.MISS


def test_many_frames_that_wait_are_taken_in_order() -> None:
    with lance_machine() as driver:
        driver.start(rlen=64)
        driver.offer()
        for n in range(50):
            driver.wire.send(frame(60 + n))
        driver.settle()
        assert [driver.rmd(i)[3] for i in range(50)] == [64 + n for n in range(50)]
        assert driver.rmd(50)[1] & OWN


def test_without_a_buffer_a_frame_is_missed() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.wire.send(frame())
        driver.settle()
        assert driver.csr0 == RUNNING | CSR0.MISS | CSR0.ERR | CSR0.INTR
        driver.write(0, CSR0.MISS | CSR0.INEA)
        driver.put_rmd(0, RX_BUFFERS, 1536)
        driver.wire.send(frame(90))
        driver.settle()
        assert driver.rmd(0)[3] == 94
        assert driver.csr0 == RUNNING | CSR0.RINT | CSR0.INTR


def test_a_buffer_further_on_in_the_ring_is_not_looked_for() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.put_rmd(2, RX_BUFFERS, 1536)
        driver.wire.send(frame())
        driver.settle()
        assert driver.csr0 & CSR0.MISS
        assert driver.rmd(2)[1] & OWN


@pytest.mark.parametrize(
    ("length", "sizes", "oflo"),
    [(100, [64], False), (109, [64], True), (200, [64, 64], True), (60, [63], False)],
)
def test_too_few_buffers_are_buff_and_oflo_beyond_the_fifo(
    length: int, sizes: list[int], oflo: bool
) -> None:
    with lance_machine() as driver:
        driver.start()
        addresses = chained(driver, sizes)
        driver.wire.send(frame(length))
        driver.settle()
        room = sum(sizes)
        assert received(driver, addresses, sizes, room) == wanted(frame(length))[:room]
        last = driver.rmd(len(sizes) - 1)
        status = ERR | int(RMD1.BUFF) | (int(RMD1.OFLO) if oflo else 0)
        assert last[1] & 0xFF00 == status | (STP if len(sizes) == 1 else 0)
        assert last[3] == 0
        assert driver.csr0 == RUNNING | CSR0.RINT | CSR0.INTR
        # The rest of the frame is gone, and the next one is whole.
        driver.put_rmd(len(sizes), RX_BUFFERS, 1536)
        driver.wire.send(frame(80))
        driver.settle()
        assert driver.rmd(len(sizes))[3] == 84


def test_a_ring_that_is_too_small_as_a_whole_is_buff() -> None:
    with lance_machine() as driver:
        driver.start(rlen=2)
        chained(driver, [64, 64])
        driver.wire.send(frame(1514))
        driver.settle()
        assert driver.rmd(1)[1] & 0xFF00 == ERR | int(RMD1.BUFF | RMD1.OFLO)
        assert driver.rmd(0)[1] & 0xFF00 == STP


def test_status_bits_of_the_host_s_stay_and_the_rest_is_not_written() -> None:
    with lance_machine() as driver:
        driver.start()
        words = (0, OWN | 0x3C00 | RX_BUFFERS >> 16, -1536 & 0x0FFF, 0xFFFF)
        driver.put(RX_RING, 0, words)
        driver.wire.send(frame())
        driver.settle()
        assert driver.rmd(0) == (0, words[1] & ~OWN | STP | ENP, words[2], 104)


def test_a_buffer_and_a_ring_go_on_at_0_where_24_bits_end() -> None:
    with lance_machine({0: 1 << 20, 0xFFF000: 0x1000}) as driver:
        driver.start(rdra=0xFFFFF8, rlen=2)
        for address in (0xFFFFF8, 0):
            driver.put(address, 0, (0xFFF0, OWN | 0xFF, -1536 & 0xFFFF, 0))
        driver.wire.send(frame(60))
        driver.settle()
        assert driver.memory.read(0xFFFFF0, 8) == frame(60)[:8]
        assert driver.memory.read(8, 40) == frame(60)[24:] + bytes(4)


@pytest.mark.parametrize("mode", [int(Mode.DRX), int(Mode.DRX | Mode.DTX)])
def test_with_the_receiver_off_frames_pass_by(mode: int) -> None:
    with lance_machine() as driver:
        driver.start(mode=mode)
        driver.offer()
        driver.wire.send(frame())
        driver.settle()
        assert driver.rmd(0)[1] & OWN
        assert not driver.csr0 & (CSR0.MISS | CSR0.RINT)
        driver.start()  # and are gone when it is on again
        driver.settle()
        assert driver.rmd(0)[1] & OWN


def test_while_it_is_stopped_frames_wait_in_the_host() -> None:
    with lance_machine() as driver:
        driver.wire.send(frame(70))
        driver.settle()
        driver.put_block()
        driver.offer()
        driver.start()
        assert driver.rmd(0)[3] == 74
        driver.write(0, CSR0.STOP)
        driver.settle()
        driver.wire.send(frame(80))
        driver.settle()
        assert driver.rmd(1)[1] & OWN
        driver.start()
        driver.offer()
        driver.settle()


def test_a_restart_without_initialization_goes_on_where_the_rings_were() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.offer()
        driver.wire.send(frame(70))
        driver.settle()
        driver.write(0, CSR0.STOP)
        driver.settle()
        driver.write(3, CSR3.BSWP)
        driver.write(0, CSR0.STRT | CSR0.INEA)
        driver.wire.send(frame(80))
        driver.settle()
        assert driver.rmd(1)[3] == 84
        assert driver.csr0 & (CSR0.RXON | CSR0.TXON) == CSR0.RXON | CSR0.TXON


# --- the address filter ---------------------------------------------------------------------------

MULTICAST = bytes.fromhex("01005e0000fb")
OTHER = bytes.fromhex("080020aabbcd")


@pytest.mark.parametrize(
    ("to", "fields", "taken"),
    [
        (STATION, {}, True),
        (OTHER, {}, False),
        (BROADCAST, {}, True),
        (MULTICAST, {}, False),
        (MULTICAST, {"ladrf": 1 << logical_bit(MULTICAST)}, True),
        (MULTICAST, {"ladrf": ~(1 << logical_bit(MULTICAST)) & (1 << 64) - 1}, False),
        (OTHER, {"ladrf": (1 << 64) - 1}, False),
        (OTHER, {"mode": int(Mode.PROM)}, True),
        (MULTICAST, {"mode": int(Mode.PROM)}, True),
    ],
)
def test_the_filter_takes_what_is_for_this_station(
    to: bytes, fields: dict[str, int], taken: bool
) -> None:
    with lance_machine() as driver:
        driver.start(**fields)
        driver.offer()
        if not taken:
            driver.memory.place_canaries(except_for=[(RX_RING, 32), (0x1000, 24)])
        driver.wire.send(frame(100, to))
        driver.settle()
        assert bool(driver.rmd(0)[1] & OWN) != taken
        assert bool(driver.csr0 & CSR0.RINT) == taken
        if not taken:
            driver.memory.check_canaries()
            driver.offer(1)
        driver.wire.send(frame(90))  # what was not taken is gone
        driver.settle()
        assert driver.rmd(1 if taken else 0)[3] == 94


def test_frames_too_short_for_an_address_are_for_promiscuous_stations() -> None:
    for mode, taken in ((0, False), (int(Mode.PROM), True)):
        with lance_machine() as driver:
            driver.start(mode=mode)
            driver.offer()
            driver.wire.send(STATION[:5])
            driver.wire.send(b"")
            driver.settle()
            assert bool(driver.rmd(0)[1] & OWN) != taken
            assert driver.rmd(1)[1] & OWN


@pytest.mark.parametrize(
    ("address", "bit"),
    # The table of the data sheet: a logical address for each bit.
    [
        ("850000000000", 0),
        ("a50000000000", 1),
        ("e50000000000", 2),
        ("c50000000000", 3),
        ("450000000000", 4),
        ("650000000000", 5),
        ("250000000000", 6),
        ("050000000000", 7),
        ("2b0000000000", 8),
    ],
)
def test_the_hash_is_that_of_the_data_sheet_s_table(address: str, bit: int) -> None:
    assert logical_bit(bytes.fromhex(address)) == bit
