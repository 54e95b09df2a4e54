"""A device as a PCI function: BARs, bus mastering, resets, messages to memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iodma
from iodma.pci import Capability, Function
from iodma.testing import Answer, Clock, FakeMemory, ScriptedEndpoint, strict_engine
from tests.unit.engines import Held, WatchedEngine, run, settle
from tests.unit.pcikit import BUS_MASTER, COMMAND, Lines, Noted, capability, described, put, word


class Mover(iodma.Device):
    """Reads a page from an endpoint into memory."""

    pci = iodma.Pci(vendor=0xF1DA, device=2, bars={0: 256}, msi=2, msix=2)
    status = iodma.Register(0x00, reset=0xFF)
    go = iodma.Doorbell(0x04, run="move")
    disk: Any

    async def move(self, address: int) -> None:
        done = await self.port.to_memory((address, 4096), source=self.disk)
        self.status = done.status
        self.interrupt.pulse()


class Machine:
    """A mover in a slot over a page of RAM; the test ends its transfers."""

    def __init__(self, engine: WatchedEngine, held: Held, ram: iodma.Ram) -> None:
        self.engine, self.held, self.ram = engine, held, ram
        self.slot = iodma.PciSlot()
        self.messages: list[tuple[int, int]] = []
        self.slot.memory.add(0, ram)
        self.slot.memory.add(
            0xFEE0_0000, iodma.MsiWindow(lambda at, data: self.messages.append((at, data)))
        )
        self.device = Mover(engine.port(self.slot), disk=held)
        engine.attach(self.device)
        self.function = Function(self.device)

    def ring(self) -> None:
        self.function.bar_write(0, 4, bytes(4))
        settle(self.engine)

    @property
    def status(self) -> int:
        return word_of(self.function.bar_read(0, 0, 4))


def word_of(data: bytes) -> int:
    return int.from_bytes(data, "little")


@pytest.fixture
def machine(engine: WatchedEngine) -> Iterator[Machine]:
    with iodma.Ram(8192) as ram, Held() as held:
        yield Machine(engine, held, ram)
        held.finish()
        settle(engine)


def done(waits: Any) -> Any:
    """A task that waits, and notes it in a list."""
    ended: list[bool] = []

    async def wait() -> None:
        await waits
        ended.append(True)

    return wait(), ended


# --- BARs -----------------------------------------------------------------------------------------


class Wide(iodma.Device):
    """Registers of every width in 32 bytes, and what was done to them."""

    pci = iodma.Pci(vendor=0xF1DA, device=3, bars={0: 16, 2: iodma.Bar(16, at=16)})
    a = iodma.Register(0x00, 8)
    b = iodma.Register(0x08, 4)
    c = iodma.Register(0x0C, 2)
    d = iodma.Register(0x0E, 1)
    e = iodma.Register(0x0F, 1)
    f = iodma.Register(0x10, 8, narrowest=1)
    g = iodma.Register(0x18, 8, narrowest=1)


def test_an_access_is_cut_where_registers_are_aligned() -> None:
    device = Wide()
    function = Function(device)
    function.bar_write(0, 0, bytes(range(16)))
    assert (device.a, device.b, device.c) == (0x0706050403020100, 0x0B0A0908, 0x0D0C)
    assert (device.d, device.e) == (0x0E, 0x0F)
    assert function.bar_read(0, 8, 7) == bytes(range(8, 15))
    assert function.bar_read(0, 4, 4) == b"\xff" * 4 and device.counts.bad_reads == 1
    function.bar_write(2, 0, b"\x55" * 16)
    assert device.f == device.g == 0x5555_5555_5555_5555


@given(st.lists(st.tuples(st.integers(0, 15), st.binary(min_size=1, max_size=16)), max_size=6))
def test_any_length_and_alignment_is_bytes(writes: Any) -> None:
    function, expected = Function(Wide()), bytearray(16)
    for offset, data in writes:
        data = data[: 16 - offset]
        function.bar_write(2, offset, data)
        expected[offset : offset + len(data)] = data
    assert function.bar_read(2, 0, 16) == expected
    for offset in range(16):
        assert function.bar_read(2, offset, 16 - offset) == expected[offset:]


@given(st.integers(0, 200), st.integers(0, 60))
def test_pieces_are_naturally_aligned_and_as_wide_as_they_can_be(offset: int, length: int) -> None:
    seen: list[tuple[int, int]] = []

    class Watched(iodma.Device):
        pci = iodma.Pci(vendor=0xF1DA, device=3, bars={0: 512})

        def bus_read(self, offset: int, width: int) -> int:
            seen.append((offset, width))
            return 0

    Function(Watched()).bar_read(0, offset, length)
    place = offset
    for at, width in seen:
        assert at == place and at % width == 0
        wider = 2 * width
        assert width == 8 or at % wider or at + wider > offset + length
        place += width
    assert place == offset + length


accesses = st.lists(
    st.tuples(
        st.sampled_from((0, 1, 2, 4, 6, 7)),
        st.integers(0, 0x1200),
        st.one_of(
            st.binary(max_size=9),
            st.sampled_from((b"\xff" * 64, b"\0\x80", b"\xff" * 300, bytes(4), b"\x03")),
        ),
        st.booleans(),
    ),
    max_size=30,
)


@given(accesses, st.booleans())
def test_whatever_software_does_is_answered(written: Any, soft_reset: bool) -> None:
    """Resets and power states included; a device in process resets within the write."""
    made = described(
        bars={0: 4096, 1: iodma.Bar(16, kind="io"), 2: iodma.Bar(4096, kind="memory64")},
        msi=8,
        msix=33,
        soft_reset=soft_reset,
        rom=b"\x55\xaa",
        capabilities=(Capability.vendor_specific(bytes(8), b"\xff" * 8),),
    )
    device = made()
    function, noted = Function(device), Noted()
    function.interrupts.connect(noted)
    for bar, offset, data, line in written:
        if bar == 7:
            offset = offset % (4097 - len(data))
            function.config_write(offset, data)
            assert len(function.config_read(offset, len(data))) == len(data)
        else:
            offset = offset % (function.bars[bar].size + 1 - len(data[:16]))
            function.bar_write(bar, offset, data[:16])
            assert len(function.bar_read(bar, offset, len(data[:16]))) == len(data[:16])
        device.lines[bar % 3].set(line) if offset % 2 else device.lines[2].set(not line)
    assert function.config_read(0, 4) == b"\xda\xf1\x01\x00"
    function.request_reset()
    assert function.config_read(0x04, 2) == b"\0\0" and device.state == "running"
    assert not function.interrupts.level and function.interrupts.pending() == ()


def test_outside_the_bars() -> None:
    function = Function(Wide())
    for bar, offset, length in ((0, 16, 1), (0, -1, 1), (0, 0, 17), (1, 0, 1), (7, 0, 1)):
        with pytest.raises(iodma.AddressRangeError, match=r"there are \(bytes\) 0: 16, 2: 16"):
            function.bar_read(bar, offset, length)
        with pytest.raises(iodma.AddressRangeError):
            function.bar_write(bar, offset, bytes(length))


def test_ram_and_rom() -> None:
    made = described(
        bars={0: 4096, 2: iodma.Bar(8192, kind="memory64", prefetchable=True, ram="frame")},
        rom=b"\x55\xaa\x08",
    )
    with iodma.Ram(8192) as ram:
        device = made(frame=ram)
        function = Function(device)
        bar, rom = function.bars[2], function.bars[6]
        assert bar.ram is ram and bar.sparse == ((0, 8192),) and bar.wide and bar.prefetchable
        function.bar_write(2, 4095, b"abc")
        assert bytes(ram.view(4095, 3)) == b"abc" == function.bar_read(2, 4095, 3)
        assert rom.size == 2048 and rom.read_only and not bar.read_only
        function.bar_write(6, 0, b"abc")
        assert function.bar_read(6, 0, 5) == b"\x55\xaa\x08\xff\xff"


def test_ram_that_a_peer_has_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "frame"
    path.write_bytes(bytes(8192))
    with iodma.Ram.from_file(path) as ram:
        function = Function(described(bars={0: 32, 1: iodma.Bar(8192, ram="frame")})(frame=ram))
        os.truncate(path, 4096)
        function.bar_write(1, 4094, b"abcd")
        assert function.bar_read(1, 4094, 4) == b"\xff" * 4
        assert function.bar_read(1, 4094, 2) == b"ab"
    with pytest.raises(iodma.ClosedError):
        function.bar_read(1, 0, 4)


def test_ram_of_our_own_cannot_be_taken_away() -> None:
    with iodma.Ram(8192) as ram:
        for size in (0, 4096, 8193):
            with pytest.raises(PermissionError):
                os.ftruncate(ram.fd, size)


# --- bus master enable ----------------------------------------------------------------------------


def test_dma_goes_while_bus_master_enable_is_set(machine: Machine) -> None:
    machine.ring()
    assert machine.status == iodma.Status.FAULT
    assert machine.function.config_write(COMMAND, BUS_MASTER) is None
    machine.ring()
    machine.held.finish()
    settle(machine.engine)
    assert machine.status == iodma.Status.OK


def test_clearing_it_is_acknowledged_when_nothing_is_in_flight(machine: Machine) -> None:
    machine.function.config_write(COMMAND, BUS_MASTER)
    machine.ring()
    waits, ended = done(machine.function.config_write(COMMAND, b"\0\0"))
    machine.engine.start(waits)
    settle(machine.engine)
    assert not ended and machine.held.asked and not machine.held.cancelled
    machine.held.finish()
    settle(machine.engine)
    assert ended and machine.status == iodma.Status.OK
    assert machine.function.config_write(COMMAND, b"\0\0") is None


def test_a_deadline_that_passes_is_no_acknowledgement(caplog: pytest.LogCaptureFixture) -> None:
    with (
        strict_engine(clock=Clock()) as engine,
        FakeMemory(8192) as memory,
        ScriptedEndpoint(4096, script=lambda _: Answer.hold(), on_cancel="ignore") as disk,
    ):
        device = Mover(engine.port(iodma.PciSlot(memory)), disk=disk)
        engine.attach(device)
        function = Function(device)

        async def main() -> None:
            for stop in (lambda: function.config_write(COMMAND, b"\0\0"), lambda: flr(function)):
                function.config_write(COMMAND, BUS_MASTER)
                function.bar_write(0, 4, bytes(4))
                while not disk.waiting:
                    await engine.sleep(0)
                waits, ended = done(stop())
                task = engine.start(waits)
                await engine.sleep(60)
                assert not ended and "still held" in caplog.text
                disk.answer_all()
                await task
                assert ended
                caplog.clear()

        engine.run(main())


def test_transactions_pending_is_told(machine: Machine) -> None:
    status = capability(machine.function, 0x10) + 0x0A
    machine.function.config_write(COMMAND, BUS_MASTER)
    assert word(machine.function, status) == 0
    machine.ring()
    assert word(machine.function, status) == 1 << 5
    assert machine.function.config_read(status, 1) == b"\x20"
    assert machine.function.config_read(status + 1, 1) == b"\0"
    machine.held.finish()
    settle(machine.engine)
    assert word(machine.function, status) == 0


# --- power and resets -----------------------------------------------------------------------------


def flr(function: Function) -> Any:
    return put(function, capability(function, 0x10) + 8, 0xA810)


def test_function_level_reset(machine: Machine) -> None:
    function = machine.function
    power_on = function.config_read(0, 4096)
    table = function.bar_read(1, 0, 4096)
    function.config_write(COMMAND, b"\x06\x01")
    put(function, 0x10, 0xE000_0000, 4)
    put(function, capability(function, 0x11) + 2, 0x8000)
    function.bar_write(1, 0, b"\xfc" * 32)
    machine.ring()
    waits, ended = done(flr(function))
    machine.engine.start(waits)
    settle(machine.engine)
    # At once: nothing gets out any more, and nobody answers.
    assert not ended and not machine.slot.bus_master and machine.held.cancelled
    assert function.bar_read(0, 0, 4) == b"\xff" * 4
    machine.held.finish()
    settle(machine.engine)
    assert ended and machine.status == 0xFF and machine.device.counts.resets == 1
    assert function.config_read(0, 4096) == power_on and function.bar_read(1, 0, 4096) == table


def test_a_reset_may_be_awaited_again_or_not_at_all(machine: Machine) -> None:
    reset = machine.function.request_reset()

    async def twice() -> None:
        await reset
        await reset

    run(machine.engine, twice)
    flr(machine.function)
    machine.function.request_reset()
    settle(machine.engine)
    assert machine.device.counts.resets == 2


def test_other_bits_of_device_control_reset_nothing(machine: Machine) -> None:
    control = capability(machine.function, 0x10) + 8
    assert put(machine.function, control, 0x2F) is None
    assert word(machine.function, control) == 0x2F
    assert machine.function.config_write(control + 1, b"\x28") is None
    assert machine.function.config_write(control + 1, b"\xa8") is not None
    settle(machine.engine)
    assert machine.device.counts.resets == 1 and word(machine.function, control) == 0x2810


def test_in_d3hot_nobody_answers_and_nothing_is_lost(machine: Machine) -> None:
    function = machine.function
    power = capability(function, 0x01) + 4
    function.config_write(COMMAND, BUS_MASTER)
    put(function, 0x10, 0xE000_0000, 4)
    machine.ring()
    waits, ended = done(put(function, power, 3))
    machine.engine.start(waits)
    settle(machine.engine)
    assert not ended and not machine.slot.bus_master
    machine.held.finish()
    settle(machine.engine)
    assert ended
    function.bar_write(0, 0, b"\x77" * 4)
    assert function.bar_read(0, 0, 4) == b"\xff" * 4 and word(function, power) == 0xB
    assert put(function, power, 0) is None
    assert (machine.slot.bus_master, machine.status, machine.device.counts.resets) == (True, 0, 0)
    assert word(function, 0x10, 4) == 0xE000_0000


def test_intx_is_low_in_d3hot() -> None:
    device = Lines()
    function, noted = Function(device), Noted()
    function.interrupts.connect(noted)
    power = capability(function, 0x01) + 4
    device.interrupt.set(True)
    put(function, power, 3)
    put(function, power, 0)
    assert noted.take() == [True, False, True]


def test_a_soft_reset_from_d3hot() -> None:
    device = described(soft_reset=True)()
    function = Function(device)
    power = capability(function, 0x01) + 4
    device.value = 7
    put(function, 0x10, 0xE000_0000, 4)
    assert word(function, power) == 0 and put(function, power, 3) is None
    assert device.counts.resets == 0 and device.value == 7
    assert put(function, power, 0) is not None
    assert (device.value, device.counts.resets) == (0, 1)
    assert word(function, 0x10, 4) == 0 and word(function, power) == 0


def test_a_device_that_failed_is_brought_back_by_a_reset(machine: Machine) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    machine.device.start(fail())
    settle(machine.engine)
    assert machine.function.bar_read(0, 0, 4) == b"\xff" * 4
    assert machine.function.config_read(0, 2) == b"\xda\xf1"
    flr(machine.function)
    settle(machine.engine)
    assert machine.status == 0xFF and machine.device.state == "running"


# --- messages to memory ---------------------------------------------------------------------------


def test_a_message_is_written_after_the_data(machine: Machine) -> None:
    function = machine.function
    function.config_write(COMMAND, BUS_MASTER)
    entry = (0xFEE0_1000).to_bytes(8, "little") + (0x4041).to_bytes(4, "little") + bytes(4)
    function.bar_write(1, 0, entry)
    put(function, capability(function, 0x11) + 2, 0x8000)
    machine.ring()
    assert machine.messages == []
    machine.held.finish()
    settle(machine.engine)
    assert machine.messages == [(0x1000, 0x4041)] and machine.status == iodma.Status.OK


def test_msi_puts_the_vector_into_the_data(machine: Machine) -> None:
    function = machine.function
    offset = capability(function, 0x05)
    put(function, offset + 4, 0xFEE0_2000, 8)
    put(function, offset + 12, 0x4043)
    put(function, offset + 2, 0x0011)
    function.config_write(COMMAND, BUS_MASTER)
    line = machine.device.interrupt_line("second")
    machine.device.interrupt.pulse()
    line.pulse()
    settle(machine.engine)
    assert machine.messages == [(0x2000, 0x4042), (0x2000, 0x4043)]


def test_a_message_to_nowhere_is_told_and_harms_nobody(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    function = machine.function
    function.config_write(COMMAND, BUS_MASTER)
    function.bar_write(1, 0, (0xDEAD_0000_0000).to_bytes(8, "little") + bytes(8))
    put(function, capability(function, 0x11) + 2, 0x8000)
    machine.device.interrupt.pulse()
    settle(machine.engine)
    assert "a message-signalled interrupt did not arrive" in caplog.text
    assert machine.device.state == "running" and not machine.engine.failures


def test_a_function_that_is_closed_leaves_the_device_alone(machine: Machine) -> None:
    machine.function.config_write(COMMAND, BUS_MASTER)
    noted = Noted()
    machine.function.interrupts.connect(noted)
    machine.function.close()
    machine.function.close()
    assert not machine.slot.bus_master
    machine.device.interrupt.set(True)
    assert noted.take() == []
    assert Function(machine.device).interrupts.level


def test_a_device_or_a_slot_is_of_one_function(engine: WatchedEngine, machine: Machine) -> None:
    with pytest.raises(iodma.BusyError, match="closing that first would be right"):
        Function(machine.device)
    other = Lines(engine.port(machine.slot))
    with pytest.raises(iodma.BusyError, match="PciSlot"):
        Function(other)
    machine.function.close()
    function = Function(other)
    with pytest.raises(iodma.BusyError, match="PciSlot"):
        Function(machine.device)
    function.close()
    Function(machine.device).close()


def test_dma_without_bus_mastering_is_told_once(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        lines = [each.message.partition("DMA that ")[2] for each in caplog.records]
        caplog.clear()
        return lines

    machine.ring()
    machine.ring()
    assert told() == ["writes to 0x0 fails, as all DMA does while Bus Master Enable is clear"]
    machine.function.config_write(COMMAND, BUS_MASTER)
    machine.function.config_write(COMMAND, b"\0\0")
    machine.ring()
    machine.ring()
    assert len(told()) == 1
    machine.function.close()
    machine.ring()
    assert told() == []
