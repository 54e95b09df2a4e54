# SPDX-License-Identifier: Apache-2.0
"""Divergences of the ESP and of its disk. See divergences.py."""

from __future__ import annotations

from tests.peers.sun4m.compare import Divergence, Moment
from tests.peers.sun4m.machine import ESP
from tests.peers.sun4m.scsi_programs import (
    ACCEPT,
    BUS_ID,
    COMMAND,
    DMA,
    RESET_BUS,
    SELECT,
    SELECT_ATN,
)

PHASE, TC = 7, 0x10
ERR_PEND = 2
AFSR_ERR, AFSR_ME = 0x8000_0000, 0x0008_0000


def step_cleared(moment: Moment) -> bool:
    ours, theirs = moment.register("ESP step")
    return (ours, theirs) == (0, 4) and moment.take("ESP step", 4)


def accepted(moment: Moment) -> bool:
    """Phase lines after the target went: its message was accepted, or the bus reset."""
    ours, theirs = (value & PHASE for value in moment.register("ESP status"))
    last = moment.written(ESP + 4 * COMMAND)
    return (
        last in (ACCEPT, RESET_BUS)
        and not ours
        and theirs == PHASE
        and moment.take("ESP status", PHASE)
    )


def bus_reset(moment: Moment) -> bool:
    """Additional sense code 29h: the qualifier behind it."""
    found = [
        at
        for at, pair in moment.memory.items()
        if pair == (2, 0) and moment.memory_at(at - 1, 1) == (b"\x29", b"\x29")
    ]
    for at in found:
        del moment.memory[at]
    return bool(found)


def field_pointer(moment: Moment) -> bool:
    """Sense-key specific bytes, 15 to 17 of fixed format sense, of an illegal request."""
    for at, (ours, theirs) in moment.memory.items():
        sense = moment.memory_at(at - 15, 18)
        same = sense[0][:15] == sense[1][:15] and sense[0][0] == 0x70 and sense[0][2] == 5
        if same and ours & 0x80 and not any(sense[1][15:]):
            for place in (at, at + 1, at + 2):
                moment.memory.pop(place, None)
            return not theirs
    return False


def nobody_selected(moment: Moment) -> bool:
    """TC after a selection without DMA that nobody has answered, until DMA is used."""
    target, absent = 0, False
    for step in moment.program.steps[: moment.step]:
        if step.op != "write":
            continue
        if step.address == ESP + 4 * BUS_ID:
            target = step.value
        elif step.address == ESP + 4 * COMMAND and step.value in (SELECT, SELECT_ATN):
            absent |= bool(target)
        elif step.address == ESP + 4 * COMMAND and step.value & DMA:
            absent = False
    return absent and moment.only_ours("ESP status", TC)


def memory_error(moment: Moment) -> bool:
    """Ours has ERR_PEND, and both the same fault of the IOMMU, but for how often."""
    ours, theirs = moment.register("IOMMU AFSR")
    same = not (ours ^ theirs) & ~AFSR_ME and bool(ours & AFSR_ERR)
    pending = moment.register("ESPDMA CSR")[0] & ERR_PEND
    return bool(same and pending and "IOMMU AFAR" not in moment.differs) and moment.everything()


SCSI: tuple[Divergence, ...] = (
    Divergence(
        "sequence step",
        "is cleared when the interrupt register is read; QEMU has 4 from then on",
        'NCR53C90, "Sequence Step Register" and "Interrupt Register"',
        step_cleared,
    ),
    Divergence(
        "which reset",
        "the unit attention is that of a bus reset, 29h/02h; QEMU's is 29h/00h for all",
        'SPC-4, "Additional sense codes", 29h',
        bus_reset,
    ),
    Divergence(
        "field pointer",
        "sense of an illegal request says which byte; QEMU's does not",
        'SPC-4, "Sense key specific sense data", "Field pointer"',
        field_pointer,
    ),
    Divergence(
        "TC after a selection that times out",
        "is as it was: no DMA command has loaded the counter; QEMU clears it",
        'NCR53C90, "Status Register", bit 4',
        nobody_selected,
    ),
    Divergence(
        "phase after a disconnection",
        "the bus is free, and its lines are released; QEMU has message in still",
        'NCR53C90, "Status Register", bits 2:0; SCSI-2, 6.1.1 "Bus free phase"',
        accepted,
    ),
    Divergence(
        "memory error of ESPDMA",
        "ERR_PEND, and no request is answered from there on; QEMU goes on as if it had moved",
        'DMA2, "D_CSR", bit 1 (D_ERR_PEND)',
        memory_error,
        ends=True,
    ),
)
