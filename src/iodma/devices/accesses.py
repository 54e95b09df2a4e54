# SPDX-License-Identifier: Apache-2.0
"""What one bus access to a register does: small functions, made once per class.

The access rules, for every transport:

- **Natural width**: an access of a register's own width, at its offset.
- **Wider**: split into the registers it covers, each accessed once, in ascending order. Bytes that
  no register has read as ones, and are dropped by a write; that counts as one bad access. If a
  handler resets the device, or it fails, the rest is refused.
- **Narrower**: refused, unless the register declares `narrowest`; see `Register`.
- **Unaligned** (offset not a multiple of the width), or a width other than 1, 2, 4, 8: refused.
- A refused read gives all-ones, a refused write is dropped; each is counted in `Device.counts`.

Values are little-endian in this sense: the register at the lower offset is the lower part of a
wider access. A big-endian bus is a byte-lane stage's business.

Invariants
 - Every function takes the device first and trusts its other argument: the device has checked that
   a value fits the width of the access.
 - A wider access looks before each piece whether the device still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import iscoroutine
from typing import Any

from iodma.devices.handlers import takes
from iodma.devices.registers import ONES, Register, checked
from iodma.errors import ArgumentTypeError

__all__ = [
    "Getter",
    "Setter",
    "for_register",
    "narrower",
    "refused_read",
    "ring",
    "split",
    "while_closed",
]

Getter = Callable[[Any], int]
Setter = Callable[[Any, int], None]


def for_register(
    register: Register, read: Callable[..., Any] | None, write: Callable[..., Any] | None
) -> tuple[Getter, Setter]:
    """An access of the register's own width, with its handlers."""
    if register.access == "wo":
        getter = refused_read(register.width)
    elif read is not None:
        getter = _handled_read(register, read)
    else:
        getter = _stored_read(register.name)
    if register.access == "ro":
        return getter, _refused_write
    return getter, _store(register) if write is None else _handled_write(register, write)


def _stored_read(name: str) -> Getter:
    def get(device: Any) -> int:
        return device._values[name]  # type: ignore[no-any-return]

    return get


def _handled_read(register: Register, read: Callable[..., Any]) -> Getter:
    name, width, limit = register.name, register.width, ONES[register.width]

    def get(device: Any) -> int:
        value: int = read(device)
        if value.__class__ is int and 0 <= value <= limit:
            return value
        return checked(value, width, lambda: f"{device.name}.{name}, from its read handler")

    return get


def _store(register: Register) -> Setter:
    name, sets, clears = register.name, register.write_mask, register.clear_mask

    def put_all(device: Any, value: int) -> None:
        device._values[name] = value

    def put(device: Any, value: int) -> None:
        values = device._values
        values[name] = values[name] & ~(sets | value & clears) | value & sets

    return put_all if sets == ONES[register.width] else put


def _handled_write(register: Register, write: Callable[..., Any]) -> Setter:
    name, sets, clears = register.name, register.write_mask, register.clear_mask
    with_old = not takes(write, 2)

    def put(device: Any, value: int) -> None:
        values = device._values
        old = values[name]
        values[name] = old & ~(sets | value & clears) | value & sets
        result = write(device, value, old) if with_old else write(device, value)
        if result is not None and iscoroutine(result):
            result.close()
            raise ArgumentTypeError(
                f"{device.name}.{name}: its write handler gave a coroutine, which nobody would "
                "run: use a Doorbell, or self.start(...)"
            )

    return put


def refused_read(width: int) -> Getter:
    """All-ones, and counted: for what has no read side."""

    def get(device: Any) -> int:
        device.counts.bad_reads += 1
        return ONES[width]

    return get


def _refused_write(device: Any, value: int) -> None:
    device.counts.bad_writes += 1


def ring(name: str) -> Setter:
    """The write side of a doorbell."""

    def put(device: Any, value: int) -> None:
        device._bells[name]._ring(value)

    return put


def narrower(
    register: Register, getter: Getter, setter: Setter
) -> Iterator[tuple[int, int, Getter, Setter]]:
    """(offset, width, ...) of the register itself, and of each narrower access it accepts."""
    yield register.offset, register.width, getter, setter
    for width in ONES:
        if register.narrowest <= width < register.width:
            for byte in range(0, register.width, width):
                yield register.offset + byte, width, *_part(register, byte, width, getter, setter)


def _part(
    register: Register, byte: int, width: int, getter: Getter, setter: Setter
) -> tuple[Getter, Setter]:
    name, shift, lanes = register.name, 8 * byte, ONES[width]
    # Of the bytes that are not written: what they hold, but no 1 where that would clear.
    kept = ~(lanes << shift) & ~register.clear_mask

    def get(device: Any) -> int:
        return getter(device) >> shift & lanes

    def put(device: Any, value: int) -> None:
        setter(device, device._values[name] & kept | value << shift)

    return get, put


def split(pieces: list[tuple[Getter, Setter, int, int]], width: int) -> tuple[Getter, Setter]:
    """A wider access: each piece is (getter, setter, shift, mask), in ascending order."""
    holes = ONES[width] & ~sum(mask << shift for _, _, shift, mask in pieces)

    def get(device: Any) -> int:
        value = holes
        if holes:
            device.counts.bad_reads += 1
        for getter, _, shift, mask in pieces:
            if device._open:
                value |= getter(device) << shift
            else:
                device.counts.refused_reads += 1
                value |= mask << shift
        return value

    def put(device: Any, value: int) -> None:
        if holes:
            device.counts.bad_writes += 1
        for _, setter, shift, mask in pieces:
            if device._open:
                setter(device, value >> shift & mask)
            else:
                device.counts.refused_writes += 1

    return get, put


def while_closed(getter: Getter, setter: Setter, width: int) -> tuple[Getter, Setter]:
    """For a device that does not run: refuses its own coroutines from before the reset."""

    def get(device: Any) -> int:
        if device._scope.is_stale():
            device.counts.refused_reads += 1
            return ONES[width]
        return getter(device)

    def put(device: Any, value: int) -> None:
        if device._scope.is_stale():
            device.counts.refused_writes += 1
        else:
            setter(device, value)

    return get, put
