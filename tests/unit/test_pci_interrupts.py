"""Interrupts of a function: nothing is lost while it is held, nothing comes twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import iodma
from iodma.pci import Function
from tests.unit.pcikit import BUS_MASTER, COMMAND, Lines, Noted, capability, described, put, word

ENABLE, MASK_ALL = 0x8000, 0x4000
DISABLE = 0x0400


def connected(device: Lines | None = None) -> tuple[Function, Lines, Noted]:
    device = device or Lines()
    function, noted = Function(device), Noted()
    function.interrupts.connect(noted)
    return function, device, noted


def use_msix(function: Function, control: int = ENABLE) -> int:
    """Enables MSI-X and unmasks every vector; gives the BAR of the table."""
    function.config_write(COMMAND, BUS_MASTER)
    put(function, capability(function, 0x11) + 2, control)
    bar = word(function, capability(function, 0x11) + 4, 4) & 7
    for vector in range(function.interrupts.counts["msix"]):
        mask(function, vector, 0)
    return bar


def mask(function: Function, vector: int, value: int) -> None:
    place = function.description.placement.msix
    assert place is not None
    function.bar_write(place.bar, place.table + 16 * vector + 12, value.to_bytes(4, "little"))


def pending_bits(function: Function) -> int:
    place = function.description.placement.msix
    assert place is not None
    return int.from_bytes(function.bar_read(place.bar, place.pba, 8), "little")


# --- INTx -----------------------------------------------------------------------------------------


def test_intx_is_all_lines_together() -> None:
    function, device, noted = connected()
    first, second, _ = device.lines
    first.set(True)
    assert word(function, 6) & 8 and function.interrupts.level
    second.set(True)
    first.set(False)
    assert noted.take() == [True]
    second.set(False)
    assert noted.take() == [False] and not word(function, 6) & 8


def test_a_pulse_is_one_assertion() -> None:
    function, device, noted = connected()
    device.lines[1].pulse()
    assert noted.take() == [True, False] and not function.interrupts.level
    device.lines[0].set(True)
    device.lines[1].pulse()
    assert noted.take() == [True] and function.interrupts.level


def test_interrupt_disable_holds_the_pin_and_not_the_status() -> None:
    function, device, noted = connected()
    device.interrupt.set(True)
    put(function, COMMAND, DISABLE)
    assert noted.take() == [True, False] and word(function, 6) & 8
    put(function, COMMAND, 0)
    assert noted.take() == [True]
    put(function, COMMAND, DISABLE)
    device.interrupt.set(False)
    put(function, COMMAND, 0)
    assert noted.take() == [False] and not word(function, 6) & 8


def test_a_pulse_that_nobody_could_be_told_of_is_told_later() -> None:
    function, device, noted = connected()
    put(function, COMMAND, DISABLE)
    device.interrupt.pulse()
    device.lines[1].pulse()
    assert noted.take() == [] and word(function, 6) & 8
    put(function, COMMAND, 0)
    assert noted.take() == [True, False] and not word(function, 6) & 8


def test_a_vmm_masks_intx_as_it_is_told() -> None:
    """As VFIO does: told once, masked until the driver has served it, and told again."""
    function, device, _ = connected_to_automask()
    sink: Any = function.interrupts._sink
    device.interrupt.set(True)
    device.lines[1].pulse()
    assert sink.told == 1
    function.interrupts.unmask("intx", 0)
    assert sink.told == 2
    device.interrupt.set(False)
    function.interrupts.unmask("intx", 0)
    assert sink.told == 2
    device.interrupt.pulse()
    device.interrupt.pulse()
    assert sink.told == 3
    function.interrupts.unmask("intx", 0)
    function.interrupts.unmask("intx", 0)
    assert sink.told == 4


def connected_to_automask() -> tuple[Function, Lines, Any]:
    device = Lines()
    function = Function(device)

    class Automask:
        told = 0

        def intx(self, level: bool) -> None:
            if level:
                self.told += 1
                function.interrupts.mask("intx", 0)

        def message(self, vector: int) -> None:
            raise AssertionError

    sink = Automask()
    function.interrupts.connect(sink)
    return function, device, sink


def test_a_function_without_a_pin_raises_none() -> None:
    _, device, noted = connected(described(intx=False)())
    device.interrupt.set(True)
    device.lines[1].pulse()
    assert noted.take() == []


# --- MSI-X ----------------------------------------------------------------------------------------


def test_every_rising_edge_is_a_message() -> None:
    function, device, noted = connected()
    use_msix(function)
    first, second, third = device.lines
    first.set(True)
    first.set(False)
    second.pulse()
    third.pulse()
    third.set(True)
    assert noted.take() == [0, 1, 2, 2] and function.interrupts.mode == "msix"
    assert not word(function, 6) & 8


def test_lines_beyond_the_vectors_share_the_last_one() -> None:
    function, device, noted = connected(described(msix=2)())
    use_msix(function)
    for line in device.lines:
        line.pulse()
    assert noted.take() == [0, 1, 1]


def test_a_masked_vector_is_pending_and_comes_once() -> None:
    function, device, noted = connected()
    use_msix(function)
    mask(function, 1, 1)
    for _ in range(3):
        device.lines[1].pulse()
    assert noted.take() == [] and pending_bits(function) == 0b10
    mask(function, 1, 0)
    assert noted.take() == [1] and pending_bits(function) == 0
    mask(function, 1, 1)
    mask(function, 1, 0)
    assert noted.take() == []


def test_everything_that_holds_messages() -> None:
    function, device, noted = connected()
    use_msix(function)
    control = capability(function, 0x11) + 2
    power = capability(function, 0x01) + 4
    interrupts = function.interrupts
    for hold, free in (
        (lambda: put(function, control, ENABLE | MASK_ALL), lambda: put(function, control, ENABLE)),
        (lambda: put(function, COMMAND, 0), lambda: put(function, COMMAND, 4)),
        (lambda: put(function, power, 3), lambda: put(function, power, 0)),
        (lambda: interrupts.mask("msix", 0), lambda: interrupts.unmask("msix", 0)),
    ):
        hold()
        device.interrupt.pulse()
        device.interrupt.pulse()
        assert noted.take() == [] and interrupts.pending() == (0,)
        free()
        assert noted.take() == [0] and interrupts.pending() == ()


def test_a_vmm_that_routes_has_the_table() -> None:
    function, device, noted = connected()
    function.config_write(COMMAND, BUS_MASTER)
    put(function, capability(function, 0x11) + 2, ENABLE)
    device.lines[1].pulse()
    assert noted.take() == []  # this table is masked, and stays so
    function.interrupts.route("msix")
    assert noted.take() == [1]
    function.interrupts.mask("msix", 2)
    device.lines[2].pulse()
    assert noted.take() == [] and pending_bits(function) == 0b100
    function.interrupts.unmask("msix", 2)
    assert noted.take() == [2]
    function.interrupts.route(None)
    device.lines[2].pulse()
    assert noted.take() == []


def test_a_vmm_may_route_what_software_never_enabled() -> None:
    function, device, noted = connected()
    function.config_write(COMMAND, BUS_MASTER)
    for kind in ("msix", "msi"):
        function.interrupts.route(kind)
        device.lines[2].pulse()
        assert noted.take() == [2]
    function.interrupts.route("intx")
    device.lines[2].pulse()
    assert noted.take() == [True, False]


def test_a_sink_that_cannot_take_a_message_gets_it_later() -> None:
    function, device, noted = connected()
    use_msix(function)
    noted.takes = False
    device.lines[0].pulse()
    device.lines[2].pulse()
    assert function.interrupts.pending() == (0, 2)
    noted.takes = True
    function.interrupts.retry()
    assert noted.take() == [0, 2] and function.interrupts.pending() == ()


def test_a_sink_may_mask_while_it_is_told() -> None:
    device = Lines()
    function = Function(device)

    class MasksOthers(Noted):
        def message(self, vector: int) -> bool:
            if vector == 0:
                function.interrupts.mask("msix", 1)
            return super().message(vector)

    sink = MasksOthers()
    function.interrupts.connect(sink)
    use_msix(function)
    put(function, COMMAND, 0)
    for line in device.lines:
        line.pulse()
    put(function, COMMAND, 4)
    assert sink.take() == [0, 2] and function.interrupts.pending() == (1,)
    function.interrupts.unmask("msix", 1)
    assert sink.take() == [1]


def test_a_vector_that_is_not_taken_holds_no_other_up() -> None:
    function, device, noted = connected()

    class NotZero(Noted):
        def message(self, vector: int) -> bool:
            return vector != 0 and super().message(vector)

    function.close()
    function, sink = Function(device), NotZero()
    function.interrupts.connect(sink)
    use_msix(function)
    for line in device.lines:
        line.pulse()
    mask(function, 2, 1)
    device.lines[2].pulse()
    mask(function, 2, 0)
    assert sink.take() == [1, 2, 2] and function.interrupts.pending() == (0,)
    assert noted.take() == []


def test_the_table_holds_what_is_written_but_for_reserved_bits() -> None:
    function, _, _ = connected()
    place = function.description.placement.msix
    assert place is not None
    entry = b"\xff" * 16
    function.bar_write(place.bar, 16, entry)
    assert function.bar_read(place.bar, 16, 16).hex() == "fcffffff" + "f" * 16 + "01000000"
    assert function.bar_read(place.bar, 0, 16).hex() == "0" * 24 + "01000000"
    function.bar_write(place.bar, place.pba, b"\xff" * 8)
    assert pending_bits(function) == 0
    function.bar_write(place.bar, 0x700, entry)
    assert function.bar_read(place.bar, 0x700, 4) == bytes(4)


@given(st.lists(st.tuples(st.integers(0, 63), st.binary(min_size=1, max_size=20)), max_size=8))
def test_bytes_of_the_table_are_as_good_as_words(writes: Any) -> None:
    whole, cut = connected()[0], connected()[0]
    place = whole.description.placement.msix
    assert place is not None
    for offset, data in writes:
        whole.bar_write(place.bar, offset, data)
        for at, byte in enumerate(data, offset):
            cut.bar_write(place.bar, at, bytes((byte,)))
        assert whole.bar_read(place.bar, 0, 96) == cut.bar_read(place.bar, 0, 96)
        assert whole.interrupts.table.masks == cut.interrupts.table.masks


def test_the_table_at_the_end_of_a_bar_with_registers() -> None:
    function, device, noted = connected(described(msix=4, msix_bar=0)())
    place = function.description.placement.msix
    assert place is not None and place.bar == 0 and place.table == 4096 - 80
    use_msix(function)
    function.bar_write(0, 0x10, (7).to_bytes(4, "little"))
    assert device.value == 7
    device.lines[3 - 1].pulse()
    assert noted.take() == [2]
    # An access across the border is cut there.
    bad = device.counts.bad_reads
    data = function.bar_read(0, place.table - 4, 8)
    assert data == b"\xff" * 4 + bytes(4) and device.counts.bad_reads == bad + 1
    # The pending bits are no register, and cannot be written.
    function.bar_write(0, place.pba, b"\xff" * 8)
    assert device.counts.bad_writes == 0 and function.bar_read(0, place.pba, 8) == bytes(8)


def test_an_acknowledgement_that_leaves_a_cause_is_told_again() -> None:
    class Causes(iodma.Device):
        pci = iodma.Pci(vendor=0xF1DA, device=1, bars={0: 16}, msix=1)
        causes = iodma.Register(0, access="w1c", write="update")

        def update(self, value: int) -> None:
            self.interrupt.set(self.causes != 0)

        def cause(self, bit: int) -> None:
            self.causes |= bit
            self.interrupt.set(True)

    device = Causes()
    function, noted = Function(device), Noted()
    function.interrupts.connect(noted)
    use_msix(function)
    device.cause(1)
    device.cause(2)
    assert noted.take() == [0]  # the guest has not looked yet
    function.bar_write(0, 0, b"\x01\0\0\0")
    assert noted.take() == [0]
    function.bar_write(0, 0, b"\x02\0\0\0")
    assert noted.take() == []
    device.cause(1)
    assert noted.take() == [0]


def test_what_is_raised_when_messages_are_chosen_is_told() -> None:
    function, device, noted = connected()
    device.lines[1].set(True)
    assert noted.take() == [True]
    put(function, capability(function, 0x11) + 2, ENABLE | MASK_ALL)
    function.config_write(COMMAND, BUS_MASTER)
    assert noted.take() == [False] and pending_bits(function) == 0b10
    use_msix(function)
    assert noted.take() == [1]
    put(function, capability(function, 0x11) + 2, 0)
    assert noted.take() == [True]


def test_with_the_sink_goes_what_it_has_chosen() -> None:
    function, device, noted = connected()
    function.close()
    function = Function(device)
    sent: list[Any] = []
    function.interrupts._send = lambda *message: sent.append(message)
    disconnect = function.interrupts.connect(noted)
    function.config_write(COMMAND, BUS_MASTER)
    function.interrupts.route("msix")
    function.interrupts.mask("msix", 0)
    device.interrupt.pulse()
    disconnect()
    assert function.interrupts.pending("msix") == () and function.interrupts.mode == "intx"
    function.interrupts.route("msix")
    device.interrupt.pulse()
    assert function.interrupts.pending() == (0,) and sent == []
    function.interrupts.connect(noted)
    function.interrupts.retry()
    assert noted.take() == [0]


# --- MSI ------------------------------------------------------------------------------------------


def use_msi(function: Function, allocated: int) -> int:
    offset = capability(function, 0x05)
    function.config_write(COMMAND, BUS_MASTER)
    put(function, offset + 2, 1 | allocated << 4)
    return offset


@pytest.mark.parametrize(("allocated", "vectors"), [(0, [0, 0, 0]), (1, [0, 1, 1]), (2, [0, 1, 2])])
def test_msi_with_fewer_vectors_shares_the_last_one(allocated: int, vectors: list[int]) -> None:
    function, device, noted = connected()
    use_msi(function, allocated)
    for line in device.lines:
        line.pulse()
    assert noted.take() == vectors and function.interrupts.mode == "msi"


def test_more_vectors_than_there_are_cannot_be_allocated() -> None:
    function, device, noted = connected()
    offset = use_msi(function, 1)
    put(function, offset + 2, 0x31)
    assert word(function, offset + 2) & 0x71 == 0x11
    device.lines[2].pulse()
    assert noted.take() == [1]
    put(function, offset + 2, 0)
    assert word(function, offset + 2) == 0x184


def test_msi_masks_and_pending_bits() -> None:
    function, device, noted = connected()
    offset = use_msi(function, 2)
    put(function, offset + 16, 0xFFFF_FFFF, 4)
    assert word(function, offset + 16, 4) == 0xF
    device.lines[2].pulse()
    device.lines[0].pulse()
    device.lines[0].pulse()
    assert noted.take() == [] and word(function, offset + 20, 4) == 0b101
    put(function, offset + 20, 0, 4)
    assert word(function, offset + 20, 4) == 0b101
    put(function, offset + 16, 0b0001, 4)
    assert noted.take() == [2] and word(function, offset + 20, 4) == 0b001
    put(function, offset + 16, 0, 4)
    assert noted.take() == [0] and word(function, offset + 20, 4) == 0


def test_leaving_msi_forgets_what_is_pending() -> None:
    function, device, noted = connected()
    offset = use_msi(function, 2)
    put(function, offset + 16, 0xF, 4)
    device.interrupt.pulse()
    put(function, offset + 2, 0)
    put(function, offset + 16, 0, 4)
    put(function, offset + 2, 0x21)
    assert noted.take() == [] and function.interrupts.mode == "msi"


# --- all of them ----------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(("pulse", "table", "all", "bme", "vmm", "power", "takes")),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps)
def test_no_edge_is_lost_and_none_comes_twice(written: Any) -> None:
    function, device, noted = connected()
    use_msix(function)
    control, power = capability(function, 0x11) + 2, capability(function, 0x01) + 4
    owed: set[int] = set()
    for what, vector, on in written:
        if what == "pulse":
            device.lines[vector].pulse()
            owed.add(vector)
        elif what == "table":
            mask(function, vector, on)
        elif what == "all":
            put(function, control, ENABLE | MASK_ALL * on)
        elif what == "bme":
            put(function, COMMAND, 4 * on)
        elif what == "vmm":
            (function.interrupts.mask if on else function.interrupts.unmask)("msix", vector)
        elif what == "power":
            put(function, power, 3 * on)
        else:
            noted.takes = on
            function.interrupts.retry()
        for told in noted.take():
            owed.remove(told)  # KeyError: nobody asked for it
        assert set(function.interrupts.pending()) == owed
    noted.takes = True
    put(function, power, 0)
    put(function, COMMAND, 4)
    put(function, control, ENABLE)
    for vector in range(3):
        mask(function, vector, 0)
        function.interrupts.unmask("msix", vector)
    function.interrupts.retry()
    assert sorted(noted.take()) == sorted(owed) and function.interrupts.pending() == ()


@given(
    st.lists(
        st.tuples(st.sampled_from(("set", "pulse", "disable", "vmm")), st.booleans()), max_size=40
    )
)
def test_intx_is_told_in_turn_and_never_stays_wrong(written: Any) -> None:
    function, device, noted = connected()
    disabled = masked = False
    told = level = False
    for what, on in written:
        assertions = 0
        if what == "set":
            device.lines[0].set(on)
        elif what == "pulse":
            device.lines[1].pulse()
        elif what == "disable":
            disabled = on
            put(function, COMMAND, DISABLE * on)
        else:
            masked = on
            (function.interrupts.mask if on else function.interrupts.unmask)("intx", 0)
        for each in noted.take():
            assert each is not told
            told = each
            assertions += told
        level = device.lines[0].level and not disabled and not masked
        assert told is level is function.interrupts.level
        if what == "pulse" and not disabled and not masked and not level:
            assert assertions == 1


def test_one_sink_at_a_time() -> None:
    function, device, noted = connected()
    with pytest.raises(iodma.BusyError, match="is connected to these interrupts already"):
        function.interrupts.connect(Noted())
    function.close()
    other = Function(device)
    disconnect = other.interrupts.connect(noted)
    device.interrupt.set(True)
    assert noted.take() == [True]
    disconnect()
    disconnect()
    again = Noted()
    other.interrupts.connect(again)
    assert again.take() == [True]


def test_a_sink_that_masked_intx_leaves_it_asserted_for_the_next() -> None:
    device = Lines()
    function, first, second = Function(device), Noted(), Noted()
    disconnect = function.interrupts.connect(first)
    function.interrupts.mask("intx", 0)
    device.interrupt.set(True)
    disconnect()
    assert function.interrupts.level and first.take() == []
    function.interrupts.connect(second)
    assert second.take() == [True]


def test_vectors_that_are_not_there() -> None:
    function, _, _ = connected(described(msi=2)())
    for kind, vector in (("msi", 2), ("msi", -1), ("msix", 0), ("intx", 1), ("nmi", 0)):
        with pytest.raises(iodma.ArgumentError, match="there is no vector"):
            function.interrupts.mask(kind, vector)  # type: ignore[arg-type]
    with pytest.raises(iodma.ArgumentError, match="has no 'msix'"):
        function.interrupts.route("msix")


def test_a_line_made_later_is_heard_too() -> None:
    function, device, noted = connected()
    use_msix(function)
    device.interrupt_line("fourth").pulse()
    assert noted.take() == [3]
