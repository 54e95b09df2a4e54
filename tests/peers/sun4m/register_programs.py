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
    INTCTL,
    INTCTL_CPU,
    IOMMU,
    IOMMU_AFAR,
    IOMMU_AFSR,
    IOMMU_BASE,
    IOMMU_CONTROL,
    IOMMU_FLUSH_ALL,
    LANCE,
    LEDMA,
    LEVELS,
    LINES,
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


def interrupts(seed: int) -> Program:
    """The interrupt controller's registers, while LANCE asks for service."""
    rng = random.Random(seed)
    script = Script(rng)
    guest = Driver(script)
    guest.set_up()
    system = [INTCTL + offset for offset in (0x0, 0x4, 0x8, 0xC, 0x10)]
    processor = [INTCTL_CPU + offset for offset in (0x0, 0x4, 0x8)]
    for _ in range(rng.randint(3, 16)):
        at = rng.choice(system + processor)
        match rng.randrange(4):
            case 0 | 1:
                lines = LINES if at in system else LEVELS << 16 | LEVELS
                value = rng.choice([bits(rng), lines & bits(rng), lines, rng.randrange(16)])
                script.write(at, value)
            case 2:
                script.csr(0, rng.choice([0, INEA, INEA | 0x7F00]))
            case 3:
                work(guest, 1)
        for register in rng.sample(system + processor, 3):
            script.read(register)
        script.check()
    return script.program("interrupts", seed)


#: Windows of registers, and what of them is read and written in any width. DMA2 is not among them:
#: it counts accesses that are narrow as errors of its own, of which QEMU knows nothing.
WINDOWS = (
    (IOMMU, (0x0, 0x4, 0x14, 0x1000, 0x1004, 0x1008, 0x2000)),
    (LANCE, (0x0,)),
    (INTCTL, (0x0, 0x4, 0x8, 0xC, 0x10)),
    (INTCTL_CPU, (0x0, 0x4, 0x8)),
)


def widths(seed: int) -> Program:
    """Registers are read and written in all widths, and where there are none."""
    rng = random.Random(seed)
    script = Script(rng)
    for _ in range(rng.randint(4, 20)):
        base, offsets = rng.choice(WINDOWS)
        size = rng.choice([1, 2, 4, 4, 8] if base in (INTCTL, INTCTL_CPU) else [1, 2, 4])
        at = base + rng.choice(offsets)
        at += rng.randrange(0, 5 - size) if size <= 4 else 0  # not into what is no register
        if base != LANCE and script.chance(0.4):
            script.write(at, bits(rng, 8 * size), size)
        script.read(at, size)
        script.check()
    return script.program("widths", seed)
