"""A small driver of the ESP behind its ESPDMA: what Linux's esp_scsi.c does with the chip, in the
engine's own turns, and the system that it drives.

Invariants
 - Nothing waits for time: `settle` runs the engine until the chip is not busy, within a bound.
 - Registers are accessed through the bus side of the devices, a byte (32 bits at the DMA2) each.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iodma
from iodma.devices.dma2 import EspDma, csr
from iodma.devices.esp import Esp
from iodma.scsi import Disk, LogicalUnit, Target

TCLOW, TCMED, FDATA, CMD, STATUS, INTRPT, SSTEP, FFLAGS = range(8)
CFG1, CFACT, CTEST, CFG2, CFG3, TCHI = 8, 9, 10, 11, 12, 14
BUSID, TIMEO, STP, SOFF = STATUS, INTRPT, SSTEP, FFLAGS
DMA = 0x80
NOP, FLUSH, RC, RS, TI, ICCS, MOK, TPAD, SATN, RATN = (
    *(0x00, 0x01, 0x02, 0x03),
    *(0x10, 0x11, 0x12, 0x18, 0x1A, 0x1B),
)
SEL, SELA, SELAS, ESEL, DSEL, SA3 = 0x41, 0x42, 0x43, 0x44, 0x45, 0x46
DOP, DIP, CMDP, STATP, MOP, MIP = 0, 1, 2, 3, 6, 7
INTR_RSEL, INTR_FDONE, INTR_BSERV, INTR_DC, INTR_IC, INTR_SR = 4, 8, 16, 32, 64, 128
STAT_TC, STAT_GE, STAT_INT = 0x10, 0x40, 0x80

PAGE = 4096
#: Bus addresses: the command block, and pages for data, which are scattered in memory.
BLOCK, DATA = 0x1000_0000, 0x2000_0000
PAGES = 64
TARGET = 2
TUR = bytes(6)
SYNC = b"\x35" + bytes(9)


class Unsettled(AssertionError):
    """The chip is busy and nothing happens."""


@dataclass
class System:
    """RAM, an IOMMU with scattered pages, ESPDMA, ESP, and a target with units."""

    engine: iodma.Engine
    ram: iodma.Ram
    iommu: iodma.Iommu
    espdma: EspDma
    esp: Esp
    target: Target
    file: Any
    memory: iodma.Memory

    # --- registers --------------------------------------------------------------------------------

    def write(self, register: int, value: int) -> None:
        self.esp.bus_write(4 * register, 1, value)

    def read(self, register: int) -> int:
        return self.esp.bus_read(4 * register, 1)

    def raised(self) -> bool:
        return self.esp.interrupt.level

    def busy(self) -> bool:
        return self.esp.busy

    def command(self, value: int) -> None:
        self.write(CMD, value)

    async def settle(self, turns: int = 100_000) -> None:
        for _ in range(turns):
            if not self.esp.busy:
                return
            await self.engine.sleep(0)
        raise Unsettled(f"{self.esp!r} {self.esp.bus!r}")

    async def settle_by(self, disk: Any, turns: int = 10_000) -> None:
        """Waits until it is not busy; a disk that holds requests answers them."""
        for _ in range(turns):
            if disk.waiting:
                disk.answer_all()
            if not self.esp.busy:
                return
            await self.engine.sleep(0)
        raise Unsettled(f"{self.esp!r} {self.esp.bus!r}")

    async def end(self) -> None:
        """Resets everything; no task is left."""
        await self.esp.request_reset()
        await self.target.reset()
        for _ in range(1000):
            if self.engine.stats().tasks <= 1:
                break
            await self.engine.sleep(0)

    def dma(self, address: int, count: int, to_memory: bool, value: int) -> None:
        """What sun_esp.c does to start a command with DMA."""
        self.write(TCLOW, count & 0xFF)
        self.write(TCMED, count >> 8 & 0xFF)
        word = self.espdma.bus_read(0, 4) | csr.D_EN_DMA
        word = word | csr.D_WRITE if to_memory else word & ~csr.D_WRITE
        self.espdma.bus_write(0, 4, word)
        self.espdma.bus_write(4, 4, address)
        self.command(value | DMA)

    def clear_channel(self) -> None:
        """The channel, as before any transfer; its faults are gone."""
        self.espdma.bus_write(0, 4, csr.INT_EN | csr.INVALIDATE)

    def invalidate(self) -> None:
        """What sun_esp.c does when a transfer is over."""
        word = self.espdma.bus_read(0, 4) & ~(csr.D_EN_DMA | csr.D_WRITE | csr.D_EN_CNT)
        self.espdma.bus_write(0, 4, word | csr.INVALIDATE)
        self.espdma.bus_write(0, 4, word)

    async def interrupt(self, *, settled: bool = True) -> tuple[int, int, int]:
        """Waits for one: (status, sequence step, interrupt), read in this order.

        Args:
            settled: waits until the chip is not busy; False: until it is raised.
        """
        if settled:
            await self.settle()
        else:
            for _ in range(10_000):
                if self.raised():
                    break
                await self.engine.sleep(0)
        assert self.raised(), f"no interrupt: {self.esp.bus!r}"
        return self.read(STATUS), self.read(SSTEP), self.read(INTRPT)

    # --- memory -----------------------------------------------------------------------------------

    def where(self, bus_address: int) -> int:
        """The RAM offset of a bus address."""
        found = self.iommu._find(bus_address)
        assert found is not None
        return found[2] + bus_address - found[0]

    def poke(self, bus_address: int, data: bytes) -> None:
        for at in range(0, len(data), PAGE):
            part = data[at : at + PAGE]
            assert (bus_address + at) % PAGE + len(part) <= PAGE
            with self.ram.view(self.where(bus_address + at), len(part)) as view:
                view[:] = part

    def peek(self, bus_address: int, length: int) -> bytes:
        got = b""
        while len(got) < length:
            at = bus_address + len(got)
            part = min(length - len(got), PAGE - at % PAGE)
            with self.ram.view(self.where(at), part) as view:
                got += bytes(view)
        return got

    # --- commands ---------------------------------------------------------------------------------

    async def start(
        self, cdb: bytes, *, disconnect: bool = False, settled: bool = True, **how: Any
    ) -> tuple[int, int, int]:
        """Selects, and sends a command; the interrupt that ends it.

        Args:
            how: what else `select` takes.
        """
        self.select(cdb, disconnect=disconnect, **how)
        # A target that has disconnected, or will, may keep the chip busy.
        return await self.interrupt(settled=settled and not disconnect)

    def select(
        self,
        cdb: bytes,
        *,
        lun: int = 0,
        target: int = TARGET,
        tag: int | None = None,
        disconnect: bool = False,
        by_dma: bool = True,
    ) -> None:
        message = bytes([0x80 | 0x40 * disconnect | lun])
        if tag is not None:
            message += bytes([0x20, tag])
        self.write(BUSID, target)
        code = SELA if tag is None else SA3
        if by_dma:
            self.poke(BLOCK, message + cdb)
            self.dma(BLOCK, len(message + cdb), False, code)
        else:
            for byte in message + cdb:
                self.write(FDATA, byte)
            self.command(code)

    async def start_data(self, cdb: bytes, address: int, count: int, to_memory: bool) -> None:
        """Sends a command, and starts the first piece of its data phase."""
        await self.start(cdb)
        self.dma(address, count, to_memory, TI)

    def stop_in_message_out(self) -> None:
        """Selects, and says IDENTIFY; the target then asks for more messages."""
        self.write(BUSID, TARGET)
        self.write(FDATA, 0x80)
        self.command(SELAS)

    async def take_disconnect(self) -> None:
        """In message in: DISCONNECT, and the bus is free afterwards."""
        self.command(TI)
        await self.interrupt(settled=False)
        self.command(FLUSH)
        self.command(MOK)
        assert (await self.interrupt(settled=False))[2] == INTR_DC

    async def finish(self, *, settled: bool = True) -> int:
        """In status phase: the status byte, and the bus is free afterwards."""
        self.command(ICCS)
        _, _, why = await self.interrupt(settled=settled)
        assert why == INTR_FDONE, hex(why)
        status, message = self.read(FDATA), self.read(FDATA)
        assert message == 0, "COMMAND COMPLETE"
        self.command(MOK)
        _, _, why = await self.interrupt(settled=settled)
        assert why == INTR_DC, hex(why)
        return status

    async def run(
        self, cdb: bytes, data: list[tuple[int, int]] | None = None, **how: Any
    ) -> int | None:
        """A whole command, as Linux runs it; None: nobody answers.

        Args:
            data: the pieces of the data phase, in bus addresses.
        """
        left = list(data or ())
        status, _, why = await self.start(cdb, **how)
        self.invalidate()
        while True:
            if why & INTR_DC:
                return None
            phase = status & 7
            if phase in (DOP, DIP):
                address, length = left.pop(0)
                self.dma(address, length, phase == DIP, TI)
                status, _, why = await self.interrupt()
                count = self.read(TCLOW) | self.read(TCMED) << 8
                self.invalidate()
                if count and not status & STAT_TC:
                    left.insert(0, (address + length - count, count))
            elif phase == STATP:
                return await self.finish()
            else:
                assert phase == MIP, phase
                status, why = await self.message_in()

    async def message_in(self) -> tuple[int, int]:
        """A message; after DISCONNECT, until it is reselected. (status, interrupt) at its end."""
        self.command(TI)
        _, _, why = await self.interrupt(settled=False)
        assert why == INTR_FDONE
        message = self.read(FDATA)
        self.command(MOK)
        status, _, why = await self.interrupt(settled=False)
        if message != 4:
            return status, why
        assert why == INTR_DC
        self.command(ESEL)
        return await self.reconnected()

    async def reconnected(self) -> tuple[int, int]:
        """What esp_reconnect does: the target's ID, its LUN, and its tag."""
        status, _, why = await self.interrupt(settled=False)
        assert why == INTR_RSEL | INTR_FDONE and status & 7 == MIP, (hex(why), hex(status))
        assert self.read(FDATA) == 1 << 7 | 1 << TARGET
        assert self.read(FDATA) & 0x80
        self.command(FLUSH)
        self.command(NOP)
        self.command(MOK)
        status, _, why = await self.interrupt(settled=False)
        if status & 7 == MIP:  # the tag
            self.dma(BLOCK, 2, True, TI)
            self.command(MOK)  # stacked, as esp_reconnect_with_tag does
            status, _, why = await self.interrupt(settled=False)
            assert why & INTR_FDONE
            if not why & INTR_BSERV:
                status, _, why = await self.interrupt(settled=False)
            self.invalidate()
            assert self.peek(BLOCK, 1) == b"\x20"
        return status, why


class OwnRegisters:
    """A window's target: the chip's own registers, in the way of its DMA."""

    def __init__(self, kit: System) -> None:
        self.kit = kit

    def read(self, offset: int, width: int) -> int:
        parts = bytes(self.kit.esp.bus_read(offset + n, 1) & 0xFF for n in range(width))
        return int.from_bytes(parts, "little")

    def write(self, offset: int, width: int, value: int) -> None:
        for n in range(width):
            self.kit.esp.bus_write(offset + n, 1, value >> 8 * n & 0xFF)


def go(kit: System, main: Coroutine[Any, Any, None]) -> None:
    """Runs a test, and resets everything."""

    async def whole() -> None:
        await main
        await kit.end()

    kit.engine.run(whole())
    assert not kit.esp.counts.failures and not kit.espdma.counts.failures


Units = Callable[[Any], dict[int, LogicalUnit]]


def disk_at_0(file: Any) -> dict[int, LogicalUnit]:
    return {0: Disk(file)}


@contextmanager
def system(
    engine: iodma.Engine, path: Path | None = None, units: Units = disk_at_0, *, size: int = 1 << 20
) -> Iterator[System]:
    """A system whose target has units on a file, or on memory."""
    with ExitStack() as stack:
        ram = stack.enter_context(iodma.Ram(1 << 20))
        file: Any = iodma.Buffer(size) if path is None else iodma.File(path, create=size)
        stack.enter_context(file)
        memory = iodma.Memory({0: ram})
        iommu = iodma.Iommu(memory)
        iommu.map(BLOCK, 0xFF000, PAGE)
        for page in range(PAGES):  # neighbours on the bus, not in memory
            iommu.map(DATA + page * PAGE, (page * 37 + 11) % PAGES * 2 * PAGE, PAGE)
        espdma = EspDma(stack.enter_context(engine.port(iommu, "esp")))
        target = Target(engine, units(file))
        stack.callback(target.close)
        esp = Esp(espdma, {TARGET: target})
        esp.interrupt.connect(espdma.chip_interrupt)
        espdma.on_reset = esp.reset_chip
        engine.attach(espdma)
        engine.attach(esp)
        espdma.bus_write(0, 4, csr.INT_EN)
        yield System(engine, ram, iommu, espdma, esp, target, file, memory)


def read10(lba: int, blocks: int) -> bytes:
    return b"\x28\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write10(lba: int, blocks: int) -> bytes:
    return b"\x2a\0" + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
