"""LANCE's transmitter, by the data sheet's sections on the transmit ring, chaining and errors."""

from __future__ import annotations

import errno

import pytest

import iodma
from iodma.devices.lance import CSR0, CSR3, TMD1, TMD3, Lance, Mode
from iodma.testing import Answer, Clock, FakeMemory, ScriptedEndpoint
from iodma.types import Direction
from tests.unit.lancekit import (
    STATION,
    TX_BUFFERS,
    TX_RING,
    Driver,
    lance_machine,
    swapped,
)

SWAPS = [int(CSR3.BSWP), 0]
OWN, STP, ENP, ERR = (int(bit) for bit in (TMD1.OWN, TMD1.STP, TMD1.ENP, TMD1.ERR))
RUNNING = CSR0.INIT | CSR0.STRT | CSR0.RXON | CSR0.TXON | CSR0.INEA


def frame(length: int = 100, first: int = 0) -> bytes:
    return STATION + bytes((first + i) % 251 for i in range(length - 6))


def chain(driver: Driver, data: bytes, sizes: list[int], first: int = 0, at: int = 0) -> None:
    """One frame in buffers of these sizes, at even addresses that do not touch."""
    address = TX_BUFFERS + at
    for i, size in enumerate(sizes):
        part, data = data[:size], data[size:]
        status = OWN | (STP if i == 0 else 0) | (ENP if i == len(sizes) - 1 else 0)
        driver.payload(address, part)
        driver.put_tmd((first + i) % driver.block.tlen, address, size, status)
        address += size + 64 & ~1
    assert not data


def demand(driver: Driver) -> None:
    driver.write(0, CSR0.INEA | CSR0.TDMD)
    driver.settle()


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("sizes", [[100], [50, 50], [2, 98], [10, 20, 30, 40], [99, 1], [1] * 100])
def test_buffers_are_chained_into_one_frame(csr3: int, sizes: list[int]) -> None:
    with lance_machine() as driver:
        driver.start(csr3, tlen=128)
        chain(driver, frame(), sizes)
        demand(driver)
        assert driver.sent() == [frame()]
        for i in range(len(sizes)):
            assert driver.tmd(i)[1] & 0xFF00 == (STP if i == 0 else 0) | (
                ENP if i == len(sizes) - 1 else 0
            )
        assert driver.csr0 == RUNNING | CSR0.TINT | CSR0.INTR


@pytest.mark.parametrize("entries", [1, 2, 4, 8, 16, 32, 64, 128])
def test_the_ring_goes_around(entries: int) -> None:
    with lance_machine() as driver:
        driver.start(tlen=entries)
        for n in range(2 * entries + 3):
            driver.transmit(frame(60, n), first=n % entries)
            driver.settle()
            assert driver.sent() == [frame(60, n)]


def test_a_chain_may_go_around_the_end_of_the_ring_and_a_page() -> None:
    with lance_machine() as driver:
        # The ring crosses a page between its entries 1 and 2.
        driver.start(tlen=4, tdra=TX_RING - 16)
        driver.transmit(frame(), frame(), frame())
        driver.settle()
        assert len(driver.sent()) == 3
        chain(driver, frame(120), [40, 40, 40], first=3)
        demand(driver)
        assert driver.sent() == [frame(120)]
        assert driver.lance.transmitter.ring.index == 2


def test_a_full_ring_is_one_batch_and_one_store() -> None:
    with lance_machine() as driver:
        driver.start(tlen=64)
        frames = [frame(60 + i) for i in range(8)]
        driver.transmit(*frames)
        driver.settle()
        assert driver.sent() == frames
        assert driver.lance.interrupt.count == 1


def test_frames_of_many_shapes_leave_in_order() -> None:
    with lance_machine() as driver:
        driver.start(tlen=16)
        frames = [frame(60 + i, i) for i in range(5)]
        for i, sizes in enumerate([[60], [30, 31], [62], [21, 21, 21], [64]]):
            chain(driver, frames[i], sizes, first=[0, 1, 3, 4, 7][i], at=0x800 * i)
        demand(driver)
        assert driver.sent() == frames
        assert driver.lance.transmitter.ring.index == 8


def test_descriptors_without_a_start_are_given_back_unsent() -> None:
    with lance_machine() as driver:
        driver.start(tlen=8)
        driver.put_tmd(0, TX_BUFFERS, 60, OWN)
        driver.put_tmd(1, TX_BUFFERS, 60, OWN | ENP)
        demand(driver)
        assert driver.sent() == []
        assert [driver.tmd(i)[1] & 0xFF00 for i in (0, 1)] == [0, ENP]
        assert driver.csr0 == RUNNING  # no packet: no TINT
        chain(driver, frame(), [50, 50], first=2)
        demand(driver)
        assert driver.sent() == [frame()]


def test_a_new_start_ends_what_had_none() -> None:
    with lance_machine() as driver:
        driver.start(tlen=8)
        driver.put_tmd(0, TX_BUFFERS + 0x4000, 60, OWN | STP)
        chain(driver, frame(), [100], first=1)
        demand(driver)
        assert driver.sent() == [frame()]
        assert [driver.tmd(i)[1] & 0xFF00 for i in (0, 1)] == [STP, STP | ENP]


@pytest.mark.parametrize("length", [1, 3])
def test_no_end_and_no_next_buffer_is_buff_and_uflo_and_turns_it_off(length: int) -> None:
    with lance_machine() as driver:
        driver.start(tlen=4)
        chain(driver, frame(60), [60], first=0)
        for i in range(1, 1 + length):
            driver.put_tmd(i, TX_BUFFERS + 0x800 * i, 60, OWN | (STP if i == 1 else 0))
        demand(driver)
        assert driver.sent() == [frame(60)]
        last = driver.tmd(length)
        assert last[1] & 0xFF00 == ERR | (STP if length == 1 else 0)
        assert last[3] == TMD3.BUFF | TMD3.UFLO
        assert all(not driver.tmd(i)[1] & OWN for i in range(length))
        assert driver.csr0 == (RUNNING & ~CSR0.TXON) | CSR0.TINT | CSR0.INTR
        chain(driver, frame(60), [60], first=(1 + length) % 4)
        demand(driver)
        assert driver.sent() == []
        assert not driver.csr0 & CSR0.TDMD


def test_a_ring_without_any_end_is_a_buffer_error() -> None:
    with lance_machine() as driver:
        driver.start(tlen=4)
        for i in range(4):
            driver.put_tmd(i, TX_BUFFERS, 60, OWN | (STP if i == 0 else 0))
        demand(driver)
        assert driver.sent() == []
        assert driver.tmd(3)[3] == TMD3.BUFF | TMD3.UFLO


@pytest.mark.parametrize("dtcr", [0, int(Mode.DTCR)])
@pytest.mark.parametrize("many", [1, 3])
def test_more_than_1518_bytes_on_the_wire_is_babl(dtcr: int, many: int) -> None:
    longest = 1518 if dtcr else 1514
    for length, babbles in ((longest, False), (longest + 1, True)):
        with lance_machine() as driver:
            driver.start(mode=dtcr)
            driver.transmit(*[frame(length)] * many)
            driver.settle()
            assert driver.sent() == [frame(length)] * many
            assert bool(driver.csr0 & CSR0.BABL) == babbles
            assert bool(driver.csr0 & CSR0.ERR) == babbles
            assert driver.csr0 & CSR0.TXON
            assert not driver.tmd(0)[1] & ERR


def test_a_frame_that_the_host_cannot_take_has_babbled() -> None:
    with lance_machine({0: 1 << 24}) as driver:
        driver.start(tlen=128)
        for i in range(128):
            driver.put_tmd(i, 0x100000 + 0x1000 * i, 4096, OWN | (STP if i == 0 else 0))
        driver.put_tmd(127, 0x800000, 4096, OWN | ENP)
        demand(driver)
        assert driver.csr0 & (CSR0.BABL | CSR0.TINT) == CSR0.BABL | CSR0.TINT
        assert not driver.tmd(127)[1] & (OWN | ERR)
        assert not driver.tmd(0)[1] & OWN
        assert driver.sent() == []


@pytest.mark.parametrize("many", [1, 5])
def test_without_a_cable_carrier_is_lost(many: int) -> None:
    with lance_machine(network=False) as driver:
        driver.start(tlen=8)
        driver.transmit(*[frame()] * many)
        driver.settle()
        for i in range(many):
            assert driver.tmd(i)[1] & 0xFF00 == ERR | STP | ENP
            assert driver.tmd(i)[3] == TMD3.LCAR
        assert driver.csr0 == RUNNING | CSR0.ERR | CSR0.CERR | CSR0.TINT | CSR0.INTR


@pytest.mark.parametrize("many", [1, 5])
def test_when_the_other_end_is_gone_carrier_is_lost(many: int) -> None:
    with lance_machine() as driver:
        driver.start(tlen=8)
        driver.wire.close()
        driver.transmit(*[frame()] * many)
        for _ in range(100):
            driver.settle()
        assert [driver.tmd(i)[3] for i in range(many)] == [TMD3.LCAR] * many
        assert driver.csr0 & CSR0.CERR


def test_status_bits_of_the_host_s_stay_and_the_rest_is_not_written() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.payload(TX_BUFFERS, frame())
        words = (0, OWN | STP | ENP | 0x7C00 | TX_BUFFERS >> 16, 0x0F9C, 0xFFFF)
        driver.put(TX_RING, 0, words)
        demand(driver)
        assert driver.tmd(0) == (words[0], words[1] & ~OWN, words[2], words[3])
        assert driver.sent() == [frame()]  # BCNT's ones are not looked at


def test_a_length_of_zero_is_4096() -> None:
    with lance_machine() as driver:
        driver.start()
        data = frame(4096)
        driver.payload(TX_BUFFERS, data)
        driver.put(TX_RING, 0, (0, OWN | STP | ENP | TX_BUFFERS >> 16, 0xF000, 0))
        demand(driver)
        assert driver.sent() == [data]


@pytest.mark.parametrize("many", [1, 2])
def test_a_buffer_goes_on_at_0_where_24_bits_end(many: int) -> None:
    with lance_machine({0: 1 << 20, 0xFFF000: 0x1000}) as driver:
        driver.start()
        data = frame(100)
        driver.memory.write(0xFFFFF0, data[:16])
        driver.memory.write(0, data[16:])
        for i in range(many):
            driver.put_tmd(i, 0xFFFFF0, 100)
        demand(driver)
        assert driver.sent() == [data] * many


def test_the_ring_goes_on_at_0_where_24_bits_end() -> None:
    with lance_machine({0: 1 << 20, 0xFFF000: 0x1000}) as driver:
        driver.start(tdra=0xFFFFF0, tlen=4)
        for i in range(4):
            driver.payload(TX_BUFFERS + 0x800 * i, frame(60, i))
            words = (0x800 * i, OWN | STP | ENP | TX_BUFFERS >> 16, -60 & 0xFFFF, 0)
            driver.put(0xFFFFF0 + 8 * i & 0xFFFFFF, 0, words)
        demand(driver)
        assert driver.sent() == [frame(60, i) for i in range(4)]
        assert not driver.get(8, 0)[1] & OWN


@pytest.mark.parametrize("length", [61, 99, 1513])
@pytest.mark.parametrize("many", [1, 2])
def test_an_odd_byte_is_sent_as_it_is_and_nothing_behind_it(length: int, many: int) -> None:
    with lance_machine() as driver:
        driver.start(0)
        data = frame(length)
        driver.memory.write(TX_BUFFERS, swapped(data) + b"\xee" * 16)
        for i in range(many):
            driver.put_tmd(i, TX_BUFFERS, length)
        demand(driver)
        assert driver.sent() == [data] * many


def test_an_odd_buffer_swaps_the_words_inside_it() -> None:
    with lance_machine() as driver:
        driver.start(0)
        data = frame(100)
        driver.memory.write(TX_BUFFERS, b"\xee" + data[:1] + swapped(data[1:99]) + data[99:])
        driver.put_tmd(0, TX_BUFFERS + 1, 100)
        demand(driver)
        assert driver.sent() == [data]


def test_a_full_socket_delays_descriptors_and_is_not_busy() -> None:
    with lance_machine() as driver:
        driver.start(tlen=128)
        driver.narrow()
        frames = [frame(60, i) for i in range(100)]
        driver.transmit(*frames)
        driver.settle()
        assert not driver.lance.busy
        owned = sum(bool(driver.tmd(i)[1] & OWN) for i in range(100))
        assert 0 < owned < 100
        seen = driver.sent()
        assert len(seen) >= 100 - owned  # a worker may have sent one that there was room for then
        while len(seen) < 100:
            driver.settle()
            seen += driver.sent()
        driver.settle()
        assert seen == frames
        assert not any(driver.tmd(i)[1] & OWN for i in range(100))


def test_what_is_sent_without_tdmd_is_found_by_the_poll() -> None:
    clock = Clock()
    with lance_machine(clock=clock, poll=0.0016) as driver:
        driver.start()
        driver.payload(TX_BUFFERS, frame())
        for i in range(3):
            driver.put_tmd(i, TX_BUFFERS, 100)
            driver.settle()
            assert driver.sent() == []
            clock.advance(0.0016)
            driver.settle()
            assert driver.sent() == [frame()]


@pytest.mark.parametrize("many", [1, 4])
def test_nothing_is_given_back_before_the_host_has_taken_it(many: int) -> None:
    with (
        ScriptedEndpoint(script=lambda request: Answer.hold()) as network,
        lance_machine(network=network) as driver,
    ):
        driver.start()
        driver.transmit(*[frame()] * many)
        sends = []
        for given in range(many):
            for _ in range(50):
                driver.engine.pump()
            sends = [r for r in network.waiting if r.direction is Direction.FROM_MEMORY]
            assert [bool(driver.tmd(i)[1] & OWN) for i in range(many)] == [
                i >= given for i in range(many)
            ]
            network.answer(sends[0])
        for _ in range(50):
            driver.engine.pump()
        assert not driver.tmd(many - 1)[1] & OWN
        network.answer_all(error=errno.EOPNOTSUPP)


def test_endpoints_without_packets_are_refused() -> None:
    with (
        FakeMemory() as memory,
        iodma.Engine() as engine,
        iodma.Null() as null,
        pytest.raises(iodma.ArgumentError, match="no packets"),
    ):
        Lance(engine.port(memory), network=null)
