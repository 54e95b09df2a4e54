# SPDX-License-Identifier: Apache-2.0
"""What is not as QEMU has it, on purpose, each with the section that says who is right.

Invariants:

- A predicate accepts the values that the entry names and no others, so that nothing else hides
  behind it; how often each was needed is reported by every campaign.
- Only behaviour that a datasheet settles is here. Where QEMU and the datasheet agree, there is no
  entry: the device is wrong.
"""

from __future__ import annotations

from zlib import crc32

from tests.peers.sun4m.compare import Divergence, Moment
from tests.peers.sun4m.machine import D_ADDR, D_CSR, IOMMU, LEDMA, RAP, RDP
from tests.peers.sun4m.script import (
    ACON,
    BABL,
    BCON,
    BSWP,
    DTCR,
    DTX,
    INEA,
    INIT,
    INTR,
    LOOP,
    MERR,
    MISS,
    OWN,
    RINT,
    RXON,
    STOP,
    STP,
    STRT,
    TAIL,
    TDMD,
    TINT,
    TXON,
    swapped,
)

CSR0 = "LANCE CSR0"
SLAVE_ERR = 0x40


def tdmd(moment: Moment) -> bool:
    return any(value & TDMD for value in moment.csr_written(0)) and moment.only_theirs(CSR0, TDMD)


def stopped(moment: Moment) -> bool:
    """Until the next start, and on if MODE keeps the transmitter off."""
    off = not moment.register(CSR0)[0] & STRT or mode(moment) & DTX
    return bool(off) and was_stopped(moment) and moment.only_theirs(CSR0, TXON)


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
    wild = moment.program.kind == "hostile"  # whose buffers hold anything
    for one, two in zip(ours, theirs, strict=True):
        if one == two:
            continue
        tail = len(one) % 2 and (wild or one[-1] == TAIL)
        if not tail or len(one) != len(two) or one[:-1] != two[:-1]:
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


def odd_address(moment: Moment) -> bool:
    """A buffer that begins at an odd address, through the swap."""
    odd = any(
        step.op == "store" and len(step.data) == 8 and step.data[1] & 1 and step.data[2] & OWN >> 8
        for step in moment.program.steps[: moment.step]
    )
    only = moment.memory or set(moment.differs) == {"wire"}
    return bool(swaps(moment) and odd and only) and everything(moment)


def mode(moment: Moment) -> int:
    """MODE, as it is in memory where CSR1 and CSR2 say that the initialization block is."""
    low, high = ((moment.csr_written(number) or [0])[-1] for number in (1, 2))
    return int.from_bytes(moment.bus_at((high & 0xFF) << 16 | low & 0xFFFE, 2)[0], "big")


def swaps(moment: Moment) -> bool:
    return not csr3(moment)[0] & BSWP


def csr3(moment: Moment) -> tuple[int, int]:
    """What CSR3 holds, as the datasheet has it, and what was written to it last."""
    kept, written, rap, stopped = 0, 0, 0, True
    for step in moment.program.steps[: moment.step]:
        if step.op == "check":
            rap = 0
        elif step.op == "write" and step.address == RAP:
            rap = step.value & 3
        elif step.op == "write" and step.address == LEDMA + D_CSR and step.value & RESET:
            kept, written, stopped = 0, 0, True
        elif step.op == "write" and step.address == RDP and rap == 0:
            if step.value & STOP:
                stopped = True
                kept = 0
            elif step.value & (INIT | STRT):
                stopped = False
        elif step.op == "write" and step.address == RDP and rap == 3:
            written = step.value & (BSWP | ACON | BCON)
            kept = written if stopped else kept
    return kept, written


#: Of the IOMMU's AFSR.
AFSR_ERR, AFSR_RD, AFSR_ME = 0x8000_0000, 0x0004_0000, 0x0008_0000
SHORTEST, LONGEST, FCS = 60, 1514, 4
#: Of LEDMA's CSR; NO_E_CSR has no meaning there, or does not stay.
INT_PEND, RESET, A_LOADED, NO_E_CSR = 1, 0x80, 0x0400_0000, 0x0190_6768
#: Of the status byte of a receive descriptor.
RX_ERR, OFLO, RX_CRC, BUFF = 0x40, 0x10, 0x08, 0x04
#: Bytes of the longest packet in loopback, with its FCS.
LOOPED = 36


def fourth_buffer(moment: Moment) -> bool:
    """QEMU has an error in the third descriptor of a frame that goes on in ours."""
    found = [
        at
        for at, (ours, theirs) in moment.memory.items()
        if at % 8 == 2 and not ours and theirs == RX_ERR | OFLO | BUFF
    ]
    return bool(found) and everything(moment)


def stop_overrides(moment: Moment) -> bool:
    """The last command with STOP had INIT or STRT besides; ours is stopped."""
    both = [value for value in moment.csr_written(0) if value & STOP and value & (INIT | STRT)]
    if not both or both[-1] & (STOP | STRT | INIT) == STOP | STRT | INIT:
        return False
    ours, theirs = moment.register(CSR0)
    return bool(ours & STOP and not theirs & STOP) and everything(moment)


def enable_while_stopped(moment: Moment) -> bool:
    return moment.register(CSR0)[0] == STOP and moment.only_theirs(CSR0, INEA)


def sent_while_off(moment: Moment) -> bool:
    """QEMU has TXON from a STOP, and has sent."""
    ours, theirs = moment.register(CSR0)
    off = not ours & TXON and was_stopped(moment)
    sent = theirs & TINT & ~ours or (theirs & TXON and "wire" in moment.differs)
    return off and bool(sent) and everything(moment)


def was_stopped(moment: Moment) -> bool:
    return any(value & STOP for value in moment.csr_written(0))


def initialized_while_started(moment: Moment) -> bool:
    ours, theirs = moment.register(CSR0)
    return bool(ours & (STRT | INIT) == STRT and theirs & INIT) and everything(moment)


def never_initialized(moment: Moment) -> bool:
    ours, theirs = moment.register(CSR0)
    on = RXON | TXON
    if not ours & (INIT | on) and ours & STRT and theirs & on:
        return everything(moment)
    return False


def padded(moment: Moment) -> bool:
    """MCNT: 64 in ours, and in QEMU's what came and four."""
    short = {len(step.data) + FCS for step in moment.frames() if len(step.data) < SHORTEST}
    for at, (ours, theirs) in moment.memory.items():
        if at % 8 == 7 and ours == SHORTEST + FCS and theirs in short:
            return everything(moment)
    return False


def babbled(moment: Moment) -> bool:
    long = any(len(frame) > LONGEST for frame in moment.ours.get("wire", ()))
    return long and moment.only_ours(CSR0, BABL) and everything(moment)


def loaded(moment: Moment) -> bool:
    test = moment.written(LEDMA + D_ADDR) is not None
    return test and moment.only_theirs("LEDMA CSR", A_LOADED)


def no_bits_of_it(moment: Moment) -> bool:
    value = moment.written(LEDMA + D_CSR) or 0
    return moment.only_theirs("LEDMA CSR", value & NO_E_CSR)


def reset_line(moment: Moment) -> bool:
    """QEMU's line is up though its LANCE asks for nothing."""
    was_reset = any(
        step.op == "write" and step.address == LEDMA + D_CSR and step.value & RESET
        for step in moment.program.steps[: moment.step]
    )
    if not was_reset or moment.register(CSR0)[1] & (INTR | INEA) == INTR | INEA:
        return False
    taken = [
        moment.only_theirs("interrupt controller pending", 1 << 16),
        moment.only_theirs("processor's pending", 1 << 6),
        moment.only_theirs("LEDMA CSR", INT_PEND),
    ]
    return any(taken)


def base_bits(moment: Moment) -> bool:
    return moment.only_ours("IOMMU base", 0xF800_0000)


def burst_bit(moment: Moment) -> bool:
    slots = [f"{IOMMU + offset:#x}" for offset in (0x1010, 0x1014, 0x1018, 0x101C)]
    taken = [moment.only_ours(slot, 4) for slot in slots]
    return any(taken)


def mask_id(moment: Moment) -> bool:
    return moment.only_theirs(f"{IOMMU + 0x3018:#x}", 0xFF_FFFF)


def no_packet(moment: Moment) -> bool:
    """TINT for a descriptor that was given without STP."""
    orphans = any(
        step.op == "store" and len(step.data) == 8 and step.data[2] & (OWN | STP) >> 8 == OWN >> 8
        for step in moment.program.steps[: moment.step]
    )
    return orphans and moment.only_theirs(CSR0, TINT) and everything(moment)


def ones(moment: Moment) -> bool:
    """A descriptor that QEMU has left alone, whose BCNT has not all ones above."""
    given_back = {at for at, pair in moment.memory.items() if pair[0] == pair[1] & 0x7F}
    for at in given_back:
        entry = moment.memory_at(at - 2, 8)[1]
        if at % 8 == 2 and entry[4] & 0xF0 != 0xF0 and entry[2] & 0x80:
            return everything(moment)
    return False


def looped_short(moment: Moment) -> bool:
    """MCNT and the buffer of a packet that came back: n + 4 bytes in ours, 64 in QEMU's."""
    found = False
    for at, (ours, theirs) in sorted({**moment.known, **moment.memory}.items()):
        short = at % 8 == 7 and ours <= LOOPED and theirs == SHORTEST + FCS
        if not short or not mode(moment) & LOOP:
            continue
        entry = moment.memory_at(at - 7, 8)[0]
        address = entry[3] << 16 | entry[0] << 8 | entry[1]
        content = moment.bus_at(address, ours)[0]
        if swaps(moment):
            if address % 2:
                continue
            content = swapped(content[: ours & ~1]) + content[ours & ~1 :]
        if not mode(moment) & DTCR and content[-4:] != crc32(content[:-4]).to_bytes(4, "little"):
            continue
        before = len(moment.memory)
        for place in (at, *moment.bus_places(address, SHORTEST + FCS)):
            moment.memory.pop(place, None)
        if mode(moment) & DTCR and set_in(moment, at - 5, RX_ERR | RX_CRC):
            del moment.memory[at - 5]
        found |= len(moment.memory) < before
    return found


def set_in(moment: Moment, at: int, mask: int) -> bool:
    """Does a byte of memory have these bits in ours, and otherwise the same ones?"""
    ours, theirs = moment.memory.get(at, (0, 0))
    return ours & mask == mask and ours & ~mask == theirs


def looped_group(moment: Moment) -> bool:
    """QEMU has received, or missed, what ours did not hear."""
    ours, theirs = moment.register(CSR0)
    taken = any(
        at % 8 == 2 and pair[0] & 0x80 and not pair[1] & 0x80 for at, pair in moment.memory.items()
    )
    heard = bool(theirs & ~ours & (RINT | MISS)) or taken
    return heard and mode(moment) & (LOOP | DTCR) == LOOP and everything(moment)


def no_end(moment: Moment) -> bool:
    """A transmit descriptor has ERR, BUFF and UFLO in ours."""
    for at, (ours, theirs) in moment.memory.items():
        entry = moment.memory_at(at - 2, 8)
        errors = at % 8 == 2 and ours & RX_ERR and not theirs & RX_ERR
        if errors and entry[0][6] & 0xC0 == 0xC0 and not entry[1][6] & 0xC0:
            return everything(moment)
    return False


def csr_bits(moment: Moment) -> bool:
    taken = [moment.only_theirs("LANCE CSR1", 1), moment.only_theirs("LANCE CSR2", 0xFF00)]
    return any(taken)


def csr3_while_running(moment: Moment) -> bool:
    kept, written = csr3(moment)
    return kept != written and everything(moment)


def before_start(moment: Moment) -> bool:
    """Initialized, not started, and a frame came."""
    ours, theirs = moment.register(CSR0)
    waits = not ours & (STRT | STOP) and not theirs & STRT
    return waits and bool(moment.frames()) and everything(moment)


def memory_error(moment: Moment) -> bool:
    """Ours has MERR, and both a fault of the IOMMU; QEMU tells of its last one."""
    ours, theirs = moment.register("IOMMU AFSR")
    if (ours ^ theirs) & ~(AFSR_ME | AFSR_RD):
        return False
    merr = moment.register(CSR0)
    if ours & theirs & AFSR_ERR and merr[0] & MERR and not merr[1] & MERR:
        return everything(moment)
    return False


def looked_ahead(moment: Moment) -> bool:
    """QEMU's IOMMU has a fault of a read, ours has none, and nothing else differs."""
    ours, theirs = moment.register("IOMMU AFSR")
    others = {"IOMMU AFSR", "IOMMU AFAR", "interrupt controller pending", "processor's pending"}
    if moment.memory or set(moment.differs) - others or ours & AFSR_ERR:
        return False
    return theirs & (AFSR_ERR | AFSR_RD) == AFSR_ERR | AFSR_RD and everything(moment)


def everything(moment: Moment) -> bool:
    """For those that end the comparison: the states differ from here on."""
    moment.differs.clear()
    moment.memory.clear()
    return True


DIVERGENCES: tuple[Divergence, ...] = (
    Divergence(
        "TDMD stays",
        "TDMD is clear once the transmitter has looked at its ring; QEMU's stays set",
        'Am7990, "Control and Status Register 0", TDMD: cleared when it has been used',
        tdmd,
    ),
    Divergence(
        "TXON after STOP",
        "STOP clears TXON; in QEMU it sets it, and MODE.DTX does not clear it",
        'Am7990, "Control and Status Register 0", TXON: cleared by RESET or by setting STOP',
        stopped,
    ),
    Divergence(
        "STOP with INIT or STRT",
        "STOP overrides the other; QEMU stops only where all three are set",
        'Am7990, "Control and Status Register 0", STOP',
        stop_overrides,
        ends=True,
    ),
    Divergence(
        "INEA while stopped",
        "INEA stays clear; QEMU sets it",
        'Am7990, "Control and Status Register 0", INEA: cannot be set while STOP is',
        enable_while_stopped,
    ),
    Divergence(
        "sent while off",
        "nothing is sent while TXON is clear; QEMU's was set by a STOP, and it sends",
        'Am7990, "Control and Status Register 0", STOP: disables all external activity; TXON',
        sent_while_off,
        ends=True,
    ),
    Divergence(
        "INIT after STRT",
        "INIT has to follow STOP; QEMU reads the block though it has been started",
        'Am7990, "Control and Status Register 0", INIT; "Initialization"',
        initialized_while_started,
        ends=True,
    ),
    Divergence(
        "started without an initialization",
        "neither half is on: there are no rings; QEMU's work at address 0",
        'Am7990, "Initialization": the block is read before the first start',
        never_initialized,
        ends=True,
    ),
    Divergence(
        "frames below the minimum",
        "padded to 60 bytes, as on an Ethernet; QEMU stores what its backend brought",
        'Am7990, "Receive": a frame of fewer than 64 bytes is a runt; IEEE 802.3, 4.2.3.3',
        padded,
        ends=True,
    ),
    Divergence(
        "BABL",
        "a frame that is longer than 1,518 bytes sets BABL; QEMU never does",
        'Am7990, "Control and Status Register 0", BABL',
        babbled,
        ends=True,
    ),
    Divergence(
        "MERR",
        "a fault ends the transfer, and MERR says so; QEMU's LANCE goes on with zeros",
        'Am7990, "Control and Status Register 0", MERR',
        memory_error,
        ends=True,
    ),
    Divergence(
        "look ahead",
        "descriptors are read when their turn comes; QEMU reads others, and its IOMMU faults",
        'Am7990, "Descriptor Rings"',
        looked_ahead,
        ends=True,
    ),
    Divergence(
        "frame before the start",
        "a frame that comes before STRT waits; QEMU receives it when INIT is done",
        'Am7990, "Control and Status Register 0", STRT and RXON',
        before_start,
        ends=True,
    ),
    Divergence(
        "TINT without a packet",
        "buffers from before an STP are given back silently; QEMU sets TINT",
        'Am7990, "Control and Status Register 0", TINT: after a packet',
        no_packet,
        ends=True,
    ),
    Divergence(
        "short packets in loopback",
        "come back as they were sent, with an FCS; QEMU fills them up to 60 bytes",
        'Am7990, "Loopback": packets of 8 to 32 bytes; "MODE Register", DTCR',
        looped_short,
    ),
    Divergence(
        "logical addresses in loopback",
        "are not heard while the CRC logic makes the FCS; by QEMU they are",
        'Am7990, "Loopback": multicast needs DTCR',
        looped_group,
        ends=True,
    ),
    Divergence(
        "packet without an end",
        "BUFF and UFLO, and the transmitter is off; QEMU gives the buffers back",
        'Am7990, "Transmit Message Descriptor 3", BUFF and UFLO',
        no_end,
        ends=True,
    ),
    Divergence(
        "bits of CSR1 and CSR2",
        "bit 0 of CSR1 and the high byte of CSR2 read as 0; QEMU keeps them",
        'Am7990, "Control and Status Register 1" and "2"',
        csr_bits,
    ),
    Divergence(
        "ones above BCNT",
        "bits 15:12 of a descriptor's third word are not looked at; QEMU takes it for not owned",
        'Am7990, "Transmit Message Descriptor 2": written by the host, unchanged by LANCE',
        ones,
        ends=True,
    ),
    Divergence(
        "odd address through the swap",
        "words begin at even addresses, and the byte before is not read; QEMU begins with it",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        odd_address,
        ends=True,
    ),
    Divergence(
        "CSR3 written while running",
        "is not written; in QEMU it is",
        'Am7990, "Control and Status Register 3": accessible only when STOP is set',
        csr3_while_running,
        ends=True,
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
        "A_LOADED of LEDMA",
        "E_TST_CSR is only stored; QEMU sets bit 26 of the CSR, which is ESPDMA's",
        'DMA2, "E_CSR" and "D_CSR", bit 26 (D_A_LOADED)',
        loaded,
    ),
    Divergence(
        "bits that E_CSR has not",
        "what has no meaning in E_CSR, or does not stay, reads as 0; QEMU keeps what was written",
        'DMA2, "E_CSR"',
        no_bits_of_it,
    ),
    Divergence(
        "LANCE's line after a reset",
        "RESET takes LANCE's interrupt back; in QEMU it stays up until something else changes it",
        'DMA2, "E_CSR", RESET; Am7990, RESET',
        reset_line,
    ),
    Divergence(
        "IOMMU base, bits 35:31",
        "the table may be anywhere in 36 bits; QEMU keeps 31",
        'Sun-4M System Architecture, "IOMMU Base Address Register"',
        base_bits,
    ),
    Divergence(
        "mask ID",
        "is read-only; QEMU's takes bits that are written",
        'Sun-4M System Architecture, "Mask ID Register"',
        mask_id,
    ),
    Divergence(
        "IOMMU slot configuration, BA16",
        "is kept; QEMU has it as 0",
        'Sun-4M System Architecture, "SBus Slot Configuration Registers"',
        burst_bit,
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
