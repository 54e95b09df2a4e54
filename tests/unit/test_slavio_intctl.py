"""SLAVIO's interrupt controller: sources, masks, levels, software's interrupts (NCR89C105)."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iodma import Bus
from iodma.devices.slavio_intctl import LEVELS, Line, SlavioIntctl
from iodma.devices.slavio_intctl.layout import IMPLEMENTED

PENDING, CLEAR, SOFT = 0x0, 0x4, 0x8
SYSTEM, MASK, MASK_CLEAR, MASK_SET, TARGET = 0x1_0000, 0x1_0004, 0x1_0008, 0x1_000C, 0x1_0010
ALL = 0xFFFF_FFFF


class Rig:
    def __init__(self) -> None:
        self.chip = SlavioIntctl(name="intctl")
        self.bus = Bus()
        self.bus.attach(self.chip, 0)

    def drive(self, source: int, level: bool = True) -> None:
        line = self.chip.inputs[source]
        assert line is not None
        line.set(level)

    def seen(self) -> set[int]:
        """Those that the processor sees."""
        return {n for n, line in enumerate(self.chip.levels) if line is not None and line.level}


@pytest.mark.parametrize("source", [n for n, level in enumerate(LEVELS) if level])
def test_a_source_is_pending_and_interrupts_at_its_level(source: int) -> None:
    rig, level = Rig(), LEVELS[source]
    rig.drive(source)
    assert rig.bus.read32(SYSTEM) == 1 << source
    assert rig.bus.read32(PENDING) == 1 << level
    implemented = IMPLEMENTED >> source & 1
    assert rig.seen() == ({level} if implemented or level == 15 else set())
    rig.bus.write32(MASK_SET, 1 << source)
    assert rig.bus.read32(MASK) == (implemented << source)
    assert rig.bus.read32(SYSTEM) == 1 << source
    assert rig.bus.read32(PENDING) == 1 << level  # also while it is masked
    assert rig.seen() == ({15} if level == 15 else set())
    rig.bus.write32(MASK_CLEAR, 1 << source)
    assert rig.bus.read32(MASK) == 0
    rig.drive(source, False)
    assert rig.bus.read32(SYSTEM) == rig.bus.read32(PENDING) == 0 and not rig.seen()


def test_sources_that_are_none_have_no_line() -> None:
    chip = SlavioIntctl()
    missing = [n for n, line in enumerate(chip.inputs) if line is None]
    assert missing == [23, 24, 25, 26, 31] and len(chip.inputs) == 33


def test_all_can_be_masked_but_softwares() -> None:
    rig = Rig()
    for line in (Line.ETHERNET, Line.SCSI, Line.MODULE_ERROR):
        rig.drive(line)
    rig.drive(32)  # the processor's timer
    rig.bus.write32(SOFT, 1 << 17 | 1 << 31)
    assert rig.seen() == {1, 4, 6, 14, 15}
    rig.bus.write32(MASK_SET, 1 << 31)
    assert rig.seen() == {1, 15}
    rig.bus.write32(CLEAR, 1 << 31)
    assert rig.seen() == {1}
    rig.bus.write32(MASK_CLEAR, ALL)
    assert rig.seen() == {1, 4, 6, 14, 15}


def test_another_target_has_the_hard_ones_but_for_errors() -> None:
    rig = Rig()
    rig.bus.write32(TARGET, 0xFFFF_FFF1)
    assert rig.bus.read32(TARGET) == 1
    rig.drive(Line.ETHERNET)
    rig.drive(Line.MODULE_ERROR)
    assert rig.bus.read32(PENDING) == 1 << 15 and rig.seen() == {15}
    rig.bus.write32(CLEAR, 1 << 15 | 1 << 6)  # broadcast, and cleared where it was taken
    assert rig.bus.read32(PENDING) == 0 and not rig.seen()
    rig.bus.write32(TARGET, 0)
    assert rig.seen() == {6, 15}


def test_software_sets_and_clears_its_own() -> None:
    rig = Rig()
    rig.bus.write32(SOFT, ALL)
    assert rig.bus.read32(PENDING) == 0xFFFE_0000 and rig.seen() == set(range(1, 16))
    rig.bus.write32(CLEAR, 0x8002_0000)
    assert rig.bus.read32(PENDING) == 0x7FFC_0000 and rig.seen() == set(range(2, 15))
    for register in (CLEAR, SOFT, 0xC, MASK_CLEAR, MASK_SET):
        assert rig.bus.read32(register) == 0
    for register in (PENDING, 0xC, SYSTEM, MASK):
        rig.bus.write32(register, ALL)
    assert rig.bus.read32(PENDING) == 0x7FFC_0000
    assert rig.bus.read32(SYSTEM) == rig.bus.read32(MASK) == 0


def test_reset_forgets_what_is_not_raised() -> None:
    rig = Rig()
    rig.drive(Line.ETHERNET)
    rig.bus.write32(SOFT, 1 << 18)
    rig.bus.write32(MASK_SET, ALL)
    rig.chip.request_reset()
    assert rig.bus.read32(MASK) == 0
    assert rig.bus.read32(SYSTEM) == 1 << Line.ETHERNET
    assert rig.bus.read32(PENDING) == 1 << 6 and rig.seen() == {6}
    rig.drive(Line.ETHERNET, False)
    rig.chip.request_reset()
    assert rig.bus.read32(PENDING) == 0 and not rig.seen()


class Agreement(RuleBasedStateMachine):
    """The chip beside the rule that its text gives, with every state computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.raised = self.mask = self.soft = self.target = 0
        self.fifteen = False

    @rule(source=st.sampled_from([n for n, level in enumerate(LEVELS) if level]), on=st.booleans())
    def line(self, source: int, on: bool) -> None:
        was = self.raised >> source & 1
        self.rig.drive(source, on)
        self.raised = self.raised & ~(1 << source) | on << source
        if LEVELS[source] == 15 and was != on:
            self.fifteen = on

    @rule(value=st.integers(0, ALL), which=st.sampled_from([MASK_SET, MASK_CLEAR, SOFT, CLEAR]))
    def write(self, value: int, which: int) -> None:
        self.rig.bus.write32(which, value)
        if which == MASK_SET:
            self.mask |= value & IMPLEMENTED
        elif which == MASK_CLEAR:
            self.mask &= ~value
        elif which == SOFT:
            self.soft |= value & 0xFFFE_0000
        else:
            self.soft &= ~value
            self.fifteen &= not value >> 15 & 1

    @rule(processor=st.integers(0, 15))
    def aim(self, processor: int) -> None:
        self.rig.bus.write32(TARGET, processor)
        self.target = processor

    @invariant()
    def agrees(self) -> None:
        shown = {LEVELS[n] for n in range(31) if self.raised >> n & 1 and not self.target}
        self.fifteen |= 15 in shown
        shown |= {15} if self.fifteen else set()
        hard = self.raised & IMPLEMENTED & ~self.mask
        seen = {LEVELS[n] for n in range(31) if hard >> n & 1 and not self.target}
        seen |= shown & {15}
        if self.mask >> 31:
            seen = set()
        seen |= {n for n in range(1, 16) if self.soft >> 16 + n & 1}
        bus = self.rig.bus
        assert bus.read32(SYSTEM) == self.raised and bus.read32(MASK) == self.mask
        assert bus.read32(PENDING) == self.soft | sum(1 << n for n in shown)
        assert self.rig.seen() == seen


TestAgreement = Agreement.TestCase
