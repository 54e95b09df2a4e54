# SPDX-License-Identifier: Apache-2.0
"""A function's configuration space as data: fields with their values and masks, and who listens.

    config = ConfigSpace(fields, 256)
    config.write(0x04, b"\\x06\\x00")      # what software does: masks hold
    config["command"]                      # 6

Invariants
 - A bit is read-only, written as it is, or cleared by writing a 1; which one is data, and holds
   byte by byte: a write has the same effect in one piece and in several.
 - Fields do not overlap. Bytes of none read as zero, and stay so.
 - A watcher of a field is called after the whole write, once for each write that touches one of its
   bytes, in the order of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iodma.errors import AddressRangeError, ArgumentError
from iodma.pci.placement import ROM

if TYPE_CHECKING:
    from iodma.pci.description import Pci

__all__ = ["Command", "ConfigSpace", "Field", "Status", "header"]

#: Called with what the field was and is now, and with the bits that were written to it.
Watcher = Callable[[int, int, int], object]


class Command:
    """Bits of the command register (PCI Local Bus 3.0, 6.2.2)."""

    IO_SPACE = 1 << 0
    MEMORY_SPACE = 1 << 1
    BUS_MASTER = 1 << 2
    WRITE_INVALIDATE = 1 << 4
    PARITY_ERROR = 1 << 6
    SERR = 1 << 8
    INTERRUPT_DISABLE = 1 << 10


class Status:
    """Bits of the status register (6.2.3)."""

    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4
    #: Data parity, target aborts, master abort, system error, parity error: cleared by a 1.
    ERRORS = 1 << 8 | 0xF800


@dataclass(frozen=True, slots=True)
class Field:
    """Bytes of the configuration space that have a name.

    Attributes:
        name: in the words of the specification.
        offset: of its first byte.
        width: bytes.
        value: at power-on, little-endian.
        writable: the bits that a write sets.
        clears: the bits that a write clears where it has a 1.
    """

    name: str
    offset: int
    width: int
    value: int = 0
    writable: int = 0
    clears: int = 0

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + self.width


class ConfigSpace:
    """Fields, and the bytes that software sees.

    Args:
        fields: in any order.
        size: bytes: 256 or 4096.

    Attributes:
        fields: by name, in the order of their offsets.

    Raises:
        ArgumentError: fields overlap, share a name, or do not fit.
    """

    def __init__(self, fields: Iterable[Field], size: int) -> None:
        self.size = size
        self.fields: dict[str, Field] = {}
        self._initial = bytearray(size)
        self._writable = bytearray(size)
        self._clears = bytearray(size)
        self._watchers: list[tuple[Field, Watcher]] = []
        self._suppliers: list[tuple[Field, int, Callable[[], int]]] = []
        end = 0
        for each in sorted(fields, key=lambda field: field.offset):
            if each.offset < end or each.end > size or each.name in self.fields:
                raise ArgumentError(
                    f"field {each.name} at {each.offset:#x}..{each.end:#x}: the one before it ends "
                    f"at {end:#x}, the configuration space at {size:#x}, and names are used once"
                )
            end = each.end
            self.fields[each.name] = each
            for store, value in (
                (self._initial, each.value),
                (self._writable, each.writable),
                (self._clears, each.clears),
            ):
                store[each.offset : each.end] = value.to_bytes(each.width, "little")
        self._bytes = bytearray(self._initial)

    # --- for the function -------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> int:
        each = self.fields[name]
        return int.from_bytes(self._bytes[each.offset : each.end], "little")

    def __setitem__(self, name: str, value: int) -> None:
        """Sets a field, past its masks; no watcher is told. OverflowError: it does not fit."""
        each = self.fields[name]
        self._bytes[each.offset : each.end] = value.to_bytes(each.width, "little")

    def watch(self, name: str, watcher: Watcher) -> None:
        """Has `watcher(old, new, written)` called after every write that touches the field."""
        self._watchers.append((self.fields[name], watcher))
        self._watchers.sort(key=lambda entry: entry[0].offset)

    def supply(self, name: str, mask: int, bits: Callable[[], int]) -> None:
        """Has the bits of `mask` come from a function when the field is read by software."""
        self._suppliers.append((self.fields[name], mask, bits))

    def reset(self) -> None:
        """Back to power-on; no watcher is told."""
        self._bytes[:] = self._initial

    # --- for software -----------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Raises AddressRangeError outside the space."""
        end = self._end(offset, length)
        data = self._bytes[offset:end]
        for field, mask, bits in self._suppliers:
            if field.offset < end and offset < field.end:
                value = self[field.name] & ~mask | bits() & mask
                for place, byte in enumerate(value.to_bytes(field.width, "little"), field.offset):
                    if offset <= place < end:
                        data[place - offset] = byte
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Raises AddressRangeError outside the space."""
        end = self._end(offset, len(data))
        told = [
            (field, watcher, self[field.name])
            for field, watcher in self._watchers
            if field.offset < end and offset < field.end
        ]
        store, writable, clears = self._bytes, self._writable, self._clears
        for place, byte in enumerate(data, offset):
            sets = writable[place]
            store[place] = store[place] & ~(sets | byte & clears[place]) | byte & sets
        for field, watcher, old in told:
            first, last = max(field.offset, offset), min(field.end, end)
            written = int.from_bytes(data[first - offset : last - offset], "little")
            watcher(old, self[field.name], written << 8 * (first - field.offset))

    def _end(self, offset: int, length: int) -> int:
        if not 0 <= offset <= offset + length <= self.size:
            raise AddressRangeError(
                f"{length} bytes at {offset:#x} of a configuration space of {self.size} bytes"
            )
        return offset + length


def header(pci: Pci, capabilities: int) -> list[Field]:
    """The fields of the header of type 0 (6.1); the first capability is at offset `capabilities`.

    Base address registers are sized by their masks: software writes ones, and reads back which of
    them were taken.
    """
    bars = pci.placement.bars
    io = any(bar.io for bar in bars.values())
    memory = any(not bar.io for bar in bars.values())
    command = (
        Command.IO_SPACE * io
        | Command.MEMORY_SPACE * memory
        | Command.BUS_MASTER
        | Command.WRITE_INVALIDATE * (not pci.express)
        | Command.PARITY_ERROR
        | Command.SERR
        | Command.INTERRUPT_DISABLE * pci.intx
    )
    subsystem_vendor = pci.vendor if pci.subsystem_vendor is None else pci.subsystem_vendor
    fields = [
        Field("vendor_id", 0x00, 2, pci.vendor),
        Field("device_id", 0x02, 2, pci.device),
        Field("command", 0x04, 2, writable=command),
        Field("status", 0x06, 2, Status.CAPABILITIES * bool(capabilities), clears=Status.ERRORS),
        Field("revision_id", 0x08, 1, pci.revision),
        Field("class_code", 0x09, 3, pci.class_code),
        Field("cache_line_size", 0x0C, 1, writable=0xFF),
        Field("latency_timer", 0x0D, 1, writable=0 if pci.express else 0xF8),
        Field("subsystem_vendor_id", 0x2C, 2, subsystem_vendor),
        Field("subsystem_id", 0x2E, 2, pci.device if pci.subsystem is None else pci.subsystem),
        Field("capabilities_pointer", 0x34, 1, capabilities),
        Field("interrupt_line", 0x3C, 1, writable=0xFF),
        Field("interrupt_pin", 0x3D, 1, int(pci.intx)),
    ]
    for index, bar in bars.items():
        address = -bar.size & (0xFFFF_FFFF_FFFF_FFFF if bar.wide else 0xFFFF_FFFF)
        if index == ROM:
            fields.append(Field("rom_base", 0x30, 4, writable=address | 1))
            continue
        flags = bar.io | bar.wide << 2 | bar.prefetchable << 3
        fields.append(Field(f"bar{index}", 0x10 + 4 * index, 4 + 4 * bar.wide, flags, address))
    return fields
