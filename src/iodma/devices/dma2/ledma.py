# SPDX-License-Identifier: Apache-2.0
"""LEDMA: the Ethernet half of the DMA2 (NCR89C100/STP2001, "DMA2", Ethernet channel).

    0x0  E_CSR        control and status
    0x4  E_TST_CSR    test: only stored
    0x8  E_VLD        cache valid bits: only stored
    0xc  E_BASE_ADDR  bits 31:24 of every address of the LANCE, whose own has 24

The LANCE's port sits on `stage`:

    ledma = Ledma(iommu)
    lanes = iodma.ByteLanes(ledma.stage, width=2)
    lance = Lance(engine.port(lanes, "lance"), network=...)

Invariants
 - An address of the chip from 2^24 on is not on the bus: it faults. A chip whose counter wraps at
   2^24 makes the wrapped address itself.
 - E_BASE_ADDR changes what is translated from then on; what is in flight goes on where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iodma.devices import Register
from iodma.devices.dma2 import csr
from iodma.devices.dma2.half import Half
from iodma.stages import Window

if TYPE_CHECKING:
    from iodma._core import Space

__all__ = ["Ledma"]

_CHIP_BYTES = 1 << 24


class Ledma(Half):
    """The Ethernet half.

    Args:
        space: what the SBus masters: the IOMMU.
        name: for messages.

    Attributes:
        stage: the space that the Ethernet chip masters.
    """

    KEPT = (
        csr.INT_EN
        | csr.RESET
        | csr.E_DSBL_WR_DRN
        | csr.E_DSBL_RD_DRN
        | csr.E_ILACC
        | csr.E_DSBL_BUF_WR
        | csr.E_DSBL_WR_INVAL
        | csr.BURST_SIZE
        | csr.E_LOOP_TEST
        | csr.E_TP_AUI
    )

    tst_csr = Register(0x4, doc="E_TST_CSR")
    vld = Register(0x8, doc="E_VLD")
    base_addr = Register(0xC, mask=0xFF00_0000, write="write_base", doc="E_BASE_ADDR")

    def __init__(self, space: Space, *, name: str | None = None) -> None:
        self.stage = Window(space, 0, _CHIP_BYTES, name="ledma")
        super().__init__(name=name)

    def reset(self) -> None:
        self.stage.move(self.base_addr)
        super().reset()

    def write_base(self, value: int) -> None:
        self.stage.move(self.base_addr)
