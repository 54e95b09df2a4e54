# SPDX-License-Identifier: Apache-2.0
"""Programs for LANCE: a driver at work, one whose pages fault, and one that writes what it likes.

Invariant: a program of `driver` does nothing that the Am7990 datasheet leaves undefined.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.peers.sun4m.machine import D_CSR, D_TEST, LEDMA, PAGE
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.script import (
    BSWP,
    COLL,
    DRTY,
    DRX,
    DTCR,
    DTX,
    ENP,
    IDON,
    INEA,
    INIT,
    INTL,
    LOOP,
    OWN,
    PAGES,
    PROM,
    RINT,
    STOP,
    STP,
    STRT,
    TDMD,
    TINT,
    WINDOW,
    Script,
    descriptor,
    init_block,
    swapped,
)

CAUSES = 0x7F00
INTERRUPT_ENABLE, RESET = 0x10, 0x80
BROADCAST = b"\xff" * 6
POLLED_NS = 20_000_000


@dataclass
class Ring:
    """A ring of descriptors, and how far the driver has got in it.

    Attributes:
        address: within the window, a multiple of 8.
    """

    address: int
    log2: int
    next: int = 0
    #: Descriptors that have been given away since the ring was made.
    given: int = 0

    @property
    def length(self) -> int:
        return 1 << self.log2

    def take(self) -> int:
        """The address of the next descriptor."""
        place = self.next % self.length
        self.next += 1
        return self.address + 8 * place


@dataclass
class Driver:
    """A network driver with its pages, rings and buffers."""

    script: Script
    bswp: int = BSWP
    station: bytes = bytes(6)
    logical: bytes = bytes(8)
    mode: int = 0
    receive: Ring = field(default_factory=lambda: Ring(0, 0))
    transmit: Ring = field(default_factory=lambda: Ring(0, 0))
    heap: int = 0
    block: int = 0
    window: int = 0
    range: int = 0
    floor: int = 0

    @property
    def rng(self) -> random.Random:
        return self.script.rng

    def address(self, size: int, align: int = 1) -> int:
        """Room in the arena that nobody else has; from the start again where it is used up."""
        gap = self.rng.choice([0, 0, 1, 2, 3, 8, 100])
        at = -(-(self.heap + gap) // align) * align
        if at + size > PAGES * PAGE:
            at = -(-self.floor // align) * align
        self.heap = at + size
        return self.window * PAGE + at

    def set_up(self) -> None:
        """IOMMU, LEDMA, rings and initialization block; up to INIT and STRT."""
        script, rng = self.script, self.rng
        self.window = rng.choice([0, 0, 0, 1, 100, 4096 - PAGES])
        script.iommu(self.range)
        script.map_all(self.window)
        script.ledma(D_TEST, WINDOW)
        script.ledma(D_CSR, INTERRUPT_ENABLE if script.chance(0.8) else 0)
        self.bswp = BSWP if script.chance(0.6) else 0
        self.station = bytes([rng.randrange(0, 256, 2), *rng.randbytes(5)])
        if script.chance(0.5):
            self.logical = rng.randbytes(8)
        if not self.mode and script.chance(0.15):
            self.mode = PROM
        self.receive = Ring(0, rng.choice([0, 1, 2, 2, 3, 3, 4, 7]))
        self.transmit = Ring(0, rng.choice([0, 1, 2, 2, 3, 3, 4, 7]))
        self.block = self.address(24, 2)
        for ring in (self.receive, self.transmit):
            ring.address = self.address(8 * ring.length, 8)
            script.bus_store(ring.address, descriptor(0, 0, 0) * ring.length)
        self.floor = self.heap
        self.initialize()

    def initialize(self) -> None:
        """INIT with what the driver has; both rings begin at their first descriptor."""
        script = self.script
        rings = ((ring.address, ring.log2) for ring in (self.receive, self.transmit))
        block = init_block(self.mode, self.station, self.logical, *rings)
        script.bus_store(self.block, block)
        script.csr(0, STOP)
        script.csr(1, self.block & 0xFFFF)
        script.csr(2, self.block >> 16)
        script.csr(3, self.bswp)
        if script.chance(0.3):
            for number in (1, 2, 3):
                script.csr_read(number)
        for ring in (self.receive, self.transmit):
            ring.next = 0
        if script.chance(0.4):  # in one go
            script.csr(0, INIT | STRT | (INEA if script.chance(0.7) else 0))
        else:
            script.csr(0, INIT | (INEA if script.chance(0.5) else 0))
            script.check()
            script.csr(0, IDON | STRT | (INEA if script.chance(0.7) else 0))
        script.check()

    # --- what a driver does -----------------------------------------------------------------------

    def payload(self, data: bytes) -> bytes:
        """As it is in memory, for the frame to be `data`."""
        return data if self.bswp else swapped(data)

    def size(self) -> int:
        """Of a frame on the wire without its FCS, 60 bytes or more."""
        rng = self.rng
        return rng.choice(
            [60, 61, 64, 100, 1513, 1514, rng.randint(60, 1514), rng.randint(60, 300)]
        )

    def a_frame(self, size: int) -> bytes:
        rng = self.rng
        group = bytes([rng.randrange(1, 256, 2), *rng.randbytes(5)])
        other = bytes([rng.randrange(0, 256, 2), *rng.randbytes(5)])
        to = rng.choice([self.station, self.station, self.station, BROADCAST, group, group, other])
        return (to + rng.randbytes(size))[:size]

    def send(self) -> None:
        """Some frames, each in one to four buffers, then TDMD."""
        rng, script = self.rng, self.script
        left = rng.randint(1, min(8, self.transmit.length))
        while left:
            size = self.size()
            pieces = min(left, rng.choice([1, 1, 1, 2, 2, 3, 4]))
            left -= pieces
            self.send_frame(self.a_frame(size), pieces)
            if not script.chance(0.7):
                break
        self.demand()

    def send_frame(self, data: bytes, pieces: int) -> None:
        script = self.script
        cuts = sorted({self.cut(len(data)) for _ in range(pieces - 1)})
        for place, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(data)], strict=True)):
            part = data[begin:end]
            at = self.address(len(part) + 2, 1 if self.bswp else 2)
            script.bus_store(at, self.payload(part))
            status = OWN | (STP if place == 0 else 0) | (ENP if end == len(data) else 0)
            script.bus_store(self.transmit.take(), descriptor(at, status, len(part)))

    def cut(self, size: int) -> int:
        at = self.rng.randint(1, size - 1)
        return at if self.bswp else max(2, at & ~1)

    def demand(self) -> None:
        self.script.csr(0, TDMD | self.enable())
        self.script.check()

    def enable(self) -> int:
        return INEA if self.script.chance(0.8) else 0

    def offer(self) -> None:
        """Gives receive descriptors, in their order, of buffers of drawn sizes."""
        rng, script = self.rng, self.script
        for _ in range(rng.randint(1, min(8, self.receive.length))):
            size = rng.choice([1600, 1600, 1520, 2000, 256, 128, 64])
            at = self.address(size, 1 if self.bswp else 2)
            script.bus_store(self.receive.take(), descriptor(at, OWN, size))

    def arrive(self) -> None:
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            self.script.frame(self.a_frame(self.size()))
            if self.script.chance(0.7):
                self.script.check()
        self.script.check()

    def acknowledge(self) -> None:
        value = self.rng.choice(
            [CAUSES, CAUSES, TINT, RINT, RINT | TINT, self.rng.getrandbits(7) << 8]
        )
        self.script.csr(0, value & CAUSES | self.enable())
        self.script.check()

    def dma_control(self) -> None:
        self.script.ledma(D_CSR, self.rng.choice([0, INTERRUPT_ENABLE, INTERRUPT_ENABLE]))
        self.script.read(LEDMA + D_CSR)
        self.script.check()

    def wait(self) -> None:
        self.script.clock(POLLED_NS)
        self.script.check()

    def stop(self) -> None:
        """STOP, perhaps a look around, and on: from where it stood, or from new."""
        script = self.script
        script.csr(0, STOP)
        script.check()
        if script.chance(0.3):
            for number in range(4):
                script.csr_read(number)
        self.initialize()

    def reset(self) -> None:
        """LEDMA's reset bit."""
        self.script.ledma(D_CSR, RESET)
        self.script.check()
        self.script.ledma(D_CSR, INTERRUPT_ENABLE)
        self.script.check()
        self.initialize()


def driver(seed: int) -> Program:
    """A driver that knows its datasheet."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.set_up()
    work(guest, rng.randint(2, 14))
    return script.program("driver", seed)


def work(guest: Driver, rounds: int) -> None:
    does: list[Callable[[], None]] = [
        *(5 * [guest.send] + 4 * [guest.offer] + 5 * [guest.arrive]),
        *(3 * [guest.acknowledge] + [guest.dma_control, guest.wait, guest.stop]),
    ]
    if guest.rng.random() < 0.2:
        does.append(guest.reset)
    for _ in range(rounds):
        guest.rng.choice(does)()


def faults(seed: int) -> Program:
    """... whose pages are taken away, or may not be written, while it works."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.set_up()
    work(guest, rng.randint(0, 4))
    for _ in range(rng.randint(1, 3)):
        used = [guest.block, guest.receive.address, guest.transmit.address]
        ahead = guest.window * PAGE + guest.heap + 2 * PAGE
        at = rng.choice([*used, ahead, ahead]) // PAGE
        page = at if at in script.pages else rng.choice(sorted(script.pages))
        valid = rng.random() < 0.4
        script.map(page, script.pages[page], writable=False, valid=valid)
        script.flush(page)
        work(guest, rng.randint(1, 4))
    return script.program("faults", seed)


def loopback(seed: int) -> Program:
    """Packets come back, with an FCS of the chip's or of the driver's."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.mode = LOOP | INTL | rng.choice([0, DTCR]) | rng.choice([0, 0, PROM])
    guest.set_up()
    for _ in range(rng.randint(1, 6)):
        if script.chance(0.8):
            guest.offer()
        size = rng.choice([8, 14, 20, 28, 31, 32, rng.randint(8, 32)])
        data = guest.a_frame(size)
        if guest.mode & DTCR:
            fcs = zlib.crc32(data[:-4]) ^ rng.choice([0, 0, 1])
            data = data[:-4] + fcs.to_bytes(4, "little")
        guest.send_frame(data, 1)
        guest.demand()
        if script.chance(0.3):
            guest.acknowledge()
    return script.program("loopback", seed)


def modes(seed: int) -> Program:
    """A driver whose receiver or transmitter is disabled, or that hears everything."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.mode = rng.choice([DRX, DTX, DRX | DTX, PROM, DRTY, COLL, DTCR, PROM | DTCR])
    guest.set_up()
    work(guest, rng.randint(2, 8))
    return script.program("modes", seed)
