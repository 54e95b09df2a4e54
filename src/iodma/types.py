# SPDX-License-Identifier: Apache-2.0
"""The words that every layer shares: how a transfer ended, what was allowed, where it faulted.

Invariants
 - Nothing here refers to anything above it.
 - The numbers are those of the C core (`csrc/iod.h`); `iodma._core` refuses to load with others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

__all__ = ["Access", "Constraints", "Direction", "Fault", "Reason", "Status"]


class Status(IntEnum):
    """How a transfer ended."""

    OK = 0
    #: A stage or the memory refused an address; `Completion.fault` says where and why.
    FAULT = 1
    #: The host's kernel refused; `Completion.error` is the errno.
    IO_ERROR = 2
    CANCELLED = 3
    #: The other end of a stream is gone.
    PEER_GONE = 4


class Access(IntFlag):
    """What a device may do with memory, or wants to: seen from the device."""

    NONE = 0
    READ = 1
    WRITE = 2
    RW = 3


class Direction(IntEnum):
    """Which way the bytes go, named from memory's side."""

    FROM_MEMORY = 0
    TO_MEMORY = 1


class Reason(IntEnum):
    """Why bytes were bounced: copied through the arena instead of moved in place."""

    #: A byte-lane transform that the endpoint cannot do.
    LANES = 0
    #: Addresses, lengths or positions that the endpoint's alignment forbids.
    ALIGNMENT = 1
    #: The target is not RAM: ROM, or a device window.
    NOT_RAM = 2
    #: Segments so small that one copy is cheaper than the vector.
    SMALL = 3
    #: Memory that somebody else has and moves: a `RemoteMemory`.
    REMOTE = 4
    #: A packet that was read in order to be peeked at, of an endpoint that lets nobody peek: a tap.
    PEEKED = 5
    #: What was left of a frame on a stream when its send was cancelled in the middle of it.
    FRAMED = 6


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a transfer was refused.

    Attributes:
        offset: bytes into the transfer.
        address: the address at the stage that refused it.
        access: what was wanted.
        stage: the name of that stage.
        reason: what was wrong with it, in words.
    """

    offset: int
    address: int
    access: Access
    stage: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.access.name} of address {self.address:#x}: {self.reason}"
            f" (at byte {self.offset} of the transfer)"
        )


@dataclass(frozen=True, slots=True)
class Constraints:
    """What an endpoint asks of the requests it is given.

    Attributes:
        memory_alignment: bytes; every segment's host address must be a multiple of it (1: any).
        offset_alignment: bytes; positions and lengths must be multiples of it (1: any).
        max_segments: most segments in one request.
        max_bytes: most bytes in one request.
        order: "random" (none kept, positions given), "stream" (one request a direction) or
            "packet".
    """

    memory_alignment: int = 1
    offset_alignment: int = 1
    max_segments: int = 1024
    max_bytes: int = 0x7FFFF000
    order: str = "random"
