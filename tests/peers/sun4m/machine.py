# SPDX-License-Identifier: Apache-2.0
"""The machine that both sides are: where a SPARCstation 5's registers are, and what is compared.

Invariants:

- Addresses are physical. A register's name is its datasheet's.
- Reading what is in `OBSERVED`, in its order, changes nothing that a later step could see, except
  that the IOMMU's AFSR and AFAR take its interrupt back (the lines are read before them) and that
  RAP is 0 afterwards: who writes RDP writes RAP first.
- `ARENA` is all that programs put DMA into; the pages around it are compared with it.

Sources: "Sun-4M System Architecture" (SBus IOMMU), NCR89C100 and DMA2 (LEDMA, ESPDMA), NCR89C105
(interrupt controller), Am7990 (LANCE), NCR53C90 (ESP).
"""

from __future__ import annotations

from dataclasses import dataclass

RAM_BYTES = 16 << 20
PAGE = 4096

IOMMU, ESPDMA, LEDMA = 0x1000_0000, 0x7840_0000, 0x7840_0010
ESP, LANCE = 0x7880_0000, 0x78C0_0000
INTCTL_CPU, INTCTL = 0x71E0_0000, 0x71E1_0000

#: LANCE's two registers.
RDP, RAP = LANCE, LANCE + 2
#: IOMMU.
IOMMU_CONTROL, IOMMU_BASE = IOMMU, IOMMU + 4
IOMMU_FLUSH_ALL, IOMMU_FLUSH_PAGE = IOMMU + 0x14, IOMMU + 0x18
IOMMU_AFSR, IOMMU_AFAR = IOMMU + 0x1000, IOMMU + 0x1004
ESP_COMMAND = ESP + 12
#: DMA2's registers, from the base of either half.
D_CSR, D_ADDR, D_BCNT, D_TEST = 0, 4, 8, 12

#: Lines of the interrupt controller: LANCE, SCSI, IOMMU (module error).
LINES = 1 << 16 | 1 << 18 | 1 << 30
LEVELS = 1 << 6 | 1 << 4 | 1 << 15


@dataclass(frozen=True)
class Register:
    """One that is compared at every checkpoint."""

    name: str
    address: int
    size: int = 4
    mask: int = 0xFFFF_FFFF


OBSERVED = (
    Register("interrupt controller pending", INTCTL, mask=LINES),
    Register("processor's pending", INTCTL_CPU, mask=LEVELS),
    Register("IOMMU control", IOMMU_CONTROL),
    Register("IOMMU base", IOMMU_BASE),
    Register("IOMMU AFSR", IOMMU_AFSR),
    Register("IOMMU AFAR", IOMMU_AFAR),
    Register("LEDMA CSR", LEDMA + D_CSR),
    Register("LEDMA base", LEDMA + D_TEST),
    Register("ESPDMA CSR", ESPDMA + D_CSR),
    Register("ESPDMA address", ESPDMA + D_ADDR),
    Register("LANCE RAP", RAP, 2),
)

#: The IOMMU's page table for the last 16 MiB, its smallest range: a word a page. Tables of larger
#: ranges end where it ends, and so are aligned to their sizes.
TABLE, TABLE_BYTES = 0x1F_C000, 0x4000
#: Pages that DMA goes to, in front of the table.
ARENA, ARENA_BYTES = 0x1D_C000, TABLE - 0x1D_C000
#: The disk at target 0 of the SCSI bus.
BLOCK_BYTES, BLOCKS = 512, 256
#: What is filled before each program, and compared at each checkpoint.
COMPARED, COMPARED_BYTES = ARENA - PAGE, ARENA_BYTES + TABLE_BYTES + 2 * PAGE

_NAMES = {register.address: register.name for register in OBSERVED}
_ESP = ("TCLOW", "TCMED", "FIFO", "command", "status", "interrupt", "step", "flags", "config 1")


def register_name(address: int) -> str:
    """What an observation of a register is called."""
    if ESP <= address < ESP + 4 * len(_ESP):
        return f"ESP {_ESP[(address - ESP) // 4]}"
    return _NAMES.get(address) or f"{address:#x}"
