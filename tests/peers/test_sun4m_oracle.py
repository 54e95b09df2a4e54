# SPDX-License-Identifier: Apache-2.0
"""The differential test of sun4m is itself tested: the oracle, the comparison, the shrinking.

QEMU 11 is Debian's of trixie-backports, fetched once (scripts/foreign_debian.sh); 7.2 is this
machine's package. docs/how-to-sun4m.md says how to run campaigns by hand.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.conftest import needed
from tests.peers.sun4m.board import Board
from tests.peers.sun4m.campaign import Pair, campaign, make_program
from tests.peers.sun4m.generators import GENERATORS
from tests.peers.sun4m.machine import ARENA, COMPARED, COMPARED_BYTES
from tests.peers.sun4m.program import Program, Step
from tests.peers.sun4m.qemu import Qemu, qemu7_sparc, qemu11_sparc
from tests.peers.sun4m.session import Gone, Observation, Session
from tests.peers.sun4m.shrink import shrink
from tests.peers.sun4m.sides import qemu7, qemu11

pytestmark = pytest.mark.limit(240)  # QEMU may have to be fetched


@pytest.fixture(scope="module", autouse=True)
def oracles() -> Iterator[None]:
    with needed():
        qemu11_sparc()
    yield


def test_the_oracle_agrees_with_itself(work: Path) -> None:
    """Nothing that is compared depends on anything but the program."""
    pair = Pair(work, qemu11, qemu11)
    try:
        tally = campaign(pair, (make_program(11, number) for number in range(60)), ())
    finally:
        pair.close()
    assert (tally.agreed, tally.failed, tally.no_verdict) == (60, 0, 0), tally.reports


@pytest.mark.parametrize("make", [Board, qemu11])
def test_the_memory_that_is_looked_at_is_the_machines(
    work: Path, make: Callable[[Path], Session]
) -> None:
    session = make(work)
    try:
        steps = [Step("store", ARENA, data=b"sun4m"), Step("fill", ARENA + 4096, 100, 7)]
        seen = session.run(Program("stores", 3, (*steps, Step("check"))))
        (memory,) = [each.value for each in seen if each.what == "memory"]
        (said,) = session.commands([f"b64read {COMPARED:#x} {COMPARED_BYTES:#x}"])
        assert memory == base64.b64decode(said)
        assert session.memory()[ARENA - COMPARED :].startswith(b"sun4m")
    finally:
        session.close()


def test_every_kind_of_program_is_its_seed_s(tmp_path: Path) -> None:
    for make, _ in GENERATORS.values():
        program = make(5)
        assert program == make(5) != make(6)
        program.save(tmp_path / "program.json")
        assert Program.load(tmp_path / "program.json") == program
        assert program.steps[-1].op == "check" and str(program)


def test_the_older_oracle_is_of_the_same_opinion(work: Path) -> None:
    """QEMU 7.2, whose time passes by itself: programs for which none has to."""
    with needed():
        qemu7_sparc(work)
    still = [Step("store", ARENA, data=b"sun4m"), Step("write", 0x1000_0004, 4, 0x14000)]
    still += [Step("read", 0x1000_0004, 4), Step("check")]
    pair = Pair(work, qemu7, qemu11)
    try:
        tally = campaign(pair, iter([Program("still", 1, tuple(still))]), ())
        seen = pair.run("ours", Program("still", 2, (Step("clock", value=3_000_000), *still)))
    finally:
        pair.close()
    assert tally.agreed == 1, tally.reports
    assert seen[0].value == 0x14000


class Biased(Qemu):
    """One that is wrong about LEDMA's base register once the wire has brought it a frame."""

    def run(self, program: Program) -> list[Observation]:
        first = [place for place, step in enumerate(program.steps) if step.op == "frame"]
        found = super().run(program)
        for place, (step, what, value) in enumerate(found):
            if what == "LEDMA base" and first and step > first[0] and isinstance(value, int):
                found[place] = Observation(step, what, value ^ 1)
        return found


class Mortal(Qemu):
    """One that ends in every third program."""

    def run(self, program: Program) -> list[Observation]:
        if program.seed % 3 == 0:
            self._process.kill()
        return super().run(program)


def mortal(folder: Path) -> Qemu:
    return Mortal(folder, qemu11_sparc(), "QEMU that dies")


def biased(folder: Path) -> Qemu:
    return Biased(folder, qemu11_sparc(), "QEMU that errs")


def test_a_difference_is_found_shrunk_saved_and_replayed(work: Path) -> None:
    pair = Pair(work, biased, qemu11)
    programs = [make_program(3, number, ["driver"]) for number in range(4)]
    with_frames = [each for each in programs if any(step.op == "frame" for step in each.steps)]
    try:
        tally = campaign(pair, iter(programs), (), failures=work / "failing")
        assert tally.failed == len(with_frames) > 0
        assert tally.agreed == len(programs) - len(with_frames)
        assert "LEDMA base: ours 0x1, QEMU's 0x0" in tally.reports[0]
        saved = work / "failing" / f"driver-{with_frames[0].seed:08x}.json"
        short = Program.load(saved)
        assert [step.op for step in short.steps] == ["frame", "check"]
        again = campaign(pair, iter([short]), (), failures=work / "failing")
        assert again.failed == 1
    finally:
        pair.close()


def test_an_oracle_that_ends_gives_no_verdict(work: Path) -> None:
    """... and is started anew; our own side's end is a failure."""
    programs = [make_program(3, number, ["driver"]) for number in range(12)]
    deaths = sum(program.seed % 3 == 0 for program in programs)
    assert 0 < deaths < len(programs)
    pair = Pair(work, qemu11, mortal)
    try:
        tally = campaign(pair, iter(programs), (), failures=work / "gone")
    finally:
        pair.close()
    assert (tally.agreed, tally.no_verdict) == (len(programs) - deaths, deaths), tally.reports
    assert sum(tally.gone.values()) == len(list((work / "gone").iterdir())) == deaths
    pair = Pair(work / "other", mortal, qemu11)
    (work / "other").mkdir()
    try:
        dead = next(program for program in programs if program.seed % 3 == 0)
        with pytest.raises(Gone, match="QEMU that dies"):
            pair.run("ours", dead)
        assert "QEMU that dies" in str(pair.judge(dead, ()))
    finally:
        pair.close()


def test_shrinking_keeps_what_fails() -> None:
    steps = tuple(Step("write", address, 4) for address in range(100))
    tries = []

    def fails(program: Program) -> bool:
        tries.append(len(program.steps))
        return {17, 63} <= {step.address for step in program.steps}

    short = shrink(Program("any", 1, steps), fails)
    assert [step.address for step in short.steps] == [17, 63] and len(tries) < 100
    assert len(shrink(Program("any", 1, steps), fails, tries=5).steps) < 100
