"""`iodma bench` runs, every row of it: figures come out, whatever they are."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iodma.tools.bench.core import WORKS
from tests.peers.benches import is_one_line, report_of, without


@pytest.mark.limit(330)
def test_every_row_gives_a_figure(tmp_path: Path, peer: Callable[[str], str]) -> None:
    peer("fio")
    report = report_of("core", tmp_path, [work.name for work in WORKS])
    for row in report["rows"]:
        assert row["pairs"] == 1
        assert row["value"] > 0
    assert report["machine"]["filesystem"]


@pytest.mark.limit(120)
def test_who_may_not_pin_the_memory_has_it_registered_on_neither_side(
    tmp_path: Path, peer: Callable[[str], str]
) -> None:
    peer("fio")
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv is None:
        pytest.skip("this machine has no setpriv")
    drop = [str(setpriv), "--bounding-set=-ipc_lock,-sys_resource"] if os.geteuid() == 0 else []
    out = tmp_path / "out.json"
    script = "import resource as r, sys; r.setrlimit(r.RLIMIT_MEMLOCK, (4 << 20, 4 << 20))\n"
    script += "from iodma.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["bench", "core", "--json", str(out), "--pairs", "1", "--sample", "0.1"]
    rows = ["4 KiB random reads, cached, depth 32", "lists of 8", "one coroutine each"]
    for row in rows:
        arguments += ["--only", row]
    done = subprocess.run(
        [*drop, sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "registered on neither side" in done.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["memory_registered"] is False
    assert len(report["peers"]) == 3
    assert "fixedbufs" not in str(report["peers"]), report["peers"]


def test_a_missing_peer_is_one_line() -> None:
    done = without(
        "core", "from iodma.tools.bench import fio; fio.find_program = lambda name: None"
    )
    is_one_line(done, "fio is not installed")
