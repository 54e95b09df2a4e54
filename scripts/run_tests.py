"""Everything that `make test` runs, stage by stage, each under the watchdog.

    scripts/run_tests.py [STAGE...]     (default: all but soak)

Invariants:

- Every stage runs, also after one has failed; the exit status is 0 only if all of them passed.
- The closing line counts each pytest test and, for the other stages, one each:
  "N passed, N failed, N skipped". A stage that fails counts as a failure whatever it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from watchdog import Run

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "--durations=5", "--durations-min=2")
#: Side by side. A worker that runs out of tests takes half of what another has left.
UNIT = (*PYTEST, "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal", "tests/unit")
STUBTEST = (
    *(PYTHON, "-m", "mypy.stubtest", "--ignore-unused-allowlist"),
    *("--allowlist", "scripts/stubtest_allowlist.txt"),
)
SECONDS_OF_CI = 75 * 60


@dataclass(frozen=True)
class Stage:
    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    silence: float = 180
    total: float = 600
    needs: str | None = None  # a file pattern; without a match the stage has nothing to do


STAGES = (
    Stage("lint", (PYTHON, "-m", "ruff", "check", ".")),
    Stage("format", (PYTHON, "-m", "ruff", "format", "--check", ".")),
    Stage("types", (PYTHON, "-m", "mypy")),
    Stage("stubs", (*STUBTEST, "iodma._core", "iodma._peer")),
    Stage("core", ("make", "-C", "csrc", "check"), needs="csrc/Makefile"),
    Stage("core-sanitized", ("make", "-C", "csrc", "check", "SANITIZE=1"), needs="csrc/Makefile"),
    Stage("unit", UNIT, total=900),
    # Its workers are threads enough: not side by side.
    Stage("unit-threads", (*PYTEST, "tests/unit"), {"IODMA_ENGINE": "threads"}, total=900),
    Stage("peers", (*PYTEST, "tests/peers"), total=1800, needs="tests/peers/test_*.py"),
    Stage("sdist", ("scripts/check_sdist.sh",)),
)
#: The long campaigns; "soak" stands for all of them.
SOAK = (
    Stage(
        "soak-fuzz", ("make", "-C", "csrc", "fuzz", "SECONDS=3600"), silence=4000, total=2 * 3600
    ),
    Stage(
        "soak-sun4m",
        (PYTHON, "-m", "tests.peers.sun4m.campaign", "--programs", "100000"),
        total=8 * 3600,
    ),
    Stage("soak", (*PYTEST, "tests"), {"IODMA_SOAK": "1"}, silence=600, total=12 * 3600),
)


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def run(stage: Stage, tally: Tally, seconds_left: float) -> bool:
    """Runs one stage and adds to the tally; True when it passed."""
    print(f"\n=== {stage.name}: {' '.join(stage.command).replace(PYTHON, 'python')}", flush=True)
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="tally-") as file:
        status = Run(
            stage.command,
            silence=stage.silence,
            total=min(stage.total, seconds_left),
            test=60,
            environment={**os.environ, **stage.environment, "IODMA_TALLY_FILE": file.name},
        ).wait()
        counts: dict[str, int] = json.loads(Path(file.name).read_text() or "{}")
    tally.passed += counts.get("passed", 0) if counts else int(status == 0)
    tally.failed += max(counts.get("failed", 0), int(status != 0))
    tally.skipped += counts.get("skipped", 0)
    outcome = "ok" if status == 0 else f"FAILED (exit status {status})"
    print(f"=== {stage.name}: {outcome}, {time.monotonic() - begin:.1f} s", flush=True)
    return status == 0


def main() -> int:
    names = [stage.name for stage in (*STAGES, *SOAK)]
    parser = argparse.ArgumentParser(description="Runs the project's tests.")
    parser.add_argument("stage", nargs="*", metavar="STAGE", help=", ".join(names))
    chosen = parser.parse_args().stage or names[: len(STAGES)]
    for name in chosen:
        if name not in names:
            parser.error(f"no stage is called {name!r}; there are {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(PYTHON).parent}:{os.environ['PATH']}"
    tally, failures = Tally(), []
    deadline = time.monotonic() + (SOAK[-1].total if "soak" in chosen else SECONDS_OF_CI)
    for stage in (*STAGES, *SOAK):
        if stage.name not in chosen or (stage.needs and not list(ROOT.glob(stage.needs))):
            continue
        if not run(stage, tally, deadline - time.monotonic()):
            failures.append(stage.name)
    if failures:
        print(f"\nfailed: {', '.join(failures)}")
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    print(f"{tally.passed} passed, {tally.failed} failed{skipped}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
