"""The register map: what the bus may do, what handlers see, what a declaration must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.devices import Device, Doorbell, Register
from iodma.devices.registers import AccessRight
from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError

ONES = {width: (1 << 8 * width) - 1 for width in (1, 2, 4, 8)}


class Chip(Device):
    control = Register(0x00, write="control_written", read="control_read")
    status = Register(0x04, access="ro", reset=0x60)
    causes = Register(0x08, access="w1c", mask=0x0F, reset=0xFF)
    command = Register(0x0C, 2, "wo", write="commanded")
    mixed = Register(0x10, reset=0xFF00, mask=0xFFFF, w1c=0xFF00, narrowest=1)
    address = Register(0x18, 8, narrowest=4)

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.status = 0x61
        super().__init__()

    def control_written(self, value: int, old: int) -> None:
        self.seen.append(("control", value, old))

    def control_read(self) -> int:
        self.seen.append("read")
        return self.control | 0x8000_0000

    def commanded(self, value: int) -> None:
        self.seen.append(("command", value, self.command))


def make(**members: Any) -> type[Device]:
    return type("Made", (Device,), members)


# --- access from the bus --------------------------------------------------------------------------


def test_a_write_stores_then_tells_the_handler_what_was_written_and_what_was_there() -> None:
    chip = Chip()
    chip.bus_write(0x00, 4, 5)
    chip.bus_write(0x00, 4, 7)
    assert chip.seen == [("control", 5, 0), ("control", 7, 5)]
    assert chip.control == 7
    assert chip.bus_read(0x00, 4) == 0x8000_0007
    assert chip.control == 7, "a read handler does not change the stored bits"


def test_rights() -> None:
    chip = Chip()
    chip.bus_write(0x04, 4, 1)
    assert (chip.bus_read(0x04, 4), chip.counts.bad_writes) == (0x61, 1)
    chip.bus_write(0x0C, 2, 9)
    assert chip.seen == [("command", 9, 9)]
    assert (chip.bus_read(0x0C, 2), chip.counts.bad_reads) == (0xFFFF, 1)


def test_write_one_to_clear() -> None:
    chip = Chip()
    chip.bus_write(0x08, 4, 0x35)
    assert chip.causes == 0xFA, "bits 4 and 5 are outside the mask"
    chip.bus_write(0x10, 4, 0x8001_81AA)
    assert chip.mixed == 0x7EAA, "upper byte cleared by ones, lower byte as written"
    chip.bus_write(0x11, 1, 0x02)
    assert chip.mixed == 0x7CAA, "a narrow write leaves the other byte alone"
    chip.bus_write(0x10, 1, 0x55)
    assert chip.mixed == 0x7C55, "and clears nothing that it does not name"
    assert chip.bus_read(0x11, 1) == 0x7C


def test_a_wider_access_is_split_in_ascending_order() -> None:
    chip = Chip()
    assert chip.bus_read(0x00, 8) == 0x61_8000_0000
    chip.seen.clear()
    chip.bus_write(0x08, 8, 0x0002_0000_0001)
    assert chip.causes == 0xFE
    assert chip.seen == [("command", 2, 2)]
    assert chip.counts.bad_writes == 1, "two bytes fell into a hole"
    assert chip.bus_read(0x08, 8) == 0xFFFF_FFFF_0000_00FE


def test_a_narrower_access_is_refused_unless_declared() -> None:
    chip = Chip()
    chip.bus_write(0x00, 2, 1)
    assert (chip.control, chip.counts.bad_writes) == (0, 1)
    assert (chip.bus_read(0x04, 1), chip.counts.bad_reads) == (0xFF, 1)
    chip.bus_write(0x1C, 4, 0x1234)
    chip.bus_write(0x18, 4, 0x5678)
    assert chip.bus_read(0x18, 8) == 0x1234_0000_5678
    assert chip.bus_read(0x1C, 4) == 0x1234
    assert (chip.bus_read(0x18, 2), chip.counts.bad_reads) == (0xFFFF, 2)


@pytest.mark.parametrize(
    ("offset", "width"), [(0x01, 4), (0x06, 4), (0x04, 3), (0x100, 4), (-4, 4)]
)
def test_what_no_register_answers(offset: int, width: int) -> None:
    chip = Chip()
    before = dict(chip._values)
    assert chip.bus_read(offset, width) == (1 << 8 * width) - 1
    chip.bus_write(offset, width, 0)
    assert (chip.counts.bad_reads, chip.counts.bad_writes) == (1, 1)
    assert chip._values == before


def test_a_handler_sees_a_narrow_write_as_a_whole_one() -> None:
    seen = []

    class Latch(Device):
        base = Register(0, 8, narrowest=4, write=lambda self, value: seen.append(value))

    latch = Latch()
    latch.bus_write(4, 4, 1)
    latch.bus_write(0, 4, 2)
    assert seen == [0x1_0000_0000, 0x1_0000_0002]


# --- access from the device's own code ------------------------------------------------------------


def test_the_attribute_passes_rights_masks_and_handlers() -> None:
    chip = Chip()
    chip.causes = 0xFFFF_FFFF
    chip.control = True
    assert (chip.causes, chip.control, chip.seen) == (0xFFFF_FFFF, 1, [])
    assert isinstance(Chip.causes, Register)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_value_that_does_not_fit_names_itself_and_the_width(value: int) -> None:
    chip = Chip()
    with pytest.raises(ArgumentError, match=rf"chip\d+.status: {value:#x} does not fit in 32 bits"):
        chip.status = value
    assert chip.status == 0x61


def test_a_value_of_the_wrong_type() -> None:
    with pytest.raises(ArgumentTypeError, match=r"status: 1.5 is a float"):
        Chip().status = 1.5  # type: ignore[assignment]


def test_devices_do_not_share_values() -> None:
    first, second = Chip(), Chip()
    first.bus_write(0, 4, 5)
    assert second.control == 0


# --- declarations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declare", "what"),
    [
        (lambda: Register(0, 3), "1, 2, 4 or 8 bytes, not 3"),
        (lambda: Register(2), "0x2 is not a multiple"),
        (lambda: Register(-4), "-0x4 does not fit"),
        (
            lambda: Register(0, access="r"),  # type: ignore[arg-type]
            "not 'r'",
        ),
        (lambda: Register(0, 1, reset=256), "reset: 0x100 does not fit in 8 bits"),
        (lambda: Register(0, 1, mask=256), "mask: 0x100 does not fit"),
        (lambda: Register(0, access="ro", write="w"), "nothing for write="),
        (lambda: Register(0, access="wo", read="r"), "nothing for read="),
        (lambda: Register(0, access="ro", w1c=1), "w1c= picks bits"),
        (lambda: Register(0, narrowest=8), "at most its width, 4, not 8"),
        (lambda: Doorbell(0, run="go", depth=0), "depth is at least 1, not 0"),
    ],
)
def test_a_declaration_that_cannot_be_right(declare: Callable[[], object], what: str) -> None:
    with pytest.raises(ArgumentError, match=what):
        declare()


def test_overlap_names_both() -> None:
    with pytest.raises(AddressRangeError, match=r"low at 0x4 overlaps wide, which ends at 0x8"):
        make(wide=Register(0, 8), low=Register(4))


async def later(self: Device, value: int) -> None: ...


@pytest.mark.parametrize(
    ("members", "error", "what"),
    [
        ({"go": Register(4, write="missing")}, ArgumentError, "Made has no method called missing"),
        (
            {"go": Register(4, write="later"), "later": later},
            ArgumentTypeError,
            r'async def .* declare Doorbell\(0x4, 4, run="later"\)',
        ),
        (
            {"go": Doorbell(4, run="now"), "now": lambda self, value: None},
            ArgumentTypeError,
            "not an async def",
        ),
        (
            {"go": Register(4, write=7)},  # type: ignore[arg-type]
            ArgumentTypeError,
            "or a function, not 7",
        ),
        ({"go": Register(4, write=lambda: None)}, ArgumentTypeError, r"must take \(self, value\)"),
        ({"go": Register(4, read=lambda s, v: 0)}, ArgumentTypeError, r"must take \(self\)"),
        ({"start": Register(4)}, ArgumentError, "cannot be called start"),
        ({"_values": Register(4)}, ArgumentError, "cannot be called _values"),
        ({"one": (one := Register(4)), "two": one}, ArgumentError, "same register"),
    ],
)
def test_errors_when_the_class_is_made(
    members: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        make(**members)


def test_inheritance() -> None:
    class Better(Chip):
        causes = None  # type: ignore[assignment]
        status = Register(0x08, reset=3)
        extra = Register(0x20, 1)

        def control_written(self, value: int, old: int) -> None:
            self.seen.append("better")

    chip = Better()
    chip.bus_write(0, 4, 1)
    assert chip.seen == ["better"]
    assert (Chip().bus_read(0x08, 4), chip.bus_read(0x08, 4)) == (0xFF, 0x61)
    assert [*Better.registers] == ["control", "status", "command", "mixed", "address", "extra"]
    assert (Better.registers.size, Chip.registers.size) == (0x28, 0x20)
    assert Better.registers.at(0x1F) is Chip.address
    assert "0x0008  4  rw   status" in str(Better.registers)


def test_a_read_handler_that_gives_what_does_not_fit_fails_the_device() -> None:
    bad = make(data=Register(0, 1, read=lambda self: 256))()
    assert bad.bus_read(0, 1) == 0xFF
    assert bad.state == "failed"


def test_a_write_handler_that_gives_a_coroutine_fails_the_device() -> None:
    bad = make(go=Register(0, write=lambda self, value: later(self, value)))()
    bad.bus_write(0, 4, 1)
    assert bad.state == "failed"


# --- against a model that knows only bytes --------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> list[Register]:
    """Registers and holes that fill a few naturally aligned blocks of 8 bytes."""
    found = []

    def fill(offset: int, width: int) -> None:
        shape = draw(st.sampled_from(["register", "halves", "hole"] if width > 1 else ["register"]))
        if shape == "halves":
            fill(offset, width // 2)
            fill(offset + width // 2, width // 2)
        elif shape == "register":
            bits = st.integers(0, ONES[width])
            access = draw(st.sampled_from(get_args(AccessRight)))
            found.append(
                Register(
                    offset,
                    width,
                    access,
                    draw(bits),
                    mask=None if access == "ro" else draw(bits),
                    w1c=draw(bits) if access == "rw" else 0,
                    narrowest=draw(st.sampled_from([each for each in ONES if each <= width])),
                )
            )

    for block in range(draw(st.integers(1, 3))):
        fill(8 * block, 8)
    return found


class Model:
    """Bytes, each with the rights and masks of its own."""

    def __init__(self, registers: list[Register]) -> None:
        self.owner = {o: r for r in registers for o in range(r.offset, r.end)}
        self.byte = {o: self.part(r.reset, r, o) for o, r in self.owner.items()}
        self.bad = 0

    @staticmethod
    def part(bits: int, register: Register, offset: int) -> int:
        return bits >> 8 * (offset - register.offset) & 0xFF

    def reached(self, offset: int, width: int, right: str) -> list[int]:
        """The bytes that an access reaches; what it does not is counted."""
        touched = range(offset, offset + width)
        owners = {self.owner.get(each) for each in touched}
        registers = {owner for owner in owners if owner is not None}
        if offset % width or not registers or any(r.narrowest > width for r in registers):
            self.bad += 1
            return []
        allowed = {r for r in registers if right not in r.access}
        self.bad += (None in owners) + len(registers) - len(allowed)
        return [each for each in touched if self.owner.get(each) in allowed]

    def read(self, offset: int, width: int) -> int:
        value = bytearray(b"\xff" * width)
        for each in self.reached(offset, width, "wo"):
            value[each - offset] = self.byte[each]
        return int.from_bytes(value, "little")

    def write(self, offset: int, width: int, value: int) -> None:
        for each in self.reached(offset, width, "ro"):
            register, written = self.owner[each], value >> 8 * (each - offset) & 0xFF
            sets = self.part(register.write_mask, register, each)
            clears = self.part(register.clear_mask, register, each) & written
            self.byte[each] = self.byte[each] & ~sets & ~clears & 0xFF | written & sets


@given(layouts(), st.data())
def test_any_map_behaves_as_its_bytes_do(registers: list[Register], data: st.DataObject) -> None:
    device = make(**{f"r{each.offset:02x}": each for each in registers})()
    model = Model(registers)
    for _ in range(data.draw(st.integers(1, 30))):
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        offset = data.draw(st.integers(0, 32) | st.integers(0, 4).map(width.__mul__))
        if data.draw(st.booleans()):
            assert device.bus_read(offset, width) == model.read(offset, width)
        else:
            value = data.draw(st.integers(0, ONES[width]))
            device.bus_write(offset, width, value)
            model.write(offset, width, value)
        assert device.counts.bad_reads + device.counts.bad_writes == model.bad
