# SPDX-License-Identifier: Apache-2.0
"""Feature bits and the configuration space of a block device (virtio 1.2, section 5.2.3, 5.2.4).

Invariant: every field of the specification up to `write_zeroes_may_unmap` is here; later ones
belong to features that are not offered, and read as zero.
"""

from __future__ import annotations

from enum import IntFlag

from iodma.virtio import ConfigField

__all__ = ["CONFIG", "SECTOR", "BlkFeature"]

#: Bytes; the unit of the protocol, whatever the block size is.
SECTOR = 512


class BlkFeature(IntFlag):
    """Feature bits of block devices."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


CONFIG = (
    ConfigField("capacity", 0, 8),  # sectors
    ConfigField("size_max", 8, 4),  # bytes of a segment
    ConfigField("seg_max", 12, 4),  # segments of a request
    ConfigField("cylinders", 16, 2),
    ConfigField("heads", 18, 1),
    ConfigField("sectors", 19, 1),
    ConfigField("blk_size", 20, 4),  # bytes
    ConfigField("physical_block_exp", 24, 1),  # log2 of logical blocks in a physical one
    ConfigField("alignment_offset", 25, 1),  # logical blocks
    ConfigField("min_io_size", 26, 2),  # logical blocks
    ConfigField("opt_io_size", 28, 4),  # logical blocks
    ConfigField("writeback", 32, 1),  # 1: write-back cache, 0: write-through
    ConfigField("num_queues", 34, 2),
    ConfigField("max_discard_sectors", 36, 4),
    ConfigField("max_discard_seg", 40, 4),
    ConfigField("discard_sector_alignment", 44, 4),
    ConfigField("max_write_zeroes_sectors", 48, 4),
    ConfigField("max_write_zeroes_seg", 52, 4),
    ConfigField("write_zeroes_may_unmap", 56, 1),
    ConfigField("unused1", 57, 3),
)
