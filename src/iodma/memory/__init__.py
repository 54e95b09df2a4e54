# SPDX-License-Identifier: Apache-2.0
"""Memory: host mappings of RAM and ROM, device windows, and the map that gives them addresses."""

from iodma.memory.map import Memory
from iodma.memory.msi import MsiWindow
from iodma.memory.regions import DeviceWindow, Ram, Rom, WindowTarget

__all__ = ["DeviceWindow", "Memory", "MsiWindow", "Ram", "Rom", "WindowTarget"]
