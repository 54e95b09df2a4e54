# SPDX-License-Identifier: Apache-2.0
"""Two sides' observations of one program, held against each other and the deliberate divergences.

Invariants:

- A difference is explained by a divergence's own predicate, or the program fails. What one explains
  no other does, and each use is counted.
- Bytes of memory that were explained stay so as long as both sides keep them; any other value is
  a difference of its own.
- Where a divergence leaves the two machines in states that must differ from then on, it `ends` the
  comparison there; what came before has been compared.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.peers.sun4m.machine import COMPARED, COMPARED_BYTES, PAGE, RAP, RDP, TABLE
from tests.peers.sun4m.program import Program, Step
from tests.peers.sun4m.session import Observation

Bytes = dict[int, tuple[int, int]]


@dataclass
class Moment:
    """What both sides observed at one step.

    Attributes:
        ours, theirs: by what was observed, as in `Observation`.
        differs: of these, what is not the same and not explained yet, but memory: of a register the
            bits, otherwise 1.
        memory: addresses whose bytes differ, with ours and theirs.
        known: ... which were explained before.
        before: moments that were compared already.
    """

    program: Program
    step: int
    ours: dict[str, Any]
    theirs: dict[str, Any]
    differs: dict[str, int]
    memory: Bytes
    before: list[Moment]
    known: Bytes = field(default_factory=dict)

    def register(self, name: str) -> tuple[int, int]:
        """Ours and theirs; of a register that was not read here, zeros."""
        return self.ours.get(name, 0), self.theirs.get(name, 0)

    def written(self, address: int) -> int | None:
        """What was written last to a register; None: nothing since the reset."""
        for step in reversed(self.program.steps[: self.step]):
            if step.op == "write" and step.address == address:
                return step.value
        return None

    def memory_at(self, address: int, size: int) -> tuple[bytes, bytes]:
        """Ours and theirs, here or when it was looked at last; of what is not compared, zeros."""
        looks = [self, *reversed(self.before)]
        look = next((look for look in looks if "memory" in look.ours), None)
        begin = address - COMPARED
        if look is None or not 0 <= begin <= COMPARED_BYTES - size:
            return bytes(size), bytes(size)
        there = slice(begin, begin + size)
        return look.ours["memory"][there], look.theirs["memory"][there]

    def bus_places(self, address: int, size: int) -> list[int]:
        """Physical addresses of bytes of the window, by the page table in memory."""
        found: list[int] = []
        while size:
            entry = self.memory_at(TABLE + 4 * (address // PAGE & 0xFFF), 4)[0]
            page = (int.from_bytes(entry, "big") & 0xFFFF_FF00) << 4
            begin = page | address % PAGE
            part = min(size, PAGE - address % PAGE)
            found += range(begin, begin + part)
            address, size = address + part, size - part
        return found

    def bus_at(self, address: int, size: int) -> tuple[bytes, bytes]:
        """`memory_at`, of bytes of the window."""
        pairs = [self.memory_at(at, 1) for at in self.bus_places(address, size)]
        return b"".join(pair[0] for pair in pairs), b"".join(pair[1] for pair in pairs)

    def frames(self) -> list[Step]:
        """The frames that came in since the last check."""
        first = self.before[-1].step if self.before else 0
        return [step for step in self.program.steps[first : self.step] if step.op == "frame"]

    def csr_written(self, number: int) -> list[int]:
        """All that was written to a register of LANCE, in order."""
        values, rap = [], 0
        for step in self.program.steps[: self.step]:
            if step.op == "check":
                rap = 0
            elif step.op == "write" and step.address == RAP:
                rap = step.value
            elif step.op == "write" and step.address == RDP and rap == number:
                values.append(step.value)
        return values

    def take(self, name: str, mask: int = 1) -> bool:
        """Explains bits of a register, or all of something else; False: they do not differ."""
        found = self.differs.get(name, 0) & mask
        if found == self.differs.get(name):
            self.differs.pop(name, None)
        elif found:
            self.differs[name] &= ~mask
        return bool(found)

    def only_theirs(self, name: str, mask: int) -> bool:
        """`take`, of bits that are set in QEMU's register and not in ours."""
        ours, theirs = self.register(name)
        return self.take(name, theirs & ~ours & mask)

    def only_ours(self, name: str, mask: int) -> bool:
        ours, theirs = self.register(name)
        return self.take(name, ours & ~theirs & mask)

    def everything(self) -> bool:
        """Explains all that differs: the states differ from here on."""
        self.differs.clear()
        self.memory.clear()
        return True

    def done(self) -> bool:
        return not self.differs and not self.memory


@dataclass(frozen=True)
class Divergence:
    """Something that is not as QEMU has it, on purpose.

    Attributes:
        differs: what is ours and what is QEMU's.
        source: the section that says who is right.
        explain: takes from a moment's `differs` and `memory` what it accounts for; False if that is
            nothing.
        ends: the machines differ from here on.
    """

    name: str
    differs: str
    source: str
    explain: Callable[[Moment], bool]
    ends: bool = False


@dataclass
class Verdict:
    """Of one program.

    Attributes:
        failure: None: both sides agree; else the first moment with differences that are left.
        used: how often each divergence was needed.
        compared: moments that were looked at.
    """

    failure: Moment | None = None
    used: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    ended: str = ""


def compare(
    program: Program,
    ours: Sequence[Observation],
    theirs: Sequence[Observation],
    divergences: Sequence[Divergence] = (),
) -> Verdict:
    """Step by step, up to the first difference that nothing explains."""
    verdict = Verdict()
    known: Bytes = {}
    before: list[Moment] = []
    divergences = sorted(divergences, key=lambda divergence: divergence.ends)
    for moment in moments(program, ours, theirs, before):
        verdict.compared += 1
        for address in [at for at, pair in moment.memory.items() if known.get(at) == pair]:
            moment.known[address] = moment.memory.pop(address)
        found = dict(moment.memory)
        for divergence in divergences:
            if moment.done():
                break
            if divergence.explain(moment):
                verdict.used[divergence.name] += 1
                if divergence.ends:
                    verdict.ended = divergence.name
                    return verdict
        if not moment.done():
            verdict.failure = moment
            return verdict
        known.update(found)
        before.append(moment)
    return verdict


def moments(
    program: Program,
    ours: Sequence[Observation],
    theirs: Sequence[Observation],
    before: list[Moment],
) -> Iterator[Moment]:
    by_step = itertools.groupby(zip(ours, theirs, strict=True), key=lambda pair: pair[0].step)
    for step, pairs in by_step:
        mine: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for one, two in pairs:
            assert one[:2] == two[:2], (one[:2], two[:2])
            mine[one.what], other[two.what] = one.value, two.value
        differs = {
            what: mine[what] ^ other[what] if isinstance(mine[what], int) else 1
            for what in mine
            if mine[what] != other[what]
        }
        memory: Bytes = {}
        if differs.pop("memory", 0):
            memory = differing(mine["memory"], other["memory"])
        yield Moment(program, step, mine, other, differs, memory, before)


def differing(ours: bytes, theirs: bytes) -> Bytes:
    """Addresses of the bytes of COMPARED that are not the same."""
    mine, other = np.frombuffer(ours, np.uint8), np.frombuffer(theirs, np.uint8)
    places = np.flatnonzero(mine != other)
    pairs = zip(mine[places].tolist(), other[places].tolist(), strict=True)
    return dict(zip((places + COMPARED).tolist(), pairs, strict=True))


def runs(memory: Bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Neighbouring bytes together: address, ours, theirs."""
    begin: list[int] = []
    for address in [*sorted(memory), -1]:
        if begin and address != begin[-1] + 1:
            pairs = [memory[at] for at in begin]
            yield begin[0], bytes(p[0] for p in pairs), bytes(p[1] for p in pairs)
            begin = []
        begin.append(address)


def describe(moment: Moment) -> str:
    """For a person: what differs at a moment."""
    lines = [f"at step {moment.step}: {moment.program.steps[moment.step]}"]
    for what in sorted(moment.differs):
        ours, theirs = moment.ours[what], moment.theirs[what]
        if what == "wire":
            lines.append(f"  frames: ours {len(ours)}, QEMU's {len(theirs)}")
            for place, (one, two) in enumerate(itertools.zip_longest(ours, theirs)):
                if one != two:
                    lines.append(f"    {place}: ours   {_frame(one)}")
                    lines.append(f"       QEMU's {_frame(two)}")
        elif isinstance(ours, bytes):
            size = sum(one != two for one, two in zip(ours, theirs, strict=True))
            lines.append(f"  {what}: {size} bytes differ")
        else:
            lines.append(f"  {what}: ours {ours:#x}, QEMU's {theirs:#x}")
    for place, (address, one, two) in enumerate(runs(moment.memory)):
        if place == 12:
            lines.append(f"  ... {len(moment.memory)} bytes in all")
            break
        lines.append(f"  memory {address:#x}: ours {_short(one)}, QEMU's {_short(two)}")
    return "\n".join(lines)


def _short(data: bytes) -> str:
    return data.hex(" ", 2) if len(data) <= 24 else f"{data[:24].hex(' ', 2)}... ({len(data)})"


def _frame(data: bytes | None) -> str:
    return "none" if data is None else f"{len(data)} bytes {_short(data)}"
