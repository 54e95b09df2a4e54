# SPDX-License-Identifier: Apache-2.0
"""Programs for ESPDMA and ESP: a host adapter's driver, with a disk at target 0.

Invariants:

- What is compared is compared between phases: after the interrupt that ends a command of the chip,
  and before the next one. Registers are read as drivers do: status, sequence step, interrupt.
- Transfers with DMA go through pages of the arena in a drawn order, and end within them.

Sources: NCR53C90 ("Command Set", "Registers"), DMA2 (D_CSR), SPC-2 and SBC-2 for what is sent.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from tests.peers.sun4m.machine import (
    BLOCK_BYTES,
    BLOCKS,
    D_ADDR,
    D_BCNT,
    D_CSR,
    ESP,
    ESPDMA,
    INTCTL,
    IOMMU_FLUSH_ALL,
    PAGE,
)
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.script import PAGES, WINDOW, Script

# Registers, by their number; they are 4 bytes apart (NCR53C90, "Register Set").
TCLOW, TCMED, FIFO, COMMAND = 0, 1, 2, 3
STATUS, INTERRUPT, STEP, FLAGS, CONFIG1 = 4, 5, 6, 7, 8
BUS_ID, TIMEOUT, PERIOD, OFFSET = 4, 5, 6, 7
# Commands.
NOP, FLUSH, RESET_CHIP, RESET_BUS = 0x00, 0x01, 0x02, 0x03
TRANSFER, COMPLETE, ACCEPT, PAD = 0x10, 0x11, 0x12, 0x18
SELECT, SELECT_ATN, SELECT_ATN_STOP, ENABLE_SELECTION = 0x41, 0x42, 0x43, 0x44
SET_ATN, RESET_ATN = 0x1A, 0x1B
DMA = 0x80
# ESPDMA's D_CSR.
INT_EN, RESET, TO_MEMORY, EN_DMA = 0x10, 0x80, 0x100, 0x200

IDENTIFY = 0x80
FIFO_BYTES = 16


class Adapter:
    """A driver of one bus, and where its buffers are.

    Attributes:
        heap: within the window, where the next buffer may be.
    """

    def __init__(self, script: Script) -> None:
        self.script, self.rng = script, script.rng
        self.heap = 0

    def set_up(self) -> None:
        script = self.script
        script.iommu()
        script.map_all()
        script.write(IOMMU_FLUSH_ALL, 0)
        script.write(ESPDMA + D_CSR, RESET)
        script.write(ESPDMA + D_CSR, INT_EN)
        self.command(RESET_CHIP)
        self.command(NOP | DMA)
        self.register(CONFIG1, 7)
        self.command(RESET_BUS)
        self.service()

    def register(self, number: int, value: int) -> None:
        self.script.write(ESP + 4 * number, value, 1)

    def read(self, number: int) -> None:
        self.script.read(ESP + 4 * number, 1)

    def command(self, value: int) -> None:
        self.register(COMMAND, value)

    def service(self, *, fifo: bool = False) -> None:
        """What an interrupt handler reads; reading the interrupt register takes the line back."""
        self.script.check()
        self.read(STATUS)
        self.read(STEP)
        if fifo:
            self.read(FLAGS)
        self.read(INTERRUPT)
        self.script.read(INTCTL)

    def room(self, size: int, align: int = 1) -> int:
        gap = self.rng.choice([0, 0, 4, 100, 2000])
        at = -(-(self.heap + gap) // align) * align
        if at + size > PAGES * PAGE:
            at = 0
        self.heap = at + size
        return at

    def count(self, size: int) -> None:
        self.register(TCLOW, size & 0xFF)
        self.register(TCMED, size >> 8 & 0xFF)

    def channel(self, address: int, size: int, to_memory: bool) -> None:
        """Points ESPDMA at a buffer of the window."""
        script = self.script
        script.write(ESPDMA + D_CSR, INT_EN)
        script.write(ESPDMA + D_ADDR, WINDOW + address)
        if script.chance(0.5):
            script.write(ESPDMA + D_BCNT, size)
        script.write(ESPDMA + D_CSR, INT_EN | EN_DMA | (TO_MEMORY if to_memory else 0))

    # --- phases -----------------------------------------------------------------------------------

    def select(self, cdb: bytes, *, target: int = 0, lun: int = 0, atn: bool = False) -> None:
        """Selection and command phase, in one of the ways that drivers do it."""
        script = self.script
        self.register(BUS_ID, target)
        self.register(TIMEOUT, 0x93)
        self.command(FLUSH)
        with_atn = script.chance(0.8) or bool(lun) or atn
        said = (bytes([IDENTIFY | lun]) if with_atn else b"") + cdb
        code = SELECT_ATN if with_atn else SELECT
        if script.chance(0.6) or len(said) > FIFO_BYTES:
            at = self.room(len(said))
            script.bus_store(at, said)
            self.count(len(said))
            self.channel(at, len(said), to_memory=False)
            self.command(code | DMA)
        else:
            for byte in said:
                self.register(FIFO, byte)
            self.command(code)
        self.service()

    def data(self, size: int, *, to_memory: bool, content: bytes = b"") -> None:
        """A data phase, in pieces."""
        script = self.script
        done = 0
        while done < size:
            piece = size - done
            if script.chance(0.3) and piece > 1024:
                piece = self.rng.randrange(512, piece, 512)
            self.transfer(piece, to_memory, content[done : done + piece])
            done += piece

    def transfer(self, size: int, to_memory: bool, content: bytes = b"") -> None:
        """A command of the chip that moves data with DMA."""
        at = self.room(size, 32 if size <= 32 else 4)  # sense is within a page
        if not to_memory:
            self.script.bus_store(at, content)
        self.count(size)
        self.channel(at, size, to_memory)
        self.command(TRANSFER | DMA)
        self.service()

    def finish(self) -> None:
        """Status and message, then the message is accepted."""
        script = self.script
        if script.chance(0.7):
            self.command(COMPLETE)
            self.service(fifo=True)
            self.read(FIFO)
            self.read(FIFO)
        else:
            at = self.room(2)
            self.count(2)
            self.channel(at, 2, to_memory=True)
            self.command(COMPLETE | DMA)
            self.service()
        self.command(ACCEPT)
        self.service()

    # --- commands ---------------------------------------------------------------------------------

    def none(self, cdb: bytes, **where: Any) -> None:
        """A command without data."""
        self.select(cdb, **where)
        self.finish()

    def into_memory(self, cdb: bytes, size: int, **where: Any) -> None:
        self.select(cdb, **where)
        self.data(size, to_memory=True)
        self.finish()

    def sense(self) -> None:
        self.into_memory(bytes([0x03, 0, 0, 0, 18, 0]), 18)

    def attention(self) -> None:
        """The unit attention of a power-on or a reset is taken."""
        self.none(bytes(6))
        self.sense()

    def blocks(self) -> tuple[int, int]:
        count = self.rng.choice([1, 1, 2, 3, 8, 16])
        return self.rng.randrange(0, BLOCKS - count + 1), count

    def read_blocks(self) -> None:
        first, count = self.blocks()
        self.into_memory(self.cdb(0x08, 0x28, first, count), count * BLOCK_BYTES)

    def write_blocks(self) -> None:
        first, count = self.blocks()
        size = count * BLOCK_BYTES
        self.select(self.cdb(0x0A, 0x2A, first, count))
        self.data(size, to_memory=False, content=self.rng.randbytes(size))
        self.finish()

    def cdb(self, short: int, long: int, first: int, count: int) -> bytes:
        if self.rng.random() < 0.4:
            return bytes([short, first >> 16, first >> 8 & 0xFF, first & 0xFF, count, 0])
        return struct.pack(">BBIBHB", long, 0, first, 0, count, 0)

    def past_the_end(self) -> None:
        self.none(self.cdb(0x08, 0x28, BLOCKS + self.rng.randrange(100), 1))
        self.sense()

    def unknown(self) -> None:
        self.none(bytes([0xC5, 0, 0, 0, 0, 0]))
        self.sense()

    def capacity(self) -> None:
        self.into_memory(bytes([0x25]) + bytes(9), 8)

    def nobody(self) -> None:
        """A target that is not there: the selection times out."""
        self.select(bytes(6), target=self.rng.randint(1, 6))

    def reset_bus(self) -> None:
        self.command(RESET_BUS)
        self.service()
        self.attention()

    def ready(self) -> None:
        self.none(bytes(6))

    def miscellaneous(self) -> None:
        """Commands of the chip that move nothing."""
        match self.rng.randrange(5):
            case 0:
                self.command(NOP)
            case 1:
                for _ in range(self.rng.randint(1, 8)):
                    self.register(FIFO, self.rng.getrandbits(8))
                self.read(FLAGS)
                self.command(FLUSH)
                self.read(FLAGS)
            case 2:
                self.count(self.rng.getrandbits(16))
                self.command(NOP | DMA)
                self.read(TCLOW)
                self.read(TCMED)
            case 3:
                self.register(CONFIG1, self.rng.getrandbits(8) & 0x40 | 7)
                self.read(CONFIG1)
            case 4:
                self.command(RESET_CHIP)
                self.command(NOP | DMA)
                self.register(CONFIG1, 7)
        self.script.check()


class Wide(Adapter):
    """... that uses more of the chip, and more commands, and is interrupted."""

    def cdb(self, short: int, long: int, first: int, count: int) -> bytes:
        """Also of 12 and 16 bytes."""
        match self.rng.randrange(4):
            case 0:
                return struct.pack(">BBIIBB", long | 0x80, 0, first, count, 0, 0)
            case 1:
                code = (long & 0x0F) | 0x80
                return struct.pack(">BBQIBB", code, 0, first, count, 0, 0)
        return super().cdb(short, long, first, count)

    def nothing(self) -> None:
        """Commands on the medium that move no data."""
        first, count = self.blocks()
        ten = struct.pack(">IBHB", first, 0, count, 0)
        self.none(
            self.rng.choice(
                [
                    b"\x35\x00" + ten,  # SYNCHRONIZE CACHE
                    b"\x2f\x00" + ten,  # VERIFY
                    b"\x28\x00" + ten[:5] + bytes(3),  # READ of no blocks
                    b"\x2a\x00" + ten[:5] + bytes(3),
                    bytes([0x16, 0, 0, 0, 0, 0]),  # RESERVE
                    bytes([0x17, 0, 0, 0, 0, 0]),  # RELEASE
                    bytes([0x1B, 0, 0, 0, 1, 0]),  # START
                ]
            )
        )

    def luns(self) -> None:
        self.into_memory(struct.pack(">BBIIBB", 0xA0, 0, 0, 16, 0, 0), 16)

    def another_lun(self) -> None:
        lun = self.rng.randint(1, 7)
        self.none(bytes(6), lun=lun)
        self.into_memory(bytes([0x03, 0, 0, 0, 18, 0]), 18, lun=lun)
        self.none(bytes(6), atn=True)  # without IDENTIFY, QEMU has the LUN from before

    def cut_short(self) -> None:
        """The bus is reset in the middle of a command."""
        first, count = self.blocks()
        size = count * BLOCK_BYTES
        reads = self.rng.random() < 0.5
        self.select(self.cdb(*((0x08, 0x28) if reads else (0x0A, 0x2A)), first, count))
        if reads and self.rng.random() < 0.5 and size > BLOCK_BYTES:
            part = self.rng.randrange(BLOCK_BYTES, size, BLOCK_BYTES)
            self.transfer(part, True)  # what was written by then is nobody's promise
        self.command(RESET_BUS)
        self.script.check()
        self.read(INTERRUPT)
        self.command(RESET_CHIP)  # as drivers do; QEMU's is in the middle of the command otherwise
        self.command(NOP | DMA)
        self.register(CONFIG1, 7)
        self.attention()

    def too_much(self) -> None:
        """More is asked for than there is: the target goes on to its status."""
        first, count = self.blocks()
        size = count * BLOCK_BYTES
        self.select(self.cdb(0x08, 0x28, first, count))
        self.transfer(size + self.rng.choice([1, 2, 100, 512]), True)
        self.read(TCLOW)
        self.read(TCMED)
        self.finish()

    def enabled_late(self) -> None:
        """The transfer is begun before ESPDMA answers requests."""
        first, count = self.blocks()
        size = count * BLOCK_BYTES
        self.select(self.cdb(0x08, 0x28, first, count))
        at = self.room(size, 4)
        self.count(size)
        self.script.write(ESPDMA + D_CSR, INT_EN)
        self.script.write(ESPDMA + D_ADDR, WINDOW + at)
        self.command(TRANSFER | DMA)
        self.script.check()
        self.script.write(ESPDMA + D_CSR, INT_EN | EN_DMA | TO_MEMORY)
        self.service()
        self.finish()

    def faulty(self) -> None:
        """A page of the buffer may not be written, or is not there."""
        first, count = self.blocks()
        size = count * BLOCK_BYTES
        self.select(self.cdb(0x08, 0x28, first, count))
        at = self.room(size, 4)
        page = self.rng.randrange(at // PAGE, (at + size - 1) // PAGE + 1)
        valid = self.rng.random() < 0.5
        self.script.map(page, self.script.pages[page], writable=False, valid=valid)
        self.script.flush(page)
        self.count(size)
        self.channel(at, size, to_memory=True)
        self.command(TRANSFER | DMA)
        self.script.check()


def scsi(seed: int) -> Program:
    """A driver that reads and writes blocks, and what goes wrong in that."""
    rng = random.Random(seed)
    script = Script(rng)
    adapter = Adapter(script)
    adapter.set_up()
    adapter.attention()
    does = [
        *(4 * [adapter.read_blocks] + 4 * [adapter.write_blocks] + [adapter.ready]),
        *(2 * [adapter.miscellaneous] + [adapter.past_the_end, adapter.unknown]),
        *(adapter.capacity, adapter.nobody, adapter.reset_bus),
    ]
    for _ in range(rng.randint(1, 8)):
        rng.choice(does)()
    return script.program("scsi", seed)


def scsi_wide(seed: int) -> Program:
    """More of the chip and of the commands, and what cuts them short."""
    rng = random.Random(seed)
    script = Script(rng)
    adapter = Wide(script)
    adapter.set_up()
    adapter.attention()
    does = [
        *(adapter.read_blocks, adapter.write_blocks, adapter.nothing, adapter.nothing),
        *(adapter.luns, adapter.another_lun, adapter.cut_short, adapter.cut_short),
        *(adapter.too_much, adapter.enabled_late, adapter.past_the_end, adapter.sense),
    ]
    for _ in range(rng.randint(1, 6)):
        rng.choice(does)()
    if script.chance(0.3):
        adapter.faulty()
    return script.program("scsi_wide", seed)
