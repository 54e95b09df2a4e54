# SPDX-License-Identifier: Apache-2.0
"""PCI functions: a device's description, its configuration space, interrupts, BARs, and slot.

Nothing here knows a particular device, nor how one is attached.
"""

from iodma.pci.config import Command, ConfigSpace, Field
from iodma.pci.description import Bar, Capability, Pci
from iodma.pci.function import BarInfo, Function, slot_of
from iodma.pci.interrupts import InterruptKind, Interrupts, Sink
from iodma.pci.slot import PciSlot

__all__ = [
    "Bar",
    "BarInfo",
    "Capability",
    "Command",
    "ConfigSpace",
    "Field",
    "Function",
    "InterruptKind",
    "Interrupts",
    "Pci",
    "PciSlot",
    "Sink",
    "slot_of",
]
