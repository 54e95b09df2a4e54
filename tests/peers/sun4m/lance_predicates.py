# SPDX-License-Identifier: Apache-2.0
"""Where LANCE's registers, rings and frames may differ from QEMU's: predicates for divergences.py.

Invariants:

- Each looks at what both sides observed and at the program, never at how a side is made.
- One that has `everything` explained is for a divergence that ends the comparison.
"""

from __future__ import annotations

from zlib import crc32

from tests.peers.sun4m.compare import Moment
from tests.peers.sun4m.lance_state import CSR0, CSR_BITS, mode, receive, state, swaps, transmit
from tests.peers.sun4m.script import (
    BABL,
    BSWP,
    DTCR,
    DTX,
    INEA,
    INIT,
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

#: Of the IOMMU's AFSR.
AFSR_ERR, AFSR_RD, AFSR_ME = 0x8000_0000, 0x0004_0000, 0x0008_0000
SHORTEST, LONGEST, FCS = 60, 1514, 4
#: Of the status byte of a receive descriptor.
RX_ERR, OFLO, RX_CRC, BUFF = 0x40, 0x10, 0x08, 0x04
#: Bytes of the longest packet in loopback, with its FCS.
LOOPED = 36


def tdmd(moment: Moment) -> bool:
    return any(value & TDMD for value in moment.csr_written(0)) and moment.only_theirs(CSR0, TDMD)


def stopped(moment: Moment) -> bool:
    """Until the next start, and on if MODE keeps the transmitter off."""
    off = not moment.register(CSR0)[0] & STRT or mode(moment) & DTX
    return bool(off) and was_stopped(moment) and moment.only_theirs(CSR0, TXON)


def forgotten(moment: Moment) -> bool:
    """CSR3: ours is clear."""
    now = state(moment)
    kept = now.written[3] & CSR_BITS[3]
    return not now.holds[3] and moment.only_theirs("LANCE CSR3", kept)


def overflow(moment: Moment) -> bool:
    """Status bytes of receive descriptors: ours has BUFF without OFLO, QEMU's both."""
    if moment.program.kind.startswith("scsi"):
        return False
    found = [
        at
        for at, (ours, theirs) in moment.memory.items()
        if at % 8 == 2 and theirs == ours | OFLO and ours & (BUFF | RX_ERR) == BUFF | RX_ERR
    ]
    for at in found:
        del moment.memory[at]
    return bool(found)


def scanned(moment: Moment) -> bool:
    """Ours has missed a frame; QEMU has not, or has received one where ours has not."""
    ours, theirs = moment.register(CSR0)
    elsewhere = any(
        at % 8 == 2 and pair[0] & 0x80 and not pair[1] & 0x80 for at, pair in moment.memory.items()
    )
    missed = ours & MISS and (elsewhere or not theirs & MISS)
    return bool(missed) and moment.everything()


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


def fourth_buffer(moment: Moment) -> bool:
    """QEMU has an error in the third descriptor of a frame that goes on in ours."""
    found = [
        at
        for at, (ours, theirs) in moment.memory.items()
        if at % 8 == 2 and not ours and theirs == RX_ERR | OFLO | BUFF
    ]
    return bool(found) and moment.everything()


def stop_overrides(moment: Moment) -> bool:
    """The last command with STOP had INIT or STRT besides; ours is stopped."""
    both = [value for value in moment.csr_written(0) if value & STOP and value & (INIT | STRT)]
    if not both or both[-1] & (STOP | STRT | INIT) == STOP | STRT | INIT:
        return False
    ours, theirs = moment.register(CSR0)
    return bool(ours & STOP and not theirs & STOP) and moment.everything()


def enable_while_stopped(moment: Moment) -> bool:
    return moment.register(CSR0)[0] == STOP and moment.only_theirs(CSR0, INEA)


def sent_while_off(moment: Moment) -> bool:
    """QEMU has TXON from a STOP, and has sent."""
    ours, theirs = moment.register(CSR0)
    off = not ours & TXON and was_stopped(moment)
    sent = theirs & TINT & ~ours or (theirs & TXON and "wire" in moment.differs)
    sent = sent or any(entry.owned == (True, False) for entry in transmit(moment))
    return off and bool(sent) and moment.everything()


def was_stopped(moment: Moment) -> bool:
    return any(value & STOP for value in moment.csr_written(0))


def initialized_while_started(moment: Moment) -> bool:
    ours, theirs = moment.register(CSR0)
    return bool(ours & (STRT | INIT) == STRT and theirs & INIT) and moment.everything()


def never_initialized(moment: Moment) -> bool:
    ours, theirs = moment.register(CSR0)
    on = RXON | TXON
    if not ours & (INIT | on) and ours & STRT and theirs & on:
        return moment.everything()
    return False


def babbled(moment: Moment) -> bool:
    long = any(len(frame) > LONGEST for frame in moment.ours.get("wire", ()))
    return long and moment.only_ours(CSR0, BABL) and moment.everything()


def no_packet(moment: Moment) -> bool:
    """TINT for a descriptor that was given without STP."""
    orphans = any(
        step.op == "store" and len(step.data) == 8 and step.data[2] & (OWN | STP) >> 8 == OWN >> 8
        for step in moment.program.steps[: moment.step]
    )
    return orphans and moment.only_theirs(CSR0, TINT) and moment.everything()


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
    return heard and mode(moment) & (LOOP | DTCR) == LOOP and moment.everything()


def looped_long(moment: Moment) -> bool:
    """In ours the transmitter is off, and a descriptor has ERR."""
    ours, theirs = moment.register(CSR0)
    error = any(at % 8 == 2 and pair[0] & ~pair[1] & RX_ERR for at, pair in moment.memory.items())
    off = bool(theirs & ~ours & TXON)
    return error and off and bool(mode(moment) & LOOP) and moment.everything()


def csr_bits(moment: Moment) -> bool:
    reserved = {"LANCE CSR1": 1, "LANCE CSR2": 0xFF00, "LANCE CSR3": 0xFFF8}
    taken = [moment.only_theirs(name, mask) for name, mask in reserved.items()]
    return any(taken)


def kept_while_running(moment: Moment) -> bool:
    """Of CSR1 to CSR3: ours holds what was written while the chip was stopped."""
    now, taken = state(moment), False
    for number in (1, 2, 3):
        theirs = now.written[number] & CSR_BITS[number]
        name = f"LANCE CSR{number}"
        ours_shown, theirs_shown = moment.register(name)
        as_said = ours_shown == now.holds[number] and theirs_shown & CSR_BITS[number] == theirs
        taken |= as_said and moment.take(name, CSR_BITS[number])
    return taken


def used_while_running(moment: Moment) -> bool:
    """Another block was read, or payload is swapped by one only."""
    now = state(moment)
    elsewhere = now.read is not None and now.read[1] != now.read[2]
    swapped = (now.holds[3] ^ now.written[3]) & BSWP and (moment.memory or "wire" in moment.differs)
    return bool(elsewhere or swapped) and moment.everything()


def before_start(moment: Moment) -> bool:
    """Initialized, not started, and a frame came."""
    ours, theirs = moment.register(CSR0)
    waits = not ours & (STRT | STOP) and not theirs & STRT
    return waits and bool(moment.frames()) and moment.everything()


def while_stopped(moment: Moment) -> bool:
    """A frame came while the chip was stopped; now that it runs, only ours takes or misses it."""
    ours, theirs = moment.register(CSR0)
    last = moment.before[-1].step if moment.before else 0
    waits = state(moment).waited >= last
    taken = any(entry.owned == (False, True) for entry in receive(moment))
    return waits and bool(taken or ours & ~theirs & (RINT | MISS)) and moment.everything()


def memory_error(moment: Moment) -> bool:
    """Ours has MERR, and both a fault of the IOMMU; QEMU tells of its last one."""
    ours, theirs = moment.register("IOMMU AFSR")
    if (ours ^ theirs) & ~(AFSR_ME | AFSR_RD):
        return False
    merr = moment.register(CSR0)
    if ours & theirs & AFSR_ERR and merr[0] & MERR and not merr[1] & MERR:
        return moment.everything()
    return False


def looked_ahead(moment: Moment) -> bool:
    """QEMU's IOMMU has a fault of a read, ours has none, and nothing else differs."""
    ours, theirs = moment.register("IOMMU AFSR")
    others = {"IOMMU AFSR", "IOMMU AFAR", "interrupt controller pending", "processor's pending"}
    if moment.memory or set(moment.differs) - others or ours & AFSR_ERR:
        return False
    return theirs & (AFSR_ERR | AFSR_RD) == AFSR_ERR | AFSR_RD and moment.everything()
