"""How a benchmark measures: pairs that alternate, medians of ratios, a plan for the time."""

import json
import os
import stat
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.errors import ArgumentError
from iodma.tools.bench import core
from iodma.tools.bench.again import LONGEST_AGAIN_S, Again, NothingFinished, taken_again
from iodma.tools.bench.budget import LONGEST_SAMPLE_S, SHORTEST_SAMPLE_S, plan
from iodma.tools.bench.files import choose_directory, data_file, shared_memory
from iodma.tools.bench.fio import Fio, FioJob, requests_per_second
from iodma.tools.bench.harness import BenchError, Pair, Report, Row, run_pairs, summarize, table
from iodma.tools.bench.lists import Positions, memory_bytes, segment_table
from iodma.tools.bench.workers import Case, Fresh, Worker
from iodma.tools.machine import filesystem_of

figures = st.floats(1e-6, 1e12)
pair_lists = st.lists(st.builds(Pair, figures, figures), min_size=1, max_size=15)


def row_of(pairs: list[Pair], must: float, **more: object) -> Row:
    return summarize(pairs, work="work", peer="peer", must=must, **more)  # type: ignore[arg-type]


# --- pairs and rows -----------------------------------------------------------------------------


def test_the_sides_take_turns_in_going_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return 1.0

    told: list[int] = []
    run_pairs(lambda: side("o"), lambda: side("p"), 5, lambda number, pair: told.append(number))
    assert "".join(order) == "oppooppoop"
    assert told == [1, 2, 3, 4, 5]


def test_a_pair_keeps_its_own_two_figures() -> None:
    ours, peer = count(1), count(101)
    pairs = run_pairs(lambda: float(next(ours)), lambda: float(next(peer)), 4)
    assert pairs == [Pair(n, 100 + n) for n in range(1, 5)]


def test_a_side_that_measured_nothing_is_an_error() -> None:
    with pytest.raises(BenchError, match="pair 1"):
        run_pairs(lambda: 0.0, lambda: 1.0, 7)
    with pytest.raises(ArgumentError, match="0"):
        run_pairs(lambda: 1.0, lambda: 1.0, 0)


@given(pair_lists)
def test_a_row_is_the_median_of_its_pairs_own_ratios(pairs: list[Pair]) -> None:
    ratios = [pair.ours / pair.peer for pair in pairs]
    row = row_of(pairs, 1.0)
    assert row.value == pytest.approx(median(ratios), abs=1e-4)
    assert row.low == pytest.approx(min(ratios), abs=1e-4)
    assert row.high == pytest.approx(max(ratios), abs=1e-4)
    assert row.low <= row.value <= row.high
    assert row.pairs == len(pairs)
    assert row.holds == (median(ratios) >= 1.0)


def test_a_drift_of_the_clock_leaves_the_ratio() -> None:
    pairs = [Pair(90 * speed, 100 * speed) for speed in (1.0, 1.4, 0.6, 1.1, 0.8, 1.3, 0.9)]
    assert row_of(pairs, 1.0).value == 0.9


def test_lower_is_better_where_a_row_says_so() -> None:
    pairs = [Pair(150.0, 100.0)] * 7
    assert row_of(pairs, 1.5, better="lower").holds
    assert not row_of(pairs, 1.49, better="lower").holds


def test_a_difference_keeps_its_unit() -> None:
    pairs = [Pair(80.0, 50.0), Pair(83.0, 50.0), Pair(81.0, 50.0)]
    row = row_of(pairs, 32, better="lower", compare="difference", unit="MiB")
    assert (row.value, row.low, row.high, row.unit, row.holds) == (31.0, 30.0, 33.0, "MiB", True)


def test_a_value_just_below_what_it_must_reach_does_not_hold() -> None:
    row = row_of([Pair(0.99999, 1.0)], 1.0)
    assert row.value == 1.0
    assert not row.holds


def test_no_pairs_make_no_row() -> None:
    with pytest.raises(ArgumentError, match="work"):
        row_of([], 1.0)


# --- samples in which nothing finished ----------------------------------------------------------


@given(st.floats(0.1, 0.5), st.integers(0, 8))
def test_a_sample_in_which_nothing_finished_is_taken_again_longer(first: float, idle: int) -> None:
    lengths: list[float] = []

    def sample(seconds: float) -> float:
        lengths.append(seconds)
        if len(lengths) <= idle:
            raise NothingFinished("nothing")
        return 42.0

    again = Again()
    try:
        assert again.take(sample, first) == 42.0
        assert len(lengths) == idle + 1
    except NothingFinished:
        assert 2 * lengths[-1] > LONGEST_AGAIN_S
    assert lengths == [first * 2**number for number in range(len(lengths))]
    assert max(lengths) <= LONGEST_AGAIN_S
    assert again.count == len(lengths) - 1


def test_what_fails_otherwise_is_not_taken_again() -> None:
    def sample(seconds: float) -> float:
        raise BenchError("it failed")

    again = Again()
    with pytest.raises(BenchError, match="it failed"):
        again.take(sample, 0.1)
    assert again.count == 0


def test_only_sides_that_took_samples_again_are_named() -> None:
    assert taken_again({"ours": 3, "peer": 1}, {"ours": 1, "peer": 1}) == {"ours": 2}
    assert taken_again({"ours": 0, "peer": 1}) == {"peer": 1}


# --- the report ---------------------------------------------------------------------------------


def test_the_report_is_as_documented(tmp_path: Path) -> None:
    row = row_of([Pair(2.0, 1.0)] * 7, 1.0)
    report = Report("core", [row], {"work": "fio ..."}, {"kernel": "6.1"})
    report.write(tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["bench"] == "core"
    assert data["peers"] == {"work": "fio ..."}
    assert data["rows"] == [
        {
            "work": "work",
            "peer": "peer",
            "value": 2.0,
            "unit": "x",
            "better": "higher",
            "must": 1.0,
            "holds": True,
            "pairs": 7,
            "low": 2.0,
            "high": 2.0,
        }
    ]


def test_the_table_says_which_rows_miss() -> None:
    good, bad = row_of([Pair(2.0, 1.0)], 1.0), row_of([Pair(1.0, 2.0)], 1.0)
    lines = table([good, bad]).splitlines()
    assert "holds" in lines[1]
    assert "MISSED" in lines[2]
    assert Report("core", [good, bad], {}, {}).failing == [bad]


# --- time ---------------------------------------------------------------------------------------


def test_the_plan_fits_the_time_given() -> None:
    budget = plan([(True, 1.0, 0.45)] * 15, pairs=7, total_s=240, sample_s=0.4)
    assert budget.sample_s == 0.4
    assert budget.total_s == pytest.approx(15 * 1.0 + 105 * 0.45 + 210 * 0.4)
    assert "15 rows x 7 pairs" in str(budget)


def test_samples_get_shorter_when_time_is_short() -> None:
    budget = plan([(True, 0.0, 0.0)] * 10, pairs=7, total_s=28, sample_s=0.4)
    assert budget.sample_s == pytest.approx(0.2)
    assert budget.total_s == pytest.approx(28)


def test_too_little_time_is_refused_with_what_is_enough() -> None:
    with pytest.raises(ArgumentError, match="at least 14 s"):
        plan([(True, 0.0, 0.0)] * 10, pairs=7, total_s=10, sample_s=0.4)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 2)), min_size=1, max_size=20),
    st.integers(1, 20),
    st.floats(1, 1000),
    st.floats(0.1, 5),
)
def test_no_plan_is_longer_than_allowed(
    costs: list[tuple[bool, float, float]], pairs: int, total: float, sample: float
) -> None:
    try:
        budget = plan(costs, pairs=pairs, total_s=total, sample_s=sample)
    except ArgumentError:
        return
    if any(timed for timed, _, _ in costs):
        assert SHORTEST_SAMPLE_S <= budget.sample_s <= LONGEST_SAMPLE_S
        assert budget.total_s <= total * (1 + 1e-9)


# --- what is read -------------------------------------------------------------------------------


def test_the_file_is_there_while_it_is_used_and_then_gone(tmp_path: Path) -> None:
    if filesystem_of(tmp_path) == "tmpfs":
        pytest.skip("the temporary directory is memory")
    with pytest.raises(RuntimeError), data_file(tmp_path, 5 << 20) as file:
        data = file.path.read_bytes()
        assert len(data) == file.size == 5 << 20
        assert len(set(data)) == 256
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_both_sides_map_the_same_memory_and_it_is_large_enough() -> None:
    with shared_memory(1 << 16) as path, open(path, "r+b") as one, open(path, "rb") as other:
        one.write(b"seen")
        one.flush()
        assert other.read(4) == b"seen"
    assert not os.path.exists(path)
    for work in core.WORKS:
        ours, peer = work.ours, work.peer
        if not ours.shares_memory:
            continue
        assert isinstance(peer, FioJob) or peer.shares_memory
        longest, segments = ours.options.get("longest", 4096), ours.options.get("segments", 1)
        assert memory_bytes(ours.options["depth"], segments, longest) <= core.GUEST_BYTES
        if isinstance(peer, FioJob):
            assert peer.depth * peer.block_bytes <= core.GUEST_BYTES


@pytest.mark.parametrize("work", core.WORKS, ids=lambda work: work.name)
def test_what_is_unpinned_is_so_on_both_sides_and_else_the_same(work: core.Work) -> None:
    other = core.unpinned(work)
    assert other.name == work.name and other.must == work.must
    for before, after in ((work.ours, other.ours), (work.peer, other.peer)):
        if isinstance(after, FioJob):
            assert not after.fixed and replace(after, fixed=True) == before
            assert "--fixedbufs" not in after.options()
        else:
            assert not isinstance(before, FioJob)
            assert not after.shares_memory or after.options["fixed"] is False
            assert {**after.options, "fixed": 0} == {**before.options, "fixed": 0}
            assert "fixed" not in after.name


def test_a_directory_that_will_not_do_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"{tmp_path}/none: No such file"):
        choose_directory(tmp_path / "none", 1)
    if filesystem_of(tmp_path) != "tmpfs":
        with pytest.raises(BenchError, match="MiB are free"):
            choose_directory(tmp_path, 1 << 60)
    shm = Path("/dev/shm")
    if shm.is_dir() and filesystem_of(shm) == "tmpfs":
        with pytest.raises(BenchError, match="it is memory"):
            choose_directory(shm, 1)


@given(st.integers(1, 32), st.integers(1, 64), st.sampled_from([(32, 128), (4096, 4096), (2, 7)]))
def test_segments_never_overlap_and_fit(lists: int, segments: int, span: tuple[int, int]) -> None:
    table_ = segment_table(lists, segments, *span)
    assert table_.shape == (lists * segments, 2)
    ordered = table_[np.argsort(table_[:, 0])].astype(object)
    ends = ordered[:, 0] + ordered[:, 1]
    assert (ends[:-1] <= ordered[1:, 0]).all()
    assert ends[-1] <= memory_bytes(lists, segments, span[1])
    assert table_[:, 1].min() >= span[0] and table_[:, 1].max() <= span[1]
    assert (segment_table(lists, segments, *span) == table_).all()


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 24), st.sampled_from([1, 512, 4096]))
def test_positions_stay_in_the_file(request_bytes: int, more: int, unit: int) -> None:
    size = request_bytes + more
    for random in (False, True):
        positions = Positions(size, request_bytes, unit, random)
        for _ in range(3):
            taken = positions.take(min(16, len(positions.all)))
            assert (taken % unit == 0).all()
            assert (taken + np.uint64(request_bytes) <= size).all()


# --- the peers ----------------------------------------------------------------------------------


def fio_report(error: int = 0, requests: int = 1000, milliseconds: int = 500) -> str:
    read = {"total_ios": requests, "runtime": milliseconds}
    return "note: something\n" + json.dumps({"jobs": [{"error": error, "read": read}]})


def test_fios_figure_is_requests_over_its_own_run_time() -> None:
    assert requests_per_second(fio_report()) == 2000.0


@pytest.mark.parametrize(
    "output",
    [
        "",
        "fio: no such engine",
        "{",
        '{"jobs": []}',
        fio_report(5),
        fio_report(0, 0),
        fio_report(0, 5, 0),
    ],
)
def test_a_report_without_a_figure_is_an_error(output: str) -> None:
    with pytest.raises(BenchError, match="fio"):
        requests_per_second(output)


def fake_fio(folder: Path, script: str) -> Path:
    program = folder / "fio"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_fio_gets_our_batch_registrations_and_processor(tmp_path: Path) -> None:
    script = f"echo \"$@\" >{tmp_path}/args\ncat <<'END'\n{fio_report()}\nEND"
    program = fake_fio(tmp_path, script)
    job = FioJob(4096, depth=32, batch=16, complete_min=8, direct=True)
    fio = Fio(str(program), job, tmp_path / "data", 1 << 20, cpu=3, memory="/proc/1/fd/2")
    assert fio.sample(0.25) == 2000.0
    arguments = (tmp_path / "args").read_text().split()
    for wanted in (
        "--ioengine=io_uring",
        "--iodepth=32",
        "--iodepth_batch_submit=16",
        "--iodepth_batch_complete_min=8",
        "--iodepth_batch_complete_max=16",
        "--fixedbufs",
        "--registerfiles",
        "--gtod_reduce=1",
        "--norandommap",
        "--direct=1",
        "--invalidate=0",
        "--cpus_allowed=3",
        "--runtime=250ms",
        f"--filename={tmp_path}/data",
        "--mem=mmapshared:/proc/1/fd/2",
    ):
        assert wanted in arguments
    assert "--iodepth=32" in fio.command and str(tmp_path / "data") not in fio.command


def test_a_fio_that_read_nothing_runs_again_longer(tmp_path: Path) -> None:
    script = f"""echo "$@" >>{tmp_path}/args
if [ $(wc -l <{tmp_path}/args) -lt 3 ]; then cat <<'END'
{fio_report(0, 0)}
END
else cat <<'END'
{fio_report()}
END
fi"""
    program = fake_fio(tmp_path, script)
    fio = Fio(str(program), FioJob(4096), tmp_path / "data", 1 << 20, cpu=0, memory="/m")
    assert fio.sample(0.25) == 2000.0
    assert fio.again == 2
    runs = (tmp_path / "args").read_text().splitlines()
    for number, arguments in enumerate(runs):
        assert f"--runtime={250 * 2**number}ms" in arguments.split()


def test_a_fio_that_fails_says_why(tmp_path: Path) -> None:
    program = fake_fio(tmp_path, "echo 'fio: engine not loadable' >&2; exit 1")
    fio = Fio(str(program), FioJob(4096), tmp_path / "data", 1 << 20, cpu=0, memory="/m")
    with pytest.raises(BenchError, match="engine not loadable"):
        fio.sample(0.1)


# --- workers ------------------------------------------------------------------------------------

CASES = """
import os, sys
from contextlib import contextmanager
from iodma.tools.bench.again import NothingFinished

@contextmanager
def counting(start, path=None):
    print("a case may print")
    numbers = iter(range(start, 1000))
    def sample(seconds):
        if seconds < start / 10:
            raise NothingFinished(f"nothing within {seconds} s")
        if seconds == 13:
            raise ValueError("thirteen")
        if seconds == 14:
            os._exit(7)
        return next(numbers)
    yield sample

@contextmanager
def where():
    yield lambda seconds: min(os.sched_getaffinity(0)) + 1000 * len(os.sched_getaffinity(0))
"""


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bench_cases.py").write_text(CASES)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return tmp_path


def cpu() -> int:
    return max(os.sched_getaffinity(0))


def test_a_worker_keeps_its_case_between_samples(cases: Path) -> None:
    worker = Worker(Case("c", "bench_cases:counting", {"start": 5}), cases, cpu())
    try:
        assert [worker.sample(0.5) for _ in range(3)] == [5, 6, 7]
        assert worker.again == 0
    finally:
        worker.close()
        worker.close()


def test_a_fresh_side_starts_over(cases: Path) -> None:
    side = Fresh(Case("c", "bench_cases:counting", {"start": 5}), cases, cpu())
    assert [side.sample(0.5), side.sample(0.25)] == [5, 5]
    assert side.again == 1


def test_a_worker_in_which_nothing_finished_is_asked_again(cases: Path) -> None:
    worker = Worker(Case("c", "bench_cases:counting", {"start": 5}), cases, cpu())
    try:
        assert [worker.sample(0.1), worker.sample(0.2)] == [5, 6]
        assert worker.again == 3 + 2
        worker.open(Case("c", "bench_cases:counting", {"start": 50}), cases)
        with pytest.raises(NothingFinished, match=r"counting\(start=50\): nothing within 3.2 s"):
            worker.sample(0.1)
        assert worker.again == 5 + 5
        assert worker.sample(5.0) == 50
    finally:
        worker.close()


def test_a_worker_runs_on_its_processor_alone(cases: Path) -> None:
    worker = Worker(Case("c", "bench_cases:where"), cases, cpu())
    try:
        assert worker.sample(0.1) == 1000 + cpu()
    finally:
        worker.close()


@pytest.mark.parametrize(("seconds", "text"), [(13, "ValueError: thirteen"), (14, "ended with 7")])
def test_a_worker_that_fails_says_how(cases: Path, seconds: int, text: str) -> None:
    worker = Worker(Case("c", "bench_cases:counting", {"start": 1}), cases, cpu())
    try:
        with pytest.raises(BenchError, match=text):
            worker.sample(seconds)
    finally:
        worker.close()


def test_a_case_that_does_not_open_leaves_no_process(cases: Path) -> None:
    with pytest.raises(BenchError, match="AttributeError"):
        Worker(Case("c", "bench_cases:missing"), cases, cpu())


def test_a_case_tells_how_it_is_run() -> None:
    case = Case("c", "package.module:reads", {"depth": 32}, reads_file=True)
    assert case.described() == "package.module.reads(path=FILE, depth=32)"
    case = Case("c", "package.module:reads", {}, reads_file=True, shares_memory=True)
    assert case.described() == "package.module.reads(path=FILE, memory=MEMORY)"
