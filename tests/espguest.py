# SPDX-License-Identifier: Apache-2.0
"""A guest's SCSI driver for an SS-5, over qtest: this machine's server, or QEMU's.

Invariants:

- It does what Linux's esp_scsi.c and sun_esp.c do with the registers, in their order.
- Its pages are scattered: neighbours on the SBus are not neighbours in RAM.
- An access is answered when what it began is over, so that an interrupt is there or will not come;
  where that is not so, as with a disk of QEMU's, it is looked for more than once.
"""

from __future__ import annotations

import struct

from tests.qtest import Qtest

IOMMU, ESPDMA, ESP = 0x1000_0000, 0x7840_0000, 0x7880_0000
TABLE = 0x20_0000
PAGE = 4096
#: The window of the IOMMU's smallest range, where pages for data are, and the command block.
WINDOW, BLOCK = 0xFF00_0000, 0xFF80_0000
PAGES, FIRST = 64, 0x40_0000

TCLOW, TCMED, FDATA, CMD, STATUS, INTRPT, SSTEP, FFLAGS = range(8)
BUSID, CFG1 = 4, 8
NOP, FLUSH, RC, RS, TI, ICCS, MOK, SELA = 0, 1, 2, 3, 0x10, 0x11, 0x12, 0x42
DMA = 0x80
ENABLE, TO_MEMORY, INVALIDATE, RESET, INT_EN = 0x200, 0x100, 0x20, 0x80, 0x10


class EspGuest:
    """The driver.

    Args:
        machine: a connection.
        target: the disk's SCSI ID.
        polls: how often it looks for an interrupt.
    """

    def __init__(self, machine: Qtest, target: int = 0, polls: int = 1) -> None:
        self.machine = machine
        self.target = target
        self.polls = polls

    def set_up(self) -> None:
        """The IOMMU, with all its pages mapped, the ESPDMA and the chip."""
        machine = self.machine
        table = [0] * 4096
        for page in range(PAGES):
            table[page] = self.page(page) >> 4 | 6
        table[(BLOCK - WINDOW) // PAGE] = (FIRST - PAGE) >> 4 | 6
        machine.store(TABLE, struct.pack(">4096I", *table))
        machine.write(IOMMU + 4, TABLE >> 4)
        machine.write(IOMMU, 1)
        machine.write(IOMMU + 0x14, 0)
        csr = machine.read(ESPDMA)
        machine.write(ESPDMA, csr | RESET)
        machine.write(ESPDMA, csr & ~RESET)
        machine.write(ESPDMA, machine.read(ESPDMA) | INT_EN)
        self.write(CMD, RC)
        self.write(CMD, NOP | DMA)
        self.write(CFG1, 7)

    @staticmethod
    def page(number: int) -> int:
        """Where a page of the window is in RAM."""
        return FIRST + (number * 37 + 11) % PAGES * 2 * PAGE

    # --- registers --------------------------------------------------------------------------------

    def write(self, register: int, value: int) -> None:
        self.machine.write(ESP + 4 * register, value, 1)

    def read(self, register: int) -> int:
        return self.machine.read(ESP + 4 * register, 1)

    def dma(self, address: int, count: int, to_memory: bool, command: int) -> None:
        self.write(TCLOW, count & 0xFF)
        self.write(TCMED, count >> 8 & 0xFF)
        csr = self.machine.read(ESPDMA) | ENABLE
        self.machine.write(ESPDMA, csr | TO_MEMORY if to_memory else csr & ~TO_MEMORY)
        self.machine.write(ESPDMA + 4, address)
        self.write(CMD, command | DMA)

    def invalidate(self) -> None:
        csr = self.machine.read(ESPDMA) & ~(ENABLE | TO_MEMORY)
        self.machine.write(ESPDMA, csr | INVALIDATE)
        self.machine.write(ESPDMA, csr)

    def interrupt(self) -> tuple[int, int]:
        """(status, interrupt), when ESPDMA has one pending. QEMU's disk answers when it likes."""
        for _ in range(self.polls):
            if self.machine.read(ESPDMA) & 1:
                break
        else:
            raise AssertionError("no interrupt")
        return self.read(STATUS), self.read(INTRPT)

    # --- commands ---------------------------------------------------------------------------------

    def command(self, cdb: bytes, length: int = 0, to_memory: bool = True, at: int = 0) -> int:
        """A whole command with a data phase of at most 64 KiB, `at` bytes into the window.

        Returns:
            The status byte; -1: nobody answered.
        """
        self.machine.store(FIRST - PAGE, b"\x80" + cdb)
        self.write(BUSID, self.target)
        self.dma(BLOCK, 1 + len(cdb), False, SELA)
        status, why = self.interrupt()
        self.invalidate()
        if why == 0x20:
            return -1
        assert why == 0x18, hex(why)
        if length:
            assert status & 7 == to_memory, hex(status)
            self.dma(WINDOW + at, length, to_memory, TI)
            status, why = self.interrupt()
            self.invalidate()
            assert why == 0x10, hex(why)
        assert status & 7 == 3, hex(status)
        self.write(CMD, ICCS)
        status, why = self.interrupt()
        assert why == 8 and self.read(FFLAGS) & 0x1F == 2
        result, message = self.read(FDATA), self.read(FDATA)
        assert message == 0
        self.write(CMD, MOK)
        assert self.interrupt()[1] == 0x20
        return result

    def sense(self) -> bytes:
        """REQUEST SENSE."""
        assert self.command(b"\x03\0\0\0\x12\0", 18) == 0
        return self.get(0, 18)

    def transfer(self, lba: int, blocks: int, *, write: bool = False, at: int = 0) -> int:
        """READ(10) or WRITE(10) of at most 64 KiB."""
        cdb = struct.pack(">BBIBHB", 0x2A if write else 0x28, 0, lba, 0, blocks, 0)
        return self.command(cdb, blocks * 512, not write, at)

    # --- memory -----------------------------------------------------------------------------------

    def put(self, at: int, data: bytes) -> None:
        """Into the window's pages."""
        while data:
            length = min(len(data), PAGE - at % PAGE)
            self.machine.store(self.page(at // PAGE) + at % PAGE, data[:length])
            at, data = at + length, data[length:]

    def get(self, at: int, length: int) -> bytes:
        got = b""
        while length:
            part = min(length, PAGE - at % PAGE)
            got += self.machine.load(self.page(at // PAGE) + at % PAGE, part)
            at, length = at + part, length - part
        return got
