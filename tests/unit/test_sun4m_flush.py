# SPDX-License-Identifier: Apache-2.0
"""Pages are taken away from the SPARCstation 5's IOMMU in the middle of its DMA.

A guest changes an entry, flushes it, and waits until the IOMMU is not busy: from then on the page
that was there is its own again, whatever a slow host does. What it writes there is the canary.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from iodma import Datagram, Endpoint
from iodma.boards.sun4m import Sun4m
from iodma.scsi import Disk, Target
from iodma.testing import Answer, Request, ScriptedEndpoint, strict_engine
from iodma.transports.qtest import SteppedClock
from tests.espguest import CMD, RS, TABLE, TI, WINDOW, EspGuest
from tests.peers.sun4m.machine import RDP
from tests.peers.sun4m.script import ENP, ERR, MERR, OWN, STP, TXON
from tests.unit.test_sun4m import TABLE as LANCE_TABLE
from tests.unit.test_sun4m import Guest, frame, swapped

IOMMU, ESPDMA = 0x1000_0000, 0x7840_0000
FLUSH_ALL, FLUSH_PAGE, AFAR = IOMMU + 0x14, IOMMU + 0x18, IOMMU + 0x1004
PAGE = 4096
CANARY = b"\xc5" * PAGE
#: Turns of the engine, and more, in which what can go on has gone on.
MANY = 300
FLUSHES = ["page", "all"]


@contextlib.contextmanager
def machine(
    network: Endpoint | None = None, disk: ScriptedEndpoint | None = None
) -> Iterator[Sun4m]:
    with ExitStack() as stack:
        engine = stack.enter_context(strict_engine(slow_step=None, clock=SteppedClock()))
        targets = {}
        if disk is not None:
            targets[0] = Target(engine, Disk(disk))
            stack.callback(targets[0].close)
        board = stack.enter_context(
            Sun4m(engine, memory=16 << 20, network=network, targets=targets)
        )
        yield board
        engine.run(board.reset())
        assert not board.busy and not board.iommu.busy


def turns(board: Sun4m, count: int = MANY) -> None:
    for _ in range(count):
        board.engine.pump()


def until(board: Sun4m, there: Callable[[], bool]) -> None:
    """The engine goes on until something is so."""
    for _ in range(10_000):
        if there():
            return
        if not board.engine.pump():
            select.select([board.engine.fileno()], [], [], 0.01)
    raise AssertionError(f"it never comes: {board.engine.transfers()}")


def flushing(board: Sun4m) -> bool:
    """Whether the page is not the guest's yet."""
    return board.iommu.busy


def taken_back(board: Sun4m) -> None:
    until(board, lambda: not flushing(board))


# --- LANCE ----------------------------------------------------------------------------------------


class Lan:
    """LANCE's driver, whose bus pages can be led elsewhere, and the other end of its cable."""

    def __init__(self, board: Sun4m, peer: socket.socket) -> None:
        self.board, self.peer = board, peer
        self.guest = Guest(board)

    @staticmethod
    def physical(page: int) -> int:
        """Where the guest's driver has mapped a page of the bus."""
        return (63 - page) * PAGE

    def lead(self, page: int, physical: int | None, how: str) -> None:
        """Another page behind one of the bus, or none; flushed."""
        entry = 0 if physical is None else physical >> 4 | 6
        self.board.store(LANCE_TABLE + 4 * page, 4, entry)
        address = FLUSH_PAGE if how == "page" else FLUSH_ALL
        self.board.store(address, 4, 0xFF00_0000 + page * PAGE)

    def received(self) -> bool:
        """Whether the first receive descriptor is the guest's."""
        return not self.guest.status(self.guest.RECEIVE, 0)[0] & OWN

    def arrived(self) -> bytes | None:
        try:
            return self.peer.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def all_that_comes(self) -> list[bytes]:
        """The peer takes one after another, until none comes any more."""
        found = []
        while (data := self.arrived()) is not None:
            found.append(data)
            until(self.board, lambda: not self.board.busy)
        return found


@contextlib.contextmanager
def cable(*, narrow: bool = False) -> Iterator[Lan]:
    """`narrow`: the host takes a few frames, and no more until the peer has."""
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    if narrow:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, peer, Datagram(ours) as network, machine(network) as board:
        yield Lan(board, peer)


ELSEWHERE = 0x80_0000


@pytest.mark.parametrize("how", FLUSHES)
@pytest.mark.parametrize("bswp", [True, False])
def test_pages_go_while_frames_wait_for_the_host(how: str, bswp: bool) -> None:
    """Of frames in a page each, one is on its way, one is led elsewhere, and one is gone."""
    with cable(narrow=True) as lan:
        guest, board = lan.guest, lan.board
        frames = [frame(1500, index) for index in range(8)]
        for index, data in enumerate(frames):
            at = PAGE * (8 + index)
            guest.put(at, data if bswp else swapped(data))
            guest.give(guest.TRANSMIT, index, at, len(data))
        guest.begin(bswp)
        until(board, lambda: not board.busy)
        status = [guest.status(guest.TRANSMIT, index)[0] for index in range(8)]
        first = status.index(OWN | STP | ENP)
        assert 0 < first < 5 and not board.busy, "the host has taken some, and waits"
        other = frame(1500, 100)
        board.write(ELSEWHERE, other if bswp else swapped(other))
        gone, led = first + 2, first + 1
        lan.lead(8 + led, ELSEWHERE, how)
        lan.lead(8 + gone, None, how)
        lan.lead(8 + first, None, how)
        # It was read already, or is still needed: then the page is not the guest's yet.
        turns(board)
        waits = flushing(board)
        assert not board.busy, "the peer is what it waits for"
        if not waits:
            board.write(lan.physical(8 + first), CANARY)
        for index in (led, gone):
            board.write(lan.physical(8 + index), CANARY)
        came = lan.all_that_comes()
        want = [*frames[: first + 1], other]
        if not bswp and len(came) == first:
            want = want[:first]  # nothing of it was read in time
        assert came == want
        assert not flushing(board) and not board.busy
        csr0 = board.load(RDP, 2)
        assert csr0 & (ERR | MERR) == ERR | MERR and not csr0 & TXON
        assert board.load(AFAR) == 0xFF00_0000 + PAGE * (8 + len(came) if len(came) > first else 0)
        status = [guest.status(guest.TRANSMIT, index)[0] for index in range(8)]
        assert [bool(each & OWN) for each in status] == [index >= len(came) for index in range(8)]


def flushed(lan: Lan, moment: int | None, how: str, bswp: bool, leads: int | None) -> str:
    """A frame comes over two pages; the second goes so many turns later, None: when it is there.

    Returns:
        The page where the frame's second half is: "old", "new", or "none".
    """
    guest, board, data = lan.guest, lan.board, frame(1500, 7)
    page = 9
    guest.give(guest.RECEIVE, 0, page * PAGE - 700, 1600, 0)
    guest.begin(bswp)
    until(board, lambda: not board.busy)
    old, before = lan.physical(page), bytes(range(256)) * 16
    board.write(old, before)
    board.write(ELSEWHERE, before)
    lan.peer.send(data)
    if moment is None:
        until(board, lan.received)
    else:
        turns(board, moment)
    lan.lead(page, leads, how)
    taken_back(board)
    was = board.read(old, PAGE)
    board.write(old, CANARY)  # it is the guest's again
    until(board, lambda: lan.received() or bool(board.load(RDP, 2) & MERR))
    turns(board)
    assert board.read(old, PAGE) == CANARY, "written after the flush"
    received = lan.received()
    assert received != bool(board.load(RDP, 2) & MERR)
    places = {"old": was, "new": board.read(ELSEWHERE, PAGE)}
    tail = (data if bswp else swapped(data))[700:]
    there = [name for name, memory in places.items() if memory[:800] == tail]
    for name, memory in places.items():  # and nothing behind the frame and its FCS
        assert memory[804:] == before[804:]
        assert name in there or memory[:800] == before[:800]
    assert len(there) == 1 if received else there in ([], ["old"])
    assert leads or "new" not in there
    return there[0] if there else "none"


@pytest.mark.parametrize("how", FLUSHES)
@pytest.mark.parametrize("bswp", [True, False])
@pytest.mark.parametrize("leads", [ELSEWHERE, None])
def test_a_page_goes_while_a_frame_comes(how: str, bswp: bool, leads: int | None) -> None:
    """In every turn of the engine, and after them."""
    outcomes = set()
    for moment in (*range(14), None):
        with cable() as lan:
            outcomes.add(flushed(lan, moment, how, bswp, leads))
    assert outcomes == {"old", "new" if leads else "none"}


# --- ESP ------------------------------------------------------------------------------------------

CONTENT = random.Random(9).randbytes(1 << 17)
READ, WRITE = 0x28, 0x2A
#: Of the transfers: 16 blocks over three pages of the bus, from the middle of page 4.
BLOCKS, AT = 16, 4 * PAGE + 0x800
BYTES = 512 * BLOCKS


class Processor:
    """What `EspGuest` drives a machine by: an access is over when the chip waits for the disk."""

    def __init__(self, board: Sun4m, disk: ScriptedEndpoint) -> None:
        self.board, self.disk = board, disk

    def write(self, address: int, value: int, width: int = 4) -> None:
        self.board.store(address, width, value)
        until(self.board, lambda: not self.board.esp.busy or bool(self.disk.waiting))

    def read(self, address: int, width: int = 4) -> int:
        return self.board.load(address, width)

    def store(self, address: int, data: bytes) -> None:
        self.board.write(address, data)

    def load(self, address: int, length: int) -> bytes:
        return self.board.read(address, length)


class Scsi:
    """A disk that answers when the test says, once `slow`, and its driver."""

    def __init__(self) -> None:
        self.slow = False
        self.disk = ScriptedEndpoint(bytearray(CONTENT), script=self._script)

    def _script(self, request: Request) -> Answer:
        return Answer.hold() if self.slow else Answer.all()

    def begin(self, board: Sun4m) -> None:
        self.board = board
        self.guest = EspGuest(Processor(board, self.disk))  # type: ignore[arg-type]
        self.guest.set_up()
        assert self.guest.command(bytes(6)) == 2 and self.guest.sense()[12] == 0x29

    def start(self, code: int, lba: int = 8) -> None:
        """Up to the data phase, of which the disk has been asked."""
        cdb = struct.pack(">BBIBHB", code, 0, lba, 0, BLOCKS, 0)
        guest = self.guest
        guest.machine.store(0x40_0000 - PAGE, b"\x80" + cdb)
        guest.write(4, 0)
        guest.dma(0xFF80_0000, 11, False, 0x42)
        assert guest.interrupt()[1] == 0x18
        guest.invalidate()
        self.slow = True
        guest.dma(WINDOW + AT, BYTES, code == READ, TI)
        assert self.disk.waiting and self.board.esp.busy

    def finish(self) -> tuple[int, int]:
        """The disk answers all that it is asked; (status, interrupt) of the chip."""
        while self.board.esp.busy:
            until(self.board, lambda: not self.board.esp.busy or bool(self.disk.waiting))
            self.disk.answer_all()
        return self.guest.interrupt()

    def lead(self, page: int, physical: int | None, how: str) -> None:
        entry = 0 if physical is None else physical >> 4 | 6
        self.board.store(TABLE + 4 * page, 4, entry)
        self.board.store(FLUSH_PAGE if how == "page" else FLUSH_ALL, 4, WINDOW + page * PAGE)


@pytest.fixture
def scsi() -> Iterator[Scsi]:
    scsi = Scsi()
    with scsi.disk, machine(disk=scsi.disk) as board:
        scsi.begin(board)
        yield scsi


def asked_for(scsi: Scsi, part: int) -> None:
    """Some bytes are moved; for the rest the disk is asked again."""
    if part:
        scsi.disk.answer(moved=part)
        until(scsi.board, lambda: bool(scsi.disk.waiting))


@pytest.mark.parametrize("how", FLUSHES)
@pytest.mark.parametrize("part", [0, 1024, 2048, 5000])
@pytest.mark.parametrize("page", [4, 5, 6])
@pytest.mark.parametrize("leads", [ELSEWHERE, None])
def test_a_page_goes_while_the_disk_reads(
    scsi: Scsi, how: str, part: int, page: int, leads: int | None
) -> None:
    guest, board = scsi.guest, scsi.board
    for each in (4, 5, 6):
        board.write(guest.page(each), bytes(PAGE))
    board.write(ELSEWHERE, bytes(PAGE))
    scsi.start(READ)
    asked_for(scsi, part)
    scsi.lead(page, leads, how)
    turns(board)
    assert flushing(board) and board.esp.busy, "the disk may write there still"
    status, why = scsi.finish()
    assert not flushing(board)
    assert why == 0x10 and status & 7 == 3, "what was begun has ended as it began"
    assert guest.get(AT, BYTES) == CONTENT[4096 : 4096 + BYTES]
    board.write(guest.page(page), CANARY)
    scsi.slow = False
    guest.invalidate()
    turns(board)
    assert board.read(guest.page(page), PAGE) == CANARY
    assert board.read(ELSEWHERE, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("how", FLUSHES)
def test_a_page_goes_while_the_disk_writes(scsi: Scsi, how: str) -> None:
    guest, board = scsi.guest, scsi.board
    data = random.Random(10).randbytes(BYTES)
    guest.put(AT, data)
    scsi.start(WRITE)
    scsi.lead(5, ELSEWHERE, how)
    turns(board)
    assert flushing(board)
    status, why = scsi.finish()
    assert why == 0x10 and status & 7 == 3 and not flushing(board)
    assert scsi.disk.content[4096 : 4096 + BYTES] == data


@pytest.mark.parametrize("how", FLUSHES)
def test_what_is_begun_after_a_flush_goes_to_the_new_page(scsi: Scsi, how: str) -> None:
    """... of one command, whose data phase comes in two transfers of the chip."""
    guest, board = scsi.guest, scsi.board
    board.write(ELSEWHERE, bytes(PAGE))
    cdb = struct.pack(">BBIBHB", READ, 0, 8, 0, BLOCKS, 0)
    guest.machine.store(0x40_0000 - PAGE, b"\x80" + cdb)
    guest.write(4, 0)
    guest.dma(0xFF80_0000, 11, False, 0x42)
    guest.interrupt()
    guest.invalidate()
    guest.dma(WINDOW + AT, 2048, True, TI)
    assert guest.interrupt()[1] == 0x10
    guest.invalidate()
    scsi.lead(5, ELSEWHERE, how)
    taken_back(board)
    board.write(guest.page(5), CANARY)
    guest.dma(WINDOW + AT + 2048, BYTES - 2048, True, TI)
    assert guest.interrupt()[1] == 0x10
    assert board.read(guest.page(5), PAGE) == CANARY
    assert board.read(ELSEWHERE, PAGE) == CONTENT[4096 + 2048 :][:PAGE]
    assert guest.get(6 * PAGE, 2048) == CONTENT[4096 + 2048 + PAGE :][:2048]


@pytest.mark.parametrize("how", FLUSHES)
def test_a_bus_reset_after_a_flush(scsi: Scsi, how: str) -> None:
    """The disk honours the cancellation: then the page is the guest's."""
    guest, board = scsi.guest, scsi.board
    scsi.start(READ)
    scsi.lead(5, None, how)
    turns(board)
    assert flushing(board)
    board.store(0x7880_0000 + 4 * CMD, 1, RS)
    taken_back(board)
    board.write(guest.page(5), CANARY)
    scsi.slow = False
    for _ in range(3):
        scsi.disk.answer_all()
        turns(board)
    assert board.read(guest.page(5), PAGE) == CANARY and not board.busy
