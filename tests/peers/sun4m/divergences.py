# SPDX-License-Identifier: Apache-2.0
"""What is not as QEMU has it, on purpose, each with the section that says who is right.

Invariants:

- A predicate accepts the values that the entry names and no others, so that nothing else hides
  behind it; how often each was needed is reported by every campaign.
- Only behaviour that a datasheet settles is here. Where QEMU and the datasheet agree, there is no
  entry: the device is wrong.
"""

from __future__ import annotations

from tests.peers.sun4m.compare import Divergence, Moment
from tests.peers.sun4m.machine import D_CSR, LEDMA
from tests.peers.sun4m.script import ACON, BCON, BSWP, MISS, STOP, STRT, TAIL, TDMD, TXON

CSR0 = "LANCE CSR0"
SLAVE_ERR = 0x40


def tdmd(moment: Moment) -> bool:
    return any(value & TDMD for value in moment.csr_written(0)) and moment.only_theirs(CSR0, TDMD)


def stopped(moment: Moment) -> bool:
    """Until the next start."""
    started = moment.register(CSR0)[0] & STRT
    was_stopped = any(value & STOP for value in moment.csr_written(0))
    return was_stopped and not started and moment.only_theirs(CSR0, TXON)


def forgotten(moment: Moment) -> bool:
    kept = (moment.csr_written(3) or [0])[-1] & (BSWP | ACON | BCON)
    return moment.register("LANCE CSR3") == (0, kept) and moment.take("LANCE CSR3", kept)


def overflow(moment: Moment) -> bool:
    """Status bytes of receive descriptors: ours has BUFF without OFLO, QEMU's both."""
    found = [
        at
        for at, (ours, theirs) in moment.memory.items()
        if at % 8 == 2 and theirs == ours | OFLO and ours & (BUFF | RX_ERR) == BUFF | RX_ERR
    ]
    for at in found:
        del moment.memory[at]
    return bool(found)


def scanned(moment: Moment) -> bool:
    return moment.only_ours(CSR0, MISS)


def drain(moment: Moment) -> bool:
    zero = moment.written(LEDMA + D_CSR) == 0
    return zero and moment.only_theirs("LEDMA CSR", SLAVE_ERR)


def odd_sent(moment: Moment) -> bool:
    """Frames that differ in a last byte that has no other half."""
    ours, theirs = moment.ours.get("wire", ()), moment.theirs.get("wire", ())
    if not swaps(moment) or len(ours) != len(theirs):
        return False
    for one, two in zip(ours, theirs, strict=True):
        same = one == two or (len(one) % 2 and one[:-1] == two[:-1] and one[-1] == TAIL)
        if not same or len(one) != len(two):
            return False
    return moment.take("wire")


def odd_received(moment: Moment) -> bool:
    """The last byte of an FCS, which is zero, is in memory, or is not."""
    if not swaps(moment):
        return False
    lone = [
        at
        for at, (ours, _) in moment.memory.items()
        if not ours and not at % 2 and at - 1 not in moment.memory and at + 1 not in moment.memory
    ]
    for at in lone:
        del moment.memory[at]
    return bool(lone)


def swaps(moment: Moment) -> bool:
    return not (moment.csr_written(3) or [0])[-1] & BSWP


#: Of the status byte of a receive descriptor.
RX_ERR, OFLO, BUFF = 0x40, 0x10, 0x04


def fourth_buffer(moment: Moment) -> bool:
    """QEMU has an error in the third descriptor of a frame that goes on in ours."""
    found = [
        at
        for at, (ours, theirs) in moment.memory.items()
        if at % 8 == 2 and not ours and theirs == RX_ERR | OFLO | BUFF
    ]
    if found:
        moment.memory.clear()
        moment.differs.clear()
    return bool(found)


DIVERGENCES: tuple[Divergence, ...] = (
    Divergence(
        "TDMD stays",
        "TDMD is clear once the transmitter has looked at its ring; QEMU's stays set",
        'Am7990, "Control and Status Register 0", TDMD: cleared when it has been used',
        tdmd,
    ),
    Divergence(
        "TXON after STOP",
        "STOP clears TXON; in QEMU it sets it",
        'Am7990, "Control and Status Register 0", TXON: cleared by RESET or by setting STOP',
        stopped,
    ),
    Divergence(
        "CSR3 after STOP",
        "STOP clears CSR3; QEMU keeps it",
        'Am7990, "Control and Status Register 3": cleared by RESET or by setting STOP',
        forgotten,
    ),
    Divergence(
        "OFLO with BUFF",
        "what is left of a frame that no buffer was for fits into the FIFO; QEMU has OFLO, too",
        'Am7990, "Receive Message Descriptor 1", BUFF: OFLO only where both occur',
        overflow,
    ),
    Divergence(
        "frame in more than three buffers",
        "a received frame is chained over as many buffers as it needs; QEMU's over three",
        'Am7990, "Receive Descriptor Ring", data chaining',
        fourth_buffer,
        ends=True,
    ),
    Divergence(
        "descriptor out of turn",
        "a frame for which the current descriptor is not owned is missed; QEMU looks for another",
        'Am7990, "Control and Status Register 0", MISS; "Receive Descriptor Ring"',
        scanned,
        ends=True,
    ),
    Divergence(
        "LEDMA's CSR written as 0",
        "SLAVE_ERR stays clear; QEMU reads bit 6 as 1, for a drain, which is another bit",
        'DMA2, "E_CSR", bits 6 (SLAVE_ERR) and 10 (E_DRAIN)',
        drain,
    ),
    Divergence(
        "odd byte sent through the swap",
        "the byte that the buffer ends with is sent; QEMU sends one of a frame before",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        odd_sent,
    ),
    Divergence(
        "odd byte received through the swap",
        "the last byte of the FCS is stored; QEMU drops it",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        odd_received,
    ),
)
