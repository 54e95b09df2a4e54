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
from tests.peers.sun4m.campaign import make_program
from tests.peers.sun4m.divergences import DIVERGENCES
from tests.peers.sun4m.generators import GENERATORS
from tests.peers.sun4m.qemu import qemu11_sparc

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
