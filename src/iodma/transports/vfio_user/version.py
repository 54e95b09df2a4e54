# SPDX-License-Identifier: Apache-2.0
"""What both sides agree on in the first message: the version, and capabilities as JSON.

The minor version of the answer is the lower of both: QEMU asks for 0.0 and takes no 0.1. Of what is
offered, a client is told what it knows: its own names, and the two that libvfio-user always says.

Source: vfio-user protocol specification, VFIO_USER_VERSION; what is refused as libvfio-user does.

Invariant: what a client says is used only within what this side can do.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from typing import Any

from iodma.transports.vfio_user.messages import (
    DEFAULT_TRANSFER,
    MAJOR,
    MINOR,
    MOST_DESCRIPTORS,
    MOST_REGIONS,
    MOST_TRANSFER,
    PAGE,
    VERSION_HEAD,
    Refusal,
)

__all__ = ["Client", "answer", "parse"]

#: Descriptors in one message that a client may say it takes, as libvfio-user has it.
_MOST_CLIENT_DESCRIPTORS = 1024
_TOP = 1 << 63


@dataclass(frozen=True, slots=True)
class Client:
    """What a client has said of itself.

    Attributes:
        minor: version that it can do.
        descriptors: that it takes with one message.
        transfer: bytes of data that it takes in one message.
        twin_socket: it can take commands on a socket of their own.
        write_multiple: it may send several writes in one message.
        max_dma_maps, pgsizes: it has said something of these.
    """

    minor: int
    descriptors: int = 1
    transfer: int = DEFAULT_TRANSFER
    twin_socket: bool = False
    write_multiple: bool = False
    max_dma_maps: bool = False
    pgsizes: bool = False

    @property
    def takes_commands(self) -> bool:
        """Whether it can be asked at any time, and not only for memory that it has not shared: it
        has a socket for that; or it keeps mappings as an IOMMU does, and says so, which is QEMU.
        Others wait for the answer to their own command, and take nothing else."""
        return self.twin_socket or (self.pgsizes and self.max_dma_maps)


def parse(payload: bytes) -> Client:
    """What a client proposes.

    Raises:
        Refusal: it is no version that can be done, or no JSON of the protocol.
    """
    major, minor = VERSION_HEAD.unpack_from(payload)
    if major != MAJOR:
        raise Refusal(errno.EINVAL, f"version {major}.{minor}; {MAJOR}.x would be right")
    text = payload[VERSION_HEAD.size :]
    if not text:
        return Client(minor)
    if text[-1]:
        raise Refusal(errno.EINVAL, "capabilities that do not end with a zero")
    try:
        said = json.loads(text.split(b"\0")[0])
    except (ValueError, RecursionError):
        raise Refusal(errno.EINVAL, "capabilities that are no JSON") from None
    capabilities = _object(said, "version data").get("capabilities", {})
    capabilities = _object(capabilities, "capabilities")
    migration = _object(capabilities.get("migration", {}), "migration")
    page = _number(migration, "pgsize", PAGE)
    if page & (page - 1) or page < PAGE:
        raise Refusal(errno.EINVAL, f"a migration pgsize of {page}; {PAGE} would be right")
    twin = _object(capabilities.get("twin_socket", {}), "twin_socket")
    descriptors = _number(capabilities, "max_msg_fds", 1)
    if descriptors > _MOST_CLIENT_DESCRIPTORS:
        raise Refusal(errno.EINVAL, f"max_msg_fds of {descriptors}")
    _number(capabilities, "max_dma_maps", 0)
    _number(capabilities, "pgsizes", 0)
    return Client(
        minor,
        descriptors,
        min(max(_number(capabilities, "max_data_xfer_size", DEFAULT_TRANSFER), 1), MOST_TRANSFER),
        _flag(twin, "supported"),
        _flag(capabilities, "write_multiple"),
        "max_dma_maps" in capabilities,
        "pgsizes" in capabilities,
    )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(errno.EINVAL, f"{name} is no JSON object")
    return value


def _number(values: dict[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _TOP:
        raise Refusal(errno.EINVAL, f"{name} is no number that it could be")
    return value


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise Refusal(errno.EINVAL, f"{name} is neither true nor false")
    return value


def answer(client: Client, twin: bool) -> bytes:
    """The payload that says what this side can do.

    Args:
        twin: a descriptor goes with it, of the socket for commands to the client.
    """
    capabilities: dict[str, Any] = {
        "max_msg_fds": MOST_DESCRIPTORS,
        "max_data_xfer_size": MOST_TRANSFER,
    }
    if client.max_dma_maps:
        capabilities["max_dma_maps"] = MOST_REGIONS
    if client.pgsizes:
        capabilities["pgsizes"] = PAGE
    if client.write_multiple:
        capabilities["write_multiple"] = True
    if twin:
        capabilities["twin_socket"] = {"supported": True, "fd_index": 0}
    text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
    return VERSION_HEAD.pack(MAJOR, min(client.minor, MINOR)) + text
