# SPDX-License-Identifier: Apache-2.0
"""`iodma demo sun4m`: frames and blocks through a SPARCstation 5, and what was copied on the way.

A driver program sets the IOMMU up, sends frames that cross pages, has them back from a datagram
peer, writes them as they lie in memory to a disk image, and reads them back: once with CSR3.BSWP,
when LANCE's payload is not touched, and once without, when each 16-bit word of it is swapped.

Invariants
 - What comes back is compared, frame by frame and block by block; anything else ends in an error.
 - The counters are those of the engine, and of nothing but these transfers.
"""

from __future__ import annotations

import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import iodma
from iodma.boards.sun4m import Sun4m
from iodma.scsi import Disk, Target
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.demo.peer import DemoError
from iodma.trace import attach

__all__ = ["Moved", "Pass", "Result", "render", "run"]

FRAMES = layout.FRAMES
#: Where frames that come go, and blocks that are read.
RECEIVED, READ_BACK = 0x18_0000, 0x20_0000
RECEIVE_RING = layout.RING + 0x800
ROOM = layout.STRIDE
#: Of all those buffers, in whole blocks: two commands of at most 64 KiB.
AREA = FRAMES * ROOM
DISK_BYTES = 1 << 20
WAIT_S = 20.0
SEED = 20070625

# ESP's registers and commands (NCR53C90), ESPDMA's control bits (NCR89C100).
TCLOW, TCMED, FDATA, CMD, STATUS, INTRPT, CFG1 = 0, 4, 8, 12, 16, 20, 32
NOP, RESET_CHIP, TRANSFER, COMPLETE, ACCEPT, SELECT_ATN, DMA = 0, 2, 0x10, 0x11, 0x12, 0x42, 0x80
PENDING, INT_EN, INVALIDATE, RESET, TO_MEMORY, ENABLE = 1, 0x10, 0x20, 0x80, 0x100, 0x200
MISS, MERR = 0x1000, 0x0800


@dataclass(frozen=True, slots=True)
class Moved:
    """What a part of the program has moved, in bytes.

    Attributes:
        out, back: from memory, and to memory.
        copied: payload that was copied in user space.
        why: of that, by reason; see `Reason`.
        python: bytes that became Python objects: descriptors, commands, heads of frames.
        requests: that the kernel was given.
    """

    out: int
    back: int
    copied: int
    why: dict[str, int]
    python: int
    requests: int

    @classmethod
    def between(cls, before: iodma.Stats, after: iodma.Stats) -> Moved:
        """What the engine counted from then to then."""
        reasons = asdict(after.bounced)
        del reasons["requests"]
        why = {name: n - getattr(before.bounced, name) for name, n in reasons.items()}
        return cls(
            out=after.bytes_from_memory - before.bytes_from_memory,
            back=after.bytes_to_memory - before.bytes_to_memory,
            copied=sum(why.values()),
            why={name: n for name, n in why.items() if n},
            python=after.python_bytes - before.python_bytes,
            requests=after.requests - before.requests,
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """The program, once.

    Attributes:
        bswp: CSR3.BSWP.
        frames: sent, and had back.
        network, disk: what each part has moved.
        seconds: that all of it took.
    """

    bswp: bool
    frames: int
    network: Moved
    disk: Moved
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """Both passes, and the engine that they ran on."""

    engine: str
    passes: Sequence[Pass]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Program:
    """The driver: what the machine's processor would do."""

    def __init__(self, board: Sun4m, peer: socket.socket) -> None:
        self._board = board
        self._peer = peer
        self._csr = 0

    # --- memory, as its pages lie -----------------------------------------------------------------

    def put(self, address: int, data: bytes) -> None:
        """Into the pages behind an address of the window."""
        while data:
            part = data[: layout.PAGE - address % layout.PAGE]
            self._board.write(layout.physical(address), part)
            data, address = data[len(part) :], address + len(part)

    def get(self, address: int, length: int) -> bytes:
        """From them."""
        found = b""
        while length:
            part = min(length, layout.PAGE - address % layout.PAGE)
            found += self._board.read(layout.physical(address), part)
            address, length = address + part, length - part
        return found

    def iommu(self) -> None:
        """The table, and the IOMMU on."""
        board = self._board
        board.write(layout.TABLE, layout.page_table())
        board.store(layout.IOMMU_BASE, 4, layout.TABLE >> 4)
        board.store(layout.IOMMU_CONTROL, 4, 1)
        board.store(layout.IOMMU_FLUSH_ALL, 4, 0)
        board.store(layout.LEDMA_BASE, 4, layout.WINDOW)

    # --- LANCE ------------------------------------------------------------------------------------

    def csr(self, number: int, value: int) -> None:
        """Writes a register of LANCE."""
        self._board.store(layout.RAP, 2, number)
        self._board.store(layout.RDP, 2, value)

    async def network(self, frames: Sequence[bytes], bswp: bool) -> None:
        """Sends the frames, has them back, and compares them.

        Raises:
            DemoError: they did not come, or others came.
        """
        inner = [frame if bswp else swapped(frame) for frame in frames]
        rings = (RECEIVE_RING, layout.RING_LOG2 << 13, layout.RING, layout.RING_LOG2 << 13)
        station = struct.unpack("<3H", layout.STATION)
        self.put(layout.INIT_BLOCK, layout.words(0, *station, 0, 0, 0, 0, *rings))
        for number, frame in enumerate(inner):
            self.put(layout.BUFFERS + number * layout.STRIDE, frame)
        receive = b""
        for at in range(RECEIVED, RECEIVED + AREA, ROOM):
            receive += layout.words(at, layout.OWN | at >> 16, 0xF000 | -ROOM & 0xFFF, 0)
        self.put(RECEIVE_RING, receive)
        self.put(layout.RING, layout.descriptors([len(frame) for frame in inner]))
        self.csr(0, layout.STOP)
        self.csr(1, layout.INIT_BLOCK)
        self.csr(2, 0)
        self.csr(3, layout.BSWP if bswp else 0)
        self.csr(0, layout.INIT)
        await self._board.settle()
        self.csr(0, layout.IDON | layout.STRT | layout.TDMD)
        await self._reflect(frames)
        for number, frame in enumerate(inner):
            if self.get(RECEIVED + number * ROOM, len(frame)) != frame:
                raise DemoError(f"frame {number} came back as another")
        self.csr(0, layout.STOP)
        await self._board.settle()

    async def _reflect(self, frames: Sequence[bytes]) -> None:
        """The datagram peer: sends each frame back, until the last one is in memory."""
        engine, peer = self._board.engine, self._peer
        back: list[bytes] = []
        seen = 0
        last = layout.physical(RECEIVE_RING) + 8 * (FRAMES - 1)
        end = time.monotonic() + WAIT_S
        while self._board.load(last, 4) & layout.OWN:
            try:
                while seen < len(frames):
                    frame = peer.recv(1 << 16)
                    if frame != frames[seen]:
                        raise DemoError(f"frame {seen} went out as another")
                    seen += 1
                    back.append(frame)
            except BlockingIOError:
                pass
            try:
                while back:
                    peer.send(back[0])
                    del back[0]
            except BlockingIOError:
                pass
            if self._board.load(layout.RDP, 2) & (MISS | MERR) or time.monotonic() > end:
                raise DemoError(f"LANCE has stopped at CSR0 {self._board.load(layout.RDP, 2):#x}")
            await engine.sleep(0)

    # --- ESP --------------------------------------------------------------------------------------

    def esp(self, register: int, value: int) -> None:
        """Writes a register of ESP."""
        self._board.store(layout.ESP + register, 1, value)

    def espdma(self, value: int) -> None:
        """Writes ESPDMA's control."""
        self._board.store(layout.ESPDMA_CSR, 4, value)

    def start_esp(self) -> None:
        """ESPDMA and ESP, from their resets."""
        csr = self._board.load(layout.ESPDMA_CSR, 4) & ~(RESET | PENDING)
        self._csr = csr | INT_EN
        for value in (csr | RESET, csr, self._csr):
            self.espdma(value)
        for register, value in ((CMD, RESET_CHIP), (CMD, NOP | DMA), (CFG1, 7)):
            self.esp(register, value)

    async def _interrupt(self) -> tuple[int, int]:
        """Phase and cause, when ESP interrupts."""
        await self._board.settle()
        if not self._board.load(layout.ESPDMA_CSR, 4) & PENDING:
            raise DemoError("ESP did not interrupt")
        status = self._board.load(layout.ESP + STATUS, 1)
        return status & 7, self._board.load(layout.ESP + INTRPT, 1)

    async def _dma(self, address: int, count: int, to_memory: bool, command: int) -> int:
        """A command of ESP with its DMA: the phase that the bus is in then."""
        self.esp(TCLOW, count & 0xFF)
        self.esp(TCMED, count >> 8 & 0xFF)
        self.espdma(self._csr | ENABLE | (TO_MEMORY if to_memory else 0))
        self._board.store(layout.ESPDMA_ADDR, 4, layout.WINDOW + address)
        self.esp(CMD, command | DMA)
        phase, _ = await self._interrupt()
        self.espdma(self._csr | INVALIDATE)
        self.espdma(self._csr)
        return phase

    async def command(self, cdb: bytes, address: int = 0, length: int = 0) -> int:
        """A SCSI command, with its data behind an address of the window: the status byte."""
        self.put(layout.COMMAND, b"\x80" + cdb)
        self.esp(STATUS, 0)  # bus ID: the disk's
        phase = await self._dma(layout.COMMAND, 1 + len(cdb), False, SELECT_ATN)
        if phase < 2 and length:
            phase = await self._dma(address, length & 0xFFFF, phase == 1, TRANSFER)
        if phase != 3:
            raise DemoError(f"the SCSI bus is in phase {phase}, not in the status phase")
        self.esp(CMD, COMPLETE)
        await self._interrupt()
        status = self._board.load(layout.ESP + FDATA, 1)
        self._board.load(layout.ESP + FDATA, 1)
        self.esp(CMD, ACCEPT)
        await self._interrupt()
        return status

    async def disk(self) -> None:
        """What came, as it lies in memory, to the disk and back.

        Raises:
            DemoError: a command failed, or other blocks came back.
        """
        for operation, base in ((0x2A, RECEIVED), (0x28, READ_BACK)):
            for at in range(0, AREA, layout.READ_BYTES):
                length = min(layout.READ_BYTES, AREA - at)
                block, blocks = at // layout.BLOCK, length // layout.BLOCK
                cdb = struct.pack(">BBIBHB", operation, 0, block, 0, blocks, 0)
                if status := await self.command(cdb, base + at, length):
                    raise DemoError(f"the disk answers {cdb.hex()} with status {status:#x}")
        if self.get(READ_BACK, AREA) != self.get(RECEIVED, AREA):
            raise DemoError("the blocks that were read back are not those that were written")


def swapped(data: bytes) -> bytes:
    """The two bytes of each 16-bit word exchanged."""
    found = bytearray(data)
    found[::2], found[1::2] = data[1::2], data[::2]
    return bytes(found)


def make_frames() -> list[bytes]:
    """Frames for our own station, of the longest length there is."""
    rng = Random(SEED)
    size = layout.FRAME_BYTES - 14
    head = layout.STATION + bytes.fromhex("0200000000010800")
    return [head + rng.randbytes(size) for _ in range(FRAMES)]


def run(engine: str = "auto", trace: Path | None = None) -> Result:
    """Runs the program twice, and compares.

    Args:
        engine: "auto", "uring" or "threads".
        trace: where the timeline of the first pass is written; None: nowhere.

    Raises:
        DemoError: something did not arrive as it was.
        OSError: what the demo needs of the host is not to be had.
    """
    passes = []
    for bswp in (True, False):
        kind, done = one_pass(bswp, engine, trace if bswp else None)
        passes.append(done)
    return Result(kind, passes)


def one_pass(bswp: bool, kind: str, trace: Path | None) -> tuple[str, Pass]:
    """The program, on a board of its own."""
    with ExitStack() as opened:
        engine = opened.enter_context(iodma.Engine(kind, name="sun4m", strict=True, slow_step=None))
        peer, cable = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        opened.callback(peer.close)
        with cable:
            network = opened.enter_context(iodma.Datagram(cable))
        peer.setblocking(False)
        image = opened.enter_context(tempfile.NamedTemporaryFile(prefix="iodma-sun4m-"))
        image.truncate(DISK_BYTES)
        file = opened.enter_context(iodma.File(image.name))
        target = Target(engine, Disk(file))
        opened.callback(target.close)
        board = opened.enter_context(
            Sun4m(engine, memory=layout.RAM_BYTES, network=network, targets={0: target})
        )
        program = Program(board, peer)
        if trace is not None:
            attach(engine, trace)  # until the engine is closed, whatever ends it

        async def main() -> tuple[iodma.Stats, iodma.Stats, iodma.Stats, iodma.Stats]:
            program.iommu()
            program.start_esp()
            await program.command(bytes(6))  # UNIT ATTENTION: told once after power on
            first = engine.stats()
            await program.network(make_frames(), bswp)
            second = engine.stats()
            await program.command(bytes(6))
            third = engine.stats()
            await program.disk()
            fourth = engine.stats()
            await board.reset()
            return first, second, third, fourth

        begin = time.perf_counter()
        first, second, third, fourth = engine.run(main())
        seconds = time.perf_counter() - begin
        network_part, disk_part = Moved.between(first, second), Moved.between(third, fourth)
        return engine.kind, Pass(bswp, FRAMES, network_part, disk_part, seconds)


def render(result: Result) -> str:
    """The result as text for a terminal: both passes side by side."""
    rows = [("", *(f"CSR3.BSWP={each.bswp:d}" for each in result.passes))]

    def row(name: str, *cells: str) -> None:
        rows.append((name, *cells))

    row("frames sent, had back", *(f"{each.frames}, {each.frames}" for each in result.passes))
    for name, part in (("network", "network"), ("disk", "disk")):
        moved: list[Moved] = [getattr(each, part) for each in result.passes]
        verb = "out, back" if part == "network" else "written, read"
        row(f"{name}: bytes {verb}", *(f"{each.out:,}, {each.back:,}" for each in moved))
        row(f"{name}: copied, and why", *(reasons(each) for each in moved))
        row(f"{name}: through Python", *(f"{each.python:,} bytes of control" for each in moved))
        row(f"{name}: requests", *(f"{each.requests:,}" for each in moved))
    row("seconds", *(f"{each.seconds:.3f}" for each in result.passes))
    widths = [max(len(each[column]) for each in rows) for column in range(len(rows[0]))]
    lines = [f"a SPARCstation 5 in this process, engine {result.engine}"]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def reasons(moved: Moved) -> str:
    """How much was copied, by reason."""
    why = ", ".join(f"{name} {n:,}" for name, n in moved.why.items())
    return f"{moved.copied:,} ({why})" if why else "0"
