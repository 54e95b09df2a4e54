# SPDX-License-Identifier: Apache-2.0
"""The DMA2 of a sun4m machine (NCR89C100, STP2001): what Ethernet and SCSI chips do DMA through.

Invariants
 - The two halves know nothing of each other, and of their chips only a reset line and an interrupt
   line: whoever puts a machine together connects them.
"""

from iodma.devices.dma2.espdma import EspDma
from iodma.devices.dma2.ledma import Ledma

__all__ = ["EspDma", "Ledma"]
