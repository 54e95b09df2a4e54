# SPDX-License-Identifier: Apache-2.0
"""VFIO_USER_DEVICE_FEATURE, and VFIO_USER_DIRTY_PAGES, which was there before it: dirty pages.

Only the logging of what DMA writes is a feature here; a device's state cannot be moved.

Source: vfio-user protocol specification, VFIO_USER_DEVICE_FEATURE; `linux/vfio.h`.

Invariant: a message is checked as a whole, the size of its answer included, before it does
anything.
"""

from __future__ import annotations

import errno
import struct

from iodma.transports.vfio_user import dirty
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.messages import BITMAP, FEATURE, MOST_TRANSFER, PAGE, Refusal

__all__ = ["bitmap_bytes", "dirty_pages", "feature"]

_GET, _SET, _PROBE = 1 << 16, 1 << 17, 1 << 18
_INDEX = 0xFFFF
START, STOP, REPORT = 6, 7, 8
_OPERATIONS = {START: _SET | _PROBE, STOP: _SET | _PROBE, REPORT: _GET | _PROBE}
#: page size, ranges, reserved; then address and length of each range.
_CONTROL = struct.Struct("=QII")
_RANGE = struct.Struct("=QQ")
#: address, length, page size.
_REPORT = struct.Struct("=QQQ")
#: Of VFIO_USER_DIRTY_PAGES: argsz, flags; then a range, and the bitmap wanted.
_PAGES = struct.Struct("=II")
_P_START, _P_STOP, _P_GET = 1, 2, 4


def bitmap_bytes(length: int, page: int) -> int:
    """Bytes of a bitmap, in whole words of 64 bits, with a bit for each page.

    Raises:
        Refusal: it would be larger than an answer; or that is no page size.
    """
    if page <= 0 or page & (page - 1):
        raise Refusal(errno.EINVAL, f"a page size of {page}; a power of two would be right")
    size = dirty.bitmap_bytes(length, page)
    if not 0 < size <= MOST_TRANSFER:
        raise Refusal(errno.EINVAL, f"a bitmap of {size} bytes")
    return size


def feature(table: DmaTable, payload: bytes) -> bytes:
    """VFIO_USER_DEVICE_FEATURE: the answer's payload."""
    argsz, flags = FEATURE.unpack_from(payload)
    index, operations = flags & _INDEX, flags & ~_INDEX
    known = _OPERATIONS.get(index, 0)
    if not known or not operations or operations & ~known:
        raise Refusal(errno.EINVAL, f"feature {index} with flags {flags:#x}")
    if operations == _GET:
        return _report(table, payload, argsz)
    if argsz < len(payload):
        raise Refusal(errno.EINVAL, f"argsz {argsz} with {len(payload)} bytes")
    if operations & _PROBE:
        return payload
    if operations != _SET:
        raise Refusal(errno.EINVAL, f"feature {index} with flags {flags:#x}")
    if index == STOP:
        table.stop_logging()
        return payload
    data = payload[FEATURE.size :]
    if len(data) < _CONTROL.size:
        raise Refusal(errno.EINVAL, f"{len(data)} bytes; {_CONTROL.size} are the least")
    page, count, _ = _CONTROL.unpack_from(data)
    if len(data) != _CONTROL.size + count * _RANGE.size:
        raise Refusal(errno.EINVAL, f"{count} ranges in {len(data)} bytes")
    ranges = [*_RANGE.iter_unpack(data[_CONTROL.size :])]
    chosen = table.start_logging(page, ranges)
    return payload[: FEATURE.size] + _CONTROL.pack(chosen, count, 0) + data[_CONTROL.size :]


def _report(table: DmaTable, payload: bytes, argsz: int) -> bytes:
    head = payload[: FEATURE.size + _REPORT.size]
    if len(head) < FEATURE.size + _REPORT.size:
        raise Refusal(
            errno.EINVAL, f"{len(payload)} bytes; {FEATURE.size + _REPORT.size} are least"
        )
    address, length, page = _REPORT.unpack_from(payload, FEATURE.size)
    needed = len(head) + bitmap_bytes(length, page)
    if argsz < needed:
        raise Refusal(errno.EINVAL, f"argsz {argsz}; {needed} would be needed")
    flags = FEATURE.unpack_from(payload)[1]
    bitmap = table.report(address, length, page)
    return FEATURE.pack(needed, flags) + head[FEATURE.size :] + bitmap


def dirty_pages(table: DmaTable, payload: bytes) -> bytes:
    """VFIO_USER_DIRTY_PAGES: the answer's payload."""
    argsz, flags = _PAGES.unpack_from(payload)
    if argsz < _PAGES.size:
        raise Refusal(errno.EINVAL, f"argsz {argsz}; {_PAGES.size} is the least")
    if flags == _P_START:
        table.start_logging(PAGE, [])
        return payload[: _PAGES.size]
    if flags == _P_STOP:
        table.stop_logging()
        return payload[: _PAGES.size]
    if flags != _P_GET:
        raise Refusal(errno.EINVAL, f"flags {flags:#x}")
    least = _PAGES.size + _RANGE.size + BITMAP.size
    if len(payload) < least:
        raise Refusal(errno.EINVAL, f"{len(payload)} bytes; {least} are the least")
    address, length = _RANGE.unpack_from(payload, _PAGES.size)
    page, size = BITMAP.unpack_from(payload, _PAGES.size + _RANGE.size)
    if size < bitmap_bytes(length, page) or argsz < least + size or size > MOST_TRANSFER:
        raise Refusal(errno.EINVAL, f"a bitmap of {size} bytes with argsz {argsz}")
    return payload[:least] + table.report(address, length, page).ljust(size, b"\0")
