# SPDX-License-Identifier: Apache-2.0
"""Memory: host mappings of RAM and ROM, device windows, memory that somebody else has, and the map
that gives them addresses.
"""

from iodma.memory.map import Memory
from iodma.memory.msi import MsiWindow
from iodma.memory.regions import DeviceWindow, Ram, Rom, WindowTarget
from iodma.memory.remote import RemoteMemory, RemoteRequest, RemoteTarget

__all__ = [
    "DeviceWindow",
    "Memory",
    "MsiWindow",
    "Ram",
    "RemoteMemory",
    "RemoteRequest",
    "RemoteTarget",
    "Rom",
    "WindowTarget",
]
