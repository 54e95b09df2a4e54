# SPDX-License-Identifier: Apache-2.0
"""Bitmaps of dirty pages: from the pages of files that a log has to those of bus addresses that a
client asks for.

Bit ``i`` of a number, or of its bytes in little-endian order, is page ``i``.

Invariants
 - A page that was written to is reported, whatever its size and alignment on either side; pages
   beside it may be reported, too.
 - What a report does not cover as a whole stays for the next one.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Area", "bitmap_bytes", "move", "pages_of"]


def bitmap_bytes(length: int, page: int) -> int:
    """Bytes of the bitmap of ``length`` bytes in pages of ``page``: whole 64-bit words."""
    return -(-length // (64 * page)) * 8


def pages_of(log: bytes, first: int, last: int) -> int:
    """Pages ``first`` to ``last`` of a log, as a number."""
    part = int.from_bytes(log[first // 8 : last // 8 + 1], "little") >> first % 8
    return part & ((1 << (last - first + 1)) - 1)


class Area(NamedTuple):
    """Bytes at a bus address, and where in a file they are."""

    address: int
    offset: int
    size: int


def move(
    dirty: int, area: Area, page: int, address: int, length: int, unit: int
) -> tuple[int, int]:
    """What a report of ``length`` bytes at ``address`` says of an area, in pages of ``unit``.

    Args:
        dirty: of the file's pages of ``page`` bytes; the first is that which the area begins in.

    Returns:
        The report's pages; and what is left of ``dirty``.
    """
    shift = area.address - address
    count = -(-length // unit)
    if page == unit and not (shift % unit or area.offset % unit):
        pages = shift // unit
        moved = dirty << pages if pages >= 0 else dirty >> -pages
        moved &= (1 << count) - 1
        taken = moved >> pages if pages >= 0 else moved << -pages
        return moved, dirty & ~taken
    report = left = 0
    base = area.offset - area.offset % page
    while dirty:
        bit = dirty & -dirty
        dirty ^= bit
        start = base + (bit.bit_length() - 1) * page
        first = max(start, area.offset) - area.offset + shift
        last = min(start + page, area.offset + area.size) - 1 - area.offset + shift
        if first < 0 or last >= length:
            left |= bit
        if last < 0 or first >= length:
            continue
        low, high = max(first, 0) // unit, min(last, length - 1) // unit
        report |= ((1 << (high - low + 1)) - 1) << low
    return report, left
