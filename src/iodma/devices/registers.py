# SPDX-License-Identifier: Apache-2.0
"""A register of a device: declared once, as its datasheet has it.

    class Uart(iodma.Device):
        data = iodma.Register(0x0, 1, read="receive", write="transmit")
        status = iodma.Register(0x4, access="ro", reset=0x60, doc="line status, section 4.2")
        irq = iodma.Register(0x8, access="w1c", mask=0x0F, write="irq_cleared")

Two sides see a register, and they have different rights:

- **The bus** (a guest, or DMA that hits the device) is bound by `access`, `mask` and the access
  rules of `regmap.py`, and runs the handlers.
- **The device's own code** uses the attribute: ``self.status`` gives the stored bits and
  ``self.status = 3`` sets them, past `access` and `mask` and without running a handler.

Handlers are plain functions of the device that answer at once:

- ``read(self) -> int`` gives what the bus reads; the stored bits stay as they are.
- ``write(self, value)`` runs after the stored bits have changed as `access` and `mask` say; `value`
  is what was written, all of it. ``write(self, value, old)`` also gets the bits from before.

Invariants
 - The stored bits always fit the width; what does not raises `ArgumentError` and changes nothing.
 - A declaration that cannot be right raises where it is written, or when its class is made.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from iodma.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from typing import Self

    from iodma.devices.base import Device

__all__ = ["ONES", "AccessRight", "Handler", "Mapped", "Register", "checked", "ones"]

AccessRight = Literal["rw", "ro", "wo", "w1c"]
#: The name of a method, or a function that is called with the device first.
Handler = str | Callable[..., Any]

#: Width in bytes -> the value with all its bits set: what a refused read gives.
ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


def ones(width: int) -> int:
    """All-ones of `width` bytes, whether or not a register may have that width."""
    return ONES.get(width) or (1 << 8 * width) - 1


def checked(value: object, width: int, what: Callable[[], str]) -> int:
    """`value` as an int of `width` bytes; `what` names it in the error.

    Raises:
        ArgumentTypeError: not an integer.
        ArgumentError: negative, or more bits than `width` bytes have.
    """
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise ArgumentTypeError(f"{what()}: {value!r} is a {kind}, not an integer") from None
    if not 0 <= number <= ONES[width]:
        raise ArgumentError(
            f"{what()}: {number:#x} does not fit in {8 * width} bits (0 to {ONES[width]:#x})"
        )
    return number


class Mapped:
    """Something with a place in a device's register space: a `Register` or a `Doorbell`.

    Args:
        offset: bytes from the start of the device's window; a multiple of `width`.
        width: bytes: 1, 2, 4 or 8.
        doc: what the datasheet says of it.

    Attributes:
        name: the name of the class attribute it was assigned to.
    """

    def __init__(self, offset: int, width: int, doc: str) -> None:
        if width not in ONES:
            raise ArgumentError(f"a register's width is 1, 2, 4 or 8 bytes, not {width!r}")
        offset = checked(offset, 8, lambda: "a register's offset")
        if offset % width:
            raise ArgumentError(
                f"offset {offset:#x} is not a multiple of the register's width, {width} bytes"
            )
        self.offset = offset
        self.width = width
        self.doc = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.width

    @property
    def rights(self) -> str:
        """What the bus may do with it, in the words of `AccessRight`."""
        return "wo"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or '?'} {self.offset:#x}/{self.width}>"


class Register(Mapped):
    """One register. See the module's text for who sees what, and when handlers run.

    Args:
        offset: bytes from the start of the device's window; a multiple of `width`.
        width: bytes: 1, 2, 4 or 8.
        access: what the bus may do: "rw"; "ro": writes are refused; "wo": reads are refused;
            "w1c": reads, and clears the bits that are written as 1.
        reset: the stored bits at power-on and after a reset.
        read: handler of a bus read, for "rw" and "ro".
        write: handler of a bus write, for all but "ro".
        mask: the bits that a bus write can change; the others keep their value. Default: all.
        w1c: for an "rw" register, bits that are cleared by writing 1 to them instead; they are
            taken out of `mask`.
        narrowest: bytes: the smallest access accepted. Default: the width alone. A narrower access
            works as PCI's byte enables do: a write changes only its own bytes (to a handler, the
            others look as if they were written with what they hold), a read runs the handler and
            gives its part.
        always: works also while the device is in reset or has failed, for accesses that are not
            wider than it. For the register that brings a device back, or tells of its state.
        doc: what the datasheet says of it.

    Raises:
        ArgumentError: a value that cannot be right.
        ArgumentTypeError: a value of the wrong type.
    """

    def __init__(
        self,
        offset: int,
        width: int = 4,
        access: AccessRight = "rw",
        reset: int = 0,
        *,
        read: Handler | None = None,
        write: Handler | None = None,
        mask: int | None = None,
        w1c: int = 0,
        narrowest: int | None = None,
        always: bool = False,
        doc: str = "",
    ) -> None:
        super().__init__(offset, width, doc)
        where = f"the register at {offset:#x}"
        if access not in get_args(AccessRight):
            raise ArgumentError(f'{where}: access is "rw", "ro", "wo" or "w1c", not {access!r}')
        if access == "ro" and (write is not None or mask is not None):
            raise ArgumentError(f'{where}: access "ro" leaves nothing for write= or mask= to do')
        if access == "wo" and read is not None:
            raise ArgumentError(f'{where}: access "wo" leaves nothing for read= to do; use "rw"')
        if w1c and access != "rw":
            raise ArgumentError(f'{where}: w1c= picks bits of an "rw" register, not of {access!r}')
        if narrowest is None:
            narrowest = width
        if narrowest not in ONES or narrowest > width:
            raise ArgumentError(
                f"{where}: narrowest is 1, 2, 4 or 8 and at most its width, {width}, "
                f"not {narrowest!r}"
            )
        writable = checked(ONES[width] if mask is None else mask, width, lambda: f"{where}, mask")
        cleared = checked(w1c, width, lambda: f"{where}, w1c")
        self.access: AccessRight = access
        self.reset = checked(reset, width, lambda: f"{where}, reset")
        self.read = read
        self.write = write
        #: The bits that a bus write sets to what was written.
        self.write_mask = writable & ~cleared if access in ("rw", "wo") else 0
        #: The bits that a bus write clears where it has a 1.
        self.clear_mask = writable if access == "w1c" else cleared
        self.narrowest = narrowest
        self.always = always

    @property
    def rights(self) -> str:
        """What the bus may do with it, in the words of `AccessRight`."""
        return self.access

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: Device, owner: type | None = None) -> int: ...
    def __get__(self, device: Device | None, owner: type | None = None) -> Self | int:
        """The stored bits; on the class, the declaration itself."""
        if device is None:
            return self
        return device._values[self.name]

    def __set__(self, device: Device, value: int) -> None:
        """Sets the stored bits: no rights, no mask, no handler.

        Raises:
            ArgumentError: `value` does not fit the width.
            ArgumentTypeError: `value` is not an integer.
            StaleError: the caller is a coroutine from before the device's last reset.
        """
        if not device._open:
            device._refuse_stale(self.name)
        if value.__class__ is not int or not 0 <= value <= ONES[self.width]:
            value = checked(value, self.width, lambda: f"{device.name}.{self.name}")
        device._values[self.name] = value
