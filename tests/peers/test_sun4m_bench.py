"""`iodma bench sun4m`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iodma.tools.bench.budget import plan
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.options import Options
from iodma.tools.bench.sun4m import once
from iodma.tools.bench.sun4m_servers import VARIABLE, qemu_machine
from iodma.tools.bench.sun4m_works import MAKERS, works
from iodma.tools.bench.two_sides import limits
from tests.peers.sun4m.qemu import qemu11_sparc

KEYS = {"work", "peer", "value", "unit", "better", "must", "holds", "pairs", "low", "high"}


@pytest.fixture(scope="module", autouse=True)
def qemu() -> None:
    try:
        qemu11_sparc()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iodma", "bench", "sun4m", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )


two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="driver and machine need a processor each"
)


@two
@pytest.mark.limit(300)
def test_every_row_gives_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = bench("--json", str(out), "--pairs", "1", "--sample", "0.1")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["bench"] == "sun4m"
    assert [row["work"] for row in report["rows"]] == [name for name, _ in MAKERS]
    for row in report["rows"]:
        assert set(row) == KEYS
        assert row["work"] in done.stdout
        assert report["peers"][row["work"]]
    counts = [row for row in report["rows"] if row["unit"] == "bytes"]
    assert len(counts) == 2
    for row in counts:
        assert row["value"] == 0 and row["holds"]
        details = report["extra"]["rows"][row["work"]]["ours"]
        assert details["payload_bytes"] > 10 * details["python_bytes"]


@two
def test_the_peer_may_be_on_both_sides() -> None:
    done = bench("--itself", "--pairs", "1", "--sample", "0.1", "--only", "LANCE")
    assert done.returncode == 0, done.stderr
    assert "LANCE transmit" in done.stdout


def test_a_missing_peer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench("--only", "LANCE", **{VARIABLE: "/nowhere/qemu-system-sparc"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("iodma: error: ")
    assert "Traceback" not in done.stderr
    monkeypatch.setattr("iodma.tools.bench.sun4m_servers.SCRIPT", Path("/nowhere"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BenchError, match=VARIABLE):
        qemu_machine()


def test_it_ends_within_its_time() -> None:
    budget = plan([once(work) for work in works(lambda name: True)], **limits(Options("sun4m")))
    assert budget.pairs >= 7
    assert budget.total_s < 240


def test_what_means_nothing_to_it_is_refused() -> None:
    for arguments, reason in [
        (["--trace", "x"], "takes no trace"),
        (["--only", "no such"], "no row"),
    ]:
        done = bench(*arguments)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
