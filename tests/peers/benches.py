# SPDX-License-Identifier: Apache-2.0
"""`iodma bench` as a process, and what each row of its report has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["bench", "is_one_line", "refuses", "report_of", "without"]

KEYS = {"work", "peer", "value", "unit", "better", "must", "holds", "pairs", "low", "high"}
Done = subprocess.CompletedProcess[str]


def bench(name: str, *arguments: str, **environment: str) -> Done:
    """Runs it; on a busy machine that takes minutes."""
    return subprocess.run(
        [sys.executable, "-m", "iodma", "bench", name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


def without(name: str, change: str) -> Done:
    """Runs it where a line of Python has taken something away."""
    script = f"import sys; {change}\n"
    script += f"from iodma.cli import main; sys.exit(main(['bench', {name!r}]))"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def report_of(name: str, folder: Path, works: Sequence[str], *arguments: str) -> dict[str, Any]:
    """The report of a quick look, which has these rows; each is told of, and has a peer."""
    out = folder / "out.json"
    done = bench(name, "--json", str(out), "--pairs", "1", "--sample", "0.1", *arguments)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    assert report["bench"] == name
    assert [row["work"] for row in report["rows"]] == [*works]
    for row in report["rows"]:
        assert set(row) == KEYS
        assert row["work"] in done.stdout
        assert report["peers"][row["work"]]
    return report


def is_one_line(done: Done, why: str) -> None:
    """It failed, and says why in one line, which is the last."""
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"iodma: error: {why}")
    assert "Traceback" not in done.stderr


def refuses(name: str) -> None:
    """A benchmark that takes no trace, and has no row of that name, says so."""
    for arguments, reason in [
        (("--trace", "x"), "takes no trace"),
        (("--only", "no such"), "no row"),
    ]:
        done = bench(name, *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
