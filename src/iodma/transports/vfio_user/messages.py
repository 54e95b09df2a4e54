# SPDX-License-Identifier: Apache-2.0
"""The messages of the vfio-user protocol: numbers, sizes, and how payloads are packed.

A message is a header of 16 bytes - id (16 bits), command (16), size with the header (32), flags
(32), error (32) - then the payload, and descriptors beside its first byte. Numbers are in the
host's byte order. Source: the vfio-user protocol specification, "Header" and "Commands"; errors
are those that libvfio-user gives.

Invariants
 - Which messages a client may send, and how long their payloads are at least, stands in `COMMANDS`
   and nowhere else. `check` refuses all others.
 - What a payload's fields mean is not judged here: the handlers do that.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import IntEnum

from iodma.transports import refusal

__all__ = [
    "COMMANDS",
    "DEFAULT_TRANSFER",
    "HEADER",
    "MOST_DESCRIPTORS",
    "MOST_MESSAGE",
    "MOST_TRANSFER",
    "Command",
    "Kind",
    "Refusal",
    "Region",
    "check",
    "title",
]

#: id, command, size, flags, error.
HEADER = struct.Struct("=HHIII")
#: Of the header's flags.
TYPE_MASK, COMMAND, REPLY, NO_REPLY, ERROR = 0xF, 0, 1, 0x10, 0x20

#: Bytes of data in one message: what this side takes, and what a client takes that says nothing.
MOST_TRANSFER = DEFAULT_TRANSFER = 1 << 20
#: Bytes of a message: room for the data, its header, and a little more.
MOST_MESSAGE = MOST_TRANSFER + 64
#: Descriptors that come with one message.
MOST_DESCRIPTORS = 16
#: DMA regions that there can be at once.
MOST_REGIONS = 65535
#: Bytes of a page, in the protocol.
PAGE = 4096
MAJOR, MINOR = 0, 1


class Refusal(refusal.Refusal):
    """What a client asks for cannot be: the reply is an error.

    Attributes:
        errno: it.
    """

    def __init__(self, errno: int, why: str) -> None:
        super().__init__(why)
        self.errno = errno


class Command(IntEnum):
    """What is asked for: the numbers of messages. 11 and 12 go to the client."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16


class Region(IntEnum):
    """Regions of a PCI device; 0 to 5 are its BARs."""

    ROM = 6
    CONFIG = 7
    VGA = 8


REGIONS = 9

_NAMES: dict[int, str] = {each: each.name for each in Command}


@dataclass(frozen=True, slots=True)
class Kind:
    """What one message may look like.

    Attributes:
        handler: the method of `Handlers` that does it, without its underscore.
        least: bytes of payload.
    """

    handler: str
    least: int


COMMANDS: dict[int, Kind] = {
    Command.VERSION: Kind("version", 4),
    Command.DMA_MAP: Kind("dma_map", 32),
    Command.DMA_UNMAP: Kind("dma_unmap", 24),
    Command.DEVICE_GET_INFO: Kind("get_info", 16),
    Command.DEVICE_GET_REGION_INFO: Kind("get_region_info", 32),
    Command.DEVICE_GET_REGION_IO_FDS: Kind("get_region_io_fds", 16),
    Command.DEVICE_GET_IRQ_INFO: Kind("get_irq_info", 16),
    Command.DEVICE_SET_IRQS: Kind("set_irqs", 20),
    Command.REGION_READ: Kind("region_read", 16),
    Command.REGION_WRITE: Kind("region_write", 16),
    Command.DEVICE_RESET: Kind("reset", 0),
    Command.DIRTY_PAGES: Kind("dirty_pages", 8),
    Command.REGION_WRITE_MULTI: Kind("region_write_multi", 8),
    Command.DEVICE_FEATURE: Kind("feature", 8),
}

VERSION_HEAD = struct.Struct("=HH")
#: argsz, flags, offset, address, size.
DMA_MAP = struct.Struct("=IIQQQ")
#: argsz, flags, address, size; then, where a bitmap is asked for, its page size and bytes.
DMA_UNMAP = struct.Struct("=IIQQ")
BITMAP = struct.Struct("=QQ")
#: argsz, flags, regions, interrupts.
DEVICE_INFO = struct.Struct("=IIII")
#: argsz, flags, index, cap_offset, size, offset.
REGION_INFO = struct.Struct("=IIIIQQ")
#: id, version, next, areas, reserved; then offset and size of each area.
SPARSE = struct.Struct("=HHIII")
AREA = struct.Struct("=QQ")
#: argsz, flags, index, count.
IO_FDS = struct.Struct("=IIII")
#: offset, size, fd_index, type, flags, padding, datamatch.
IOEVENTFD = struct.Struct("=QQIIIIQ")
#: argsz, flags, index, count.
IRQ_INFO = struct.Struct("=IIII")
#: argsz, flags, index, start, count.
IRQ_SET = struct.Struct("=IIIII")
#: offset, region, count; then the data.
REGION_ACCESS = struct.Struct("=QII")
#: offset, region, count, data: one of REGION_WRITE_MULTI.
ONE_WRITE = struct.Struct("=QII8s")
COUNT = struct.Struct("=Q")
#: argsz, flags; then the feature's own.
FEATURE = struct.Struct("=II")
#: address, count; then the data.
DMA_ACCESS = struct.Struct("=QQ")
#: The same as some clients lay it out: data follow 32 bits of count.
DMA_ACCESS_SHORT = struct.Struct("=QI")


def title(command: int) -> str:
    """The name of a message, for texts."""
    return _NAMES.get(command, f"message {command}")


def check(command: int, length: int) -> Kind:
    """What a message is, by what is known from its header.

    Args:
        length: bytes of its payload.

    Raises:
        Refusal: there is no such message, or it is too short.
    """
    kind = COMMANDS.get(command)
    if kind is None:
        raise Refusal(errno.EINVAL, "there is no such command from a client")
    if length < kind.least:
        raise Refusal(errno.EINVAL, f"{length} bytes; {kind.least} are the least")
    return kind
