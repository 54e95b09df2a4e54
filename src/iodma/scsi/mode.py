# SPDX-License-Identifier: Apache-2.0
"""Mode pages, and MODE SENSE and MODE SELECT (SPC-4 6.11 to 6.14, 7.5; SBC-3 6.5).

Invariants
 - A page is data: its default bytes, and a mask of the bits that MODE SELECT may change.
 - A parameter list is checked as a whole before any of it is taken over.
 - Nothing is saved: PS is 0, saved values are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from iodma.scsi import sense as senses
from iodma.scsi.block import BlockUnit
from iodma.scsi.cdb import Cdb
from iodma.scsi.request import Request
from iodma.scsi.sense import CheckCondition, Sense

__all__ = ["CACHING", "CONTROL", "ModePage", "Modes"]

CACHING, CONTROL = 0x08, 0x0A
#: PC: current, changeable, default and saved values (SPC-4 table 148).
SAVED = 3
_ALL_PAGES, _ALL_SUBPAGES = 0x3F, 0xFF
_WP, _DPOFUA = 0x80, 0x10

#: Geometry that a disk without one tells of (SBC-2 6.3.3, and what came before).
HEADS, SECTORS = 16, 63


@dataclass(frozen=True, slots=True)
class ModePage:
    """A mode page in page_0 format: `values` and `mask` begin behind PAGE LENGTH.

    Attributes:
        name, section: as in the standard, and where.
        code: PAGE CODE.
        values: its bytes as they are by default.
        mask: the bits that MODE SELECT may change.
    """

    name: str
    section: str
    code: int
    values: bytes
    mask: bytes


def pages(blocks: int, block: int, write_cache: bool) -> dict[int, ModePage]:
    """The pages of a disk of so many blocks."""
    cylinders = min(max(blocks // (HEADS * SECTORS), 1), 0xFFFFFF)
    all = (
        # AWRE, ARRE: the host's storage sees to it.
        _page("Read-Write Error Recovery", "SBC-3 6.5", 0x01, 0x0A, {0: b"\xc0"}),
        _page(
            "Format Device",
            "SCSI-2 9.3.3.3",
            0x03,
            0x16,
            # TRACKS PER ZONE, SECTORS PER TRACK, DATA BYTES PER PHYSICAL SECTOR, INTERLEAVE; HSEC
            {
                0: struct.pack(">H", HEADS),
                8: struct.pack(">HHH", SECTORS, min(block, 0xFFFF), 1),
                18: b"\x40",
            },
        ),
        _page(
            "Rigid Disk Geometry",
            "SCSI-2 9.3.3.7",
            0x04,
            0x16,
            # NUMBER OF CYLINDERS, NUMBER OF HEADS; MEDIUM ROTATION RATE
            {0: cylinders.to_bytes(3, "big") + bytes((HEADS,)), 18: struct.pack(">H", 5400)},
        ),
        _page(
            "Caching",
            "SBC-3 6.5",
            CACHING,
            0x12,
            {0: bytes((0x04 * write_cache,))},
            {0: b"\x04"},  # WCE
        ),
        _page(
            "Control",
            "SPC-4 7.5.8",
            CONTROL,
            0x0A,
            {1: b"\x10", 6: b"\xff\xff"},  # QUEUE ALGORITHM MODIFIER 1h; BUSY TIMEOUT PERIOD
            {0: b"\x04", 2: b"\x08"},  # D_SENSE; SWP
        ),
    )
    return {page.code: page for page in all}


def _page(
    name: str,
    section: str,
    code: int,
    length: int,
    values: dict[int, bytes],
    mask: dict[int, bytes] | None = None,
) -> ModePage:
    return ModePage(name, section, code, _bytes(length, values), _bytes(length, mask or {}))


def _bytes(length: int, parts: dict[int, bytes]) -> bytes:
    data = bytearray(length)
    for at, part in parts.items():
        data[at : at + len(part)] = part
    return bytes(data)


class Modes(BlockUnit):
    """Handlers of MODE SENSE and MODE SELECT, and what the pages mean.

    Attributes:
        modes: PAGE CODE -> its bytes as they are now, behind PAGE LENGTH.
    """

    write_cache_at_first = True

    def init_modes(self, write_cache: bool) -> None:
        """The pages as they are at power-on."""
        self.write_cache_at_first = write_cache
        self.modes: dict[int, bytearray] = {}
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.modes = {code: bytearray(page.values) for code, page in self.mode_pages().items()}
        self._force(0)

    def mode_pages(self) -> dict[int, ModePage]:
        """The pages that there are."""
        return pages(self.blocks, self.block, self.write_cache_at_first)

    def power_on(self) -> None:
        super().power_on()
        self._set_defaults()

    @property
    def write_cache(self) -> bool:
        """WCE: a write may be given its status before it is on the medium."""
        return bool(self.modes[CACHING][0] & 0x04)

    @property
    def descriptor_sense(self) -> bool:
        """D_SENSE: sense data is in descriptor format."""
        return bool(self.modes[CONTROL][0] & 0x04)

    def protection(self) -> Sense | None:
        if self.modes[CONTROL][2] & 0x08:  # SWP
            return senses.SOFTWARE_WRITE_PROTECTED
        return super().protection()

    # --- MODE SENSE -------------------------------------------------------------------------------

    async def mode_sense(self, request: Request, cdb: Cdb) -> None:
        """MODE SENSE (SPC-4 6.13, 6.14)."""
        body = self._sensed(cdb)
        parameter = _DPOFUA | (_WP if self.protection() is not None else 0)
        long_lba = bool(cdb.get("LLBAA"))
        descriptor = b"" if cdb["DBD"] else self._block_descriptor(long_lba)
        if cdb.command.length == 6:
            total = 3 + len(descriptor) + len(body)
            header = struct.pack(">BBBB", min(total, 0xFF), 0, parameter, len(descriptor))
        else:
            total = 6 + len(descriptor) + len(body)
            header = struct.pack(
                ">HBBBxH", total, 0, parameter, long_lba and bool(descriptor), len(descriptor)
            )
        await self.give(request, header + descriptor + body, cdb["ALLOCATION LENGTH"])

    def _sensed(self, cdb: Cdb) -> bytes:
        control, code, subpage = cdb["PC"], cdb["PAGE CODE"], cdb["SUBPAGE CODE"]
        if control == SAVED:
            raise CheckCondition(cdb.point(senses.SAVING_NOT_SUPPORTED, "PC"))
        known = self.mode_pages()
        if code == _ALL_PAGES:
            chosen = list(known.values())
            if subpage not in (0, _ALL_SUBPAGES):
                raise cdb.invalid("SUBPAGE CODE")
        elif code in known:
            chosen = [known[code]]
            if subpage not in (0, _ALL_SUBPAGES):
                raise cdb.invalid("SUBPAGE CODE")
        else:
            raise cdb.invalid("PAGE CODE")
        return b"".join(
            bytes((page.code, len(page.values)))
            + (bytes(self.modes[page.code]), page.mask, page.values)[control]
            for page in chosen
        )

    def _block_descriptor(self, long_lba: bool) -> bytes:
        """SBC-3 6.5."""
        if long_lba:
            return struct.pack(">Q4xI", self.blocks, self.block)
        return struct.pack(">II", min(self.blocks, 0xFFFFFFFF), self.block)

    # --- MODE SELECT ------------------------------------------------------------------------------

    async def mode_select(self, request: Request, cdb: Cdb) -> None:
        """MODE SELECT (SPC-4 6.11, 6.12)."""
        if cdb["SP"]:
            raise cdb.invalid("SP")
        if not cdb["PF"]:
            raise cdb.invalid("PF")
        length = cdb["PARAMETER LIST LENGTH"]
        data = await self.take(request, length)
        if not data:
            return
        changed = self._selected(data, 4 if cdb.command.length == 6 else 8)
        cached = self.write_cache
        self.modes.update(changed)
        self._force(0)
        if changed:
            self.attention(senses.MODE_CHANGED, but=request.initiator)
        if cached and not self.write_cache:
            await self.flush()

    def _selected(self, data: bytes, header: int) -> dict[int, bytearray]:
        """The pages that a parameter list changes, as they are to be."""
        wrong = senses.INVALID_FIELD_IN_PARAMETERS
        if len(data) < header:
            raise CheckCondition(senses.PARAMETER_LIST_LENGTH)
        medium_type = data[1] if header == 4 else data[2]
        if medium_type:
            raise CheckCondition(wrong.at(1 if header == 4 else 2, in_cdb=False))
        if header == 4:
            size, long_lba = data[3], False
        else:
            size, long_lba = int.from_bytes(data[6:8], "big"), bool(data[4] & 1)
        if len(data) < header + size:
            raise CheckCondition(senses.PARAMETER_LIST_LENGTH)
        self._check_descriptor(data[header : header + size], header, long_lba)

        known = self.mode_pages()
        changed: dict[int, bytearray] = {}
        at = header + size
        while at < len(data):
            code = data[at] & 0x3F
            page = known.get(code)
            if page is None or data[at] & 0x40:  # SPF: there are no subpages
                raise CheckCondition(wrong.at(at, 5 if page is None else 6, in_cdb=False))
            if len(data) < at + 2:
                raise CheckCondition(senses.PARAMETER_LIST_LENGTH)
            if data[at + 1] != len(page.values):
                raise CheckCondition(wrong.at(at + 1, in_cdb=False))
            body = data[at + 2 : at + 2 + len(page.values)]
            if len(body) < len(page.values):
                raise CheckCondition(senses.PARAMETER_LIST_LENGTH)
            for index, (new, old, mask) in enumerate(
                zip(body, self.modes[code], page.mask, strict=True)
            ):
                differs = (new ^ old) & ~mask
                if differs:
                    bit = differs.bit_length() - 1
                    raise CheckCondition(wrong.at(at + 2 + index, bit, in_cdb=False))
            if body != self.modes[code]:
                changed[code] = bytearray(body)
            at += 2 + len(page.values)
        return changed

    def _check_descriptor(self, data: bytes, at: int, long_lba: bool) -> None:
        """A block descriptor says what is so already, or nothing (SBC-3 6.5)."""
        if not data:
            return
        wrong = senses.INVALID_FIELD_IN_PARAMETERS
        if len(data) != (16 if long_lba else 8):
            raise CheckCondition(wrong.at(3 if at == 4 else 6, in_cdb=False))
        if long_lba:
            count, block = int.from_bytes(data[:8], "big"), int.from_bytes(data[12:], "big")
        else:
            count, block = int.from_bytes(data[:4], "big"), int.from_bytes(data[5:], "big")
        if count not in (0, self.blocks, 0xFFFFFFFF, (1 << 64) - 1):
            raise CheckCondition(wrong.at(at, in_cdb=False))
        if block != self.block:
            raise CheckCondition(wrong.at(at + len(data) - 3, in_cdb=False))
