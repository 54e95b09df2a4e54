# SPDX-License-Identifier: Apache-2.0
"""The drivers of `iodma bench sun4m`: a program that is the machine's processor, over qtest.

Invariants
 - Lines that need no answer of each other go together, as one write; every answer is looked at.
 - It knows registers and memory, not whose machine it drives.
"""

from __future__ import annotations

import base64
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.harness import BenchError

__all__ = ["DiskDriver", "Machine", "NetworkDriver"]

ANSWER_S = 10.0

# ESP's registers, 4 bytes apart, and commands (NCR53C90).
TCLOW, TCMED, FDATA, CMD, STATUS, INTRPT, SSTEP, FFLAGS = range(0, 32, 4)
BUSID, CFG1 = STATUS, 32
NOP, RESET_CHIP, TRANSFER, COMPLETE, ACCEPT, SELECT_ATN, DMA = 0, 2, 0x10, 0x11, 0x12, 0x42, 0x80
# ESPDMA's control and status.
PENDING, INT_EN, INVALIDATE, RESET, TO_MEMORY, ENABLE = 1, 0x10, 0x20, 0x80, 0x100, 0x200


def store(address: int, data: bytes) -> str:
    """A line that puts bytes into memory."""
    return f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}"


class Machine:
    """A connection to a qtest server."""

    def __init__(self, path: Path) -> None:
        self._stream = socket.socket(socket.AF_UNIX)
        try:
            self._stream.settimeout(ANSWER_S)
            self._stream.connect(str(path))
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        self._stream.close()

    def send(self, data: bytes, lines: int) -> list[bytes]:
        """Sends so many lines, and gives what is behind OK in each answer.

        Raises:
            BenchError: one was refused, or was not answered in time.
        """
        try:
            self._stream.sendall(data)
            said = self._stream.recv(1 << 16)
            while said.count(b"\n") < lines:
                more = self._stream.recv(1 << 16)
                if not more:
                    break
                said += more
        except OSError as error:
            raise BenchError(f"a machine did not answer: {error}") from None
        answers = said.split(b"\n")[:-1]
        if len(answers) != lines or not all(each.startswith(b"OK") for each in answers):
            raise BenchError(f"a machine refused {data[:200]!r}: {said[-200:]!r}")
        return [each[3:] for each in answers]

    def do(self, *lines: str) -> list[int]:
        """The values of the answers; 0 where there is none."""
        data = "".join(f"{line}\n" for line in lines).encode()
        return [int(each, 0) if each else 0 for each in self.send(data, len(lines))]

    def load(self, address: int, length: int) -> bytes:
        """Bytes of memory."""
        line = f"b64read {address:#x} {length:#x}\n".encode()
        return base64.b64decode(self.send(line, 1)[0])

    def set_up(self) -> None:
        """The IOMMU."""
        self.do(
            store(layout.TABLE, layout.page_table()),
            f"writel {layout.IOMMU_BASE:#x} {layout.TABLE >> 4:#x}",
            f"writel {layout.IOMMU_CONTROL:#x} 1",
            f"writel {layout.IOMMU_FLUSH_ALL:#x} 0",
        )

    def put(self, address: int, data: bytes) -> None:
        """Into the pages behind an address of the window."""
        lines = []
        while data:
            part = data[: layout.PAGE - address % layout.PAGE]
            lines.append(store(layout.physical(address), part))
            data, address = data[len(part) :], address + len(part)
        self.do(*lines)

    def get(self, address: int, length: int) -> bytes:
        """From the pages behind an address of the window."""
        found = b""
        while length:
            part = min(length, layout.PAGE - address % layout.PAGE)
            found += self.load(layout.physical(address), part)
            address, length = address + part, length - part
        return found


class NetworkDriver:
    """LANCE's: a ring that is given away whole.

    Args:
        frames: what each descriptor sends, as on the wire.
        bswp: CSR3.BSWP.
    """

    def __init__(self, machine: Machine, frames: Sequence[bytes], bswp: bool = True) -> None:
        self._machine = machine
        machine.do(f"writel {layout.LEDMA_BASE:#x} {layout.WINDOW:#x}")
        machine.put(layout.INIT_BLOCK, layout.initialization_block())
        for number, frame in enumerate(frames):
            if not bswp:
                swapped = bytearray(frame)
                swapped[::2], swapped[1::2] = frame[1::2], frame[::2]
                frame = bytes(swapped)
            machine.put(layout.BUFFERS + number * layout.STRIDE, frame)
        self._ring = layout.descriptors([len(frame) for frame in frames])
        at = layout.physical(layout.RING)
        free = bytearray(self._ring)
        free[2::8] = bytes(byte & 0x7F for byte in self._ring[2::8])
        self._free = bytes(free)
        machine.do(store(at, self._free))
        for number, value in (
            (0, layout.STOP),
            (1, layout.INIT_BLOCK & 0xFFFF),
            (2, layout.INIT_BLOCK >> 16),
            (3, layout.BSWP if bswp else 0),
            (0, layout.INIT),
            (0, layout.IDON | layout.STRT),
        ):
            machine.do(f"writew {layout.RAP:#x} {number}", f"writew {layout.RDP:#x} {value:#x}")
        demand = f"writew {layout.RDP:#x} {layout.TINT | layout.TDMD:#x}\n"
        self._batch = f"{store(at, self._ring)}\n{demand}".encode()
        self._look = f"readl {at + len(self._ring) - 8:#x}"

    def batch(self) -> None:
        """Gives every descriptor away, and demands that they are sent."""
        self._machine.send(self._batch, 2)

    def given_back(self) -> bool:
        """Whether the last descriptor is the driver's again."""
        return not self._machine.do(self._look)[0] & layout.OWN

    def check(self) -> None:
        """Sees that all were given back without an error.

        Raises:
            BenchError: they were not.
        """
        ring = self._machine.load(layout.physical(layout.RING), len(self._ring))
        if ring != self._free:
            raise BenchError(f"LANCE gave its descriptors back as {ring[:16].hex()}...")


class DiskDriver:
    """ESP's: READ(10) of 64 KiB, from a disk that is target 0."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        csr = machine.do(f"readl {layout.ESPDMA_CSR:#x}")[0] & ~(RESET | PENDING)
        self._csr = csr | INT_EN
        machine.do(
            csr_line(csr | RESET),
            csr_line(csr),
            csr_line(self._csr),
            write(CMD, RESET_CHIP),
            write(CMD, NOP | DMA),
            write(CFG1, 7),
        )
        self._causes = (f"readb {layout.ESP + STATUS:#x}", f"readb {layout.ESP + INTRPT:#x}")
        self._invalidate = (csr_line(self._csr | INVALIDATE), csr_line(self._csr))
        self._second = lines(
            *self._causes,
            *self._invalidate,
            write(CMD, COMPLETE),
            f"readl {layout.ESPDMA_CSR:#x}",
            *self._causes,
            f"readb {layout.ESP + FFLAGS:#x}",
            f"readb {layout.ESP + FDATA:#x}",
            f"readb {layout.ESP + FDATA:#x}",
            write(CMD, ACCEPT),
            f"readl {layout.ESPDMA_CSR:#x}",
            *self._causes,
        )
        self.read(0, ready=False)  # UNIT ATTENTION, which is told once

    def _dma(self, address: int, count: int, to_memory: bool, command: int) -> tuple[str, ...]:
        return (
            write(TCLOW, count & 0xFF),
            write(TCMED, count >> 8 & 0xFF),
            csr_line(self._csr | ENABLE | (TO_MEMORY if to_memory else 0)),
            f"writel {layout.ESPDMA_ADDR:#x} {layout.WINDOW + address:#x}",
            write(CMD, command | DMA),
        )

    def _pending(self, *begin: str) -> None:
        """Does these lines, and waits for the interrupt that they lead to."""
        look = f"readl {layout.ESPDMA_CSR:#x}"
        csr = self._machine.do(*begin, look)[-1]
        end = time.monotonic() + ANSWER_S
        while not csr & PENDING:
            csr = self._machine.do(look)[0]
            if time.monotonic() > end:
                raise BenchError("ESP did not interrupt in time")

    def read(self, position: int, *, ready: bool = True) -> None:
        """Reads 64 KiB at a byte of the disk; `ready`: it has to.

        Raises:
            BenchError: something went otherwise than it should.
        """
        block, count = position // layout.BLOCK, layout.READ_BYTES // layout.BLOCK
        cdb = struct.pack(">BBIBHB", 0x28, 0, block, 0, count, 0)
        self._pending(
            store(layout.physical(layout.COMMAND), b"\x80" + cdb),
            write(BUSID, 0),
            *self._dma(layout.COMMAND, 1 + len(cdb), False, SELECT_ATN),
        )
        status, cause = self._machine.do(*self._causes, *self._invalidate)[:2]
        if cause != 0x18:
            raise BenchError(f"ESP was selected with cause {cause:#x}, status {status:#x}")
        if status & 7 == 1:
            self._pending(*self._dma(layout.DATA, layout.READ_BYTES & 0xFFFF, True, TRANSFER))
        elif ready:
            raise BenchError(f"ESP came to phase {status & 7} instead of data")
        answers = self._machine.send(*self._second)
        if ready and int(answers[9], 0):
            raise BenchError(f"READ(10) ended with status {int(answers[9], 0):#x}")


def write(register: int, value: int) -> str:
    """A line that writes a register of ESP."""
    return f"writeb {layout.ESP + register:#x} {value:#x}"


def csr_line(value: int) -> str:
    """A line that writes ESPDMA's control."""
    return f"writel {layout.ESPDMA_CSR:#x} {value:#x}"


def lines(*each: str) -> tuple[bytes, int]:
    """As `Machine.send` takes them."""
    return "".join(f"{line}\n" for line in each).encode(), len(each)
