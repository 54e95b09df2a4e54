# SPDX-License-Identifier: Apache-2.0
"""The regions of a PCI function, as vfio-user numbers them: BARs, ROM, configuration space.

Source: vfio-user protocol specification, VFIO_USER_DEVICE_GET_REGION_INFO and VFIO_USER_REGION_READ
to VFIO_USER_REGION_WRITE_MULTI; errors as libvfio-user gives them.

Invariant: what the function is asked for lies inside a region that it has.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable

from iodma.pci import Function
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user.messages import (
    AREA,
    COUNT,
    MOST_TRANSFER,
    ONE_WRITE,
    REGION_ACCESS,
    REGION_INFO,
    REGIONS,
    SPARSE,
    Refusal,
    Region,
)

__all__ = ["Regions"]

_READ, _WRITE, _MMAP, _CAPS = 1, 2, 4, 8
_SPARSE_MMAP, _SPARSE_VERSION = 1, 1
_CONFIG = int(Region.CONFIG)
_HEAD = REGION_ACCESS.size


class Regions:
    """What a client can access.

    Attributes:
        sizes: bytes of each region; 0: there is none of that index.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self.sizes = [0] * REGIONS
        for index, bar in function.bars.items():
            self.sizes[index] = bar.size
        self.sizes[_CONFIG] = function.config.size

    # --- information ------------------------------------------------------------------------------

    def info(self, payload: bytes) -> tuple[bytes, Descriptor | None]:
        """VFIO_USER_DEVICE_GET_REGION_INFO: the answer's payload, and what can be mapped."""
        argsz, _, index, *_ = REGION_INFO.unpack_from(payload)
        if argsz < REGION_INFO.size:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {REGION_INFO.size} is the least")
        if index >= REGIONS:
            raise Refusal(errno.EINVAL, f"there is no region {index}")
        size = self.sizes[index]
        flags = _READ | _WRITE if size else 0
        areas = b""
        descriptor = None
        bar = self._function.bars.get(index)
        if bar is not None:
            if bar.read_only:
                flags &= ~_WRITE
            if bar.ram is not None and bar.sparse:
                # Also where that is all of it: clients take a descriptor only beside this list.
                flags |= _MMAP
                areas = SPARSE.pack(_SPARSE_MMAP, _SPARSE_VERSION, 0, len(bar.sparse), 0)
                areas += b"".join(AREA.pack(*each) for each in bar.sparse)
                if argsz >= REGION_INFO.size + len(areas):
                    descriptor = Descriptor(os.dup(bar.ram.fd))
        needed = REGION_INFO.size + len(areas)
        offset = 0
        if areas and argsz >= needed:
            flags |= _CAPS
            offset = REGION_INFO.size
        else:
            areas = b""
        head = REGION_INFO.pack(needed, flags, index, offset, size, 0)
        return head + areas, descriptor

    def check(self, index: int) -> int:
        """The size of a region that there is. Raises Refusal: there is none."""
        if index >= REGIONS or not self.sizes[index]:
            raise Refusal(errno.EINVAL, f"there is no region {index}")
        return self.sizes[index]

    # --- accesses ---------------------------------------------------------------------------------

    def read(self, payload: bytes) -> bytes:
        """VFIO_USER_REGION_READ."""
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        if region >= REGIONS or offset + count > self.sizes[region] or count > MOST_TRANSFER:
            self._refuse(region, offset, count)
        if not count:
            return b""
        if region == _CONFIG:
            return payload[:_HEAD] + self._function.config_read(offset, count)
        return payload[:_HEAD] + self._function.bar_read(region, offset, count)

    def write(self, payload: bytes) -> Awaitable[None] | None:
        """VFIO_USER_REGION_WRITE. Gives what to wait for before it is answered."""
        offset, region, count = REGION_ACCESS.unpack_from(payload)
        if region >= REGIONS or offset + count > self.sizes[region]:
            self._refuse(region, offset, count)
        if len(payload) - _HEAD != count:
            raise Refusal(errno.EINVAL, f"{len(payload) - _HEAD} bytes of data, said to be {count}")
        if not count:
            return None
        return self._write(region, offset, payload[_HEAD:])

    def _write(self, region: int, offset: int, data: bytes) -> Awaitable[None] | None:
        if region == _CONFIG:
            return self._function.config_write(offset, data)
        self._function.bar_write(region, offset, data)
        return None

    def writes(self, payload: bytes) -> list[tuple[int, int, bytes]]:
        """VFIO_USER_REGION_WRITE_MULTI: (region, offset, data) of each, all checked."""
        (count,) = COUNT.unpack_from(payload)
        if len(payload) - COUNT.size != count * ONE_WRITE.size:
            raise Refusal(
                errno.EINVAL, f"{count} writes in {len(payload)} bytes; each has {ONE_WRITE.size}"
            )
        found = []
        for offset, region, length, data in ONE_WRITE.iter_unpack(payload[COUNT.size :]):
            if length > len(data) or region >= REGIONS or offset + length > self.sizes[region]:
                self._refuse(region, offset, length)
            if length:
                found.append((region, offset, data[:length]))
        return found

    async def write_all(self, writes: list[tuple[int, int, bytes]]) -> None:
        """Makes one write after the other."""
        for each in writes:
            wait = self._write(*each)
            if wait is not None:
                await wait

    def _refuse(self, region: int, offset: int, count: int) -> None:
        if region >= REGIONS:
            raise Refusal(errno.EINVAL, f"there is no region {region}")
        raise Refusal(
            errno.EINVAL,
            f"{count} bytes at {offset:#x} of region {region}, which has {self.sizes[region]}",
        )
