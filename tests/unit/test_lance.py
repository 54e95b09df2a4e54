"""LANCE from end to end: it is initialized, sends, receives and interrupts."""

from __future__ import annotations

import pytest

from iodma.devices.lance import CSR0, CSR3, RMD1, TMD1
from tests.unit.lancekit import (
    BROADCAST,
    RX_BUFFERS,
    STATION,
    lance_machine,
)

SWAPS = [int(CSR3.BSWP), 0]


def frame(length: int = 1514, to: bytes = STATION) -> bytes:
    return to + bytes(6) + bytes(i % 251 for i in range(length - 12))


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("count", [1, 2, 64, 128])
def test_what_the_ring_holds_goes_out(csr3: int, count: int) -> None:
    with lance_machine() as driver:
        driver.start(csr3, tlen=128)
        frames = [frame(64 + 2 * i) for i in range(count)]
        seen: list[bytes] = []
        driver.transmit(*frames)
        while len(seen) < count:
            driver.settle()
            seen += driver.sent()
        driver.settle()
        assert seen == frames
        assert all(not driver.tmd(i)[1] & TMD1.OWN for i in range(count))
        assert driver.csr0 & CSR0.TINT
        assert driver.lance.interrupt.level
        driver.write(0, CSR0.TINT | CSR0.INEA)
        assert not driver.lance.interrupt.level


@pytest.mark.parametrize("csr3", SWAPS)
@pytest.mark.parametrize("length", [14, 60, 61, 1513, 1514])
def test_what_comes_lands_in_its_buffer(csr3: int, length: int) -> None:
    with lance_machine() as driver:
        driver.start(csr3)
        driver.offer()
        data = frame(length)
        driver.wire.send(data)
        driver.settle()
        padded = data.ljust(60, b"\0")
        assert driver.loaded(RX_BUFFERS, len(padded) + 4) == padded + bytes(4)
        status, mcnt = driver.rmd(0)[1], driver.rmd(0)[3]
        assert status & 0xFF00 == RMD1.STP | RMD1.ENP
        assert mcnt == len(padded) + 4
        assert driver.csr0 & CSR0.RINT
        assert driver.lance.interrupt.count == 1


def test_other_stations_frames_are_left_alone() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.offer()
        driver.memory.place_canaries(except_for=[(RX_BUFFERS + 0x800 * 0, 64), (0x2000, 8)])
        driver.wire.send(frame(to=b"\x08\0\0\0\0\1"))
        driver.wire.send(frame(60, to=BROADCAST))
        driver.settle()
        assert driver.rmd(0)[3] == 64
        assert driver.rmd(1)[1] & RMD1.OWN
