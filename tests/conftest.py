"""What every test shares: its seed, its peers, and what the watchdog needs to know.

Invariants:

- A run draws one seed and prints it; IODMA_SEED=N replays hypothesis and every `rng` of that run.
  Under CI=true the seed is always the same, so that what fails there is what has changed.
- A program that a test needs is asked for with `peer("fio")`. Where it is missing the test is
  skipped, and under CI=true it fails.
- SIGUSR1 and SIGUSR2 print the stacks of all threads; SIGUSR1 also what the engines have in flight.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from iodma.engine.dump import dump_on_signal

CI = os.environ.get("CI") == "true"
SEED = int(os.environ.get("IODMA_SEED") or (1 if CI else random.SystemRandom().getrandbits(32)))
os.environ["IODMA_SEED"] = str(SEED)  # for the workers, where tests run side by side
# A shell's background job begins with it ignored, and so would every program that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SOAK = os.environ.get("IODMA_SOAK") == "1"

# Not inherited by a pytest that a test starts: its tests and counts are not those of this run.
WATCHDOG_FILE = os.environ.pop("IODMA_WATCHDOG_FILE", "")
TALLY_FILE = os.environ.pop("IODMA_TALLY_FILE", "")
DEFAULT_LIMIT_SECONDS = 3600 if SOAK else 60

# Deadlines per example would fail on a busy machine; hangs are the watchdog's.
settings.register_profile(
    "default-run",
    max_examples=50,
    deadline=None,
    print_blob=True,
    derandomize=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("soak", settings.get_profile("default-run"), max_examples=10_000)
settings.load_profile("soak" if SOAK else "default-run")


class SideBySide:
    """Of the process that hands the tests out to workers (pytest -n): hooks of pytest-xdist."""

    @staticmethod
    def pytest_configure_node(node: Any) -> None:
        worker = node.workerinput
        worker["watchdog_file"] = WATCHDOG_FILE and f"{WATCHDOG_FILE}.{worker['workerid']}"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    global WATCHDOG_FILE
    if hasattr(config, "workerinput"):
        WATCHDOG_FILE = config.workerinput["watchdog_file"]
    elif config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(SideBySide())
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(SEED)
    stderr = os.dup(2)  # pytest puts its capture in the place of 2 while a test runs
    dump_on_signal(signal.SIGUSR1, fd=stderr)  # which is chained to
    faulthandler.register(signal.SIGUSR1, file=stderr, all_threads=True, chain=True)
    faulthandler.register(signal.SIGUSR2, file=stderr, all_threads=True)


def pytest_report_header() -> str:
    engine = os.environ.get("IODMA_ENGINE", "auto")
    return f"seed {SEED} (replay with IODMA_SEED={SEED}), engine {engine}, CI={CI}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SOAK:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="runs under `make soak`"))


def tell_watchdog(text: str) -> None:
    if WATCHDOG_FILE:
        Path(WATCHDOG_FILE).write_text(text)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("limit")
    tell_watchdog(f"{marker.args[0] if marker else DEFAULT_LIMIT_SECONDS} {item.nodeid}")


def pytest_runtest_logfinish() -> None:
    tell_watchdog("")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {name: len(reports) for name, reports in terminalreporter.stats.items()}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if failed:
        terminalreporter.write_line(f"replay with IODMA_SEED={SEED}")
    if TALLY_FILE:
        passed = counts.get("passed", 0) + counts.get("xfailed", 0)
        skipped = counts.get("skipped", 0)
        tally = {"passed": passed, "failed": failed, "skipped": skipped}
        Path(TALLY_FILE).write_text(json.dumps(tally))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend on the run's seed and the test, not on which tests ran before."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """`peer("fio")` is the program's path; without it the test is skipped, or fails under CI."""

    def find(name: str) -> str:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is None:
            reason = f"this machine has no program {name!r}; scripts/prerequisites.sh test lists it"
            if CI:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        return path

    return find
