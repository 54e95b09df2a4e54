# SPDX-License-Identifier: Apache-2.0
"""The requests of a block device (virtio 1.2, section 5.2.6).

A request is a header of 16 bytes (type, reserved, sector), its data, and a status byte.

Invariants
 - What a driver says of ranges is checked here, once, and what comes out lies within the disk.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

from iodma.devices.virtio_blk.layout import SECTOR, BlkFeature

__all__ = ["REQUESTS", "BlkStatus", "BlkType", "Payload", "Refused", "RequestKind", "parse_ranges"]


class BlkType(IntEnum):
    """Request types."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


class BlkStatus(IntEnum):
    """The status byte."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Payload(Enum):
    """What data a request type has."""

    NONE = "none"
    READABLE = "for the device to read"
    WRITABLE = "for the device to write"


@dataclass(frozen=True, slots=True)
class RequestKind:
    """One request type that the device knows.

    Attributes:
        payload: what data it has; a request with other data is malformed.
        writes: it changes the disk, which a read-only one refuses.
        needs: the feature without whose offer the type is unknown; 0: always there.
        empty: whether it may have no data at all.
    """

    type: BlkType
    payload: Payload
    writes: bool = False
    needs: int = 0
    empty: bool = False

    def fits(self, readable: int, writable: int) -> bool:
        """Whether so many bytes of data, for the device to read and to write, make sense."""
        if not readable and not writable:
            return self.empty or self.payload is Payload.NONE
        if readable and writable:
            return False
        return self.payload is (Payload.READABLE if readable else Payload.WRITABLE)


#: The types that the device knows; whatever is not here is UNSUPP.
REQUESTS: dict[int, RequestKind] = {
    kind.type: kind
    for kind in (
        RequestKind(BlkType.IN, Payload.WRITABLE, empty=True),
        RequestKind(BlkType.OUT, Payload.READABLE, writes=True, empty=True),
        RequestKind(BlkType.FLUSH, Payload.NONE),
        RequestKind(BlkType.GET_ID, Payload.WRITABLE),
        RequestKind(BlkType.DISCARD, Payload.READABLE, True, BlkFeature.DISCARD),
        RequestKind(BlkType.WRITE_ZEROES, Payload.READABLE, True, BlkFeature.WRITE_ZEROES),
    )
}

#: struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags.
_RANGE = struct.Struct("<QII")
RANGE_BYTES = _RANGE.size
#: The only flag there is: write zeroes may give the range back to the host.
UNMAP = 1


class Refused(Exception):
    """A request is answered with this status and nothing else happens."""

    def __init__(self, status: BlkStatus) -> None:
        super().__init__(status.name)
        self.status = status


def parse_ranges(
    data: bytes, *, zeroes: bool, most: int, most_sectors: int, capacity: int
) -> list[tuple[int, int, bool]]:
    """The ranges of a discard or a write-zeroes request.

    Args:
        zeroes: it is a write-zeroes request, which may say "unmap".
        most: ranges.
        most_sectors: of one range.
        capacity: of the disk, sectors.

    Returns:
        (offset in bytes, bytes, unmap), each within the disk.

    Raises:
        Refused: UNSUPP for flags that the type does not have; IOERR for data that is not made of
            ranges, more or longer ranges than may be, or one past the end of the disk.
    """
    if not data or len(data) % RANGE_BYTES or len(data) > most * RANGE_BYTES:
        raise Refused(BlkStatus.IOERR)
    ranges = list(_RANGE.iter_unpack(data))
    allowed = UNMAP if zeroes else 0
    if any(flags & ~allowed for _, _, flags in ranges):
        raise Refused(BlkStatus.UNSUPP)
    if any(count > most_sectors or sector + count > capacity for sector, count, _ in ranges):
        raise Refused(BlkStatus.IOERR)
    return [
        (sector * SECTOR, count * SECTOR, bool(flags & UNMAP)) for sector, count, flags in ranges
    ]
