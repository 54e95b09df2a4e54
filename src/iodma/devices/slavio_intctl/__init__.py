# SPDX-License-Identifier: Apache-2.0
"""The interrupt controller of sun4m machines, a part of SLAVIO (NCR89C105, STP2001).

    intctl = SlavioIntctl()
    ledma.interrupt.connect(intctl.inputs[Line.ETHERNET].set)
    intctl.levels[6].connect(processor.interrupt)

| file | its one concept |
|---|---|
| `layout` | interrupt sources, their levels, register bits, as data |
| `device` | the device |
"""

from iodma.devices.slavio_intctl.device import SlavioIntctl
from iodma.devices.slavio_intctl.layout import LEVELS, Line

__all__ = ["LEVELS", "Line", "SlavioIntctl"]
