"""`iodma bench sun4m`."""

import os
from pathlib import Path

import pytest

from iodma.tools.bench.budget import plan
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.options import Options
from iodma.tools.bench.sun4m import once
from iodma.tools.bench.sun4m_servers import VARIABLE, qemu_machine
from iodma.tools.bench.sun4m_works import MAKERS, works
from iodma.tools.bench.two_sides import limits
from tests.peers.benches import bench, is_one_line, refuses, report_of
from tests.peers.sun4m.qemu import qemu11_sparc


@pytest.fixture(scope="module", autouse=True)
def qemu() -> None:
    try:
        qemu11_sparc()
    except FileNotFoundError as error:
        pytest.skip(str(error))


two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="driver and machine need a processor each"
)


@two
@pytest.mark.limit(330)
def test_every_row_gives_a_figure(tmp_path: Path) -> None:
    report = report_of("sun4m", tmp_path, [name for name, _ in MAKERS])
    counts = [row for row in report["rows"] if row["unit"] == "bytes"]
    assert len(counts) == 2
    for row in counts:
        assert row["value"] == 0 and row["holds"]
        details = report["extra"]["rows"][row["work"]]["ours"]
        assert details["payload_bytes"] > 10 * details["python_bytes"]


@two
def test_the_peer_may_be_on_both_sides() -> None:
    done = bench("sun4m", "--itself", "--pairs", "1", "--sample", "0.1", "--only", "LANCE")
    assert done.returncode == 0, done.stderr
    assert "LANCE transmit" in done.stdout


def test_a_missing_peer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench("sun4m", "--only", "LANCE", **{VARIABLE: "/nowhere/qemu-system-sparc"})
    is_one_line(done, "")
    monkeypatch.setattr("iodma.tools.bench.sun4m_servers.SCRIPT", Path("/nowhere"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BenchError, match=VARIABLE):
        qemu_machine()


def test_it_ends_within_its_time() -> None:
    budget = plan([once(work) for work in works(lambda name: True)], **limits(Options("sun4m")))
    assert budget.pairs >= 7
    assert budget.total_s < 240


def test_what_means_nothing_to_it_is_refused() -> None:
    refuses("sun4m")
