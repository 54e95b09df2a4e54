# SPDX-License-Identifier: Apache-2.0
"""Translation stages: bus windows, IOMMUs, byte lanes.

Each maps its own address space to the next one down.
"""

from iodma.stages.iommu import Iommu, Mapping, Walk
from iodma.stages.lanes import ByteLanes
from iodma.stages.window import Window

__all__ = ["ByteLanes", "Iommu", "Mapping", "Walk", "Window"]
