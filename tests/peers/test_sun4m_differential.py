# SPDX-License-Identifier: Apache-2.0
"""Our SPARCstation 5 and QEMU do the same in a thousand programs; `make soak` has 100,000.

Where they do not, tests/peers/sun4m/divergences.py says who is right. docs/how-to-sun4m.md says how
a program that fails is replayed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.conftest import needed
from tests.peers.sun4m.board import Board
from tests.peers.sun4m.campaign import Pair, make_program
from tests.peers.sun4m.compare import Verdict, describe
from tests.peers.sun4m.divergences import DIVERGENCES
from tests.peers.sun4m.generators import GENERATORS
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.qemu import qemu11_sparc
from tests.peers.sun4m.sides import qemu11

pytestmark = pytest.mark.limit(400)  # QEMU may have to be fetched

#: The campaign is always this one; `make soak` draws another each time.
PROGRAMS, SEED = 1000, 1993


def test_programs_agree(tmp_path: Path) -> None:
    with needed():
        qemu11_sparc()
    command = [sys.executable, "-m", "tests.peers.sun4m.campaign"]
    done = subprocess.run(
        [*command, "--programs", str(PROGRAMS), "--seed", str(SEED), "--failures", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=380,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


def test_a_campaign_has_every_kind_of_program() -> None:
    kinds = {make_program(1, number).kind for number in range(200)}
    assert kinds == {kind for kind, (_, share) in GENERATORS.items() if share}


def test_divergences_say_what_differs_and_who_is_right() -> None:
    names = [divergence.name for divergence in DIVERGENCES]
    assert len(set(names)) == len(names)
    for divergence in DIVERGENCES:
        assert "QEMU" in divergence.differs, divergence.name
        assert '"' in divergence.source, divergence.name  # a section's title


#: Programs that once were unexplained, shrunk, and the divergence that accounts for each now.
CAUSES = Path(__file__).with_name("sun4m") / "causes"
EXPLAINED = {
    "bits-of-csr3": "bits of CSR1 to CSR3",
    "buffer-over-the-rings": "buffer over the rings",
    "frame-below-the-minimum-chained": "frames below the minimum",
    "frame-while-stopped": "frame while stopped",
    "odd-byte-received-enp-preset": "odd byte received through the swap",
    "ones-above-bcnt-fault": "ones above BCNT",
    "ones-above-bcnt-overwritten": "ones above BCNT",
    "packet-without-an-end": "packet without an end",
    "packet-without-an-end-dxsuflo": "packet without an end",
    "ring-at-an-odd-place": "ring at an odd place",
    "ring-at-zero-fault": "ring at address 0",
    "sent-while-off-silently": "sent while off",
}


def test_what_was_found_once_is_explained_by_its_cause(work: Path) -> None:
    with needed():
        qemu11_sparc()
    found = {}
    pair = Pair(work, Board, qemu11)
    try:
        for path in sorted(CAUSES.glob("*.json")):
            verdict = pair.judge(Program.load(path), DIVERGENCES)
            assert isinstance(verdict, Verdict), verdict
            assert not verdict.failure, describe(verdict.failure)
            assert EXPLAINED[path.stem] in verdict.used, verdict.used
            found[path.stem] = verdict
            without = [each for each in DIVERGENCES if each.name != EXPLAINED[path.stem]]
            verdict = pair.judge(Program.load(path), without)
            assert isinstance(verdict, Verdict) and verdict.failure, f"{path.stem}: any explains it"
    finally:
        pair.close()
    assert found.keys() == EXPLAINED.keys()
