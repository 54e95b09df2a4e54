"""`iodma bench vfio-user`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iodma.tools.bench.budget import plan
from iodma.tools.bench.options import Options
from iodma.tools.bench.two_sides import costs, limits
from iodma.tools.bench.vfio_works import WORKS
from tests.peers.benches import KEYS, bench

two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="client and server need a processor each"
)


@two
@pytest.mark.limit(330)
def test_every_row_gives_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = bench("vfio-user", "--json", str(out), "--pairs", "1", "--sample", "0.1")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["bench"] == "vfio-user"
    assert [row["work"] for row in report["rows"]] == [work.name for work in WORKS]
    for row in report["rows"]:
        assert set(row) == KEYS
        assert row["work"] in done.stdout
        assert report["peers"][row["work"]]
        details = report["extra"]["rows"][row["work"]]["ours"]
        assert details["requests"] > 0
        assert "vfio_device" in details["command"]
    assert [row["work"] for row in report["extra"]["one processor"]] == [
        f"{work.name}; on one processor" for work in WORKS if work.loads_both
    ]
    counts = {row["work"]: row for row in report["rows"] if row["unit"] != "x"}
    mappings = counts["mappings held for 10,000 regions of one file"]
    assert 1 <= mappings["value"] <= 4 and mappings["holds"]
    payload = counts["payload bytes through Python"]
    assert payload["value"] == 0 and payload["holds"]
    details = report["extra"]["rows"]["payload bytes through Python"]["ours"]
    assert details["payload_bytes"] > 0
    assert details["python_bytes"] == details["control_bytes"]


@two
def test_the_peer_may_be_on_both_sides() -> None:
    done = bench(
        "vfio-user", "--itself", "--pairs", "1", "--sample", "0.1", "--only", "register read"
    )
    assert done.returncode == 0, done.stderr
    assert "register read round trip, median" in done.stdout


def test_a_missing_peer_is_one_line() -> None:
    script = "import sys; sys.modules['iodma._peer'] = None\n"
    script += "from iodma.cli import main; sys.exit(main(['bench', 'vfio-user']))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("iodma: error: the peers of this benchmark are C loops")
    assert "Traceback" not in done.stderr


def test_it_ends_within_its_time() -> None:
    budget = plan(costs(WORKS), **limits(Options("vfio-user")))
    assert budget.pairs >= 7
    assert budget.total_s < 240


def test_what_means_nothing_to_it_is_refused() -> None:
    for arguments, reason in [
        (["--trace", "x"], "takes no trace"),
        (["--only", "no such"], "no row"),
    ]:
        done = bench("vfio-user", *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
