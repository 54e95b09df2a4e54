# SPDX-License-Identifier: Apache-2.0
"""`iodma bench` as a process, and what each row of its report has."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["KEYS", "bench"]

KEYS = {"work", "peer", "value", "unit", "better", "must", "holds", "pairs", "low", "high"}


def bench(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it; on a busy machine that takes minutes."""
    return subprocess.run(
        [sys.executable, "-m", "iodma", "bench", name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
