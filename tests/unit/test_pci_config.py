"""The configuration space: masks hold whatever is written, in whatever pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iodma
from iodma.pci import Capability, ConfigSpace, Field, Function
from tests.unit.pcikit import Lines, capability, described, put, word

OWN = (
    Capability.vendor_specific(b"abcdefgh", b"\xff\x0f"),
    Capability(0x03, bytes(range(8)), extended=True),
    Capability(0x0B, bytes(16), b"\0\0\0\0\xff\xff", extended=True, version=2),
)

descriptions = st.fixed_dictionaries(
    {
        "bars": st.sampled_from(
            (
                {0: 4096},
                {0: 4096, 1: iodma.Bar(32, kind="io")},
                {0: iodma.Bar(1 << 31), 2: iodma.Bar(1 << 40, kind="memory64", prefetchable=True)},
                {1: iodma.Bar(1 << 63, kind="memory64"), 3: 16, 4: iodma.Bar(4, kind="io"), 0: 32},
            )
        ),
        "intx": st.booleans(),
        "msi": st.sampled_from((0, 1, 4, 32)),
        "msix": st.sampled_from((0, 1, 64, 2048)),
        "power_management": st.booleans(),
        "rom": st.sampled_from((None, b"\x55\xaa", bytes(5000))),
    }
)
writes = st.lists(
    st.tuples(st.integers(0, 0x150), st.binary(min_size=1, max_size=40)), min_size=1, max_size=12
)


def function(**changes: Any) -> Function:
    return Function(described(**changes)())


def without_reset(made: Function, offset: int, data: bytes) -> bytes:
    """The same write, which asks for no function level reset."""
    control = capability(made, 0x10) + 9
    if offset <= control < offset + len(data):
        kept = bytearray(data)
        kept[control - offset] &= 0x7F
        return bytes(kept)
    return data


@given(descriptions, writes)
def test_read_only_bits_never_change(changes: dict[str, Any], written: Any) -> None:
    made = function(**changes, capabilities=OWN)
    config = made.config
    before = int.from_bytes(config.read(0, config.size), "little")
    may_change = 0
    for each in config.fields.values():
        may_change |= (each.writable | each.clears) << 8 * each.offset
    for offset, data in written:
        made.config_write(offset, without_reset(made, offset, data))
        now = int.from_bytes(config.read(0, config.size), "little")
        assert (now ^ before) & ~may_change == 0


@given(descriptions, writes)
def test_bytes_are_as_good_as_words(changes: dict[str, Any], written: Any) -> None:
    whole, cut = function(**changes, capabilities=OWN), function(**changes, capabilities=OWN)
    for offset, data in written:
        data = without_reset(whole, offset, data)
        whole.config_write(offset, data)
        for place, byte in enumerate(data, offset):
            cut.config_write(place, bytes((byte,)))
        assert whole.config_read(0, 4096) == cut.config_read(0, 4096)
    assert cut.config_read(0x40, 64) == b"".join(cut.config_read(at, 1) for at in range(64, 128))


@given(descriptions)
def test_software_sizes_the_bars(changes: dict[str, Any]) -> None:
    made = function(**changes)
    for index, bar in made.bars.items():
        offset, width = (0x30, 4) if bar.read_only else (0x10 + 4 * index, 4 + 4 * bar.wide)
        flags = word(made, offset, width)
        assert flags == bar.io | bar.wide << 2 | bar.prefetchable << 3
        put(made, offset, (1 << 8 * width) - 1, width)
        low = 0x7FF if bar.read_only else 0x3 if bar.io else 0xF
        taken = word(made, offset, width) & ~low
        assert (-taken) & (1 << 8 * width) - 1 == bar.size
        base = 5 * bar.size & (1 << 8 * width) - 1
        put(made, offset, base | low & ~1, width)
        assert word(made, offset, width) == base | flags
    used = set(made.bars) | {index + 1 for index, b in made.bars.items() if b.wide}
    for index in set(range(6)) - used:
        put(made, 0x10 + 4 * index, 0xFFFF_FFFF, 4)
        assert word(made, 0x10 + 4 * index, 4) == 0


def test_the_header() -> None:
    made = function(
        class_code=0x088001, revision=7, subsystem_vendor=0x1234, subsystem=0x5678, device=0xBEEF
    )
    assert made.config_read(0, 0x10).hex(" ") == "da f1 ef be 00 00 10 00 07 01 80 08 00 00 00 00"
    assert made.config_read(0x2C, 4).hex() == "34127856"
    assert made.config_read(0x3C, 4).hex() == "00010000"
    assert function().config_read(0x2C, 4).hex() == "daf10100"
    assert function(intx=False).config_read(0x3D, 1) == b"\0"


def test_what_software_may_write_of_the_header() -> None:
    made = function()
    put(made, 0x04, 0xFFFF)
    assert word(made, 0x04) == 0x0546  # no I/O BAR; PCI Express: no MWI
    put(made, 0x0C, 0xFFFF)
    assert word(made, 0x0C) == 0x00FF  # cache line size; the latency timer is 0
    put(made, 0x3C, 0xFFFF)
    assert word(made, 0x3C) == 0x01FF
    old = function(express=False, intx=False, bars={0: 4096, 1: iodma.Bar(8, kind="io")})
    put(old, 0x04, 0xFFFF)
    assert word(old, 0x04) == 0x0157
    assert old.config.size == 256


def test_errors_are_cleared_by_ones() -> None:
    made = function()
    made.config["status"] |= 0xF900
    put(made, 0x06, 0x0010)
    assert word(made, 0x06) == 0xF910
    put(made, 0x06, 0x2000)
    assert word(made, 0x06) == 0xD910
    made.config_write(0x04, b"\x02\x00\xff\xff")
    assert word(made, 0x06) == 0x0010


def test_no_capability_and_no_extended_one() -> None:
    made = function(express=False, power_management=False)
    assert word(made, 0x06) == 0 and made.config_read(0x34, 1) == b"\0"
    assert function().config_read(0x100, 4) == bytes(4)


def test_lists_end_and_data_may_be_written_where_the_mask_says() -> None:
    made = function(msi=2, msix=2, capabilities=OWN)
    offset = capability(made, 0x09)
    assert made.config_read(offset + 1, 2) == b"\x00\x0b"
    made.config_write(offset, b"\xff" * 11)
    assert made.config_read(offset, 11) == b"\x09\x00\x0b\xffocdefgh"
    assert word(made, 0x100, 4) == 0x10C_1_0003
    assert made.config_read(0x104, 8) == bytes(range(8))
    assert word(made, 0x10C, 4) == 0x000_2_000B
    made.config_write(0x10C, b"\xff" * 20)
    assert made.config_read(0x110, 16) == b"\0\0\0\0\xff\xff" + bytes(10)
    assert word(made, 0x10C, 4) == 0x000_2_000B


def test_capabilities_are_aligned() -> None:
    odd = Capability.vendor_specific(b"odd")
    made = function(express=False, capabilities=(odd, odd))
    assert made.config_read(0x48, 6) == b"\x09\x50\x06odd"
    assert made.config_read(0x50, 6) == b"\x09\x00\x06odd"
    wide = Capability(0x0B, b"odd", extended=True)
    made = function(capabilities=(wide, wide))
    assert word(made, 0x100, 4) == 0x108_1_000B and word(made, 0x108, 4) == 0x000_1_000B


class Clock(Lines):
    """A capability that is read and written by the device: a counter, and how fast it goes."""

    pci = iodma.Pci(
        vendor=0xF1DA,
        device=1,
        bars={0: 4096},
        capabilities=(
            Capability.vendor_specific(
                bytes(5), b"\0\0\0\0\xff", read="counter", write="speed_written"
            ),
        ),
    )
    count, speed, broken = 0x11223344, 0, False

    def counter(self) -> bytes:
        if self.broken:
            return b"too short"
        self.count += 1
        return b"\x08" + self.count.to_bytes(4, "little") + bytes((self.speed,))

    def speed_written(self, data: bytes) -> None:
        self.speed = data[5]
        self.interrupt.set(self.speed == 9)


def test_a_capability_that_the_device_reads_and_writes() -> None:
    device = Clock()
    made = Function(device)
    offset = capability(made, 0x09)
    assert made.config_read(offset, 8).hex() == "0900084533221100"
    assert made.config_read(offset + 3, 1) == b"\x46"
    made.config_write(offset + 3, b"\xff\xff\xff\xff\x09")
    assert device.speed == 9 and made.interrupts.level
    assert made.config_read(offset + 2, 6).hex() == "084733221109"
    device.broken = True
    assert made.config_read(offset + 3, 5) == b"\0\0\0\0\x09"  # what was stored
    assert device.state == "failed"
    made.config_write(offset + 7, b"\x07")
    assert device.speed == 9


def test_methods_that_capabilities_name_and_are_not_there() -> None:
    async def later(self: object, data: bytes) -> None:
        pass

    for name in ("nothing", "later"):
        own = Capability(0x0B, b"abcd", extended=True, write=name)
        kind = described(capabilities=(own,))
        kind.later = later  # type: ignore[attr-defined]
        with pytest.raises(iodma.ArgumentError, match=f"its method {name}, .* a plain method"):
            Function(kind())
    with pytest.raises(iodma.ArgumentTypeError, match="the name of a method"):
        Capability(0x0B, b"", extended=True, write="later")


def test_outside_the_space() -> None:
    made = function()
    for offset, length in ((4096, 1), (4095, 2), (-1, 1), (0, 4097)):
        with pytest.raises(iodma.AddressRangeError, match="configuration space of 4096"):
            made.config_read(offset, length)
        with pytest.raises(iodma.AddressRangeError):
            made.config_write(offset, bytes(length))
    assert made.config_read(4096, 0) == b"" and made.config_write(0, b"") is None


def test_fields_that_overlap() -> None:
    with pytest.raises(iodma.ArgumentError, match="the one before it ends at 0x4"):
        ConfigSpace((Field("a", 0, 4), Field("b", 3, 1)), 256)
    with pytest.raises(iodma.ArgumentError, match="configuration space at 0x100"):
        ConfigSpace((Field("a", 254, 4),), 256)
    with pytest.raises(iodma.ArgumentError, match="names are used once"):
        ConfigSpace((Field("a", 0, 4), Field("a", 8, 4)), 256)


def test_a_watcher_is_told_of_each_write_once() -> None:
    config = ConfigSpace((Field("a", 0, 2, 0x100, writable=0x0FF), Field("b", 2, 2)), 256)
    told: list[tuple[str, int, int, int]] = []
    config.watch("b", lambda *seen: told.append(("b", *seen)))
    config.watch("a", lambda *seen: told.append(("a", *seen)))
    config.write(1, b"\xff\xee\xdd")
    config.write(0, b"\x12")
    config.write(4, b"\x12")
    assert told == [("a", 0x100, 0x100, 0xFF00), ("b", 0, 0, 0xDDEE), ("a", 0x100, 0x112, 0x12)]


def test_message_control_is_written_in_the_ways_that_clients_do() -> None:
    """Those of libvfio-user's tests: a word, a word that begins in the middle, and one behind."""
    made = Function(Lines())
    control = capability(made, 0x11) + 2
    size = made.description.msix - 1
    put(made, control, 0xFFFF)
    assert word(made, control) == 0xC000 | size
    put(made, control, 0)
    assert word(made, control) == size
    table = made.config_read(control + 2, 8)
    made.config_write(control + 1, b"\xc0\xff")
    assert word(made, control) == 0xC000 | size and made.config_read(control + 2, 8) == table
    put(made, control, 0x8000)
    made.config_write(control + 2, b"\0")
    assert word(made, control) == 0x8000 | size
    msi = capability(made, 0x05)
    put(made, msi + 2, 0x21)
    made.config_write(msi + 2, bytes(22))
    assert made.config_read(msi + 2, 22) == b"\x84\x01" + bytes(20)


def test_what_is_read_only_of_capabilities_stays() -> None:
    """Headers, what they can do, and what is for bridges: writes are dropped, not refused."""
    made = Function(Lines())
    power, express = capability(made, 0x01), capability(made, 0x10)
    made.config_write(power, b"\xff" * 4)
    made.config_write(power + 5, b"\xff" * 3)
    assert made.config_read(power, 8).hex() == f"01{capability(made, 0x05):02x}030008000000"
    before = made.config_read(express, 0x3C)
    made.config_write(express, b"\xff" * 8)  # up to Device Control
    made.config_write(express + 0x0C, b"\xff" * 4)
    made.config_write(express + 0x12, b"\xff" * 0x16)
    made.config_write(express + 0x2C, b"\xff" * 16)
    assert made.config_read(express, 0x3C) == before
    put(made, express + 0x10, 0xFFFF)
    put(made, express + 0x28, 0xFFFF)
    assert word(made, express + 0x10) == 0x00CB and word(made, express + 0x28) == 0x0010


def test_power_states_that_are_not_there_are_not_entered() -> None:
    made = Function(Lines())
    control = capability(made, 0x01) + 4
    for state in (1, 2):
        put(made, control, state)
        assert word(made, control) == 0x8
    put(made, control, 3)
    put(made, control, 1)
    assert word(made, control) == 0xB
    put(made, control, 0)
    assert word(made, control) == 0x8
