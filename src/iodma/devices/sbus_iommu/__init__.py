# SPDX-License-Identifier: Apache-2.0
"""The SBus IOMMU of sun4m machines (Sun-4M System Architecture, I/O MMU).

    iommu = SbusIommu(memory)
    port = engine.port(iommu.stage)         # DMA of an SBus master

| file | its one concept |
|---|---|
| `layout` | register bits and the entry of the page table, as data |
| `device` | the device |
"""

from iodma.devices.sbus_iommu.device import SbusIommu
from iodma.devices.sbus_iommu.layout import (
    IOPTE,
    RANGE_BYTES,
    Afsr,
    Control,
    IoPte,
    SlotConfig,
    iopte,
)

__all__ = ["IOPTE", "RANGE_BYTES", "Afsr", "Control", "IoPte", "SbusIommu", "SlotConfig", "iopte"]
