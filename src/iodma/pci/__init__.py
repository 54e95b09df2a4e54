# SPDX-License-Identifier: Apache-2.0
"""PCI: what functions share, whatever bus or transport they are on."""

from iodma.pci.slot import PciSlot

__all__ = ["PciSlot"]
