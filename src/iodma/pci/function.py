# SPDX-License-Identifier: Apache-2.0
"""A device as a PCI function: what transports talk to.

    function = Function(device)
    function.config_write(0x04, b"\\x06\\x00")            # memory space, bus master
    function.bar_write(0, 0x10, (1).to_bytes(4, "little"))

Invariants
 - An access to a BAR reaches the device as naturally aligned ones of 1, 2, 4 or 8 bytes, each once,
   in ascending order; what is no register's is MSI-X's, a `Ram`'s, or the ROM's.
 - The slot's gate is open when Bus Master Enable is set and the function is in D0, and only then.
 - A device, and a slot, is of one function at a time.
 - After a reset the configuration space is as at power-on, the gate shut, MSI-X's table masked,
   before anything else is done; it is acknowledged with that of the device.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from iodma.devices import Device
from iodma.errors import (
    AddressRangeError,
    ArgumentError,
    ArgumentTypeError,
    BusyError,
    DmaFault,
)
from iodma.lease import Revocation, revoke
from iodma.log import GuestLog
from iodma.memory import Ram
from iodma.pci import capabilities
from iodma.pci.config import Command
from iodma.pci.description import Capability, Pci
from iodma.pci.interrupts import Interrupts
from iodma.pci.placement import ROM, BarPlace
from iodma.pci.regions import BarRegion, region
from iodma.pci.slot import PciSlot
from iodma.types import Access

if TYPE_CHECKING:
    from iodma.port import Port

__all__ = ["BarInfo", "Function", "slot_of"]

log = GuestLog("iodma.pci")

_PAGE = 4096
#: By the identity of a device or a slot: whose it is. A function keeps both.
_owners: WeakValueDictionary[int, Function] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class BarInfo:
    """What a transport tells a VMM of a BAR.

    Attributes:
        index: 0 to 5; 6 is the expansion ROM.
        size: bytes.
        io, wide, prefetchable: it is in I/O space; has 64 bits, and the index above, too; reads of
            it have no side effects.
        read_only: the ROM.
        ram: the memory behind it, or None.
        sparse: what of it can be mapped: (offset, size).
    """

    index: int
    size: int
    io: bool
    wide: bool
    prefetchable: bool
    read_only: bool
    ram: Ram | None
    sparse: tuple[tuple[int, int], ...]


class Function:
    """One function, of one device.

    Args:
        device: has a `Pci` as its attribute ``pci``.
        slot: what it masters. None: the slot that its ports lead to; a device without a port needs
            none.

    Attributes:
        description: the device's `Pci`.
        config: the `ConfigSpace`.
        interrupts: the `Interrupts`.
        bars: index -> `BarInfo`.

    Raises:
        ArgumentError: the device has no description, or ports that lead to no slot, or to several.
        AddressRangeError: a register is behind none of its BARs.
        BusyError: the device is another function already, or the slot is another one's, which is
            not closed.
    """

    def __init__(self, device: Device, slot: PciSlot | None = None) -> None:
        if not isinstance(device, Device):
            raise ArgumentTypeError(f"{device!r} is not a Device")
        description = getattr(device, "pci", None)
        if not isinstance(description, Pci):
            raise ArgumentError(
                f"{device.name} is not described as a PCI function (its pci is {description!r}): a "
                f"line in class {type(device).__name__}, such as pci = iodma.Pci(vendor=0xF1DA, "
                "device=0x0001, bars={0: 4096}), would be right"
            )
        description.check(type(device))
        self.device = device
        self.description = description
        self.slot = slot_of(device) if slot is None else slot
        self._own()
        self.config = capabilities.config_space(description)
        self.interrupts = Interrupts(description, self.config, self._send, lambda: device._busy)
        self.bars: dict[int, BarInfo] = {}
        self._regions: dict[int, BarRegion] = {}
        for index, place in description.placement.bars.items():
            ram = _ram(device, place)
            self._regions[index] = region(device, place, ram, self)
            whole = ram is not None and not place.size % _PAGE
            self.bars[index] = BarInfo(
                index,
                place.size,
                place.io,
                place.wide,
                place.prefetchable,
                index == ROM,
                ram,
                ((0, place.size),) if whole else (),
            )
        self._on = False  # the gate
        self._asleep = False  # in D3hot
        self._waits: list[Awaitable[object]] = []
        self._port: Port | None = None
        self._watch()
        self._told = False  # that the gate has refused something since it was shut
        if self.slot is not None:
            self.slot.set_bus_master(False)
            self.slot._tell_faults(self._refused)
        self._unwatch: Callable[[], None] | None = device._watch_lines(self.interrupts.add_line)

    def __repr__(self) -> str:
        numbers = f"{self.description.vendor:04x}:{self.description.device:04x}"
        return f"<Function {numbers} of {self.device!r}>"

    def close(self) -> None:
        """Lets go of the device: its lines lead here no more, and the slot is shut.

        The device can have another function then. Calling it twice does no harm.
        """
        if self._unwatch is None:
            return
        self._unwatch()
        self._unwatch = None
        self._disown()
        self.interrupts.close()
        if self.slot is not None:
            self.slot._tell_faults(None)
            self.slot.set_bus_master(False)
        if self._port is not None:
            self._port.close()

    def _own(self) -> None:
        for each in (self.device, self.slot):
            other = _owners.get(id(each))
            if other is not None:
                raise BusyError(f"{each!r} is of {other!r}; closing that first would be right")
        for each in (self.device, self.slot):
            if each is not None:
                _owners[id(each)] = self

    def _disown(self) -> None:
        for each in (self.device, self.slot):
            _owners.pop(id(each), None)

    # --- BARs -------------------------------------------------------------------------------------

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        """Reads `length` bytes. In D3hot, as on a bus where nobody answers: all-ones.

        Raises:
            AddressRangeError: not inside a BAR that there is.
        """
        region = self._regions.get(bar)
        if region is None or not 0 <= offset <= offset + length <= region.size:
            raise self._outside(bar, offset, length)
        if self._asleep:
            return b"\xff" * length
        return region.read(offset, length)

    def bar_write(self, bar: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes bytes. In D3hot they are dropped. Raises as `bar_read` does."""
        region = self._regions.get(bar)
        if region is None or not 0 <= offset <= offset + len(data) <= region.size:
            raise self._outside(bar, offset, len(data))
        if not self._asleep:
            region.write(offset, data)

    def _outside(self, bar: int, offset: int, length: int) -> AddressRangeError:
        there = ", ".join(f"{index}: {each.size}" for index, each in self.bars.items())
        return AddressRangeError(
            f"{self.device.name}: {length} bytes at {offset:#x} of BAR {bar}; there are (bytes)"
            f" {there or 'none'}"
        )

    # --- configuration space ----------------------------------------------------------------------

    def config_read(self, offset: int, length: int) -> bytes:
        """Reads of the configuration space, of any length and alignment.

        Raises:
            AddressRangeError: outside it.
        """
        return self.config.read(offset, length)

    def config_write(
        self, offset: int, data: bytes | bytearray | memoryview
    ) -> Awaitable[None] | None:
        """Writes to the configuration space.

        Returns:
            None, or what to wait for before the write is acknowledged: Bus Master Enable was
            cleared, and what is in flight ends first; or the function is being reset. It may be
            awaited any number of times, or not at all.

        Raises:
            AddressRangeError: outside it.
        """
        self.config.write(offset, data)
        if not self._waits:
            return None
        waits, self._waits = self._waits, []
        return _All(waits)

    def request_reset(self) -> Awaitable[None]:
        """Resets the function: conventional reset and function level reset (PCI Express Base, 6.6).

        Returns:
            The acknowledgement, as that of `Device.request_reset`.

        Raises:
            ClosedError: the engine was closed.
        """
        self.config.reset()
        self._gate(cancel=True)
        self.interrupts.reset()
        waits, self._waits = self._waits, []
        waits.append(self.device.request_reset())
        return _All(waits)

    # --- what software does there -----------------------------------------------------------------

    def _watch(self) -> None:
        config = self.config

        def changed(*_: int) -> None:
            self.interrupts.changed()

        config.watch("command", self._command_written)
        if self.description.msi:
            config.watch("msi_control", self._msi_control_written)
            config.watch("msi_mask", changed)
        if self.description.msix:
            config.watch("msix_control", changed)
        for number, each in enumerate(self.description.capabilities):
            self._handle(f"capability_data_{number}", each)
        if self.description.power_management:
            config.watch("pm_control", self._power_written)
        if self.description.express:
            config.watch("device_control", self._device_control_written)
            config.supply("device_status", capabilities.TRANSACTIONS_PENDING, self._transactions)

    def _handle(self, name: str, capability: Capability) -> None:
        """The device's handlers of a capability of its own."""
        device, config, size = self.device, self.config, len(capability.data)
        read, write = capability.read, capability.write

        def give() -> int:
            method = getattr(device, read or "")
            data = device._run_handler(lambda: _data_of(device.name, capability, method()))
            return config[name] if data is None else int.from_bytes(data, "little")

        def take(old: int, new: int, written: int) -> None:
            device._run_handler(getattr(device, write or ""), new.to_bytes(size, "little"))

        if read is not None:
            config.supply(name, (1 << 8 * size) - 1, give)
        if write is not None:
            config.watch(name, take)

    def _command_written(self, old: int, new: int, written: int) -> None:
        self._gate()
        self.interrupts.changed()

    def _msi_control_written(self, old: int, new: int, written: int) -> None:
        """More vectors than there are: that part of the write is dropped."""
        allocated = (new & capabilities.MSI_ALLOCATED) >> 4
        if 1 << allocated > self.description.msi:
            kept = old & capabilities.MSI_ALLOCATED
            self.config["msi_control"] = new & ~capabilities.MSI_ALLOCATED | kept
        self.interrupts.changed()

    def _power_written(self, old: int, new: int, written: int) -> None:
        """PCI Power Management 1.2, 3.2.4: a state that is not there leaves the old one."""
        before, state = old & capabilities.PM_STATE, new & capabilities.PM_STATE
        if state not in (0, capabilities.PM_STATE):
            self.config["pm_control"] = new & ~capabilities.PM_STATE | before
        elif before and not state and self.description.soft_reset:
            self._reset()
            return
        self._gate()

    def _device_control_written(self, old: int, new: int, written: int) -> None:
        if written & capabilities.FUNCTION_LEVEL_RESET:
            self._reset()

    def _reset(self) -> None:
        """The write that asks for it is acknowledged when it is over."""
        reset = self.request_reset()
        self._waits.append(reset)

    def _transactions(self) -> int:
        pending = any(port.in_flight for port in self.device._ports)
        return capabilities.TRANSACTIONS_PENDING * pending

    def _gate(self, cancel: bool = False) -> None:
        """Opens or shuts what Bus Master Enable and the power state say."""
        asleep = (
            self.description.power_management
            and self.config["pm_control"] & capabilities.PM_STATE != 0
        )
        on = not asleep and self.config["command"] & Command.BUS_MASTER != 0
        self._asleep = asleep
        if self.slot is not None and (not on or not self._on):
            # Also where it is shut already: what came through before may still be in flight.
            revocation = self.slot.set_bus_master(on, cancel=cancel)
            if revocation is not None and not revocation.done:
                self._waits.append(_Drained(self.slot, revocation))
        self._on = on
        self._told &= not on
        self.interrupts.set_gate(on, not asleep)

    def _refused(self, address: int, access: int, unmapped: bool) -> None:
        """DMA has met a shut gate: told once for each time that it is shut."""
        if not self._told:
            self._told = True
            why = "it is in D3hot" if self._asleep else "Bus Master Enable is clear"
            kind = "writes to" if access & Access.WRITE else "reads"
            log.warning(
                "%s: DMA that %s %#x fails, as all DMA does while %s",
                *(self.device.name, kind, address, why),
            )

    # --- messages to memory -----------------------------------------------------------------------

    def _send(self, address: int, data: int) -> None:
        """A message when nobody is connected to deliver it: a write, after what came before it."""
        engine = self.device._scope.engine
        if self.slot is None or engine is None:
            log.info("%s: a message to %#x, and no slot to send it", self.device.name, address)
            return
        if self._port is None:
            self._port = self.device.engine.port(self.slot, f"{self.device.name}.messages")
        transfer = self._port.store("<I", address, data)
        self.device.engine.start(_sent(self.device.name, transfer))


async def _sent(name: str, transfer: Awaitable[object]) -> None:
    try:
        await transfer
    except DmaFault as error:
        log.warning("%s: a message-signalled interrupt did not arrive: %s", name, error)


class _All:
    """Several things to wait for, any number of times."""

    __slots__ = ("_waits",)

    def __init__(self, waits: list[Awaitable[object]]) -> None:
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, None]:
        for each in self._waits:
            yield from each.__await__()


class _Drained:
    """That nothing is in flight any more which came through a slot, however long it takes.

    When the deadline of a revocation has passed, what holds it is in the log. That it failed is no
    acknowledgement; a transport has a deadline of its own, and an error for it.
    """

    __slots__ = ("_revocation", "_slot")

    def __init__(self, slot: PciSlot, revocation: Revocation) -> None:
        self._slot = slot
        self._revocation = revocation

    def __await__(self) -> Generator[Any, Any, None]:
        if not (yield from self._revocation.__await__()):
            yield from revoke(self._slot, 0, 0, cancel=False, deadline=None).__await__()


def slot_of(device: Device) -> PciSlot | None:
    """The slot that all ports of a device lead to; None if it has no port.

    Raises:
        ArgumentError: a port leads to none, or they lead to different ones.
    """
    found: dict[int, PciSlot] = {}
    for port in device._ports:
        space: Any = getattr(port, "space", None)
        while space is not None and not isinstance(space, PciSlot):
            space = space.next
        if space is None:
            raise ArgumentError(
                f"{device.name}: its port {port!r} leads to no PciSlot; "
                "engine.port(iodma.PciSlot()) would be right"
            )
        found[id(space)] = space
    if len(found) > 1:
        raise ArgumentError(
            f"{device.name}: its ports lead to {len(found)} slots, and a function has one: make all"
            " of them with the same PciSlot"
        )
    return next(iter(found.values()), None)


def _data_of(name: str, capability: Capability, data: object) -> bytes:
    if not isinstance(data, bytes | bytearray) or len(data) != len(capability.data):
        raise ArgumentTypeError(
            f"{name}: what reads capability {capability.id:#x} gave {data!r}; "
            f"{len(capability.data)} bytes would be right"
        )
    return bytes(data)


def _ram(device: Device, place: BarPlace) -> Ram | None:
    if place.ram is None:
        return None
    ram = getattr(device, place.ram, None)
    if not isinstance(ram, Ram) or ram.size < place.size:
        raise ArgumentError(
            f"{device.name}: BAR {place.index} is its attribute {place.ram}, which is {ram!r}; a "
            f"Ram of {place.size} bytes would be right"
        )
    return ram
