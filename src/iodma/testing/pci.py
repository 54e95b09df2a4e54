# SPDX-License-Identifier: Apache-2.0
"""The driver of a PCI function, in process: what a guest's driver does with a device.

    >>> import iodma
    >>> class Doorbell(iodma.Device):
    ...     pci = iodma.Pci(vendor=0xF1DA, device=1, bars={0: 4096}, msix=1)
    ...     go = iodma.Doorbell(0x10, run="work")
    ...     async def work(self, value):
    ...         await self.port.store("<I", 0x2000, value)
    ...         self.interrupt.pulse()
    >>> with iodma.Engine() as engine, iodma.Ram(1 << 16) as ram:
    ...     device = Doorbell(engine.port(iodma.PciSlot(iodma.Memory({0: ram}))))
    ...     with PciDriver(device) as driver:
    ...         driver.enable()
    ...         driver.use_msix()
    ...         driver.write32(0x10, 0xCAFE)
    ...         engine.run(driver.interrupt())
    ...     bytes(ram.view(0x2000, 2)).hex()
    'feca'

Invariants
 - It goes through BARs and configuration space only, as a guest does; what it does there is what
   the PCI specifications ask of a driver.
 - Interrupts are counted as they come, whether or not anybody waits: `interrupt` takes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from typing import Self

from iodma.devices import Device
from iodma.engine import Event
from iodma.errors import ArgumentError, UnsupportedError, integer
from iodma.pci import Command, Function

__all__ = ["PciDriver"]

_MSI, _MSIX, _EXPRESS = 0x05, 0x11, 0x10
_POINTER, _COMMAND = 0x34, 0x04
_WIDTHS = (1, 2, 4, 8)


class PciDriver:
    """Drives a device, which becomes a `pci.Function` if it is none yet.

    The device is attached to its port's engine, if it is not yet. It is connected to the function's
    interrupts until it is closed: a context manager.

    Attributes:
        function: the `pci.Function`.
        counts: vector -> interrupts so far; an assertion of INTx is one of vector 0.
        asserted: whether INTx is asserted now.

    Raises:
        ArgumentError: the device is not described as a PCI function.
        BusyError: somebody else is connected to the function's interrupts.
    """

    def __init__(self, device: Device | Function) -> None:
        self.function = device if isinstance(device, Function) else Function(device)
        self._ours = self.function is not device
        self.counts: Counter[int] = Counter()
        self.asserted = False
        self._taken: Counter[int] = Counter()
        self._came: Event | None = None
        self._disconnect = self.function.interrupts.connect(self)
        self.function.device._plug()

    def __repr__(self) -> str:
        return f"<PciDriver of {self.function!r}>"

    def close(self) -> None:
        """Lets go of the function."""
        self._disconnect()
        if self._ours:
            self.function.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- registers --------------------------------------------------------------------------------

    def read(self, offset: int, width: int = 4, *, bar: int = 0) -> int:
        """A register. Raises AddressRangeError: outside the BAR."""
        return int.from_bytes(self.function.bar_read(bar, offset, width), "little")

    def write(self, offset: int, value: int, width: int = 4, *, bar: int = 0) -> None:
        """A register. Raises as `read`, and ArgumentError: the value does not fit."""
        self.function.bar_write(bar, offset, _bytes(value, width))

    def read8(self, offset: int, *, bar: int = 0) -> int:
        """A register of 1 byte. Raises as `read`."""
        return self.read(offset, 1, bar=bar)

    def read16(self, offset: int, *, bar: int = 0) -> int:
        """A register of 2 bytes. Raises as `read`."""
        return self.read(offset, 2, bar=bar)

    def read32(self, offset: int, *, bar: int = 0) -> int:
        """A register of 4 bytes. Raises as `read`."""
        return self.read(offset, 4, bar=bar)

    def read64(self, offset: int, *, bar: int = 0) -> int:
        """A register of 8 bytes. Raises as `read`."""
        return self.read(offset, 8, bar=bar)

    def write8(self, offset: int, value: int, *, bar: int = 0) -> None:
        """A register of 1 byte. Raises as `write`."""
        self.write(offset, value, 1, bar=bar)

    def write16(self, offset: int, value: int, *, bar: int = 0) -> None:
        """A register of 2 bytes. Raises as `write`."""
        self.write(offset, value, 2, bar=bar)

    def write32(self, offset: int, value: int, *, bar: int = 0) -> None:
        """A register of 4 bytes. Raises as `write`."""
        self.write(offset, value, 4, bar=bar)

    def write64(self, offset: int, value: int, *, bar: int = 0) -> None:
        """A register of 8 bytes. Raises as `write`."""
        self.write(offset, value, 8, bar=bar)

    # --- configuration space ----------------------------------------------------------------------

    def config_read(self, offset: int, width: int = 4) -> int:
        """Of the configuration space. Raises AddressRangeError: outside it."""
        return int.from_bytes(self.function.config_read(offset, width), "little")

    def config_write(self, offset: int, value: int, width: int = 4) -> Awaitable[None] | None:
        """Of the configuration space: None, or what a guest would have to wait for."""
        return self.function.config_write(offset, _bytes(value, width))

    def capability(self, id: int) -> int | None:
        """Where the first capability of that id is, or None."""
        offset = self.config_read(_POINTER, 1)
        while offset:
            found, following = self.function.config_read(offset, 2)
            if found == id:
                return offset
            offset = following
        return None

    def enable(self) -> None:
        """Memory and I/O Space Enable, Bus Master Enable."""
        bits = Command.IO_SPACE | Command.MEMORY_SPACE | Command.BUS_MASTER
        self.config_write(_COMMAND, self.config_read(_COMMAND, 2) | bits, 2)

    async def disable(self) -> None:
        """Clears Bus Master Enable: over when nothing of the device is in flight any more."""
        command = self.config_read(_COMMAND, 2) & ~Command.BUS_MASTER
        await _over(self.config_write(_COMMAND, command, 2))

    async def reset(self) -> None:
        """A function level reset; of conventional PCI, the reset of its bus. Nothing is enabled
        afterwards."""
        express = self.capability(_EXPRESS)
        if express is None:
            await self.function.request_reset()
        else:
            control = self.config_read(express + 8, 2)
            await _over(self.config_write(express + 8, control | 1 << 15, 2))

    # --- interrupts -------------------------------------------------------------------------------

    def use_intx(self) -> None:
        """Neither MSI nor MSI-X.

        Raises:
            UnsupportedError: the function has no interrupt pin.
        """
        if not self.function.interrupts.counts["intx"]:
            raise UnsupportedError(f"{self.function!r} has no interrupt pin: Pci(intx=True)")
        for id, bit in ((_MSI, 1), (_MSIX, 1 << 15)):
            offset = self.capability(id)
            if offset is not None:
                self.config_write(offset + 2, self.config_read(offset + 2, 2) & ~bit, 2)
        command = self.config_read(_COMMAND, 2) & ~Command.INTERRUPT_DISABLE
        self.config_write(_COMMAND, command, 2)

    def use_msi(self) -> None:
        """MSI, with as many vectors as the function asks for, none masked.

        Raises:
            UnsupportedError: the function has none.
        """
        offset = self._found(_MSI, "msi")
        control = self.config_read(offset + 2, 2)
        self.config_write(offset + 16, 0)
        self.config_write(offset + 2, control & ~0x70 | (control & 0xE) << 3 | 1, 2)

    def use_msix(self) -> None:
        """MSI-X, no vector masked.

        Raises:
            UnsupportedError: the function has none.
        """
        offset = self._found(_MSIX, "msix")
        self.config_write(offset + 2, 0xC000, 2)  # enabled, all masked
        for vector in range((self.config_read(offset + 2, 2) & 0x7FF) + 1):
            self.mask(vector, False)
        self.config_write(offset + 2, 0x8000, 2)

    def mask(self, vector: int, masked: bool = True) -> None:
        """Masks a vector in the MSI-X table, or not any more. Raises as `use_msix`."""
        offset = self._found(_MSIX, "msix")
        table = self.config_read(offset + 4)
        last = self.config_read(offset + 2, 2) & 0x7FF
        if not 0 <= integer(vector, "vector") <= last:
            raise ArgumentError(f"there is no vector {vector}; 0 to {last} would be right")
        self.write32((table & ~7) + 16 * vector + 12, int(masked), bar=table & 7)

    async def interrupt(self, vector: int = 0) -> None:
        """Waits for an interrupt, and takes it: one that came before the call is enough."""
        if self._came is None:
            self._came = Event(self.function.device.engine)
        while self.counts[vector] == self._taken[vector]:
            self._came.clear()
            await self._came.wait()
        self._taken[vector] += 1

    def intx(self, level: bool) -> None:
        """As a sink."""
        self.asserted = level
        if level:
            self.message(0)

    def message(self, vector: int) -> None:
        """As a sink."""
        self.counts[vector] += 1
        if self._came is not None:
            self._came.set()

    def _found(self, id: int, name: str) -> int:
        offset = self.capability(id)
        if offset is None:
            raise UnsupportedError(f"{self.function!r} has no {name}: Pci({name}=1)")
        return offset


async def _over(waits: Awaitable[None] | None) -> None:
    if waits is not None:
        await waits


def _bytes(value: int, width: int) -> bytes:
    value = integer(value, "value")
    if width not in _WIDTHS or not 0 <= value < 1 << 8 * width:
        raise ArgumentError(f"{value:#x} does not fit in {width} bytes (1, 2, 4 or 8 of them)")
    return value.to_bytes(width, "little")
