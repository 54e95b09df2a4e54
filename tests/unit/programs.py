# SPDX-License-Identifier: Apache-2.0
"""Programs of their own, for what a test cannot do to its own process.

Invariant: one that does not end is ended, and fails its test.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a program: what it prints, and how it ends."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
