"""LANCE's registers, by the data sheet's section "Control and Status Registers"."""

from __future__ import annotations

import pytest

from iodma.devices.lance import CSR0, CSR3, InitializationBlock, Mode
from iodma.devices.lance.csr import STATES, Chip, command
from tests.unit.lancekit import BLOCK, STATION, Driver, lance_machine


def to_state(driver: Driver, state: Chip) -> None:
    """Brings the chip there as software does; initializing goes on as the engine turns."""
    driver.put_block()
    driver.write(0, CSR0.STOP)
    driver.settle()
    driver.write(1, BLOCK & 0xFFFF)
    driver.write(2, BLOCK >> 16)
    if state is Chip.STOPPED:
        return
    if state is Chip.STARTED:
        driver.write(0, CSR0.STRT)
    elif state is Chip.STARTING:
        driver.write(0, CSR0.INIT | CSR0.STRT)
    else:
        driver.write(0, CSR0.INIT)
        if state is Chip.INITIALIZED:
            driver.settle()
    assert driver.lance.chip is state


COMMANDS = {
    "STOP": CSR0.STOP,
    "INIT": CSR0.INIT,
    "STRT": CSR0.STRT,
    "INIT STRT": CSR0.INIT | CSR0.STRT,
}


@pytest.mark.parametrize("state", list(Chip))
@pytest.mark.parametrize("asked", list(COMMANDS))
def test_every_command_in_every_state_does_what_the_table_says(state: Chip, asked: str) -> None:
    with lance_machine() as driver:
        to_state(driver, state)
        driver.write(0, COMMANDS[asked])
        expected = STATES.get((state, asked), state)
        assert driver.lance.chip is expected
        driver.settle()
        settled = STATES.get((expected, "IDON"), expected)
        assert driver.lance.chip is settled
        csr0 = driver.csr0
        assert bool(csr0 & CSR0.STOP) == (settled is Chip.STOPPED)
        assert bool(csr0 & CSR0.STRT) == (settled is Chip.STARTED)


def test_every_edge_of_the_table_is_one_of_a_command_or_of_the_end_of_initialization() -> None:
    assert {asked for _, asked in STATES} == {*COMMANDS, "IDON"}


def test_stop_overrides_init_and_strt() -> None:
    assert command(CSR0.STOP | CSR0.INIT | CSR0.STRT) == "STOP"
    with lance_machine() as driver:
        driver.start()
        driver.write(0, CSR0.STOP | CSR0.INIT | CSR0.STRT | CSR0.INEA | CSR0.TDMD)
        assert driver.csr0 == CSR0.STOP


def test_after_a_reset_only_stop_is_set_and_rap_is_0() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.lance.bus_write(2, 2, 3)
        driver.lance.request_reset()
        driver.settle()
        assert driver.lance.bus_read(2, 2) == 0
        assert driver.lance.bus_read(0, 2) == CSR0.STOP
        driver.write(0, CSR0.STRT)  # what MODE allows is on only after an initialization
        assert driver.csr0 == CSR0.STRT


def test_rap_has_two_bits() -> None:
    with lance_machine() as driver:
        driver.lance.bus_write(2, 2, 0xFFFF)
        assert driver.lance.bus_read(2, 2) == 3
        driver.lance.bus_write(2, 2, 4)
        assert driver.lance.bus_read(2, 2) == 0


def test_csr1_csr2_and_csr3_are_written_only_while_stopped() -> None:
    with lance_machine() as driver:
        for csr, kept in ((1, 0xFFFE), (2, 0x00FF), (3, 0x0007)):
            driver.write(csr, 0xFFFF)
            assert driver.read(csr) == kept
        driver.start()
        before = [driver.read(csr) for csr in (1, 2, 3)]
        for csr in (1, 2, 3):
            driver.write(csr, 0x5554)
        assert [driver.read(csr) for csr in (1, 2, 3)] == before
        assert before == [BLOCK, 0, CSR3.BSWP]


def test_stop_clears_csr3_and_keeps_the_block_s_address() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.write(0, CSR0.STOP)
        assert [driver.read(csr) for csr in (1, 2, 3)] == [BLOCK, 0, 0]


@pytest.mark.parametrize("flag", [CSR0.RINT, CSR0.TINT, CSR0.IDON, CSR0.MISS, CSR0.MERR, CSR0.BABL])
def test_a_cause_sets_intr_and_with_inea_the_line_until_a_one_clears_it(flag: CSR0) -> None:
    with lance_machine() as driver:
        driver.start()
        errors = CSR0.MISS | CSR0.MERR | CSR0.BABL | CSR0.CERR
        running = driver.csr0
        driver.lance.raise_flags(int(flag))
        assert driver.csr0 == running | flag | CSR0.INTR | (CSR0.ERR if flag & errors else 0)
        assert driver.line()
        driver.write(0, 0)  # INEA is read/write
        assert not driver.line()
        assert driver.csr0 & CSR0.INTR
        driver.write(0, CSR0.INEA)
        assert driver.line()
        driver.write(0, CSR0.INEA | CSR0.INTR | CSR0.ERR)  # both are read only
        assert driver.csr0 & CSR0.INTR
        driver.write(0, CSR0.INEA | flag)
        assert driver.csr0 == running
        assert not driver.line()


def test_cerr_is_an_error_that_asks_for_no_service() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.lance.raise_flags(int(CSR0.CERR))
        assert driver.csr0 & (CSR0.ERR | CSR0.CERR | CSR0.INTR) == CSR0.ERR | CSR0.CERR
        assert not driver.line()
        driver.write(0, CSR0.CERR | CSR0.INEA)
        assert not driver.csr0 & CSR0.ERR


def test_inea_and_tdmd_are_not_set_while_stopped_but_are_with_init() -> None:
    with lance_machine() as driver:
        driver.put_block()
        driver.write(0, CSR0.STOP)
        driver.write(0, CSR0.INEA | CSR0.TDMD)
        assert driver.csr0 == CSR0.STOP
        driver.write(1, BLOCK)
        driver.write(0, CSR0.INIT | CSR0.INEA)
        assert driver.csr0 & CSR0.INEA
        driver.settle()
        assert driver.line()  # IDON


def test_read_only_bits_cannot_be_written() -> None:
    with lance_machine() as driver:
        driver.start()
        before = driver.csr0
        driver.write(0, CSR0.INEA | CSR0.RXON | CSR0.TXON | CSR0.INTR | CSR0.ERR)
        assert driver.csr0 == before
        driver.write(0, CSR0.INEA)
        assert driver.csr0 == before  # STRT, INIT, RXON, TXON: a 0 does nothing


def test_tdmd_is_cleared_when_the_ring_has_been_looked_at() -> None:
    with lance_machine() as driver:
        driver.start()
        driver.write(0, CSR0.TDMD)
        assert driver.csr0 & CSR0.TDMD
        driver.settle()
        assert not driver.csr0 & CSR0.TDMD


@pytest.mark.parametrize(
    ("mode", "on"),
    [
        (0, CSR0.RXON | CSR0.TXON),
        (Mode.DRX, CSR0.TXON),
        (Mode.DTX, CSR0.RXON),
        (Mode.DRX | Mode.DTX, CSR0(0)),
    ],
)
def test_strt_turns_on_what_mode_does_not_disable(mode: int, on: CSR0) -> None:
    with lance_machine() as driver:
        driver.initialize(mode=int(mode))
        assert not driver.csr0 & (CSR0.RXON | CSR0.TXON)
        driver.write(0, CSR0.STRT)
        assert driver.csr0 & (CSR0.RXON | CSR0.TXON) == on


def test_init_and_strt_together_start_it_when_the_block_has_been_read() -> None:
    with lance_machine() as driver:
        driver.put_block()
        driver.write(0, CSR0.STOP)
        driver.write(1, BLOCK)
        driver.write(0, CSR0.INIT | CSR0.STRT)
        assert not driver.csr0 & CSR0.RXON
        driver.settle()
        assert driver.csr0 == (
            CSR0.INIT | CSR0.STRT | CSR0.RXON | CSR0.TXON | CSR0.IDON | CSR0.INTR
        )


def test_other_widths_than_16_bits_are_those_of_the_two_registers() -> None:
    with lance_machine() as driver:
        assert driver.lance.bus_read(0, 1) == 0xFF
        assert driver.lance.counts.bad_reads == 1
        driver.lance.bus_write(1, 1, 4)
        assert driver.lance.counts.bad_writes == 1


@pytest.mark.parametrize("entries", [1, 2, 4, 8, 16, 32, 64, 128])
def test_the_initialization_block_is_read_as_it_was_written(entries: int) -> None:
    block = InitializationBlock(
        mode=0x8001,
        padr=STATION,
        ladrf=0x0123456789ABCDEF,
        rdra=0xABCDE8,
        rlen=entries,
        tdra=0x123450,
        tlen=entries,
    )
    with lance_machine() as driver:
        fields = {name: getattr(block, name) for name in block.__slots__}
        driver.initialize(**fields)
        assert driver.lance.block == block


def test_bits_that_must_be_zero_are_not_looked_at() -> None:
    block = InitializationBlock(rdra=0x10, rlen=2, tdra=0x20, tlen=4).to_bytes()
    odd = bytearray(block)
    odd[16] |= 7
    odd[19] |= 0x1F
    odd[20] |= 5
    odd[23] |= 0x0A
    assert InitializationBlock.from_bytes(bytes(odd)) == InitializationBlock.from_bytes(block)
