# SPDX-License-Identifier: Apache-2.0
"""Where LANCE's descriptors and what they lead to may differ: predicates for divergences.py.

Invariant: a predicate explains what the descriptors of the program's rings account for, and nothing
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.peers.sun4m.compare import Moment
from tests.peers.sun4m.lance_state import (
    CSR0,
    ENTRY,
    block,
    buffer,
    entries,
    faulted,
    owned,
    receive,
    rings,
    swaps,
    transmit,
)
from tests.peers.sun4m.script import ENP, STP, TXON

#: The shortest frame, and its FCS.
SHORTEST, FCS = 60, 4
#: Of the status byte of a descriptor; BUFF of a receive descriptor's.
ERR, RX_BUFF, END, START = 0x40, 0x04, ENP >> 8, STP >> 8
#: BUFF and UFLO, of a transmit descriptor's last word.
UNDERFLOWN = 0xC0


def message_bytes(entry: bytes) -> int:
    """MCNT."""
    return int.from_bytes(entry[6:8], "big") & 0xFFF


def ones(moment: Moment) -> bool:
    """A descriptor that QEMU has left alone, whose BCNT has not all ones above.

    Ours has given it back, or its buffer could not be reached.
    """
    for entry in (*receive(moment), *transmit(moment)):
        ours, theirs = entry.owned
        alone = theirs and entry.theirs[4] & 0xF0 != 0xF0
        if alone and (not ours or faulted(moment, *buffer(entry.ours))):
            return moment.everything()
    return False


def ring_at_zero(moment: Moment) -> bool:
    """A descriptor there that QEMU has left alone, or that only ours has tried to read."""
    for base, count in rings(moment):
        if base:
            continue
        left = any(entry.owned == (False, True) for entry in entries(moment, (base, count)))
        if left or faulted(moment, base, count * ENTRY):
            return moment.everything()
    return False


def unaligned(moment: Moment) -> bool:
    """A ring whose address has bits below 3: QEMU finds a descriptor there, or ours elsewhere."""
    for at, (base, count) in zip((17, 21), rings(moment), strict=False):
        below = block(moment)[at] & 7
        if not below:
            continue
        theirs = entries(moment, (base + below, count))
        found = any(owned(entry.given) and not entry.owned[1] for entry in theirs)
        for entry in entries(moment, (base, count)):
            found |= entry.used or (entry.owned[0] and faulted(moment, *buffer(entry.ours)))
        if found:
            return moment.everything()
    return False


def no_end(moment: Moment) -> bool:
    """A transmit descriptor has ERR, BUFF and UFLO in ours, and the transmitter is off.

    QEMU's has not, or, by a bit of its CSR3 that the Am7990 has not, its transmitter is on.
    """
    ours, theirs = moment.register(CSR0)
    for entry in transmit(moment):
        ended = entry.ours[2] & ERR and entry.ours[6] & UNDERFLOWN == UNDERFLOWN
        if entry.used and ended and theirs & ~ours & TXON:
            return moment.everything()
    return False


def padded(moment: Moment) -> bool:
    """QEMU has received as many bytes as came, and four; ours 64, or has had no room for them."""
    short = {len(step.data) + FCS for step in moment.frames() if len(step.data) < SHORTEST}
    found = receive(moment)
    theirs = any(not entry.owned[1] and message_bytes(entry.theirs) in short for entry in found)
    ours = any(
        entry.used and (message_bytes(entry.ours) == SHORTEST + FCS or entry.ours[2] & RX_BUFF)
        for entry in found
    )
    return theirs and ours and moment.everything()


def odd_tails(moment: Moment) -> Iterator[int]:
    """Where what was stored just now ends in half a word.

    A bit that the host had set already says nothing: then it is both.
    """
    found = receive(moment)
    for place, entry in enumerate(found):
        if not entry.used:
            continue
        address, size = buffer(entry.ours)
        ends = []
        if not entry.ours[2] & END or entry.given[2] & END:
            ends.append(size)
        if entry.ours[2] & END:
            used = message_bytes(entry.ours)
            for begin in range(place, place - len(found), -1):
                if found[begin].ours[2] & START:
                    ends.append(used)
                    if not found[begin].given[2] & START:
                        break
                used -= buffer(found[begin - 1].ours)[1]
        for end in ends:
            if 0 < end <= size and end % 2:
                yield moment.bus_places(address + end - 1 & 0xFF_FFFF, 1)[0]


def odd_received(moment: Moment) -> bool:
    """The last byte of what was stored, in ours; in QEMU's there is what was there before.

    It is the FCS's, which is zero, or of a buffer of an odd size.
    """
    if not moment.before or not moment.memory or not swaps(moment):
        return False
    taken = False
    for at in moment.memory.keys() & set(odd_tails(moment)):
        ours, theirs = moment.memory[at]
        if not ours or theirs == moment.before[-1].memory_at(at, 1)[1][0]:
            del moment.memory[at]
            taken = True
    return taken


def odd_address(moment: Moment) -> bool:
    """Buffers that begin at odd addresses, through the swap: only what they hold differs."""
    if not swaps(moment) or set(moment.differs) - {"wire"}:
        return False
    received, sent = ([each for each in ring(moment) if each.used] for ring in (receive, transmit))
    inside: set[int] = set()
    for entry in received if moment.memory else ():
        address, size = buffer(entry.ours)
        inside.update(moment.bus_places(address - 1 & 0xFF_FFFF, size + 1))
    odd_in, odd_out = (any(buffer(each.ours)[0] & 1 for each in used) for used in (received, sent))
    arrived = not moment.memory or (odd_in and moment.memory.keys() <= inside)
    left = not moment.differs or odd_out
    return arrived and left and moment.everything()


def over_the_rings(moment: Moment) -> bool:
    """A buffer that was used lies over descriptors.

    What LANCE writes there are frames that it receives; what it sends from there is what it has
    written back, or not yet.
    """
    both = (receive(moment), transmit(moment))
    inside = {entry.place + at for ring in both for entry in ring for at in range(ENTRY)}
    for ring, seen in zip(both, (moment.memory, "wire" in moment.differs), strict=True):
        for entry in ring if seen else ():
            over = inside.intersection(moment.bus_places(*buffer(entry.given)))
            if over and owned(entry.given) and not any(entry.owned):
                return moment.everything()
    return False
