# SPDX-License-Identifier: Apache-2.0
"""The register map of a device class: its declarations, checked, and a table of bus accesses.

What each access does is in `accesses.py`, with the access rules.

Invariants
 - Registers are naturally aligned and do not overlap, so an aligned access lies inside one
   register, or covers whole registers. Every such access is in the table when the class has been
   made; what is not in it is bad. A guest cannot make it grow.
 - Handlers are looked up when the class is made: one that is missing, or is an ``async def``, is an
   error there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from iodma.devices import accesses, handlers
from iodma.devices.accesses import Getter, Setter
from iodma.devices.doorbell import Doorbell
from iodma.devices.registers import ONES, Mapped, Register
from iodma.errors import AddressRangeError, ArgumentError

__all__ = ["RegisterMap"]

Table = dict[tuple[int, int], tuple[Getter, Setter]]


class RegisterMap(Mapping[str, Mapped]):
    """The registers of one device class by name, in the order of their offsets.

    A subclass inherits the registers of its bases; assigning to a name replaces the inherited
    register, assigning None removes it.

    Args:
        device: the class.
        reserved: names that a register must not take.

    Attributes:
        size: bytes: the end of the last register, rounded up to the widest one.
        alignment: bytes: the width of the widest register, at least 1.

    Raises:
        AddressRangeError: registers overlap.
        ArgumentError: a name that is taken, or a handler that does not exist.
        ArgumentTypeError: a handler of the wrong kind.
    """

    def __init__(self, device: type, reserved: frozenset[str] = frozenset()) -> None:
        found = sorted(_declared(device, reserved).values(), key=lambda each: each.offset)
        for before, after in pairwise(found):
            if after.offset < before.end:
                raise AddressRangeError(
                    f"{device.__name__}: {after.name} at {after.offset:#x} overlaps {before.name}, "
                    f"which ends at {before.end:#x}"
                )
        self._named = {each.name: each for each in found}
        self.alignment = max((each.width for each in found), default=1)
        end = found[-1].end if found else 0
        self.size = -(-end // self.alignment) * self.alignment
        #: name -> stored bits at power-on; a device's values are a copy.
        self.reset_values = {each.name: each.reset for each in found if isinstance(each, Register)}
        #: name -> the doorbell, its run and its full handler, resolved.
        self.doorbells = {
            each.name: (
                each,
                handlers.asynchronous(device, each),
                handlers.plain(device, each, "full", each.full, 2),
            )
            for each in found
            if isinstance(each, Doorbell)
        }
        #: (offset, width) -> what a bus access does.
        self.table: Table = {}
        #: The same while the device is in reset or has failed.
        self.always: Table = {}
        self._compile(device)

    def __getitem__(self, name: str) -> Mapped:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def __str__(self) -> str:
        """The map as a table: offset, width in bytes, access, name, doc."""
        rows = [
            f"{each.offset:#06x}  {each.width}  {each.rights:3}  {each.name:<16} {each.doc}"
            for each in self._named.values()
        ]
        return "\n".join(row.rstrip() for row in rows)

    def at(self, offset: int) -> Mapped | None:
        """The register that holds the byte at `offset`."""
        for each in self._named.values():
            if each.offset <= offset < each.end:
                return each
        return None

    def _compile(self, device: type) -> None:
        for each in self._named.values():
            if isinstance(each, Register):
                read = handlers.plain(device, each, "read", each.read, 1)
                write = handlers.plain(device, each, "write", each.write, 2)
                getter, setter = accesses.for_register(each, read, write)
                for offset, width, get, put in accesses.narrower(each, getter, setter):
                    self.table[offset, width] = (get, put)
                    if each.always:
                        self.always[offset, width] = accesses.while_closed(get, put, width)
            else:
                self.table[each.offset, each.width] = (
                    accesses.refused_read(each.width),
                    accesses.ring(each.name),
                )
        for offset, width in self._wider():
            pieces = [
                (*self.table[each.offset, each.width], 8 * (each.offset - offset), ONES[each.width])
                for each in self._named.values()
                if offset <= each.offset < offset + width
            ]
            self.table[offset, width] = accesses.split(pieces, width)

    def _wider(self) -> list[tuple[int, int]]:
        """Every aligned (offset, width) that covers a narrower register."""
        return sorted(
            {
                (each.offset & -width, width)
                for each in self._named.values()
                for width in ONES
                if width > each.width
            }
        )


def _declared(device: type, reserved: frozenset[str]) -> dict[str, Mapped]:
    """The registers of a class and its bases, as attribute look-up would find them."""
    found: dict[str, Mapped] = {}
    for base in reversed(device.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Mapped):
                found[name] = value
            else:
                found.pop(name, None)
    for name, value in found.items():
        if name in reserved:
            raise ArgumentError(
                f"{device.__name__}: a register cannot be called {name}: every device has that "
                "attribute already"
            )
        if value.name != name:
            raise ArgumentError(
                f"{device.__name__}.{name} is the same register as {value.name}: declare two"
            )
    return found
