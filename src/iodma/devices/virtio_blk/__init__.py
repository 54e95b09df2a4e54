# SPDX-License-Identifier: Apache-2.0
"""The virtio block device (virtio 1.2, section 5.2).

    disk = iodma.File("disk.img")
    device = VirtioBlk(disk, serial="root-disk")

| file | its one concept |
|---|---|
| `layout` | feature bits and configuration space, as data |
| `requests` | the request types, and the segments of discard and write-zeroes |
| `device` | the device |
"""

from iodma.devices.virtio_blk.device import VirtioBlk
from iodma.devices.virtio_blk.layout import SECTOR, BlkFeature
from iodma.devices.virtio_blk.requests import BlkStatus, BlkType

__all__ = ["SECTOR", "BlkFeature", "BlkStatus", "BlkType", "VirtioBlk"]
