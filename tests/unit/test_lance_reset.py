"""STOP and the reset line, in the middle of everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import iodma
from iodma.devices.lance import CSR0, CSR3, TMD1, Mode
from tests.unit.lancekit import (
    BLOCK,
    RX_BUFFERS,
    RX_RING,
    STATION,
    TX_BUFFERS,
    TX_RING,
    Driver,
    lance_machine,
)
from tests.unit.system import Registers

OWN, STP, ENP = (int(bit) for bit in (TMD1.OWN, TMD1.STP, TMD1.ENP))
HOW = ["STOP", "RESET"]


def frame(length: int = 100, first: int = 0) -> bytes:
    return STATION + bytes((first + i) % 251 for i in range(length - 6))


def halt(driver: Driver, how: str) -> None:
    if how == "STOP":
        driver.write(0, CSR0.STOP)
        assert driver.csr0 == CSR0.STOP
    else:
        driver.lance.request_reset()


def whole(driver: Driver) -> bytes:
    return driver.memory.read(0, 1 << 20)


def check_stopped(driver: Driver) -> None:
    """It is at rest, touches nothing, takes nothing."""
    driver.settle()
    assert driver.csr0 == CSR0.STOP
    assert not driver.line()
    before = whole(driver)
    driver.wire.send(frame(77))
    for _ in range(20):
        driver.engine.pump()
    driver.settle()
    assert whole(driver) == before
    assert driver.lance.tasks == 0


def check_again(driver: Driver) -> None:
    """It can be used: the frame of `check_stopped` comes, and another one goes."""
    driver.memory.write(TX_RING, bytes(1024))
    driver.memory.write(RX_RING, bytes(1024))
    driver.sent()
    driver.put_block(rlen=32)
    driver.offer()
    driver.start(rlen=32)
    driver.transmit(frame(80))
    driver.settle()
    assert driver.sent() == [frame(80)]
    found = [driver.rmd(i)[3] for i in range(32)]
    assert 81 in found
    assert driver.csr0 & (CSR0.RXON | CSR0.TXON) == CSR0.RXON | CSR0.TXON


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("csr3", [int(CSR3.BSWP), 0])
def test_after_any_number_of_turns(how: str, turns: int, csr3: int) -> None:
    with lance_machine() as driver:
        driver.put_block(rlen=8, tlen=8)
        driver.straight = bool(csr3)
        driver.offer()
        for i in range(8):
            driver.payload(TX_BUFFERS + 0x800 * i, frame(60 + i, i))
            driver.put_tmd(i, TX_BUFFERS + 0x800 * i, 60 + i)
            driver.wire.send(frame(64 + i))
        driver.write(0, CSR0.STOP)
        driver.write(1, BLOCK)
        driver.write(3, csr3)
        driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
        for _ in range(turns):
            driver.engine.pump(1)
        halt(driver, how)
        check_stopped(driver)
        sent = driver.sent()
        assert sent == [frame(60 + i, i) for i in range(len(sent))]
        given = [i for i in range(8) if not driver.tmd(i)[1] & OWN]
        assert given == list(range(len(given)))
        assert len(given) <= len(sent)
        for i in range(8):
            if not driver.rmd(i)[1] & OWN:
                whole_frame = frame(64 + i) + bytes(4)
                assert driver.loaded(RX_BUFFERS + 0x800 * i, 68 + i) == whole_frame
        check_again(driver)


@pytest.mark.parametrize("how", HOW)
def test_while_the_host_takes_no_more_frames(how: str) -> None:
    with lance_machine() as driver:
        driver.start(tlen=64)
        driver.narrow()
        frames = [frame(60, i) for i in range(40)]
        driver.transmit(*frames)
        driver.settle()
        halt(driver, how)
        driver.settle()
        owned = [i for i in range(40) if driver.tmd(i)[1] & OWN]
        assert owned
        first = driver.sent()
        assert first == frames[: len(first)]
        assert len(first) >= 40 - len(owned)
        check_stopped(driver)
        assert driver.sent() == []
        check_again(driver)


def test_stop_and_start_in_a_row_begin_when_the_memory_is_left_alone() -> None:
    with lance_machine() as driver:
        driver.start(tlen=64)
        driver.narrow()
        driver.transmit(*[frame(60, i) for i in range(40)])
        driver.settle()
        driver.sent()
        driver.write(0, CSR0.STOP)
        driver.write(3, CSR3.BSWP)
        driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
        assert driver.lance.busy
        assert not driver.csr0 & CSR0.IDON
        driver.settle()
        assert driver.csr0 & (CSR0.IDON | CSR0.TXON) == CSR0.IDON | CSR0.TXON


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("what", ["transmit", "receive", "loopback", "IDON", "memory error"])
def test_by_an_interrupt_handler_that_runs_at_once(how: str, what: str) -> None:
    with lance_machine() as driver:
        mode = int(Mode.LOOP | Mode.INTL) if what == "loopback" else 0
        if what != "IDON":
            driver.start(tlen=8, rlen=8, mode=mode)
        stopped: list[int] = []

        def handler(level: bool) -> None:
            if level and not stopped:
                stopped.append(driver.read(0))
                halt(driver, how)

        driver.lance.interrupt.connect(handler)
        if what == "IDON":
            driver.put_block()
            driver.write(1, BLOCK)
            driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
        else:
            driver.offer()
            if what == "receive":
                for _ in range(3):
                    driver.wire.send(frame(32))
            else:
                driver.transmit(*[frame(30)] * 3)
            if what == "memory error":
                driver.put_tmd(0, 0xF00000, 60)
        driver.settle()
        assert stopped
        check_stopped(driver)
        check_again(driver)


def test_init_again_by_an_interrupt_handler() -> None:
    with lance_machine() as driver:
        driver.start()
        seen: list[int] = []

        def handler(level: bool) -> None:
            if level and len(seen) < 5:
                seen.append(driver.read(0))
                driver.write(0, CSR0.STOP)
                driver.write(3, CSR3.BSWP)
                driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)

        driver.lance.interrupt.connect(handler)
        driver.transmit(frame(), frame(90))
        driver.settle()
        assert len(seen) == 5
        assert driver.csr0 & CSR0.TXON


def test_many_resets_at_once_are_one() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.transmit(frame())
        for _ in range(3):
            driver.lance.request_reset()
            driver.write(0, CSR0.STOP)  # refused meanwhile
        driver.settle()
        assert driver.lance.counts.resets == 1
        assert driver.csr0 == CSR0.STOP


@pytest.mark.parametrize("how", HOW)
def test_while_device_windows_answer(how: str) -> None:
    """Transfers that take turns: init block and ring behind a window."""

    for turns in range(16):
        with lance_machine() as driver:
            driver.put_block(tdra=0x400020, tlen=1)
            ring = bytes.fromhex("0000 8308 ff9c 0000".replace(" ", ""))
            inside = Registers(driver.memory.read(BLOCK, 32) + ring)
            driver.memory.add(0x400000, iodma.DeviceWindow(inside, 64))
            assert TX_BUFFERS == 0x80000
            driver.payload(TX_BUFFERS, frame())
            driver.write(1, 0)
            driver.write(2, 0x40)
            driver.write(3, CSR3.BSWP)
            driver.write(0, CSR0.INIT | CSR0.STRT | CSR0.INEA)
            for _ in range(turns):
                driver.engine.pump(1)
            halt(driver, how)
            check_stopped(driver)
            assert driver.sent() in ([], [frame()])
            check_again(driver)


def test_it_may_go_with_all_in_flight() -> None:
    """The machine is taken down while the chip runs: nothing is left."""
    ask: Callable[[], object]
    with lance_machine() as driver:
        driver.start(tlen=64)
        driver.narrow()
        driver.transmit(*[frame(60, i) for i in range(40)])
        driver.settle()
        ask = driver.lance.request_reset
        ask()
