# SPDX-License-Identifier: Apache-2.0
"""The messages of the vhost-user protocol: one table, and how their payloads are packed.

A message is a header (request, flags, size of the payload: 32 bits each), the payload, and
descriptors beside its first byte. Numbers are in the host's byte order. Source: the vhost-user
protocol specification, "Message specification" and "Front-end message types".

Invariants
 - What a message may look like - how long its payload is, how many descriptors come with it, what
   answers it - stands in `MESSAGES` and nowhere else. `check` refuses all others, before a byte of
   their payload is read.
 - What a payload's fields mean is not judged here: `memory` and `rings` do that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from iodma.transports.refusal import Refusal

__all__ = [
    "HEADER",
    "INDEX_MASK",
    "LEAST_SLOTS",
    "MAX_CONFIG",
    "MESSAGES",
    "MOST_DESCRIPTORS",
    "NEED_REPLY",
    "NO_DESCRIPTOR",
    "REPLY",
    "Config",
    "InflightArea",
    "IotlbMessage",
    "Kind",
    "LogArea",
    "MemoryRegion",
    "ProtocolFeature",
    "Refusal",
    "Request",
    "RingAddresses",
    "check",
    "config",
    "inflight",
    "iotlb",
    "pack",
    "parse_config",
    "parse_inflight",
    "parse_iotlb",
    "parse_log",
    "parse_region",
    "parse_regions",
    "parse_ring_addresses",
    "parse_state",
    "parse_u64",
    "state",
    "title",
    "u64",
]

HEADER = struct.Struct("=III")
#: Of the header's flags.
VERSION, VERSION_MASK = 1, 3
REPLY, NEED_REPLY = 4, 8

#: Regions in one SET_MEM_TABLE.
LEAST_SLOTS = 8
#: Bytes of configuration space in one message.
MAX_CONFIG = 256
#: Of SET_VRING_KICK, _CALL and _ERR: the ring's index, and: no descriptor comes with it.
INDEX_MASK, NO_DESCRIPTOR = 0xFF, 0x100
#: That come with one message.
MOST_DESCRIPTORS = LEAST_SLOTS

_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDRESSES = struct.Struct("=IIQQQQ")
_COUNT = struct.Struct("=II")
_REGION = struct.Struct("=QQQQ")
_CONFIG = struct.Struct("=III")
_IOTLB = struct.Struct("=QQQBB")
_INFLIGHT = struct.Struct("=QQHH")
_LOG = struct.Struct("=QQ")


class Request(IntEnum):
    """What a front-end asks for: the numbers of its messages."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


_NAMES: dict[int, str] = {each: each.name for each in Request}


class ProtocolFeature(IntFlag):
    """What front-end and back-end agree on beside the device's features."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


_ALWAYS = ProtocolFeature(0)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one message may look like.

    Attributes:
        handler: the method of `Session` that does it.
        least, most, step: bytes of payload: `least`, and any number of `step` more up to `most`.
        descriptors: the fewest and the most that come with it.
        answered: it has an answer of its own; else it is acknowledged where that is asked for.
        feature: the protocol feature without which there is no such message.
    """

    handler: str
    least: int = 0
    most: int = 0
    step: int = 1
    descriptors: tuple[int, int] = (0, 0)
    answered: bool = False
    feature: ProtocolFeature = _ALWAYS


def _kind(
    handler: str,
    size: int | tuple[int, int, int] = 0,
    descriptors: tuple[int, int] = (0, 0),
    *,
    answered: bool = False,
    feature: ProtocolFeature = _ALWAYS,
) -> Kind:
    least, most, step = size if isinstance(size, tuple) else (size, size, 1)
    return Kind(handler, least, most, step, descriptors, answered, feature)


_CONFIG_SIZES = (_CONFIG.size, _CONFIG.size + MAX_CONFIG, 1)
_F = ProtocolFeature

#: Every message that a front-end may send. One that is not here ends the session.
MESSAGES: dict[int, Kind] = {
    Request.GET_FEATURES: _kind("get_features", answered=True),
    Request.SET_FEATURES: _kind("set_features", 8),
    Request.SET_OWNER: _kind("set_owner"),
    Request.RESET_OWNER: _kind("reset_owner"),
    # As many regions as a front-end has room for; how many of them count, the payload says.
    Request.SET_MEM_TABLE: _kind(
        "set_mem_table", (8, 8 + LEAST_SLOTS * _REGION.size, _REGION.size), (0, LEAST_SLOTS)
    ),
    Request.SET_LOG_BASE: _kind("set_log_base", 16, (0, 1), answered=True, feature=_F.LOG_SHMFD),
    Request.SET_LOG_FD: _kind("set_log_fd", (0, 8, 8), (0, 1), feature=_F.LOG_SHMFD),
    Request.SET_VRING_NUM: _kind("set_vring_num", 8),
    Request.SET_VRING_ADDR: _kind("set_vring_addr", 40),
    Request.SET_VRING_BASE: _kind("set_vring_base", 8),
    Request.GET_VRING_BASE: _kind("get_vring_base", 8, answered=True),
    Request.SET_VRING_KICK: _kind("set_vring_kick", 8, (0, 1)),
    Request.SET_VRING_CALL: _kind("set_vring_call", 8, (0, 1)),
    Request.SET_VRING_ERR: _kind("set_vring_err", 8, (0, 1)),
    Request.GET_PROTOCOL_FEATURES: _kind("get_protocol_features", answered=True),
    Request.SET_PROTOCOL_FEATURES: _kind("set_protocol_features", 8),
    Request.GET_QUEUE_NUM: _kind("get_queue_num", answered=True, feature=_F.MQ),
    Request.SET_VRING_ENABLE: _kind("set_vring_enable", 8),
    Request.SET_BACKEND_REQ_FD: _kind(
        "set_backend_req_fd", (0, 8, 8), (1, 1), feature=_F.BACKEND_REQ
    ),
    Request.GET_CONFIG: _kind("get_config", _CONFIG_SIZES, answered=True, feature=_F.CONFIG),
    Request.SET_CONFIG: _kind("set_config", _CONFIG_SIZES, feature=_F.CONFIG),
    # As a structure of C, with or without what fills it up to a multiple of eight.
    Request.IOTLB_MSG: _kind("iotlb_msg", (26, 32, 6)),
    Request.GET_INFLIGHT_FD: _kind(
        "get_inflight_fd", (20, 24, 4), answered=True, feature=_F.INFLIGHT_SHMFD
    ),
    Request.SET_INFLIGHT_FD: _kind(
        "set_inflight_fd", (20, 24, 4), (1, 1), feature=_F.INFLIGHT_SHMFD
    ),
    Request.RESET_DEVICE: _kind("reset_device", feature=_F.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: _kind(
        "get_max_mem_slots", answered=True, feature=_F.CONFIGURE_MEM_SLOTS
    ),
    Request.ADD_MEM_REG: _kind("add_mem_reg", 40, (0, 1), feature=_F.CONFIGURE_MEM_SLOTS),
    # A descriptor that comes with it is not needed; some front-ends send one.
    Request.REM_MEM_REG: _kind("rem_mem_reg", 40, (0, 1), feature=_F.CONFIGURE_MEM_SLOTS),
    Request.SET_STATUS: _kind("set_status", 8, feature=_F.STATUS),
    Request.GET_STATUS: _kind("get_status", answered=True, feature=_F.STATUS),
}


def title(request: int) -> str:
    """A message's name, for texts."""
    return _NAMES.get(request, f"message {request}")


def check(request: int, flags: int, size: int, offered: ProtocolFeature) -> Kind:
    """What a header announces.

    Args:
        offered: the protocol features that the back-end has.

    Raises:
        Refusal: there is no such message, or it cannot look like that.
    """
    if flags & VERSION_MASK != VERSION:
        raise Refusal(f"version {flags & VERSION_MASK} of the protocol; {VERSION} would be right")
    if flags & REPLY:
        raise Refusal("a reply to nothing that was asked")
    if unknown := flags & ~(VERSION_MASK | NEED_REPLY):
        raise Refusal(f"flags {unknown:#x}, which the protocol does not have")
    kind = MESSAGES.get(request)
    if kind is None:
        raise Refusal("there is no such message here")
    if int(kind.feature) & ~int(offered):
        raise Refusal(f"protocol feature {kind.feature.name} was not offered")
    if not kind.least <= size <= kind.most or (size - kind.least) % kind.step:
        right = f"{kind.least}"
        if kind.most > kind.least:
            right = f"{kind.least} to {kind.most} in steps of {kind.step}"
        raise Refusal(f"a payload of {size} bytes; {right} would be right")
    return kind


def pack(request: int, payload: bytes, flags: int = REPLY) -> bytes:
    """A whole message: an answer, unless `flags` say otherwise."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def u64(value: int) -> bytes:
    """A payload of one number."""
    return _U64.pack(value)


def state(index: int, number: int) -> bytes:
    """A vring state description."""
    return _STATE.pack(index, number)


# --- payloads whose length `check` has seen -------------------------------------------------------


class RingAddresses(NamedTuple):
    """A vring address description: of `ring`, addresses as the front-end has them."""

    ring: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


class MemoryRegion(NamedTuple):
    """A region of guest memory: where the guest has it, the front-end, and the file. Bytes."""

    guest: int
    size: int
    user: int
    offset: int

    def __str__(self) -> str:
        return f"the region of {self.size:#x} bytes at guest address {self.guest:#x}"


class Config(NamedTuple):
    """A piece of the device's configuration space. `flags`: 0, or 1 for a migration."""

    offset: int
    size: int
    flags: int
    data: bytes


class IotlbMessage(NamedTuple):
    """A range of I/O virtual addresses, in bytes. `access`: 1 to read, 2 to write; `type`: what is
    said of it."""

    address: int
    size: int
    user: int
    access: int
    type: int


class LogArea(NamedTuple):
    """Memory for the dirty log: so many bytes at an offset of its file."""

    size: int
    offset: int


class InflightArea(NamedTuple):
    """Memory for what is in flight: so many bytes at an offset of its file, for so many queues of a
    size."""

    size: int
    offset: int
    queues: int
    queue_size: int


def parse_u64(payload: bytes) -> int:
    """One number."""
    return int(_U64.unpack(payload)[0])


def parse_state(payload: bytes) -> tuple[int, int]:
    """A vring state description: index and number."""
    index, number = _STATE.unpack(payload)
    return index, number


def parse_ring_addresses(payload: bytes) -> RingAddresses:
    """A vring address description."""
    return RingAddresses(*_ADDRESSES.unpack(payload))


def parse_regions(payload: bytes) -> list[MemoryRegion]:
    """A memory regions description.

    Raises:
        Refusal: it is shorter than it says.
    """
    count, _ = _COUNT.unpack_from(payload)
    room = (len(payload) - _COUNT.size) // _REGION.size
    if count > room:
        raise Refusal(f"{count} regions in a payload that has room for {room}")
    regions = _REGION.iter_unpack(payload[_COUNT.size : _COUNT.size + count * _REGION.size])
    return [MemoryRegion(*each) for each in regions]


def parse_region(payload: bytes) -> MemoryRegion:
    """A single memory region description."""
    return MemoryRegion(*_REGION.unpack_from(payload, 8))


def parse_config(payload: bytes) -> Config:
    """A piece of configuration space.

    Raises:
        Refusal: it is not as long as it says, or lies outside.
    """
    offset, size, flags = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if size != len(data):
        raise Refusal(f"{len(data)} bytes of configuration space, and {size} announced")
    if offset + size > MAX_CONFIG:
        raise Refusal(f"{size} bytes at {offset} of a configuration space of {MAX_CONFIG} at most")
    return Config(offset, size, flags, data)


def config(piece: Config, data: bytes) -> bytes:
    """The answer to a request for a piece of configuration space."""
    return _CONFIG.pack(piece.offset, len(data), piece.flags) + data


def parse_iotlb(payload: bytes) -> IotlbMessage:
    """An IOTLB message."""
    return IotlbMessage(*_IOTLB.unpack_from(payload))


def iotlb(message: IotlbMessage) -> bytes:
    """The payload of an IOTLB message."""
    return _IOTLB.pack(*message) + bytes(6)


def parse_log(payload: bytes) -> LogArea:
    """A log description."""
    return LogArea(*_LOG.unpack(payload))


def parse_inflight(payload: bytes) -> InflightArea:
    """An inflight description."""
    return InflightArea(*_INFLIGHT.unpack_from(payload))


def inflight(area: InflightArea, length: int) -> bytes:
    """The payload of an inflight description, `length` bytes with what fills it up."""
    return _INFLIGHT.pack(*area).ljust(length, b"\0")
