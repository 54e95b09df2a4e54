"""The fuzz target of the core, for longer than each check of it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "csrc"


@pytest.mark.soak
@pytest.mark.limit(1200)
def test_the_core_under_sanitizers() -> None:
    subprocess.run(["make", "-C", str(CORE), "fuzz", "SECONDS=500"], check=True)
