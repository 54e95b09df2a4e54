# SPDX-License-Identifier: Apache-2.0
"""What a program has LANCE's registers and rings be: what the predicates of divergences.py look at.

Invariants:

- It follows from the program, from the datasheet, and from what both sides showed; never from how
  a side is made.
- The initialization block is as it was when the chip read it, whatever has become of that memory
  since.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.peers.sun4m.compare import Moment
from tests.peers.sun4m.machine import COMPARED, COMPARED_BYTES, D_CSR, LEDMA, PAGE, RAP, RDP, TABLE
from tests.peers.sun4m.script import ACON, BCON, BSWP, INIT, MERR, OWN, STOP, STRT, WINDOW
from tests.peers.sun4m.session import filling

CSR0 = "LANCE CSR0"
#: Of LEDMA's CSR.
RESET = 0x80
BLOCK, ENTRY = 24, 8
#: Bits of CSR1 to CSR3 that there are.
CSR_BITS = (0, 0xFFFE, 0xFF, BSWP | ACON | BCON)


@dataclass
class State:
    """CSR1 to CSR3 after some steps.

    Attributes:
        holds: what they hold, as the datasheet has it.
        written: what was written to each last, obeyed or not; STOP does not change it.
        read: of the last INIT that the chip obeyed: its step, and where the block was by `holds`
            and by `written`.
        stopped, started: it was stopped and nothing since; STRT was written since.
        waited: of the last start: its step, if a frame had come while the chip was stopped.
    """

    holds: list[int] = field(default_factory=lambda: [0] * 4)
    written: list[int] = field(default_factory=lambda: [0] * 4)
    read: tuple[int, int, int] | None = None
    stopped: bool = True
    started: bool = False
    waited: int = -1


def state(moment: Moment) -> State:
    """From the reset to a moment."""
    now, rap, waits = State(), 0, False
    for place, step in enumerate(moment.program.steps[: moment.step]):
        if step.op == "check":
            rap = 0
        elif step.op == "frame":
            waits |= now.stopped
        elif step.op != "write":
            continue
        elif step.address == LEDMA + D_CSR and step.value & RESET:
            now.holds[3], now.read, now.stopped, now.started = 0, None, True, False
        elif step.address == RAP:
            rap = step.value & 3
        elif step.address == RDP and rap:
            now.written[rap] = step.value
            now.holds[rap] = step.value & CSR_BITS[rap] if now.stopped else now.holds[rap]
        elif step.address == RDP and step.value & STOP:
            now.holds[3], now.stopped, now.started = 0, True, False
        elif step.address == RDP and step.value & (INIT | STRT):
            if now.stopped and step.value & INIT:
                now.read = place, address(now.holds), address(now.written)
            if step.value & STRT and not now.started:
                now.started, now.waited, waits = True, place if waits else -1, False
            now.stopped = False
    return now


def address(csr: list[int]) -> int:
    """Of the initialization block, by CSR1 and CSR2."""
    return (csr[2] & 0xFF) << 16 | csr[1] & 0xFFFE


def swaps(moment: Moment) -> bool:
    """Payload goes through the byte lanes."""
    return not state(moment).holds[3] & BSWP


# --- memory ---------------------------------------------------------------------------------------


def picture(moment: Moment, step: int) -> bytes:
    """COMPARED when a step begins: as ours showed it last, and what the program stored since."""
    looks = [look for look in moment.before if "memory" in look.ours and look.step < step]
    first = looks[-1].step if looks else 0
    memory = bytearray(looks[-1].ours["memory"] if looks else filling(moment.program.seed))
    for each in moment.program.steps[first:step]:
        if each.op in ("store", "fill"):
            data = each.data or bytes([each.value]) * each.size
            at = each.address - COMPARED
            if 0 <= at <= COMPARED_BYTES - len(data):
                memory[at : at + len(data)] = data
    return bytes(memory)


def part(memory: bytes, place: int, size: int) -> bytes:
    """Of a picture; zeros elsewhere."""
    at = place - COMPARED
    return memory[at : at + size] if 0 <= at <= COMPARED_BYTES - size else bytes(size)


def block(moment: Moment) -> bytes:
    """The initialization block, when it was read last; none: it was not."""
    read = state(moment).read
    if read is None:
        return b""
    memory = picture(moment, read[0])
    found = b""
    for at in range(read[1], read[1] + BLOCK):
        entry = part(memory, TABLE + 4 * (at >> 12 & 0xFFF), 4)
        page = (int.from_bytes(entry, "big") & 0xFFFF_FF00) << 4
        found += part(memory, page | at & 0xFFF, 1)
    return found


def mode(moment: Moment) -> int:
    """MODE; before an initialization 0."""
    return int.from_bytes(block(moment)[:2], "big")


# --- rings ----------------------------------------------------------------------------------------


def rings(moment: Moment) -> list[tuple[int, int]]:
    """Bus address and number of entries: the receive ring and the transmit ring, if there are."""
    words = block(moment)
    found = []
    for at in (16, 20)[: len(words)]:
        low, high = (int.from_bytes(words[at + up : at + up + 2], "big") for up in (0, 2))
        found.append(((high & 0xFF) << 16 | low & ~7, 1 << (high >> 13)))
    return found


@dataclass(frozen=True)
class Entry:
    """A descriptor of a ring.

    Attributes:
        place: its physical address.
        ours, theirs: what is there now.
        given: what the host gave: as it was at the check before, or was stored since.
    """

    place: int
    ours: bytes
    theirs: bytes
    given: bytes

    @property
    def owned(self) -> tuple[bool, bool]:
        """Whether ours, and QEMU's, is the chip's still."""
        return owned(self.ours), owned(self.theirs)

    @property
    def used(self) -> bool:
        """Whether ours was given back just now."""
        return owned(self.given) and not owned(self.ours)


def owned(entry: bytes) -> bool:
    return bool(entry[2] & OWN >> 8)


def buffer(entry: bytes) -> tuple[int, int]:
    """Bus address, of 24 bits, and length of the buffer that 8 bytes describe."""
    at = entry[3] << 16 | entry[0] << 8 | entry[1]
    return at, 4096 - (int.from_bytes(entry[4:6], "big") & 0xFFF)


def entries(moment: Moment, ring: tuple[int, int]) -> list[Entry]:
    base, count = ring
    before = picture(moment, moment.step)
    found = []
    for at in range(count):
        (place,) = moment.bus_places(base + ENTRY * at & 0xFF_FFFF, 1)
        found.append(Entry(place, *moment.memory_at(place, ENTRY), part(before, place, ENTRY)))
    return found


def receive(moment: Moment) -> list[Entry]:
    """The descriptors of the receive ring."""
    return [entry for ring in rings(moment)[:1] for entry in entries(moment, ring)]


def transmit(moment: Moment) -> list[Entry]:
    """... of the transmit ring."""
    return [entry for ring in rings(moment)[1:] for entry in entries(moment, ring)]


def faulted(moment: Moment, at: int, size: int) -> bool:
    """Only ours has MERR, and the IOMMU's fault is in these bytes of the window."""
    ours, theirs = moment.register(CSR0)
    page = moment.register("IOMMU AFAR")[0]
    inside = WINDOW | at & ~(PAGE - 1) <= page < (WINDOW | at) + size
    return bool(ours & ~theirs & MERR) and inside
