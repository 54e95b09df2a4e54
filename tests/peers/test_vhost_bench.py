"""The vhost-user-blk client against qemu-storage-daemon, and `iodma bench vhost-user-blk`."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from iodma._peer import VhostBlk
from iodma.tools.bench.again import NothingFinished
from iodma.tools.bench.budget import plan
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.options import Options
from iodma.tools.bench.vhost_load import Load
from iodma.tools.bench.vhost_servers import PEER, Server, peer_variants, storage_daemon
from iodma.tools.bench.vhost_user_blk import MEMORY_BYTES, cost, limits
from iodma.tools.bench.vhost_works import WORKS
from tests.peers.benches import is_one_line, refuses, report_of, without

BYTES = 4 << 20
GET_ID, FLUSH, UNKNOWN = 8, 4, 99


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(BYTES))
    return path


@pytest.fixture
def server(image: Path, peer: Callable[[str], str]) -> Iterator[Server]:
    peer(PEER)
    with Server(storage_daemon(thread=True, queues=2), image) as running:
        yield running


def pattern(seed: int, sectors: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """What verifying writes put onto the disk, computed another way than the client's."""
    with np.errstate(over="ignore"):
        words = np.arange(1, sectors * 64 + 1, dtype=np.uint64)
        x = np.uint64(seed) + words * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {"depth": 1},
        {"depth": 32},
        {"depth": 32, "queues": 2},
        {"depth": 16, "indirect": False},
        {"depth": 16, "event_index": False},
        {"depth": 32, "indirect_above": 3},
        {"depth": 8, "segments": 8, "segment_bytes": 512},
        {"depth": 8, "segments": 32},
        {"depth": 8, "segment_bytes": 128 << 10},
    ],
    ids=str,
)
def test_what_is_written_is_in_the_file_and_comes_back(
    server: Server, image: Path, shape: dict[str, Any], poll: bool
) -> None:
    with server.connect(**shape) as client:
        assert client.capacity == BYTES
        assert client.server_queues == 2
        each = shape.get("segments", 1) * shape.get("segment_bytes", 4096)
        written = client.run(
            write=True,
            random=False,
            requests=BYTES // each,
            verify=True,
            data_seed=7,
            poll=poll,
            seconds=30,
        )
        assert written["requests"] == BYTES // each
        assert written["bytes"] == BYTES
        assert client.request(FLUSH) == (0, b"", 1)
        content = np.frombuffer(image.read_bytes(), dtype="<u8")
        assert np.array_equal(content, pattern(7, BYTES // 512))
        read = client.run(requests=300, verify=True, data_seed=7, poll=poll, seconds=30)
        assert read["requests"] == 300
        for result in (written, read):
            assert (result["errors"], result["mismatches"], result["wrong_lengths"]) == (0, 0, 0)
        # The check can fail.
        wrong = client.run(requests=8, verify=True, data_seed=8, poll=poll, seconds=30)
        assert wrong["mismatches"] == 8 * each // 512


def test_requests_of_every_kind(server: Server, image: Path) -> None:
    with server.connect(segments=2) as client:
        status, serial, length = client.request(GET_ID, in_bytes=20)
        assert (status, serial.rstrip(b"\0"), length) == (0, b"vhost_user_blk", 21)
        assert client.request(UNKNOWN)[0] == 2
        assert client.request(1, 3, data=b"x" * 512) == (0, b"", 1)
        assert image.read_bytes()[1536:2048] == b"x" * 512
        assert client.request(0, 3, in_bytes=5120)[1] == image.read_bytes()[1536:6656]
        assert client.request(0, BYTES // 512, in_bytes=512)[0] == 1


def test_only_the_part_that_is_asked_for_is_written(server: Server, image: Path) -> None:
    before = image.read_bytes()
    with server.connect(depth=4) as client:
        client.run(write=True, requests=500, first_byte=8192, span_bytes=65536, seconds=30)
    after = image.read_bytes()
    assert after[:8192] == before[:8192]
    assert after[8192 + 65536 :] == before[8192 + 65536 :]
    assert after[8192 : 8192 + 65536] == bytes(65536)


@pytest.mark.parametrize("poll", [False, True])
def test_a_server_that_is_killed_ends_the_run(server: Server, poll: bool) -> None:
    script = "import os, signal, sys, time; sys.stdin.read(1); os.kill(int(sys.argv[1]), 9)"
    with server.connect(depth=8) as client:
        killer = subprocess.Popen(
            [sys.executable, "-c", script, str(server.pid)], stdin=subprocess.PIPE
        )
        with pytest.raises(ConnectionResetError):
            assert killer.stdin is not None
            killer.stdin.close()
            client.run(seconds=60, poll=poll)
        assert killer.wait() == 0
        with pytest.raises(BrokenPipeError):
            client.run()
        client.close()


def test_a_server_that_stops_answering_is_an_error(server: Server) -> None:
    with server.connect(depth=2, patience=0.2) as client:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="have not come back"):
                client.run(seconds=30)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        with pytest.raises(OSError) as raised:
            client.run()
        assert raised.value.errno == errno.EPIPE


def test_more_queues_than_there_are(server: Server) -> None:
    with pytest.raises(ValueError, match="3 queues are asked for, the server has 2"):
        server.connect(queues=3)


def test_processor_time_is_that_of_the_server(server: Server) -> None:
    with server.connect(depth=32) as client:
        before = server.processor_ns()
        done = client.run(requests=20000, seconds=30)
        used = server.processor_ns() - before
        text = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(text[11]) + int(text[12])
    assert done["requests"] == 20000
    assert 0 < used < 2 * done["ns"]
    assert abs(ticks / os.sysconf("SC_CLK_TCK") - server.processor_ns() / 1e9) < 0.1


def test_every_variant_of_the_peer_works(image: Path, peer: Callable[[str], str]) -> None:
    peer(PEER)
    for command in peer_variants(direct=False).values():
        with Server(command, image) as server, server.connect(depth=4) as client:
            assert client.run(requests=100, seconds=30)["errors"] == 0


# --- the benchmark --------------------------------------------------------------------------------


@pytest.mark.limit(330)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='rows named "own" need two processors')
def test_every_kind_of_row_gives_a_figure(tmp_path: Path, peer: Callable[[str], str]) -> None:
    peer(PEER)
    names = ("depth 1, one", "writes", "32 segments", "O_DIRECT, depth 32", "processor time")
    wanted = [work for work in WORKS if any(name in work.name for name in names)]
    only = [word for name in names for word in ("--only", name)]
    report = report_of("vhost-user-blk", tmp_path, [work.name for work in wanted], *only)
    for row in report["rows"]:
        assert row["value"] > 0
        assert report["peers"][row["work"]].startswith("taskset -c")
        details = report["extra"]["rows"][row["work"]]
        assert details["peer"] in details["tried"]
        assert all(count > 0 for count in details["taken again"].values())
        assert details["best"]["server_us_per_request"] > 0
        assert all(value > 0 for value in details["client alone"].values())
    assert [row["work"] for row in report["extra"]["spinning off"]] == [
        f"{work.name}; spinning off" for work in wanted if work.spin
    ]
    assert report["machine"]["filesystem"]


class Client:
    """A client whose runs have come out like that."""

    def __init__(self, **done: int) -> None:
        self.done = {"requests": 0, "errors": 0, "wrong_lengths": 0, "ns": 100_000_000, **done}

    def run(self, **options: Any) -> dict[str, int]:
        return self.done


@pytest.mark.parametrize(
    ("done", "error", "text"),
    [
        ({}, NothingFinished, "no request came back within 0.1 s"),
        ({"errors": 1}, BenchError, "does not do what it is asked for"),
        ({"wrong_lengths": 1}, BenchError, "does not do what it is asked for"),
    ],
    ids=["nothing", "errors", "lengths"],
)
def test_only_a_sample_without_a_request_may_be_taken_again(
    done: dict[str, int], error: type[BenchError], text: str
) -> None:
    client = cast(VhostBlk, Client(**done))
    load = Load(client, None, {0}, write=False, poll=False, metric="requests")
    with pytest.raises(error, match=text) as raised:
        load(0.1)
    assert type(raised.value) is error


def test_a_missing_peer_is_one_line() -> None:
    change = "from iodma.tools.bench import vhost_servers as v; v.find_program = lambda name: None"
    is_one_line(without("vhost-user-blk", change), "qemu-storage-daemon is not installed")


def test_it_ends_within_its_time() -> None:
    for work in WORKS:
        assert work.shape["depth"] * work.shape["segments"] * 2 * work.shape["segment_bytes"] <= (
            MEMORY_BYTES
        )
    budget = plan(map(cost, WORKS), sides=3, **limits(Options("vhost-user-blk")))
    assert budget.pairs >= 7
    assert budget.total_s < 240


def test_what_means_nothing_to_it_is_refused() -> None:
    refuses("vhost-user-blk")


def test_the_client_alone_needs_no_server() -> None:
    for poll in (True, False):
        with VhostBlk(None, depth=8, segments=3, null_spins=poll) as client:
            done = client.run(requests=1000, poll=poll, seconds=30)
            assert (done["requests"], done["errors"], done["wrong_lengths"]) == (1000, 0, 0)
