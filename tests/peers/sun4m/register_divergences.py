# SPDX-License-Identifier: Apache-2.0
"""Divergences of the IOMMU's and DMA2's registers. See divergences.py."""

from __future__ import annotations

from tests.peers.sun4m.compare import Divergence, Moment
from tests.peers.sun4m.lance_state import CSR0
from tests.peers.sun4m.machine import D_ADDR, D_CSR, ESPDMA, IOMMU, LEDMA
from tests.peers.sun4m.script import INEA, INTR

#: Of LEDMA's CSR; NO_E_CSR has no meaning there, or does not stay.
INT_PEND, SLAVE_ERR, RESET, A_LOADED, NO_E_CSR = 1, 0x40, 0x80, 0x0400_0000, 0x0190_6768
#: Of ESPDMA's.
DMA_ON = 0x0200_0000


def drain(moment: Moment) -> bool:
    zero = moment.written(LEDMA + D_CSR) == 0
    return zero and moment.only_theirs("LEDMA CSR", SLAVE_ERR)


def loaded(moment: Moment) -> bool:
    test = moment.written(LEDMA + D_ADDR) is not None
    return test and moment.only_theirs("LEDMA CSR", A_LOADED)


def no_bits_of_it(moment: Moment) -> bool:
    value = moment.written(LEDMA + D_CSR) or 0
    return moment.only_theirs("LEDMA CSR", value & NO_E_CSR)


def reset_line(moment: Moment) -> bool:
    """QEMU's line is up though its LANCE asks for nothing."""
    was_reset = any(
        step.op == "write" and step.address == LEDMA + D_CSR and step.value & RESET
        for step in moment.program.steps[: moment.step]
    )
    if not was_reset or moment.register(CSR0)[1] & (INTR | INEA) == INTR | INEA:
        return False
    taken = [
        moment.only_theirs("interrupt controller pending", 1 << 16),
        moment.only_theirs("processor's pending", 1 << 6),
        moment.only_theirs("LEDMA CSR", INT_PEND),
    ]
    return any(taken)


def base_bits(moment: Moment) -> bool:
    return moment.only_ours("IOMMU base", 0xF800_0000)


def burst_bit(moment: Moment) -> bool:
    slots = [f"{IOMMU + offset:#x}" for offset in (0x1010, 0x1014, 0x1018, 0x101C)]
    taken = [moment.only_ours(slot, 4) for slot in slots]
    return any(taken)


def mask_id(moment: Moment) -> bool:
    return moment.only_theirs(f"{IOMMU + 0x3018:#x}", 0xFF_FFFF)


def dma_on(moment: Moment) -> bool:
    return moment.only_ours("ESPDMA CSR", DMA_ON)


def drain_of_espdma(moment: Moment) -> bool:
    zero = moment.written(ESPDMA + D_CSR) == 0
    return zero and moment.only_theirs("ESPDMA CSR", SLAVE_ERR)


REGISTERS: tuple[Divergence, ...] = (
    Divergence(
        "LEDMA's CSR written as 0",
        "SLAVE_ERR stays clear; QEMU reads bit 6 as 1, for a drain, which is another bit",
        'DMA2, "E_CSR", bits 6 (SLAVE_ERR) and 10 (E_DRAIN)',
        drain,
    ),
    Divergence(
        "A_LOADED of LEDMA",
        "E_TST_CSR is only stored; QEMU sets bit 26 of the CSR, which is ESPDMA's",
        'DMA2, "E_CSR" and "D_CSR", bit 26 (D_A_LOADED)',
        loaded,
    ),
    Divergence(
        "bits that E_CSR has not",
        "what has no meaning in E_CSR, or does not stay, reads as 0; QEMU keeps what was written",
        'DMA2, "E_CSR"',
        no_bits_of_it,
    ),
    Divergence(
        "LANCE's line after a reset",
        "RESET takes LANCE's interrupt back; in QEMU it stays up until something else changes it",
        'DMA2, "E_CSR", RESET; Am7990, RESET',
        reset_line,
    ),
    Divergence(
        "IOMMU base, bits 35:31",
        "the table may be anywhere in 36 bits; QEMU keeps 31",
        'Sun-4M System Architecture, "IOMMU Base Address Register"',
        base_bits,
    ),
    Divergence(
        "mask ID",
        "is read-only; QEMU's takes bits that are written",
        'Sun-4M System Architecture, "Mask ID Register"',
        mask_id,
    ),
    Divergence(
        "IOMMU slot configuration, BA16",
        "is kept; QEMU has it as 0",
        'Sun-4M System Architecture, "SBus Slot Configuration Registers"',
        burst_bit,
    ),
    Divergence(
        "DMA_ON of ESPDMA",
        "says that a request would be answered; QEMU has not that bit",
        'DMA2, "D_CSR", bit 25 (D_DMA_ON)',
        dma_on,
    ),
    Divergence(
        "ESPDMA's CSR written as 0",
        "SLAVE_ERR stays clear; QEMU reads bit 6 as 1",
        'DMA2, "D_CSR", bit 6 (D_SLAVE_ERR)',
        drain_of_espdma,
    ),
)
