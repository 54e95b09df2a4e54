# SPDX-License-Identifier: Apache-2.0
"""What every virtio device shares: feature bits, virtqueues, the configuration space, status.

Nothing here knows a particular device, nor how one is attached.
"""

from iodma.virtio.config import ConfigField, ConfigSpace
from iodma.virtio.device import VirtioDevice
from iodma.virtio.features import DeviceStatus, Feature
from iodma.virtio.queue import Queue, QueueLayout, QueueSetup

__all__ = [
    "ConfigField",
    "ConfigSpace",
    "DeviceStatus",
    "Feature",
    "Queue",
    "QueueLayout",
    "QueueSetup",
    "VirtioDevice",
]
