# SPDX-License-Identifier: Apache-2.0
"""A device's configuration space: fields as data, bytes for the transport.

    BLK = (ConfigField("capacity", 0, 8), ConfigField("size_max", 8, 4), ...)
    config = ConfigSpace(BLK)
    config["capacity"] = 2048

Virtio 1.2, section 2.5. Fields are little-endian.

Invariants
 - Fields lie in ascending order and do not overlap; bytes between them read as zero.
 - Only the device changes a field; what a driver wants to write, the device is asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iodma.errors import ArgumentError

__all__ = ["ConfigField", "ConfigSpace"]


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One field: its name in the specification, offset and width in bytes."""

    name: str
    offset: int
    width: int

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + self.width


class ConfigSpace:
    """The values of a layout's fields; all are 0 at first.

    Raises:
        ArgumentError: fields overlap, or are not in ascending order.
    """

    __slots__ = ("_bytes", "fields", "size")

    def __init__(self, layout: Iterable[ConfigField]) -> None:
        self.fields: Mapping[str, ConfigField] = {field.name: field for field in layout}
        end = 0
        for field in self.fields.values():
            if field.offset < end:
                raise ArgumentError(
                    f"configuration field {field.name} begins at byte {field.offset}, and the one"
                    f" before it ends at {end}"
                )
            end = field.end
        #: Bytes.
        self.size = end
        self._bytes = bytearray(end)

    def __getitem__(self, name: str) -> int:
        field = self.fields[name]
        return int.from_bytes(self._bytes[field.offset : field.end], "little")

    def __setitem__(self, name: str, value: int) -> None:
        """Raises ArgumentError where the value does not fit the field."""
        field = self.fields[name]
        if not 0 <= value < 1 << 8 * field.width:
            raise ArgumentError(
                f"{name} is {value}; 0 to {(1 << 8 * field.width) - 1} would fit its"
                f" {field.width} bytes"
            )
        self._bytes[field.offset : field.end] = value.to_bytes(field.width, "little")

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on; what lies past the end reads as zero.

        Drivers of a later specification read fields that this device does not have.

        Raises:
            ArgumentError: a negative offset or length.
        """
        if offset < 0 or length < 0:
            raise ArgumentError(f"{length} bytes at {offset} of the configuration space")
        return bytes(self._bytes[offset : offset + length]).ljust(length, b"\0")

    def at(self, offset: int, length: int) -> ConfigField | None:
        """The field that is exactly these bytes, or None."""
        for field in self.fields.values():
            if (field.offset, field.width) == (offset, length):
                return field
        return None
