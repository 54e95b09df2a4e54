# SPDX-License-Identifier: Apache-2.0
"""Programs for the IOMMU's and LEDMA's registers, and for a LANCE that is written at random.

Invariant: what a register does is looked at through a driver's work (lance_programs), besides
reading it back.
"""

from __future__ import annotations

import random

from tests.peers.sun4m.lance_programs import INTERRUPT_ENABLE, RESET, Driver, work
from tests.peers.sun4m.machine import (
    ARENA,
    D_ADDR,
    D_BCNT,
    D_CSR,
    D_TEST,
    IOMMU,
    IOMMU_AFAR,
    IOMMU_AFSR,
    IOMMU_BASE,
    IOMMU_CONTROL,
    IOMMU_FLUSH_ALL,
    LEDMA,
    PAGE,
    TABLE,
)
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.script import (
    IDON,
    INEA,
    INIT,
    OWN,
    PAGES,
    STOP,
    STRT,
    TDMD,
    WINDOW,
    Script,
    descriptor,
    init_block,
)

#: Arbiter enable, the slots' configuration, arbitration, mask id.
IOMMU_OTHERS = (0x1008, 0x1010, 0x1014, 0x1018, 0x101C, 0x2000, 0x3018)


def bits(rng: random.Random, width: int = 32) -> int:
    """A value as tests like them: few bits, many, the edges."""
    return rng.choice(
        [
            0,
            (1 << width) - 1,
            1 << rng.randrange(width),
            rng.getrandbits(width),
            rng.getrandbits(width) & rng.getrandbits(width) & rng.getrandbits(width),
        ]
    )


def iommu(seed: int) -> Program:
    """Registers are written and read back; then a driver works with what was set up."""
    rng = random.Random(seed)
    script = Script(rng)
    for _ in range(rng.randint(0, 8)):
        at = rng.choice([IOMMU_CONTROL, IOMMU_BASE, IOMMU_AFSR, IOMMU_AFAR])
        if script.chance(0.3):
            at = IOMMU + rng.choice(IOMMU_OTHERS)
        script.write(at, bits(rng))
        if script.chance(0.7):
            script.read(at)
    script.check()
    guest = Driver(script)
    guest.range = rng.randrange(8)
    guest.set_up()
    work(guest, rng.randint(1, 4))
    for _ in range(rng.randint(0, 3)):  # pages behind others, and the table elsewhere
        page = guest.window + rng.randrange(-(-guest.floor // PAGE), PAGES)
        other = rng.choice(sorted(script.pages))
        script.map(page, script.pages[other])
        script.flush(page)
        work(guest, rng.randint(1, 2))
    if script.chance(0.3):
        script.write(IOMMU_CONTROL, guest.range << 2 | 1 | rng.getrandbits(1) << 1)
        script.write(IOMMU_FLUSH_ALL, 0)
        work(guest, 2)
    return script.program("iommu", seed)


def ledma(seed: int) -> Program:
    """LEDMA's registers while LANCE asks for service."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.set_up()
    for _ in range(rng.randint(3, 14)):
        match rng.randrange(7):
            case 0:
                script.ledma(D_CSR, INTERRUPT_ENABLE * rng.getrandbits(1))
            case 1:
                script.ledma(D_CSR, bits(rng) & ~RESET)
            case 2:
                script.ledma(rng.choice([D_ADDR, D_BCNT]), bits(rng))
            case 3:
                script.csr(0, INEA * rng.getrandbits(1) | rng.choice([0, 0x7F00, IDON]))
            case 4:
                script.ledma(D_CSR, RESET | INTERRUPT_ENABLE * rng.getrandbits(1))
                script.check()
                script.ledma(D_CSR, INTERRUPT_ENABLE)
                guest.initialize()
            case 5:
                script.ledma(D_TEST, rng.choice([0, 0xFE00_0000, WINDOW, WINDOW]))
                script.ledma(D_TEST, WINDOW)
            case 6:
                work(guest, 1)
        if script.chance(0.6):
            script.read(LEDMA + rng.choice([D_CSR, D_ADDR, D_BCNT, D_TEST]))
        script.check()
    return script.program("ledma", seed)


def hostile(seed: int) -> Program:
    """LANCE's registers, its block and its rings hold anything."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    if script.chance(0.7):
        guest.set_up()
    else:
        script.iommu()
        script.map_all()
        script.ledma(D_TEST, WINDOW)
    for _ in range(rng.randint(2, 12)):
        match rng.randrange(8):
            case 0 | 1:
                script.csr(0, bits(rng, 16))
            case 2:
                script.csr(rng.randrange(1, 4), bits(rng, 16) & 0x00FF)
            case 3:
                script.csr(0, rng.choice([STOP, STRT, INIT, INIT | STRT, TDMD, 7, 5, 6, 3 | INEA]))
            case 4:
                block = bytearray(init_block(0, bytes(6), bytes(8), (0, 0), (0, 0)))
                for _ in range(rng.randint(1, 24)):
                    block[rng.randrange(24)] = rng.getrandbits(8)
                script.bus_store(guest.block, bytes(block))
            case 5:
                ring = rng.choice([guest.receive, guest.transmit])
                at = guest.window * PAGE + rng.randrange(0, TABLE - ARENA - 4096)
                status = OWN | rng.choice([0, 0x100, 0x200, 0x300, bits(rng, 16)])
                script.bus_store(ring.take(), descriptor(at, status, rng.randint(1, 4096)))
                if ring is guest.transmit:
                    script.csr(0, TDMD)
            case 6:
                script.frame(guest.a_frame(rng.choice([14, 59, 60, 1514, 1515, 1600, 64])))
            case 7:
                work(guest, 1)
        script.check()
    return script.program("hostile", seed)
