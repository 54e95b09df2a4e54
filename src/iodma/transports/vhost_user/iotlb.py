# SPDX-License-Identifier: Apache-2.0
"""The IOTLB: what the front-end's IOMMU maps, as far as it was asked for (specification: "IOMMU
support").

With VIRTIO_F_ACCESS_PLATFORM, the addresses of rings and in descriptors are I/O virtual. An
`iodma.Iommu` on top of guest memory caches what they mean; a miss is sent to the front-end, with
exactly the access that is needed, and what waits for it goes on when its answer comes.

Invariants
 - An answer and an invalidation come over the same connection, in the order in which they hold: an
   update is newer than every invalidation before it.
 - An invalidation is acknowledged when the last transfer through the range has let go.
 - What cannot be asked, or was asked in vain, is a fault; nothing waits for an answer that the
   front-end has said will not come.
 - The cache has at most `MOST_MAPPINGS` mappings. What is dropped beyond that is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from iodma.errors import AddressRangeError
from iodma.lease import Revocation
from iodma.stages import Iommu, Mapping
from iodma.transports.vhost_user.memory import MemoryTable
from iodma.transports.vhost_user.messages import IotlbMessage, Refusal
from iodma.types import Access

__all__ = ["PAGE", "Iotlb", "IotlbType"]

#: Bytes: what is asked for at a time. Answers may be larger.
PAGE = 4096
MOST_MAPPINGS = 1 << 16
_TOP = 1 << 64


class IotlbType(IntEnum):
    """What an IOTLB message is."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class Iotlb:
    """The cache of one session.

    Args:
        ask: sends a miss: (page, access); False: nobody is there to be asked.

    Attributes:
        iommu: what rings and buffers are looked up in.
        acknowledged: the front-end says when it is done with a miss: one that was not answered by
            then is refused. Else the first answer for its page is its answer.
        asked, updates, invalidations: how many there were.
        dropped: how often the cache was full.
    """

    def __init__(self, table: MemoryTable, ask: Callable[[int, Access], bool], name: str) -> None:
        self._table = table
        self._ask = ask
        self.iommu = Iommu(table.memory, PAGE, walk=self._walk, name=f"{name} iotlb")
        self.acknowledged = False
        self.asked = self.updates = self.invalidations = self.dropped = 0

    def _walk(self, address: int, access: Access) -> bool | None:
        if not self._ask(address, access):
            return False
        self.asked += 1
        return None

    def update(self, message: IotlbMessage) -> None:
        """Takes an answer.

        Raises:
            Refusal: it maps what is not guest memory, or not whole pages, or nothing.
        """
        if not 0 <= message.access <= Access.RW:
            raise Refusal(f"an update with access {message.access}; 0 to 3 would be right")
        self._check(message)
        self.updates += 1
        access = Access(message.access)
        pieces = (
            self._table.pieces(message.user, message.size, "what is mapped")
            if access
            else [(0, message.size)]
        )
        if self.iommu._count + len(pieces) > MOST_MAPPINGS:
            self.dropped += 1
            self.iommu.invalidate()  # nobody has to wait: what is under way is what it was
        at = message.address
        for guest, length in pieces:
            try:
                self.iommu._check_mapping(mapping := Mapping(at, guest, length, access))
            except AddressRangeError as error:
                raise Refusal(f"an update: {error}") from None
            self.iommu._install(mapping, alone=not (self.acknowledged and access))
            at += length

    def invalidate(self, message: IotlbMessage) -> Revocation:
        """Forgets a range. Await the result: what is under way through it is over then.

        Raises:
            Refusal: it reaches past 2^64.
        """
        self.invalidations += 1
        if message.size == 0 or (message.address == 0 and message.size == _TOP - 1):
            return self.iommu.invalidate()  # all of 2^64, which does not fit its field
        if message.address + message.size > _TOP:
            raise Refusal(f"{message.size:#x} bytes at {message.address:#x} reach past 2^64")
        return self.iommu.invalidate(message.address, message.size)

    def forget(self) -> None:
        """Drops all: guest memory is not what it was."""
        self.iommu.invalidate()

    def done(self, address: int, access: Access, failed: bool) -> None:
        """The front-end is done with a miss; what it has sent for it was taken before.

        Args:
            failed: it says that there is no translation.
        """
        # Where nothing is mapped, whatever was sent has been invalidated since.
        if failed or self.iommu._find(address) is not None:
            self.iommu.refuse(address, access)

    def refuse_all(self) -> int:
        """Gives up on what was asked for and not answered; how many pages that are."""
        misses = self.iommu.misses
        for address, access in misses:
            self.iommu.refuse(address, access)
        return len(misses)

    @staticmethod
    def _check(message: IotlbMessage) -> None:
        size = message.size
        if size == 0 or size % PAGE or message.address % PAGE or message.user % PAGE:
            raise Refusal(
                f"an update of {size:#x} bytes at {message.address:#x}, user address"
                f" {message.user:#x}: whole pages of {PAGE} would be right"
            )
        if message.address + size > _TOP or message.user + size > _TOP:
            raise Refusal(f"an update of {size:#x} bytes at {message.address:#x} reaches past 2^64")
