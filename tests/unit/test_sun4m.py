"""The SPARCstation 5: where things are, who is connected to whom, and DMA through all of it."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from iodma import ArgumentError, Datagram, Engine, Ram
from iodma.boards.sun4m import PLACES, Sun4m
from iodma.devices.slavio_intctl import Line
from iodma.testing import strict_engine
from iodma.transports.qtest import QtestServer, SteppedClock
from tests.peers.sun4m.machine import RAP, RDP
from tests.peers.sun4m.script import (
    BSWP,
    ENP,
    ERR,
    IDON,
    INEA,
    INIT,
    INTR,
    MERR,
    OWN,
    RINT,
    RXON,
    STOP,
    STP,
    STRT,
    TINT,
    TXON,
    descriptor,
    init_block,
)
from tests.qtest import Qtest
from tests.unit.engines import run

IOMMU, ESPDMA, LEDMA = 0x1000_0000, 0x7840_0000, 0x7840_0010
INTCTL, SYSTEM = 0x71E0_0000, 0x71E1_0000
TABLE = 0x10_0000


@pytest.fixture
def board() -> Iterator[Sun4m]:
    with strict_engine(slow_step=None) as engine, Sun4m(engine, memory=4 << 20) as board:
        yield board


def map_page(board: Sun4m, bus: int, physical: int) -> None:
    """A page of the smallest range, which is the last 16 MiB."""
    board.store(TABLE + (bus - 0xFF00_0000) // 4096 * 4, 4, physical >> 4 | 6)
    board.store(IOMMU + 4, 4, TABLE >> 4)
    board.store(IOMMU, 4, 1)
    board.store(IOMMU + 0x14, 4, 0)


def test_each_part_answers_where_it_is(board: Sun4m) -> None:
    assert board.load(IOMMU) == 0x0500_0000
    assert board.load(LEDMA) >> 28 == board.load(ESPDMA) >> 28 == 0xA
    board.store(LEDMA + 12, 4, 0xFF00_0000)
    assert board.ledma.base_addr == 0xFF00_0000
    board.store(SYSTEM + 12, 4, 1 << Line.SCSI)
    assert board.load(SYSTEM + 4) == 1 << Line.SCSI
    board.store(INTCTL + 8, 4, 1 << 17)
    assert board.load(INTCTL) == 1 << 17
    assert board.load(0x7000_0000) == 0


def test_ram_is_big_endian(board: Sun4m) -> None:
    board.store(0x1000, 4, 0x0102_0304)
    assert board.read(0x1000, 5) == b"\1\2\3\4\0" == bytes(board.ram.view(0x1000, 5))
    board.write(0x1001, b"\xff")
    assert board.load(0x1000, 8) == 0x01FF_0304_0000_0000


def test_a_fault_of_the_iommu_is_level_15(board: Sun4m) -> None:
    map_page(board, 0xFF00_1000, 0x2000)

    async def main() -> None:
        done = await board.espdma.port.load_bytes(0xFF00_1000, 4)
        assert done == b"\0\0\0\0"
        with pytest.raises(Exception, match="0xff002000"):
            await board.espdma.port.load_bytes(0xFF00_2000, 4)

    run(board.engine, main)
    assert board.load(SYSTEM) == 1 << Line.MODULE_ERROR
    assert board.load(INTCTL) == 1 << 15
    assert board.load(IOMMU + 0x1004) == 0xFF00_2000
    assert board.load(SYSTEM) == 0


def test_dma_reaches_registers_as_the_processor_does(board: Sun4m) -> None:
    """A store of big-endian words: to what a page of the IOMMU leads to."""
    map_page(board, 0xFF00_1000, LEDMA & ~0xFFF)
    port = board.espdma.port

    async def main() -> None:
        await port.store(">I", 0xFF00_101C, 0x1200_0000)
        assert await port.load(">I", 0xFF00_101C) == (0x1200_0000,)
        # The IOMMU's own, from a transfer that it translates.
        board.store(TABLE + 8, 4, IOMMU >> 4 | 6)
        await port.store(">II", 0xFF00_2000, 0x5, 0x0)

    run(board.engine, main)
    assert board.ledma.base_addr == 0x1200_0000
    assert board.load(IOMMU) == 0x0500_0005
    # What is narrower than a register takes is a bus error; of DMA2 it is one that DMA2 counts.
    assert all(each.counts.bad_writes == 0 for each in board.devices.values())


def test_reset_is_of_devices_and_not_of_ram(board: Sun4m) -> None:
    board.store(0x1000, 4, 7)
    board.store(IOMMU, 4, 1)
    board.store(LEDMA + 12, 4, 0xFF00_0000)
    board.store(SYSTEM + 12, 4, 1 << Line.SCSI)
    board.engine.run(board.reset())
    assert board.load(0x1000) == 7
    assert board.load(IOMMU) == 0x0500_0000
    assert board.load(LEDMA + 12) == board.load(SYSTEM + 4) == 0
    assert not board.busy


def test_ram_may_be_the_callers() -> None:
    with strict_engine() as engine, Ram(1 << 20) as ram:
        with Sun4m(engine, memory=ram) as board:
            board.store(0, 4, 5)
        assert ram.view(0, 4).tobytes() == b"\0\0\0\5"


@pytest.mark.parametrize("size", [0, 4095, (256 << 20) + 4096])
def test_sizes_that_no_such_machine_has(size: int) -> None:
    with strict_engine() as engine, pytest.raises(ArgumentError, match="256 MiB"):
        Sun4m(engine, memory=size)


def test_places_do_not_overlap() -> None:
    ends = sorted((place.base, place.base + place.size) for place in PLACES)
    assert all(end <= base for (_, end), (base, _) in pairwise(ends))


def test_two_boards_in_one_engine() -> None:
    with Engine(strict=True) as engine, Sun4m(engine) as one, Sun4m(engine) as other:
        one.store(0, 4, 1)
        other.store(0, 4, 2)
        assert (one.load(0), other.load(0)) == (1, 2)


# --- LANCE ----------------------------------------------------------------------------------------


class Guest:
    """A driver: pages behind the IOMMU in another order, rings, buffers.

    It drives a board by what it is given: the processor's accesses, or a qtest client's.
    """

    STATION = bytes.fromhex("080020123456")
    #: Bus addresses of 24 bits; LEDMA's base makes them 0xff......
    INIT, RECEIVE, TRANSMIT, BUFFERS = 0x0, 0x100, 0x200, 0x1000
    RING = 8

    def __init__(self, machine: Sun4m | Qtest) -> None:
        self.machine = machine

    def out(self, address: int, value: int, width: int = 4) -> None:
        if isinstance(self.machine, Sun4m):
            self.machine.store(address, width, value)
        else:
            self.machine.write(address, value, width)

    def read(self, address: int, width: int = 4) -> int:
        if isinstance(self.machine, Sun4m):
            return self.machine.load(address, width)
        return self.machine.read(address, width)

    def put(self, at: int, data: bytes) -> None:
        """Into a page of the bus: pages are mapped in reverse."""
        while data:
            page, offset = divmod(at, 4096)
            part = data[: 4096 - offset]
            physical = (63 - page) * 4096 + offset
            if isinstance(self.machine, Sun4m):
                self.machine.write(physical, part)
            else:
                self.machine.store(physical, part)
            data, at = data[len(part) :], at + len(part)

    def get(self, at: int, size: int) -> bytes:
        data = b""
        while size:
            page, offset = divmod(at, 4096)
            part, physical = min(size, 4096 - offset), (63 - page) * 4096 + offset
            data += (
                self.machine.read(physical, part)
                if isinstance(self.machine, Sun4m)
                else self.machine.load(physical, part)
            )
            at, size = at + part, size - part
        return data

    def begin(self, bswp: bool) -> None:
        for page in range(64):
            self.out(TABLE + 4 * page, (63 - page) * 4096 >> 4 | 6)
        self.out(IOMMU + 4, TABLE >> 4)
        self.out(IOMMU, 1)
        self.out(IOMMU + 0x14, 0)
        self.out(LEDMA + 12, 0xFF00_0000)
        self.out(LEDMA, 0x10)  # INT_EN
        log2 = self.RING.bit_length() - 1
        block = init_block(0, self.STATION, bytes(8), (self.RECEIVE, log2), (self.TRANSMIT, log2))
        self.put(self.INIT, block)
        self.csr(0, STOP)
        self.csr(3, BSWP if bswp else 0)
        self.csr(1, self.INIT & 0xFFFF)
        self.csr(2, self.INIT >> 16)
        self.csr(0, INIT | STRT | INEA)

    def csr(self, number: int, value: int) -> None:
        self.out(RAP, number, 2)
        self.out(RDP, value, 2)

    def give(self, ring: int, index: int, at: int, size: int, flags: int = STP | ENP) -> None:
        self.put(ring + 8 * index, descriptor(at, OWN | flags, size))

    def status(self, ring: int, index: int) -> tuple[int, int]:
        """The second and the last word of a descriptor."""
        words = struct.unpack(">4H", self.get(ring + 8 * index, 8))
        return words[1], words[3]


@dataclass
class Lan:
    board: Sun4m
    peer: socket.socket

    def settle(self) -> None:
        while self.board.busy:
            self.board.engine.pump()
        self.board.engine.pump()

    def received(self) -> list[bytes]:
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(self.peer.recv(1 << 16, socket.MSG_DONTWAIT))
        return frames


@pytest.fixture
def lan() -> Iterator[Lan]:
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    clock = SteppedClock()
    with (
        ours,
        peer,
        strict_engine(slow_step=None, clock=clock) as engine,
        Datagram(ours) as network,
        Sun4m(engine, memory=4 << 20, network=network) as board,
    ):
        yield Lan(board, peer)


def frame(size: int, seed: int = 0) -> bytes:
    return Guest.STATION + random.Random(seed).randbytes(size - 6)


def swapped(data: bytes) -> bytes:
    odd = data[len(data) & ~1 :]
    return b"".join(data[n : n + 2][::-1] for n in range(0, len(data) & ~1, 2)) + odd


@pytest.mark.parametrize("bswp", [True, False])
def test_frames_through_ledma_and_iommu(lan: Lan, bswp: bool) -> None:
    guest, board = Guest(lan.board), lan.board
    sent = [frame(size, size) for size in (60, 1514, 61, 1500)]
    for index, data in enumerate(sent):
        at = guest.BUFFERS + 0x800 * index + 0x700  # across pages
        guest.put(at, data if bswp else swapped(data))
        guest.give(guest.TRANSMIT, index, at, len(data))
    for index in range(4):
        guest.give(guest.RECEIVE, index, 0x8000 + 0x800 * index + 0x780, 1600, 0)
    guest.begin(bswp)
    lan.settle()
    assert lan.received() == sent
    assert [guest.status(guest.TRANSMIT, index)[0] for index in range(4)] == [STP | ENP] * 4
    assert board.load(RDP, 2) == INTR | TINT | IDON | INEA | RXON | TXON | INIT | STRT
    # The line: LANCE, LEDMA, the controller, the processor.
    assert board.load(LEDMA) & 1 and board.load(SYSTEM) == 1 << Line.ETHERNET
    assert board.load(INTCTL) == 1 << 6
    assert [line and line.level for line in board.intctl.levels].index(True) == 6
    board.store(RDP, 2, TINT | IDON | INEA)
    assert not board.load(LEDMA) & 1 and board.load(SYSTEM) == board.load(INTCTL) == 0
    for index, data in enumerate(sent):
        lan.peer.send(data)
        lan.settle()
        while not guest.status(guest.RECEIVE, index)[0] & STP:
            board.engine.pump()
        assert guest.status(guest.RECEIVE, index) == (STP | ENP, len(data) + 4)
        got = guest.get(0x8000 + 0x800 * index + 0x780, len(data) + len(data) % 2)
        assert (got if bswp else swapped(got))[: len(data)] == data
    assert board.load(RDP, 2) & RINT and board.load(SYSTEM) == 1 << Line.ETHERNET
    if bswp:
        assert board.engine.stats().bounced.lanes == 0


def test_a_page_that_is_not_mapped_is_a_memory_error(lan: Lan) -> None:
    guest, board = Guest(lan.board), lan.board
    guest.give(guest.TRANSMIT, 0, 0x10_0000, 100)  # beyond the 64 pages
    guest.begin(True)
    lan.settle()
    assert not lan.received()
    assert board.load(RDP, 2) & (ERR | MERR) == ERR | MERR
    assert board.load(RDP, 2) & (RXON | TXON) == 0
    assert board.load(LEDMA) & 3 == 3  # INT_PEND and ERR_PEND
    assert board.load(SYSTEM) == 1 << Line.ETHERNET | 1 << Line.MODULE_ERROR
    assert board.load(IOMMU + 0x1004) == 0xFF10_0000


def test_ledma_resets_lance(lan: Lan) -> None:
    guest, board = Guest(lan.board), lan.board
    guest.begin(True)
    lan.settle()
    assert board.load(RDP, 2) & INTR and board.load(SYSTEM) == 1 << Line.ETHERNET
    board.store(LEDMA, 4, 0x90)  # RESET
    board.store(LEDMA, 4, 0x10)
    lan.settle()
    assert board.load(RDP, 2) == STOP and board.load(SYSTEM) == 0
    guest.begin(True)
    lan.settle()
    assert board.load(RDP, 2) & IDON


def test_a_reset_of_the_board_in_the_middle_of_frames(lan: Lan) -> None:
    guest, board = Guest(lan.board), lan.board
    for index in range(8):
        guest.put(guest.BUFFERS, frame(1500))
        guest.give(guest.TRANSMIT, index, guest.BUFFERS, 1500)
    guest.begin(True)
    for _ in range(3):
        board.engine.pump()
    board.engine.run(board.reset())
    assert not board.busy and board.load(RDP, 2) == STOP
    assert len(lan.received()) <= 8


def test_over_qtest(lan: Lan) -> None:
    """The same driver, from a socket: what it began is over when its line is answered."""
    board = lan.board
    ours, theirs = socket.socketpair()
    with theirs:
        server = QtestServer(board.engine, board.machine, fd=theirs.fileno())
    client = Qtest(ours, board.engine.pump)
    client("irq_intercept_in", "/machine/unattached/device[4]")
    guest = Guest(client)
    data = frame(1514)
    guest.put(guest.BUFFERS, data)
    guest.give(guest.TRANSMIT, 0, guest.BUFFERS, 1514)
    guest.give(guest.RECEIVE, 0, 0x8000, 1600, 0)
    guest.begin(True)
    assert client.irqs == ["raise 16"]
    assert lan.received() == [data]
    assert guest.status(guest.TRANSMIT, 0)[0] == STP | ENP
    guest.out(RDP, IDON | TINT | INEA, 2)
    assert client.irqs == ["raise 16", "lower 16"]
    lan.peer.send(data)
    while not guest.read(RDP, 2) & RINT:
        pass
    assert guest.get(0x8000, 1514) == data and client.irqs[2:] == ["raise 16"]
    assert client("iodma_reset") == "" and guest.read(RDP, 2) == STOP
    assert client.irqs[3:] == ["lower 16"]
    client.close()
    board.engine.run(server.close())
