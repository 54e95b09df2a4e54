# SPDX-License-Identifier: Apache-2.0
"""Command descriptor blocks: layouts as data, and what a CDB says by them (SPC-4 4.2, SAM-5 5.2).

Invariants
 - A field is taken from the CDB by its layout alone, once; nobody else looks at the bytes.
 - Reserved bits are not looked at, as SPC-4 4.2.1 leaves a device server free to do: on a parallel
   bus byte 1 may carry a LUN (SCSI-2 7.2.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iodma.scsi.sense import INVALID_FIELD_IN_CDB, INVALID_OPCODE, CheckCondition, Sense

__all__ = ["Cdb", "Command", "Commands", "Field"]

#: Bytes of a CDB by its group code, the upper three bits of the opcode (SPC-4 4.2.5.1).
LENGTHS = (6, 10, 10, 0, 16, 12, 0, 0)
#: In the CONTROL byte (SAM-5 5.2): NACA, and what SCSI-2 had for linked commands.
NACA, LINK = 1 << 2, 1 << 0


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a CDB.

    Attributes:
        name: as the standard writes it.
        byte: where its most significant bit is.
        bits: how wide it is.
        bit: its most significant bit, in that byte.
    """

    name: str
    byte: int
    bits: int = 8
    bit: int = 7


@dataclass(frozen=True)
class Command:
    """A command that a logical unit knows.

    Attributes:
        name, section: as in the standard, and where.
        opcode, service_action: what it is known by; None: the opcode alone.
        fields: of its CDB, but for opcode, service action and CONTROL.
        handler: the name of the coroutine method that does it.
        writes: it changes the medium, which one that is protected refuses.
        medium: it needs a medium that is there and spinning.
        exempt: it is done though a unit attention is pending (SPC-4 5.14, SAM-5 5.14.1).
        unreserved: it is done though another initiator has reserved the unit.
        length: bytes of its CDB.
    """

    name: str
    section: str
    opcode: int
    fields: tuple[Field, ...]
    handler: str
    service_action: int | None = None
    writes: bool = False
    medium: bool = False
    exempt: bool = False
    unreserved: bool = False
    length: int = field(init=False)
    #: Its field RDPROTECT, WRPROTECT or VRPROTECT; empty: it has none.
    protect: str = field(init=False)
    _cuts: tuple[tuple[str, int, int], ...] = field(init=False, repr=False)
    places: dict[str, Field] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        length = LENGTHS[self.opcode >> 5]
        if not length:
            raise ValueError(f"{self.name}: opcodes of its group have no length")
        object.__setattr__(self, "length", length)
        protect = next((each.name for each in self.fields if each.name.endswith("PROTECT")), "")
        object.__setattr__(self, "protect", protect)
        object.__setattr__(self, "places", {each.name: each for each in self.fields})
        cuts = tuple((f.name, self._shift(f), (1 << f.bits) - 1) for f in self.fields)
        object.__setattr__(self, "_cuts", cuts)

    def _shift(self, f: Field) -> int:
        return self.length * 8 - (f.byte * 8 + 7 - f.bit) - f.bits

    def usage(self) -> bytes:
        """CDB USAGE DATA (SPC-4 6.35.3): the opcode, then a one for each bit that is looked at."""
        mask = 0
        for f in self.fields:
            mask |= ((1 << f.bits) - 1) << self._shift(f)
        data = bytearray(mask.to_bytes(self.length, "big"))
        data[0] = self.opcode
        data[-1] |= NACA
        if self.service_action is not None:
            data[1] |= self.service_action
        return bytes(data)

    def parse(self, cdb: bytes) -> Cdb:
        """What a CDB of this command says.

        Raises:
            CheckCondition: it is too short, or CONTROL asks for what is not there.
        """
        if len(cdb) < self.length:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(len(cdb)))
        control = cdb[self.length - 1]
        if control & (NACA | LINK):
            raise CheckCondition(
                INVALID_FIELD_IN_CDB.at(self.length - 1, 2 if control & NACA else 0)
            )
        value = int.from_bytes(cdb[: self.length], "big")
        return Cdb(self, {name: value >> shift & mask for name, shift, mask in self._cuts})


@dataclass(slots=True)
class Cdb:
    """A CDB that has been looked at: `cdb["LOGICAL BLOCK ADDRESS"]`."""

    command: Command
    values: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def get(self, name: str) -> int:
        """The field's value, or 0 where the command has no such field."""
        return self.values.get(name, 0)

    def invalid(self, name: str) -> CheckCondition:
        """INVALID FIELD IN CDB, pointing at a field: to be raised."""
        return CheckCondition(self.point(INVALID_FIELD_IN_CDB, name))

    def point(self, sense: Sense, name: str) -> Sense:
        """`sense`, pointing at a field of this CDB."""
        place = self.command.places[name]
        return sense.at(place.byte, None if place.bits >= 8 and place.bit == 7 else place.bit)


class Commands:
    """The commands of a logical unit: opcode -> what it is.

    Raises:
        ValueError: two are the same, or an opcode has both a service action and none.
    """

    def __init__(self, *commands: Command) -> None:
        self.all = tuple(commands)
        self._plain: dict[int, Command] = {}
        self._actions: dict[int, dict[int, Command]] = {}
        for each in commands:
            if each.service_action is None:
                taken = each.opcode in self._plain
                self._plain[each.opcode] = each
            else:
                actions = self._actions.setdefault(each.opcode, {})
                taken = each.service_action in actions
                actions[each.service_action] = each
            if taken or (each.opcode in self._plain and each.opcode in self._actions):
                raise ValueError(f"{each.name}: its opcode is taken")

    def find(self, cdb: bytes) -> Command:
        """Which command a CDB is.

        Raises:
            CheckCondition: none.
        """
        if not cdb:
            raise CheckCondition(INVALID_OPCODE)
        command = self._plain.get(cdb[0])
        if command is not None:
            return command
        actions = self._actions.get(cdb[0])
        if actions is None:
            raise CheckCondition(INVALID_OPCODE.at(0))
        command = actions.get(cdb[1] & 0x1F) if len(cdb) > 1 else None
        if command is None:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 4))
        return command

    def lookup(self, opcode: int, service_action: int | None) -> Command | None:
        """By opcode alone, or with a service action; None: not known so."""
        if service_action is None:
            return self._plain.get(opcode)
        return self._actions.get(opcode, {}).get(service_action)

    def has_actions(self, opcode: int) -> bool:
        """Whether commands of this opcode are told apart by their service action."""
        return opcode in self._actions
