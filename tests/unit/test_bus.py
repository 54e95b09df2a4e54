"""The in-process bus: windows, what is unmapped, and handlers that reach for the bus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.devices import Device, Register
from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError
from iodma.transports import Bus
from tests.unit.engines import WatchedEngine, held_port


class Four(Device):
    wide = Register(0, 8, narrowest=1)
    word = Register(8)
    half = Register(12, 2)
    byte = Register(14, 1)


def test_every_width_both_ways() -> None:
    bus, device = Bus(), Four()
    bus.attach(device, 0x1000)
    bus.write64(0x1000, 0x1122_3344_5566_7788)
    bus.write32(0x1008, 0x99AA_BBCC)
    bus.write16(0x100C, 0xDDEE)
    bus.write8(0x100E, 0xFF)
    assert (device.wide, device.word) == (0x1122_3344_5566_7788, 0x99AA_BBCC)
    assert (device.half, device.byte) == (0xDDEE, 0xFF)
    assert bus.read64(0x1000) == 0x1122_3344_5566_7788
    assert (bus.read32(0x1004), bus.read16(0x1002), bus.read8(0x1007)) == (
        0x1122_3344,
        0x5566,
        0x11,
    )
    assert bus.unmapped == 0


def test_what_nothing_answers_is_counted() -> None:
    bus, device = Bus(), Four()
    bus.attach(device, 0x1000)
    for address in (0, 0xFFF, 0x1010, (1 << 64) - 1):
        assert bus.read8(address) == 0xFF
        bus.write8(address, 1)
    assert bus.read16(0x100F) == 0xFFFF, "crosses the end of the window"
    assert bus.read64(0x0FFC) == (1 << 64) - 1, "and its begin"
    assert bus.unmapped == 10
    assert device.counts.bad_reads == 0


def test_a_window_larger_than_its_registers_reaches_the_device() -> None:
    bus, device = Bus(), Four()
    assert bus.attach(device, 0x1000, 0x1000).size == 0x1000
    assert bus.read32(0x1FFC) == 0xFFFF_FFFF
    assert (bus.unmapped, device.counts.bad_reads) == (0, 1)


def test_neighbours_touch_and_the_last_byte_is_2_to_the_64() -> None:
    bus = Bus()
    devices = [Four() for _ in range(3)]
    for device, base in zip(devices, (0, 0x10, (1 << 64) - 0x10), strict=True):
        bus.attach(device, base)
    bus.write32((1 << 64) - 8, 7)
    bus.write32(0x18, 5)
    assert [device.word for device in devices] == [0, 5, 7]


@pytest.mark.parametrize(
    ("base", "size", "error", "what"),
    [
        (0x1008, None, AddressRangeError, r"0x1008\.\.0x1018 overlaps four\d+ at 0x1000\.\.0x1010"),
        (0x0FF8, None, AddressRangeError, "overlaps"),
        (0x0F00, 0x1000, AddressRangeError, "overlaps"),
        (0x1000, None, AddressRangeError, "overlaps"),
        ((1 << 64) - 8, None, AddressRangeError, "does not lie in"),
        (-8, None, AddressRangeError, "-0x8 does not lie in"),
        (0x2004, None, ArgumentError, "0x2004 is not a multiple of its widest register, 8"),
        (0x2000, 8, ArgumentError, "8 bytes is too small: its registers take 16"),
        (1.5, None, ArgumentTypeError, "base address 1.5 is not an integer"),
    ],
)
def test_a_place_that_cannot_be(
    base: int, size: int | None, error: type[Exception], what: str
) -> None:
    bus = Bus()
    bus.attach(Four(), 0x1000)
    with pytest.raises(error, match=what):
        bus.attach(Four(), base, size)
    assert bus.read32(0x2000) == 0xFFFF_FFFF


def test_a_device_without_registers_needs_a_size() -> None:
    with pytest.raises(ArgumentError, match="no window is empty"):
        Bus().attach(Device(), 0)


@pytest.mark.parametrize(
    ("access", "error"),
    [
        (lambda bus: bus.write8(0x1000, 256), ArgumentError),
        (lambda bus: bus.write32(0x1000, -1), ArgumentError),
        (lambda bus: bus.write32(0x1000, 1.0), ArgumentTypeError),
        (lambda bus: bus.read32(-4), AddressRangeError),
        (lambda bus: bus.read32(1 << 64), AddressRangeError),
        (lambda bus: bus.read32("0"), ArgumentTypeError),
    ],
)
def test_misuse_raises_and_is_not_counted(
    access: Callable[[Bus], object], error: type[Exception]
) -> None:
    bus, device = Bus(), Four()
    bus.attach(device, 0x1000)
    with pytest.raises(error):
        access(bus)
    assert (bus.unmapped, device.wide) == (0, 0)


def test_detach_takes_every_window() -> None:
    bus, device = Bus(), Four()
    window = bus.attach(device, 0x1000)
    bus.attach(device, 0x3000)
    assert bus.window(device) is window
    assert window.read(8, 4) == 0
    bus.detach(device)
    window.write(8, 4, 1)
    assert (window.read(8, 4), bus.read32(0x3008), bus.unmapped) == (0xFFFF_FFFF, 0xFFFF_FFFF, 3)
    assert device.word == 0
    with pytest.raises(ArgumentError, match=r"bus: four\d+ is not attached"):
        bus.detach(device)
    bus.attach(device, 0x1000)


def test_a_window_is_a_target_for_dma() -> None:
    bus, device = Bus(), Four()
    window = bus.attach(device, 0x1000)
    window.write(8, 4, 5)
    assert (window.read(8, 4), bus.read32(0x1008)) == (5, 5)
    for offset in (-4, 16, 14):
        assert window.read(offset, 4) == 0xFFFF_FFFF
        window.write(offset, 4, 0)
    assert bus.unmapped == 6


def test_a_device_with_a_port_is_attached_to_its_engine(engine: WatchedEngine) -> None:
    bus = Bus()
    with held_port(engine) as (port, _):
        device = Four(port)
        bus.attach(device, 0)
    assert device.engine is engine
    other = Four()
    bus.attach(other, 0x100)
    assert other.state == "running"


class Reacher(Device):
    """Its handlers reach for the bus."""

    poke = Register(0, write="poked", read="peeked")
    plain = Register(4)
    target = 0
    bus: Bus

    def poked(self, value: int) -> None:
        self.bus.write32(self.target, value)

    def peeked(self) -> int:
        return self.bus.read32(self.target)


def test_a_handler_is_not_re_entered_however_indirectly() -> None:
    bus = Bus()
    first, second = Reacher(bus=bus), Reacher(bus=bus)
    bus.attach(first, 0x100)
    bus.attach(second, 0x200)
    first.target, second.target = 0x200, 0x104
    bus.write32(0x100, 7)
    assert (second.poke, first.plain, first.counts.reentered) == (7, 0, 1)
    assert bus.read32(0x100) == 0xFFFF_FFFF
    assert (first.counts.reentered, second.counts.reentered) == (2, 0)
    second.target = 0x204
    bus.write32(0x200, 7)
    assert (second.plain, second.counts.reentered) == (0, 1)
    bus.write32(0x204, 9)
    assert second.plain == 9, "and is accessible again afterwards"


@given(st.data())
def test_windows_never_leak_into_each_other(data: st.DataObject) -> None:
    """A byte array per window, against the bus."""

    class Bytes(Device):
        whole = Register(0, 8, narrowest=1)

    bus = Bus()
    bases = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True))
    memory: dict[int, int] = {}
    for base in bases:
        bus.attach(Bytes(), 8 * base)
        memory.update(dict.fromkeys(range(8 * base, 8 * base + 8), 0))
    unmapped = 0
    for _ in range(data.draw(st.integers(1, 20))):
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        address = width * data.draw(st.integers(0, 112 // width))
        value = data.draw(st.integers(0, (1 << 8 * width) - 1))
        touched = range(address, address + width)
        getattr(bus, f"write{8 * width}")(address, value)
        if touched[0] in memory:
            memory.update(zip(touched, value.to_bytes(width, "little"), strict=True))
        else:
            unmapped += 1
        assert bus.unmapped == unmapped
    for address, byte in memory.items():
        assert bus.read8(address) == byte
