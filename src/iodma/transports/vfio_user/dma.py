# SPDX-License-Identifier: Apache-2.0
"""The DMA regions of a session: bus addresses that the client has mapped.

Invariant: a region is the table's from its map to its unmap.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable

from iodma.engine import Engine
from iodma.lease import Revocation
from iodma.memory import Memory, Ram
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user.messages import Refusal
from iodma.transports.vfio_user.remote import Remote

__all__ = ["DmaTable"]


class DmaTable:
    """What is mapped."""

    def __init__(self, engine: Engine, memory: Memory, remote: Remote, name: str = "dma") -> None:
        self._memory = memory
        self._regions: dict[int, tuple[int, Ram]] = {}

    @property
    def regions(self) -> int:
        return len(self._regions)

    def map(
        self, address: int, size: int, flags: int, descriptor: Descriptor | None, offset: int
    ) -> None:
        if address in self._regions:
            raise Refusal(errno.EEXIST, "there is a region")
        if descriptor is None:
            raise Refusal(errno.ENOTSUP, "a region without a descriptor")
        ram = Ram.from_fd(descriptor.fileno(), offset, size)
        self._memory.add(address, ram, read_only=not flags & 2)
        self._regions[address] = (size, ram)

    def unmap(
        self, address: int, size: int, *, all: bool = False, dirty: tuple[int, int] | None = None
    ) -> Awaitable[bytes | None] | None:
        addresses = [*self._regions] if all else [address]
        waits = []
        for each in addresses:
            found = self._regions.pop(each, None)
            if found is None:
                raise Refusal(errno.ENOENT, "there is no such region")
            revocation = self._memory.remove(each)
            found[1].close()
            if not revocation.ok:
                waits.append(revocation)
        return self._wait(waits) if waits else None

    async def _wait(self, revocations: list[Revocation]) -> bytes | None:
        if not all([await each for each in revocations]):
            raise Refusal(errno.EBUSY, "transfers hold it")
        return None

    def start_logging(self, page: int, ranges: list[tuple[int, int]]) -> int:
        raise Refusal(errno.EINVAL, "not yet")

    def stop_logging(self) -> None:
        raise Refusal(errno.EINVAL, "not yet")

    def report(self, address: int, length: int, page: int) -> bytes:
        raise Refusal(errno.EINVAL, "not yet")

    async def close(self) -> bool:
        wait = self.unmap(0, 0, all=True)
        if wait is not None:
            await wait
        return True
