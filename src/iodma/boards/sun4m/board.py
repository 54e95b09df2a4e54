# SPDX-License-Identifier: Apache-2.0
"""A SPARCstation 5, as far as DMA goes.

    processor --+-- RAM
                +-- IOMMU --- the SBus --+-- LEDMA --- byte lanes --- LANCE --- network
                |                        +-- ESPDMA --- ESP --- SCSI targets
                +-- interrupt controller <-- LEDMA, ESPDMA, IOMMU

What a device masters goes through the IOMMU to physical memory: RAM, and the registers of the
devices, its own among them. There is no processor: whoever drives the board is it, by `load`,
`store`, `read` and `write`, or from a socket (`machine`, for a `QtestServer`).

Invariants
 - A value is big-endian in RAM; a register sees the value, whoever writes it.
 - `busy` is false when nothing goes on that ends without help from outside: a frame that the
   network does not take, or that has not come, is such help.
 - A reset resets every device, and neither RAM nor time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from iodma.boards.sun4m.places import MOST_RAM, PLACES, QOM, WIRES, Place
from iodma.devices import Device
from iodma.devices.dma2 import EspDma, Ledma
from iodma.devices.esp import Esp
from iodma.devices.lance import Lance
from iodma.devices.sbus_iommu import SbusIommu
from iodma.devices.slavio_intctl import SlavioIntctl
from iodma.endpoints import Endpoint
from iodma.engine import Engine
from iodma.errors import ArgumentError
from iodma.memory import DeviceWindow, Memory, Ram
from iodma.scsi import Target
from iodma.stages import ByteLanes
from iodma.transports import Bus
from iodma.transports.qtest import Machine, PhysicalSpace, Pins, SteppedClock

__all__ = ["Sun4m"]

_PAGE = 4096


class Sun4m:
    """The machine. A context manager: `close` lets go of what it made.

    Args:
        engine: runs it.
        memory: RAM: its size in bytes, or a `Ram`, which stays the caller's.
        network: what LANCE's cable leads to: a packet endpoint; None: to nothing.
        targets: what is on the SCSI bus: SCSI ID, 0 to 6 -> `Target`, which stays the caller's.
        name: for messages.

    Attributes:
        ram: its RAM, from address 0.
        memory: physical memory, as DMA sees it: RAM and registers.
        space: physical memory, as its processor sees it.
        bus: the devices' registers alone, in values.
        intctl, iommu, ledma, lance, espdma, esp: the devices.
        devices: all of them, by name.
        machine: the board, for a `QtestServer`.

    Raises:
        ArgumentError: a size of RAM that is no whole number of pages, or more than 256 MiB.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        memory: int | Ram = 64 << 20,
        network: Endpoint | None = None,
        targets: Mapping[int, Target] | None = None,
        name: str = "sun4m",
    ) -> None:
        size = memory.size if isinstance(memory, Ram) else memory
        if not 0 < size <= MOST_RAM or size % _PAGE:
            raise ArgumentError(
                f"{size} bytes of RAM; whole pages, up to {MOST_RAM >> 20} MiB, would be right"
            )
        self.name = name
        self.engine = engine
        self.ram = memory if isinstance(memory, Ram) else Ram(size)
        self._owns_ram = self.ram is not memory
        self.memory = Memory({0: self.ram}, name="physical")
        self.bus = Bus(name)
        self.space = PhysicalSpace("big")
        self._view = self.ram.view()
        self.space.add_memory(0, self._view)

        self.intctl = SlavioIntctl(name="intctl")
        self.iommu = SbusIommu(self.memory, name="iommu")
        self.ledma = Ledma(self.iommu.stage, name="ledma")
        lanes = ByteLanes(self.ledma.stage, 2, name="lance lanes")
        self.lance = Lance(engine.port(lanes, "lance"), network=network, name="lance")
        self.espdma = EspDma(engine.port(self.iommu.stage, "espdma"), name="espdma")
        self.esp = Esp(self.espdma, targets or {}, name="esp")
        made = (self.intctl, self.iommu, self.ledma, self.lance, self.espdma, self.esp)
        self.devices: dict[str, Device] = {device.name: device for device in made}
        self._connect()
        self._place()
        clock = engine.clock if isinstance(engine.clock, SteppedClock) else None
        self.machine = Machine(self.space, name, self._pins(), self._busy, self.reset, clock)

    # --- putting it together ----------------------------------------------------------------------

    def _connect(self) -> None:
        for name, source in WIRES.items():
            line = self.intctl.inputs[source]
            assert line is not None
            self.devices[name].interrupt.connect(line.set)
        self.lance.interrupt.connect(self.ledma.chip_interrupt)
        self.lance.on_memory_error = lambda fault: self.ledma.memory_error()
        self.ledma.on_reset = self.lance.request_reset
        self.esp.interrupt.connect(self.espdma.chip_interrupt)
        self.espdma.on_reset = self.esp.reset_chip

    def _place(self) -> None:
        """Gives devices their windows, and has both processor and DMA see them."""
        self._windows: list[DeviceWindow] = []
        for device in self.devices.values():
            self.engine.attach(device)
        for place in PLACES:
            device = self.devices[place.device]
            if not place.offset:
                self.bus.attach(device, place.base, max(place.size, device.registers.size))
            window = _Part(device, place)
            self.space.add_window(
                place.base, place.size, window, least=place.least, most=place.most
            )
            seen = DeviceWindow(_BigEndian(window, place), place.size)
            self._windows.append(seen)
            self.memory.add(place.base, seen)

    def _pins(self) -> dict[str, Pins]:
        levels = [line for line in self.intctl.levels if line is not None]
        pins = {QOM["intctl"]: Pins(self.intctl.inputs, {"sysbus-irq": levels})}
        for name in ("iommu", "ledma", "lance", "espdma", "esp"):
            pins[QOM[name]] = Pins((), {"sysbus-irq": [self.devices[name].interrupt]})
        return pins

    # --- what its processor does ------------------------------------------------------------------

    def load(self, address: int, width: int = 4) -> int:
        """The value at a physical address: 1, 2, 4 or 8 bytes."""
        return self.space.load(address, width)

    def store(self, address: int, width: int, value: int) -> None:
        """Writes a value to a physical address: 1, 2, 4 or 8 bytes."""
        self.space.store(address, width, value)

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a physical address."""
        return self.space.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes to a physical address."""
        self.space.write(address, data)

    # --- the whole --------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything goes on that will end without help from outside."""
        return self._busy()

    def _busy(self) -> bool:
        engine = self.engine
        if engine._idle and not engine._soon:  # nobody's work goes on; it is asked often
            return False
        if self.lance.busy or self.esp.busy:
            return True
        # What a flush has taken away may be a frame that the network does not take.
        return self.iommu.busy and not self.lance.transmitter.blocked()

    async def settle(self) -> None:
        """Waits until it is not busy."""
        while self._busy():
            await self.engine.sleep(0)

    async def reset(self) -> None:
        """Resets every device; await the end."""
        for ended in [device.request_reset() for device in self.devices.values()]:
            await ended

    def close(self) -> None:
        """Lets go of windows and RAM. The engine, endpoints and targets are the caller's."""
        if not self._windows:
            return
        self._view.release()
        for base in (0, *(place.base for place in PLACES)):
            self.memory.remove(base, cancel=True)
        for window in self._windows:
            window.close()
        self._windows.clear()
        if self._owns_ram:
            self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sun4m {self.name}: {self.ram.size >> 20} MiB>"


class _Part:
    """A place: a part of a device's registers."""

    __slots__ = ("read", "write")

    def __init__(self, device: Device, place: Place) -> None:
        begin = place.offset
        self.read: Callable[[int, int], int] = device.bus_read
        self.write: Callable[[int, int, int], None] = device.bus_write
        if begin:
            self.read = lambda offset, width: device.bus_read(begin + offset, width)
            self.write = lambda offset, width, value: device.bus_write(begin + offset, width, value)


class _BigEndian:
    """Registers as DMA sees them, whose messages have the values of a little-endian bus.

    One that is wider than the window takes is several accesses; one that is narrower is refused.
    """

    __slots__ = ("_least", "_most", "_part")

    def __init__(self, part: _Part, place: Place) -> None:
        self._part = part
        self._least, self._most = place.least, place.most

    def read(self, offset: int, width: int) -> int | None:
        if width < self._least:
            return None
        step, data = min(width, self._most), b""
        for at in range(offset, offset + width, step):
            data += self._part.read(at, step).to_bytes(step, "big")
        return int.from_bytes(data, "little")

    def write(self, offset: int, width: int, value: int) -> bool:
        if width < self._least:
            return False
        step, data = min(width, self._most), value.to_bytes(width, "little")
        for at in range(0, width, step):
            self._part.write(offset + at, step, int.from_bytes(data[at : at + step], "big"))
        return True
