# SPDX-License-Identifier: Apache-2.0
"""A bus in this process: tests, examples and boards access devices through it.

    bus = iodma.Bus()
    bus.attach(uart, 0x1000)
    bus.write8(0x1000, ord("x"))
    assert bus.read32(0x1004) & 0x20

An access is made at once and has returned when the register handler has. What a *guest* may do
never raises: an access to nothing reads all-ones or is dropped, and is counted in `unmapped`; what
a device refuses (`devices/accesses.py` has the rules) is counted by the device. An access that a
device's register handler makes to its own device, however indirectly, is refused and counted in
its `counts.reentered`.

Invariants
 - Windows do not overlap, lie below 2^64, and are as aligned as the registers inside them.
 - An access goes to one window or to none: one that crosses a window's end is unmapped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable
from operator import index
from typing import Protocol

from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError

__all__ = ["Bus", "BusDevice", "BusWindow"]

SPACE = 1 << 64


class Registers(Protocol):
    """Of a register map, what a window needs: bytes."""

    @property
    def size(self) -> int: ...
    @property
    def alignment(self) -> int: ...


class BusDevice(Protocol):
    """What a bus asks of a device."""

    name: str

    @property
    def registers(self) -> Registers: ...
    def bus_read(self, offset: int, width: int) -> int: ...
    def bus_write(self, offset: int, width: int, value: int) -> None: ...
    def request_reset(self) -> Awaitable[None]: ...
    def _plug(self) -> None: ...


class BusWindow:
    """A device's place on a bus; also what `iodma.DeviceWindow` takes as its target.

    Attributes:
        device: the device.
        base: bus address of its first byte.
        end: bus address after its last byte.
        attached: False once it was detached: every access is unmapped then.
    """

    __slots__ = ("_bus", "attached", "base", "device", "end")

    def __init__(self, bus: Bus, device: BusDevice, base: int, size: int) -> None:
        self._bus = bus
        self.device = device
        self.base = base
        self.end = base + size
        self.attached = True

    def __repr__(self) -> str:
        return f"<BusWindow {self.device.name} {self.base:#x}..{self.end:#x}>"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.base

    def read(self, offset: int, width: int) -> int:
        """A bus read of `width` bytes, `offset` bytes into the window."""
        if self.attached and 0 <= offset <= self.size - width:
            return self.device.bus_read(offset, width)
        self._bus.unmapped += 1
        return (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """A bus write of `value`, which fits in `width` bytes, `offset` bytes into the window."""
        if self.attached and 0 <= offset <= self.size - width:
            self.device.bus_write(offset, width, value)
        else:
            self._bus.unmapped += 1


class Bus:
    """An address space of devices' windows, 64 bits wide.

    Args:
        name: for messages.

    Attributes:
        unmapped: accesses that no window answered.
    """

    def __init__(self, name: str = "bus") -> None:
        self.name = name
        self.unmapped = 0
        self._windows: list[BusWindow] = []  # by base
        self._bases: list[int] = []

    def __repr__(self) -> str:
        return f"<Bus {self.name}: {self._windows}>"

    def attach(self, device: BusDevice, base: int, size: int | None = None) -> BusWindow:
        """Gives a device its place. A device may have several; each shows the same registers.

        A device that has a port but no engine yet is attached to its port's engine.

        Args:
            device: the device.
            base: bus address: a multiple of the widest register's width.
            size: bytes; default: to the end of its last register. The rest of a larger window
                reaches the device too, which refuses it.

        Raises:
            AddressRangeError: the window overlaps another, or ends above 2^64.
            ArgumentError: a misaligned base, or a size that is too small.
            ArgumentTypeError: an address or size that is not an integer.
        """
        registers = device.registers
        where = f"{self.name}: {device.name}"
        base = _integer(base, where, "base address")
        if base % registers.alignment:
            raise ArgumentError(
                f"{where}: base {base:#x} is not a multiple of its widest register, "
                f"{registers.alignment} bytes"
            )
        size = registers.size if size is None else _integer(size, where, "size")
        if size < max(registers.size, 1):
            raise ArgumentError(
                f"{where}: a window of {size} bytes is too small: its registers take "
                f"{registers.size}, and no window is empty"
            )
        if not 0 <= base <= SPACE - size:
            raise AddressRangeError(
                f"{where}: a window of {size:#x} bytes at {base:#x} does not lie in 0 to 2^64"
            )
        place = bisect_right(self._bases, base)
        for other in self._windows[max(place - 1, 0) : place + 1]:
            if base < other.end and other.base < base + size:
                raise AddressRangeError(
                    f"{where}: {base:#x}..{base + size:#x} overlaps {other.device.name} at "
                    f"{other.base:#x}..{other.end:#x}"
                )
        device._plug()
        window = BusWindow(self, device, base, size)
        self._windows.insert(place, window)
        self._bases.insert(place, base)
        return window

    def detach(self, device: BusDevice) -> None:
        """Takes all of a device's windows away. The device itself goes on.

        Raises:
            ArgumentError: the device is not on this bus.
        """
        self.window(device)
        for window in self._windows:
            if window.device is device:
                window.attached = False
        self._windows = [each for each in self._windows if each.attached]
        self._bases = [each.base for each in self._windows]

    def window(self, device: BusDevice) -> BusWindow:
        """The device's (first) window, with `read` and `write`, for an `iodma.DeviceWindow`.

        Raises:
            ArgumentError: the device is not on this bus.
        """
        for window in self._windows:
            if window.device is device:
                return window
        raise ArgumentError(f"{self.name}: {device.name} is not attached to this bus")

    def read8(self, address: int) -> int:
        """Reads 1 byte. Raises as `read32` does."""
        return self._read(address, 1)

    def read16(self, address: int) -> int:
        """Reads 2 bytes. Raises as `read32` does."""
        return self._read(address, 2)

    def read32(self, address: int) -> int:
        """Reads 4 bytes; all-ones if nothing answers.

        Raises:
            AddressRangeError: an address below 0 or above 2^64 - 1.
            ArgumentTypeError: an address that is not an integer.
            WrongThreadError: not in the thread of the device's engine.
        """
        return self._read(address, 4)

    def read64(self, address: int) -> int:
        """Reads 8 bytes. Raises as `read32` does."""
        return self._read(address, 8)

    def write8(self, address: int, value: int) -> None:
        """Writes 1 byte. Raises as `write32` does."""
        self._write(address, 1, value, 0xFF)

    def write16(self, address: int, value: int) -> None:
        """Writes 2 bytes. Raises as `write32` does."""
        self._write(address, 2, value, 0xFFFF)

    def write32(self, address: int, value: int) -> None:
        """Writes 4 bytes; dropped if nothing answers.

        Raises:
            AddressRangeError: an address below 0 or above 2^64 - 1.
            ArgumentError: a value below 0 or of more than 32 bits.
            ArgumentTypeError: an address or value that is not an integer.
            WrongThreadError: not in the thread of the device's engine.
        """
        self._write(address, 4, value, 0xFFFF_FFFF)

    def write64(self, address: int, value: int) -> None:
        """Writes 8 bytes. Raises as `write32` does."""
        self._write(address, 8, value, 0xFFFF_FFFF_FFFF_FFFF)

    def _read(self, address: int, width: int) -> int:
        if address.__class__ is not int:
            address = _integer(address, self.name, "address")
        place = bisect_right(self._bases, address)
        if place:
            window = self._windows[place - 1]
            if address + width <= window.end:
                return window.device.bus_read(address - window.base, width)
        self._miss(address)
        return (1 << 8 * width) - 1

    def _write(self, address: int, width: int, value: int, limit: int) -> None:
        if address.__class__ is not int:
            address = _integer(address, self.name, "address")
        if value.__class__ is not int:
            value = _integer(value, self.name, "value")
        if not 0 <= value <= limit:
            raise ArgumentError(
                f"{self.name}: {value:#x} does not fit in {8 * width} bits (0 to {limit:#x})"
            )
        place = bisect_right(self._bases, address)
        if place:
            window = self._windows[place - 1]
            if address + width <= window.end:
                window.device.bus_write(address - window.base, width, value)
                return
        self._miss(address)

    def _miss(self, address: int) -> None:
        if not 0 <= address < SPACE:
            raise AddressRangeError(f"{self.name}: address {address:#x} is not in 0 to 2^64 - 1")
        self.unmapped += 1


def _integer(value: object, where: str, what: str) -> int:
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(f"{where}: {what} {value!r} is not an integer") from None
