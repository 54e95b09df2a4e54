# SPDX-License-Identifier: Apache-2.0
"""Bits of the control and status registers of the DMA2: E_CSR and D_CSR.

Names are the manual's (NCR89C100/STP2001, "DMA2": E_CSR and D_CSR), without their E_ and D_ where
both halves have them. Plain integers, because registers are read and written on the way of every
SCSI command.
"""

from __future__ import annotations

from typing import Final

# --- both halves ----------------------------------------------------------------------------------

#: The chip's interrupt line, or a terminal count that is not disabled.
INT_PEND: Final = 1 << 0
#: A memory exception: a DMA of this half met an error acknowledgement.
ERR_PEND: Final = 1 << 1
#: Both set while the cache drains to memory.
DRAINING: Final = 3 << 2
#: INT_PEND and ERR_PEND raise the half's SBus interrupt.
INT_EN: Final = 1 << 4
#: Written as 1: the cache is invalidated, ERR_PEND and SLAVE_ERR (and TC) are reset. Reads as 0.
INVALIDATE: Final = 1 << 5
#: An access to a register of this half that was not 32 bits wide.
SLAVE_ERR: Final = 1 << 6
#: The chip's reset line, as long as it is set.
RESET: Final = 1 << 7
BURST_SIZE: Final = 3 << 18
#: Bits 31:28 of a DMA2.
DEV_ID: Final = 0xA << 28

# --- E_CSR ----------------------------------------------------------------------------------------

#: Written as 1: forces the cache to drain. Reads as 0.
E_DRAIN: Final = 1 << 10
E_DSBL_WR_DRN: Final = 1 << 11
E_DSBL_RD_DRN: Final = 1 << 12
E_ILACC: Final = 1 << 15
E_DSBL_BUF_WR: Final = 1 << 16
E_DSBL_WR_INVAL: Final = 1 << 17
E_LOOP_TEST: Final = 1 << 21
#: 1: twisted pair, 0: AUI.
E_TP_AUI: Final = 1 << 22

# --- D_CSR ----------------------------------------------------------------------------------------

#: 1: from the SCSI chip to memory.
D_WRITE: Final = 1 << 8
#: Requests of the SCSI chip are answered.
D_EN_DMA: Final = 1 << 9
#: The byte counter counts.
D_EN_CNT: Final = 1 << 13
#: Terminal count: the byte counter has expired.
D_TC: Final = 1 << 14
D_DSBL_CSR_DRN: Final = 1 << 16
D_DSBL_SCSI_DRN: Final = 1 << 17
D_DIAG: Final = 1 << 20
D_TWO_CYCLE: Final = 1 << 21
D_FASTER: Final = 1 << 22
#: A terminal count is no interrupt.
D_TCI_DIS: Final = 1 << 23
#: Address and byte counter are loaded from their next registers at a terminal count.
D_EN_NEXT: Final = 1 << 24
#: The half can answer a DMA request now.
D_DMA_ON: Final = 1 << 25
D_A_LOADED: Final = 1 << 26
D_NA_LOADED: Final = 1 << 27
