"""`Pci`, `Bar` and capabilities: what cannot be a function raises where it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import iodma
from iodma.pci import Capability, Function
from tests.unit.pcikit import Lines, described

NUMBERS: dict[str, Any] = {"vendor": 0xF1DA, "device": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vendor": 0xFFFF}, "vendor is 0xffff; 0x1 to 0xfffe"),
        ({"vendor": 0}, "vendor is 0x0"),
        ({"device": 0x10000}, "device is 0x10000"),
        ({"class_code": 1 << 24}, "class_code is 0x1000000; 0x0 to 0xffffff"),
        ({"revision": 256}, "revision"),
        ({"subsystem": -1}, "subsystem"),
        ({"msi": 3}, "msi is 3 vectors; 0, 1, 2, 4, 8, 16, 32"),
        ({"msix": 2049}, "msix is 0x801; 0x0 to 0x800"),
        ({"bars": {6: 4096}}, "a BAR has index 6; 0 to 5"),
        ({"bars": {5: iodma.Bar(64, kind="memory64")}}, "takes two, has index 5; 0 to 4"),
        ({"bars": {0: iodma.Bar(64, kind="memory64"), 1: 64}}, "it takes BAR 1, too"),
        ({"bars": {0: 4000}}, "a BAR of 4000 bytes of kind 'memory': .* such as 4096"),
        ({"bars": {0: 8}}, "from 16 to 0x80000000 would be right, such as 16"),
        ({"bars": {0: 1 << 32}}, "such as 2147483648"),
        ({"msix_bar": 2}, "msix= says no vectors"),
        ({"msix": 2, "msix_bar": 6}, "msix_bar is 6; 0 to 5"),
        ({"msix": 2, "msix_bar": 0, "bars": {0: iodma.Bar(64, kind="io")}}, "which is io"),
        ({"msix": 2, "msix_bar": 0, "bars": {0: iodma.Bar(64, ram="vram")}}, "which is ram"),
        (
            {"msix": 2, "msix_bar": 1, "bars": {0: iodma.Bar(64, kind="memory64")}},
            "upper half of another",
        ),
        ({"msix": 256, "msix_bar": 0, "bars": {0: 4096}}, "take 4128 bytes, and BAR 0 has 4096"),
        ({"msix": 1, "bars": dict.fromkeys(range(6), 16)}, "no BAR is left for the MSI-X table"),
        ({"soft_reset": True, "power_management": False}, "soft_reset"),
        ({"capabilities": (Capability(3, b"", extended=True),), "express": False}, "express=True"),
        (
            {"capabilities": (Capability.vendor_specific(bytes(122)),)},
            "the capabilities do not fit",
        ),
        ({"capabilities": (Capability(0x10, bytes(58)),)}, "capability 0x10 .* of express already"),
        ({"rom": bytes((16 << 20) + 1)}, "a rom of 16777217 bytes"),
    ],
)
def test_a_function_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(iodma.ArgumentError, match=says):
        iodma.Pci(**{**NUMBERS, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"vendor": "f1da"},
        {"bars": [4096]},
        {"bars": {"0": 4096}},
        {"bars": {0: "4K"}},
        {"capabilities": (b"abc",)},
        {"rom": 7},
        {"bars": {0: 4096}, "msix": "2"},
    ],
)
def test_a_value_of_the_wrong_type(changes: dict[str, Any]) -> None:
    with pytest.raises(iodma.ArgumentTypeError):
        iodma.Pci(**{**NUMBERS, **changes})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 64, "kind": "port"}, '"memory", "memory64" or "io"'),
        ({"size": 512, "kind": "io"}, "from 4 to 0x100"),
        ({"size": 64, "kind": "io", "prefetchable": True}, "neither prefetchable nor ram"),
        ({"size": 64, "at": 4}, "a multiple of 8"),
        ({"size": 64, "at": -8}, "a multiple of 8"),
        ({"size": 64, "at": 8, "ram": "vram"}, "no registers to begin at"),
    ],
)
def test_a_bar_that_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(iodma.ArgumentError, match=says):
        iodma.Bar(**arguments)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Capability(0x100, b""), "1 to 0xff"),
        (lambda: Capability(0, b""), "1 to 0xff"),
        (lambda: Capability(0x10000, b"", extended=True), "1 to 0xffff"),
        (lambda: Capability(3, b"a", b"ab"), "a mask of 2 bytes for 1 bytes"),
        (lambda: Capability(3, b"", extended=True, version=16), "1 to 15"),
        (lambda: Capability(9, b"hello"), r"vendor_specific\(...\)"),
        (lambda: Capability.vendor_specific(bytes(253)), "252 do at most"),
    ],
)
def test_a_capability_that_cannot_be(make: Any, says: str) -> None:
    with pytest.raises(iodma.ArgumentError, match=says):
        make()


def test_a_description_is_not_what_it_was_made_from() -> None:
    bars: dict[int, Any] = {0: 4096}
    pci = iodma.Pci(**NUMBERS, bars=bars)
    bars[0] = 16
    assert pci.bars == {0: iodma.Bar(4096)}


def test_a_description_made_from_another() -> None:
    pci = iodma.Pci(**NUMBERS, bars={0: 4096}, msix=2)
    other = replace(pci, device=7, bars={**pci.bars, 1: 16})
    assert (other.vendor, other.device, other.msix) == (0xF1DA, 7, 2)
    assert other.placement.msix is not None and other.placement.msix.bar == 2
    assert replace(other, device=1, bars={0: 4096}) == pci
    with pytest.raises(iodma.ArgumentError):
        replace(pci, msix=4000)


def test_a_device_without_a_description() -> None:
    class Plain(iodma.Device):
        pass

    with pytest.raises(iodma.ArgumentError, match=r"a line in class Plain, such as pci = "):
        Function(Plain())
    with pytest.raises(iodma.ArgumentTypeError):
        Function(object())  # type: ignore[arg-type]


def test_registers_that_no_bar_shows() -> None:
    with pytest.raises(
        iodma.AddressRangeError, match=r"value at 0x10..0x14 is behind none.*0..0x10"
    ):
        Function(described(bars={0: 16})())
    with pytest.raises(
        iodma.AddressRangeError, match=r"which show no registers; bars=\{0: 4096\} would"
    ):
        Function(described(bars={})())
    with pytest.raises(iodma.AddressRangeError, match="behind none"):
        Function(described(bars={0: iodma.Bar(16, at=0x18), 1: 16})())
    Function(described(bars={0: iodma.Bar(16, at=0x10), 1: 16})())


def test_registers_where_the_table_is() -> None:
    with pytest.raises(
        iodma.AddressRangeError, match=r"ends at 0x14 of BAR 0, and .* at 0x10:.*512"
    ):
        Function(described(bars={0: 256}, msix=14, msix_bar=0)())
    Function(described(bars={0: 256}, msix=13, msix_bar=0)())


def test_a_ram_that_is_not_there() -> None:
    made = described(bars={0: 4096, 1: iodma.Bar(8192, ram="frame")})
    with pytest.raises(iodma.ArgumentError, match="BAR 1 is its attribute frame, which is None"):
        Function(made())
    with (
        iodma.Ram(4096) as small,
        pytest.raises(iodma.ArgumentError, match="a Ram of 8192 bytes would be right"),
    ):
        Function(made(frame=small))


def test_ports_and_slots() -> None:
    with iodma.Engine() as engine:
        slot, other = iodma.PciSlot(), iodma.PciSlot()
        window = engine.port(iodma.Window(slot, 0x1000))
        assert Function(Lines(window, second=engine.port(slot))).slot is slot
        assert Function(Lines()).slot is None
        with pytest.raises(iodma.ArgumentError, match=r"engine.port\(iodma.PciSlot\(\)\)"):
            Function(Lines(engine.port(iodma.Memory())))
        with pytest.raises(iodma.ArgumentError, match="lead to 2 slots"):
            Function(Lines(engine.port(slot), second=engine.port(other)))


@pytest.mark.parametrize(
    ("bars", "expected"),
    [
        ({}, 0),
        ({0: 64}, 1),
        ({0: iodma.Bar(64, kind="memory64")}, 2),
        ({1: 64, 5: 64}, 0),
        ({0: 64, 1: 64, 2: 64, 4: iodma.Bar(64, kind="memory64")}, 3),
    ],
)
def test_the_table_has_the_first_bar_that_is_free(bars: Any, expected: int) -> None:
    placement = iodma.Pci(**NUMBERS, bars=bars, msix=3).placement
    assert placement.msix is not None and placement.msix.bar == expected
    assert placement.bars[expected].size == 4096


def test_the_table_behind_registers_has_pages_of_its_own_where_there_is_room() -> None:
    placement = iodma.Pci(**NUMBERS, bars={0: 65536}, msix=2, msix_bar=0).placement
    assert placement.msix is not None and placement.msix.table == 0xF000
    Function(described(bars={0: iodma.Bar(8192, at=0x10)}, msix=2, msix_bar=0)())
    bars = {0: iodma.Bar(64, at=0x10)}  # the register is the first in it
    Function(described(bars=bars, msix=2, msix_bar=0)())


@pytest.mark.parametrize(("vectors", "size"), [(1, 4096), (128, 4096), (129, 8192), (2048, 65536)])
def test_the_table_and_the_pending_bits_have_a_half_each(vectors: int, size: int) -> None:
    placement = iodma.Pci(**NUMBERS, msix=vectors).placement
    assert placement.msix is not None
    assert placement.bars[0].size == size and placement.msix.pba == size // 2 >= 16 * vectors
