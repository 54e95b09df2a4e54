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

    def select(self, cdb: bytes, *, target: int = 0, lun: int = 0) -> None:
        """Selection and command phase, in one of the ways that drivers do it."""
        script = self.script
        self.register(BUS_ID, target)
        self.register(TIMEOUT, 0x93)
        self.command(FLUSH)
        with_atn = script.chance(0.8)
        said = (bytes([IDENTIFY | lun]) if with_atn else b"") + cdb
        code = SELECT_ATN if with_atn else SELECT
        if script.chance(0.6):
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
            at = self.room(piece, 32 if size <= 32 else 4)  # sense is within a page
            if not to_memory:
                script.bus_store(at, content[done : done + piece])
            self.count(piece)
            self.channel(at, piece, to_memory)
            self.command(TRANSFER | DMA)
            self.service()
            done += piece

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

    def none(self, cdb: bytes, **where: int) -> None:
        """A command without data."""
        self.select(cdb, **where)
        self.finish()

    def into_memory(self, cdb: bytes, size: int) -> None:
        self.select(cdb)
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
