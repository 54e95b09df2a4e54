"""A disk on the SPARCstation 5: READ and WRITE over qtest, interrupts, resets, faults."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from iodma import File
from iodma.boards.sun4m import Sun4m
from iodma.devices.slavio_intctl import Line
from iodma.scsi import Disk, Target
from iodma.testing import strict_engine
from iodma.transports.qtest import QtestServer, SteppedClock
from tests.espguest import ESP, ESPDMA, IOMMU, TI, WINDOW, EspGuest
from tests.qtest import Qtest
from tests.unit.engines import run

CONTENT = random.Random(5).randbytes(1 << 20)
READ = b"\x28\0\0\0\0\0\0\0\x10\0"


class Rig:
    def __init__(self, guest: EspGuest, board: Sun4m) -> None:
        self.guest, self.board = guest, board


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    with ExitStack() as stack:
        engine = stack.enter_context(strict_engine(slow_step=None, clock=SteppedClock()))
        file = stack.enter_context(File(path))
        target = Target(engine, Disk(file))
        stack.callback(target.close)
        board = stack.enter_context(Sun4m(engine, memory=16 << 20, targets={0: target}))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            server = QtestServer(engine, board.machine, fd=theirs.fileno())
        client = Qtest(ours, engine.pump)
        client("irq_intercept_in", "/machine/unattached/device[4]")
        guest = EspGuest(client)
        guest.set_up()
        assert guest.command(bytes(6)) == 2 and guest.sense()[12] == 0x29  # POWER ON
        yield Rig(guest, board)
        run(engine, board.reset)
        client.close()
        run(engine, server.close)


def test_a_read_and_a_write_over_qtest(rig: Rig) -> None:
    guest, engine = rig.guest, rig.board.engine
    before = engine.stats()
    assert guest.transfer(16, 128, at=0x234) == 0
    after = engine.stats()
    assert after.copied == before.copied and after.bounced.total == before.bounced.total
    assert guest.get(0x234, 65536) == CONTENT[8192 : 8192 + 65536]
    data = random.Random(6).randbytes(24 * 512)
    guest.put(0xFF0, data)
    assert guest.transfer(1000, 24, write=True, at=0xFF0) == 0
    assert guest.transfer(999, 26) == 0
    expected = CONTENT[999 * 512 : 1000 * 512] + data + CONTENT[1024 * 512 : 1025 * 512]
    assert guest.get(0, 26 * 512) == expected


def test_an_interrupt_goes_all_the_way(rig: Rig) -> None:
    guest, board = rig.guest, rig.board
    irqs = guest.machine.irqs
    irqs.clear()
    guest.target = 5
    assert guest.command(bytes(6)) == -1
    assert irqs == [f"raise {Line.SCSI}", f"lower {Line.SCSI}"]
    assert board.load(0x71E1_0000) == 0


def test_a_page_that_is_not_mapped_stops_the_transfer_there(rig: Rig) -> None:
    """The bytes in front of it are moved; ESPDMA and IOMMU tell; the chip waits for its DMA."""
    guest, board = rig.guest, rig.board
    table = 0x20_0000 + 3 * 4
    entry = board.load(table)
    board.store(table, 4, 0)
    board.store(IOMMU + 0x14, 4, 0)
    guest.machine.store(guest.page(2), b"\xee" * 4096)
    guest.machine.store(guest.page(3), b"\xee" * 4096)
    guest.machine.store(0x40_0000 - 4096, b"\x80" + READ)
    guest.write(4, 0)
    guest.dma(0xFF80_0000, 11, False, 0x42)
    guest.interrupt()
    guest.invalidate()
    guest.dma(WINDOW + 0x2000, 8192, True, TI)
    csr = board.load(ESPDMA)
    assert csr & 3 == 2, "ERR_PEND, and no interrupt of the chip"
    assert board.load(ESPDMA + 4) == WINDOW + 0x3000, "where it stands"
    assert guest.read(0) | guest.read(1) << 8 == 4096
    assert guest.get(0x2000, 4096) == CONTENT[:4096]
    assert guest.machine.load(guest.page(3), 4096) == b"\xee" * 4096
    assert board.load(0x71E1_0000) & 1 << Line.SCSI
    assert board.load(IOMMU + 0x1004) == WINDOW + 0x3000 and not board.busy
    # What a driver could do: map it, and go on.
    board.store(table, 4, entry)
    board.store(IOMMU + 0x14, 4, 0)
    guest.machine.write(ESPDMA, csr & 0xFFFF_FFF0 | 0x20)
    assert guest.interrupt()[1] == 0x10
    assert guest.get(0x2000, 8192) == CONTENT[:8192]


def test_espdma_resets_the_chip(rig: Rig) -> None:
    guest, board = rig.guest, rig.board
    guest.machine.store(0x40_0000 - 4096, b"\x80" + READ)
    guest.write(4, 0)
    guest.dma(0xFF80_0000, 11, False, 0x42)
    guest.interrupt()
    assert board.load(ESP + 16, 1) & 7 == 1
    guest.machine.write(ESPDMA, 0x80)
    assert board.load(ESP + 16, 1) == 0 and board.load(ESP + 32, 1) == 7
    guest.set_up()
    assert guest.transfer(0, 8) == 0 and guest.get(0, 4096) == CONTENT[:4096]
    assert guest.machine("iodma_reset") == ""
    assert board.load(ESP + 32, 1) == 7
    guest.set_up()
    assert guest.transfer(8, 8) == 0 and guest.get(0, 4096) == CONTENT[4096:8192]
