"""The trace: a file that Perfetto opens, that agrees with what happened, and that is bounded."""

from __future__ import annotations

import collections
import contextlib
import gzip
import json
import random
import socket
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma.trace import Trace, attach, merge, trace_to
from tests.unit.system import Registers

Record = dict[str, Any]
NEEDED = {
    "M": {"pid", "tid", "name", "args"},
    "X": {"pid", "tid", "name", "cat", "ts", "dur", "args"},
    "b": {"pid", "tid", "name", "cat", "id", "ts", "args"},
    "e": {"pid", "tid", "name", "cat", "id", "ts", "args"},
    "s": {"pid", "tid", "name", "cat", "id", "ts"},
    "t": {"pid", "tid", "name", "cat", "id", "ts"},
    "f": {"pid", "tid", "name", "cat", "id", "ts", "bp"},
}


def read(path: Path) -> list[Record]:
    """The records of a trace, each of which has the fields that the format asks for."""
    data = json.loads(path.read_text())
    assert set(data) == {"displayTimeUnit", "otherData", "traceEvents"}
    records: list[Record] = data["traceEvents"]
    for record in records:
        assert set(record) - {"ph"} == NEEDED[record["ph"]], record
        assert isinstance(record["pid"], int) and isinstance(record["tid"], int)
        assert isinstance(record["name"], str)
        assert record.get("ts", 0) >= 0 and record.get("dur", 1) > 0
    return records


def check(records: list[Record]) -> None:
    """Slices are closed and nested, flows are paired and lie in slices, time goes one way."""
    stacks: dict[Any, list[Record]] = collections.defaultdict(list)
    for record in records:
        if record["ph"] not in "be":
            continue
        stack = stacks[record["pid"], record["id"]]
        if record["ph"] == "b":
            assert not stack or stack[-1]["ts"] <= record["ts"]
            stack.append(record)
        else:
            begun = stack.pop()
            assert begun["name"] == record["name"] and begun["ts"] <= record["ts"]
    assert not any(stacks.values())
    slices = collections.defaultdict(list)
    for record in records:
        if record["ph"] == "X":
            slices[record["pid"], record["tid"]].append(
                (record["ts"], record["ts"] + record["dur"])
            )
    for track in slices.values():
        within: list[float] = []
        for begin, end in sorted(track, key=lambda each: (each[0], -each[1])):
            while within and within[-1] <= begin + 1e-6:
                within.pop()
            assert not within or end <= within[-1] + 1e-6
            within.append(end)
    flows = collections.defaultdict(list)
    for record in records:
        if record["ph"] in "stf":
            flows[record["pid"], record["id"]].append(record)
            track = slices[record["pid"], record["tid"]]
            assert any(begin <= record["ts"] <= end for begin, end in track)
    for flow in flows.values():
        assert [each["ph"] for each in flow] == ["s", *"t" * (len(flow) - 2), "f"]
        assert all(before["ts"] <= after["ts"] for before, after in pairwise(flow))


def ended(records: list[Record]) -> list[tuple[str, str, int]]:
    """(name, status, moved) of every transfer that ended."""
    return [
        (record["name"], record["args"]["status"], record["args"]["moved"])
        for record in records
        if record["ph"] == "e" and "status" in record["args"]
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 256)
    return path


def test_a_trace_tells_what_happened(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "trace.json"
    with (
        iodma.Engine(strict=True) as engine,
        iodma.Ram(1 << 20) as ram,
        iodma.File(file) as disk,
        iodma.Null() as null,
    ):
        port = engine.port(iodma.Memory({0: ram}), "disk0")
        other = engine.port(iodma.Memory({0: ram}), "net0")

        async def main() -> None:
            await port.to_memory((0, 8192), source=disk)
            await port.to_memory((0, 1 << 21), source=disk)
            await port.from_memory([(0, 4096), (8192, 4096)], to=null)
            await port.flush(disk)
            gone = port.to_memory((0, 4096), source=disk)
            gone.cancel()
            await gone
            await other.copy((0, 4096), (4096, 4096))

        endpoints = [repr(disk), repr(disk), repr(null), repr(disk), repr(disk), None]
        with trace_to(engine, out) as trace:
            engine.run(main())
        assert trace.lost == 0
    records = read(out)
    check(records)
    assert ended(records) == [
        ("to_memory", "OK", 8192),
        ("to_memory", "FAULT", 0),
        ("from_memory", "OK", 8192),
        ("flush", "OK", 0),
        ("to_memory", "CANCELLED", 0),
        ("copy", "OK", 4096),
    ]
    assert {r["args"]["name"] for r in records if r["name"] == "process_name"} == {
        "port disk0",
        "port net0",
    }
    begun = [r for r in records if r["ph"] == "b" and "ticket" in r["args"]]
    assert [r["args"].get("endpoint") for r in begun] == endpoints
    assert [r["args"]["bytes"] for r in begun] == [8192, 1 << 21, 8192, 0, 4096, 4096]
    # The kernel had one request of the first transfer, and its result was its bytes.
    first = [r for r in records if r.get("id") == begun[0]["id"] and r["name"] == "request"]
    assert [r["args"] for r in first] == [{"bytes": 8192}, {"result": 8192}]


def test_what_has_not_ended_is_closed(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "trace.json"
    with (
        iodma.Engine(strict=True) as engine,
        iodma.Ram(4096) as ram,
        iodma.File(file) as disk,
    ):
        port = engine.port(iodma.Memory({0: ram}))

        async def before() -> None:
            port.to_memory((0, 4096), source=disk)

        engine.run(before())
        with trace_to(engine, out):

            async def inside() -> None:
                await port.to_memory((0, 4096), source=disk)
                port.to_memory((0, 4096), source=disk)

            engine.run(inside())
    records = read(out)
    check(records)
    begun = [r["args"] for r in records if r["ph"] == "b" and "ticket" in r["args"]]
    assert sum("began" in args for args in begun) <= 1
    assert any(r["args"].get("unfinished") for r in records if r["ph"] == "e")


def test_a_long_trace_is_bounded_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    with iodma.Engine(strict=True) as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
        port = engine.port(iodma.Memory({0: ram}))

        async def many(count: int) -> None:
            for _ in range(count):
                await port.from_memory((0, 64), to=null)

        with trace_to(engine, out, limit=1000) as trace:
            engine.run(many(1000))
        assert trace.events == 1000 and trace.lost > 1000
    check(read(out))
    assert json.loads(out.read_text())["otherData"]["lost_events"] == trace.lost


def test_the_buffer_is_emptied_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iodma.trace.collect._ROOM", 1 << 13)
    out = tmp_path / "trace.json.gz"
    count = 3000
    with iodma.Engine(strict=True) as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
        port = engine.port(iodma.Memory({0: ram}), depth=1024)
        batch = iodma.Batch(256)
        batch.length[:] = 64
        batch.first[:] = range(256)
        batch.count[:] = 1
        batch.n = 256

        async def many() -> None:
            left = count
            while left > 0:
                port.submit(batch, null)
                async for done in port.completions(limit=256):
                    left -= len(done)

        with trace_to(engine, out) as trace:
            engine.run(many())
        assert trace.lost == 0 and trace.events >= 8 * count > 2 * (1 << 13)
    with gzip.open(out, "rt") as text:
        names = collections.Counter(
            r["name"] for r in json.load(text)["traceEvents"] if r["ph"] == "f"
        )
    assert names["transfer"] >= count


def test_everything_at_once_is_a_good_file(tmp_path: Path, file: Path, rng: random.Random) -> None:
    """Misses, waits for order and budget, sends that share a request, messages, resets, cancels."""
    out = tmp_path / "trace.json"
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    with (
        ours,
        theirs,
        iodma.Engine(strict=True, bounce_bytes=1 << 16) as engine,
        iodma.Ram(1 << 20) as ram,
        iodma.File(file) as disk,
        iodma.File(file, direct=True) as direct,
        iodma.Socket(ours) as stream,
        iodma.Null() as null,
    ):
        memory = iodma.Memory({0: ram, 1 << 30: iodma.DeviceWindow(Registers(), 4096)})

        async def walk(address: int, access: iodma.Access) -> iodma.Mapping | bool:
            await engine.sleep(rng.random() / 1000)
            return rng.random() < 0.9 and iodma.Mapping(address, address, 4096, access)

        iommu = iodma.Iommu(memory, walk=walk)
        ports = [
            engine.port(iommu, "mapped"),
            engine.port(memory, "plain"),
            engine.port(iodma.ByteLanes(memory, width=2), "swapped"),
        ]

        async def main() -> None:
            going: list[Any] = []
            for step in range(400):
                port = rng.choice(ports)
                where = rng.choice(
                    (
                        (rng.randrange(1 << 19), rng.randrange(1, 40_000)),
                        ((1 << 30) + 8, 64),
                        [(i * 4096, 100) for i in range(8)],
                    )
                )
                act = rng.randrange(6)
                if act == 0:
                    going.append(port.to_memory(where, source=rng.choice((disk, direct, null))))
                elif act == 1:
                    going.append(port.from_memory(where, to=null))
                elif act in (2, 3):
                    going.append(port.from_memory((0, 1000), to=stream))
                elif act == 4 and going:
                    rng.choice(going).cancel()
                else:
                    going.append(port.copy((0, 4096), (4096, 4096)))
                if step % 97 == 96:
                    await rng.choice(ports).reset()
                if step % 50 == 49:
                    await iommu.invalidate()
                if rng.random() < 0.3:
                    await engine.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    theirs.recv(1 << 20)
            # A walk refuses now and then, but what it is for may be cancelled, or not end in here.
            done = await ports[1].from_memory((1 << 40, 64), to=null)
            assert done.status == iodma.Status.FAULT

        with trace_to(engine, out):
            engine.run(main())
    records = read(out)
    check(records)
    states = {record["name"] for record in records if record["ph"] == "b"}
    assert states >= {"PENDING", "WAITING", "IN_FLIGHT", "FAULTED", "COMPLETE", "request"}


def test_attach_ends_with_the_engine(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "trace.json"
    with iodma.Engine(strict=True) as engine, iodma.Ram(4096) as ram, iodma.File(file) as disk:
        trace = attach(engine, out)
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            await port.to_memory((0, 4096), source=disk)

        engine.run(main())
        with pytest.raises(iodma.BusyError, match="traced already"):
            attach(engine, tmp_path / "second.json")
    assert not trace.running
    assert ended(read(out)) == [("to_memory", "OK", 4096)]
    trace.stop()  # may be called again


def test_misuse_is_told(tmp_path: Path) -> None:
    with iodma.Engine(strict=True) as engine:
        with pytest.raises(OSError, match="No such file"):
            attach(engine, tmp_path / "nowhere" / "trace.json")
        with pytest.raises(iodma.ArgumentError, match="limit is 0"):
            Trace(engine, tmp_path / "trace.json", limit=0)
        trace = attach(engine, tmp_path / "trace.json")
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                trace.stop()
            except iodma.WrongThreadError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 1 and trace.running


def test_several_are_merged_side_by_side(tmp_path: Path) -> None:
    parts = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.json"
        with iodma.Engine(strict=True) as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
            port = engine.port(iodma.Memory({0: ram}), "net")

            async def main(port: iodma.Port = port, null: iodma.Null = null) -> None:
                await port.from_memory((0, 4096), to=null)

            with trace_to(engine, path):
                engine.run(main())
        parts.append((name, str(path)))
    merge(str(tmp_path / "both.json"), parts)
    records = read(tmp_path / "both.json")
    check(records)
    assert [r["args"]["name"] for r in records if r["name"] == "process_name"] == [
        "one: port net",
        "two: port net",
    ]


def test_a_benchmark_is_traced_outside_of_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iodma.tools.bench.worker import traced

    out = tmp_path / "row.json"
    with iodma.Engine(strict=True) as engine, iodma.Ram(4096) as ram, iodma.Null() as null:
        port = engine.port(iodma.Memory({0: ram}))

        async def sample(seconds: float) -> float:
            for _ in range(10):
                await port.from_memory((0, 64), to=null)
            return 10 / seconds

        # A worker has one engine; here there may be others that wait to be collected.
        monkeypatch.setattr("iodma.engine.loop.engines", {engine})
        assert traced(lambda seconds: engine.run(sample(seconds)), 0.001, str(out)) == 1
    records = read(out)
    check(records)
    assert ended(records) == [("from_memory", "OK", 64)] * 10
