# SPDX-License-Identifier: Apache-2.0
"""The SCSI controller of a sun4m machine: ESP, an NCR 53C9x / FAS100A.

    espdma = EspDma(engine.port(iommu, "esp"))
    esp = Esp(espdma, {0: Target(engine, Disk(iodma.File("disk.img")))})

| file | its one concept |
|---|---|
| `registers` | bits of the registers, phases, and the table of commands |
| `device` | the registers, the FIFO, the transfer counter, interrupts, resets |
| `sequences` | what each command does on the bus |
| `connection` | the target's side of the bus: phases, messages, disconnection |
| `channel` | what the chip asks of a DMA controller |
"""

from iodma.devices.esp.channel import Channel
from iodma.devices.esp.device import Esp

__all__ = ["Channel", "Esp"]
