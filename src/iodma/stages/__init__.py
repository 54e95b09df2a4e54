# SPDX-License-Identifier: Apache-2.0
"""Translation stages: bus windows, IOMMUs, page tables, byte lanes.

Each maps its own address space to the next one down.
"""

from iodma.stages.iommu import Iommu, Mapping, Walk
from iodma.stages.lanes import ByteLanes
from iodma.stages.page_table import (
    PageEntry,
    PageTable,
    TableCounts,
    TableFault,
    TableMode,
    Translation,
)
from iodma.stages.window import Window

__all__ = [
    "ByteLanes",
    "Iommu",
    "Mapping",
    "PageEntry",
    "PageTable",
    "TableCounts",
    "TableFault",
    "TableMode",
    "Translation",
    "Walk",
    "Window",
]
