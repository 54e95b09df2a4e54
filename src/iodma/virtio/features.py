# SPDX-License-Identifier: Apache-2.0
"""Feature bits that are no one device's, and the bits of the device status.

Virtio 1.2: section 6 (reserved feature bits), section 2.1 (device status field).

Invariants
 - A bit has one name here; device-specific bits (0 to 23, 50 to 127) stand with their device.
"""

from __future__ import annotations

from enum import IntFlag

__all__ = ["DEVICE_BITS", "DeviceStatus", "Feature", "names"]


class Feature(IntFlag):
    """Reserved feature bits, and those that only transitional devices know."""

    #: Legacy: the device notifies when it runs out of buffers.
    NOTIFY_ON_EMPTY = 1 << 24
    #: Legacy: a chain may be cut into descriptors in any way.
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    #: Of vhost-user, not of virtio: the front-end can negotiate protocol features.
    VHOST_USER_PROTOCOL = 1 << 30
    VERSION_1 = 1 << 32
    #: Addresses go through the platform's IOMMU.
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41


class DeviceStatus(IntFlag):
    """What driver and device tell each other about their progress."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    #: Set by the device: it cannot go on until it is reset.
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


#: The bits whose meaning is each device's own.
DEVICE_BITS = (1 << 24) - 1 | ((1 << 128) - (1 << 50))


def names(bits: int, own: type[IntFlag] | None = None) -> str:
    """The names of feature bits, for messages: "VERSION_1, EVENT_IDX, bit 63".

    Args:
        own: the device-specific bits; None: those are told by number.
    """
    found: list[str] = []
    for number in range(bits.bit_length()):
        bit = 1 << number
        if not bits & bit:
            continue
        kind = own if bit & DEVICE_BITS else Feature
        name = kind(bit).name if kind is not None and bit in kind._value2member_map_ else None
        found.append(name or f"bit {number}")
    return ", ".join(found) or "none"
