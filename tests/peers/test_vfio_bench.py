"""`iodma bench vfio-user`."""

import os
from pathlib import Path

import pytest

from iodma.tools.bench.budget import plan
from iodma.tools.bench.options import Options
from iodma.tools.bench.two_sides import costs, limits
from iodma.tools.bench.vfio_works import WORKS
from tests.peers.benches import bench, is_one_line, refuses, report_of, without

two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="client and server need a processor each"
)


@two
@pytest.mark.limit(330)
def test_every_row_gives_a_figure(tmp_path: Path) -> None:
    report = report_of("vfio-user", tmp_path, [work.name for work in WORKS])
    for row in report["rows"]:
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
    done = without("vfio-user", "sys.modules['iodma._peer'] = None")
    is_one_line(done, "the peers of this benchmark are C loops")


def test_it_ends_within_its_time() -> None:
    budget = plan(costs(WORKS), **limits(Options("vfio-user")))
    assert budget.pairs >= 7
    assert budget.total_s < 240


def test_what_means_nothing_to_it_is_refused() -> None:
    refuses("vfio-user")
