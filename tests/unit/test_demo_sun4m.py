"""`iodma demo sun4m`: what moved, what was copied and why, with CSR3.BSWP and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iodma.cli import main
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.demo.peer import DemoError
from iodma.tools.demo.sun4m import AREA, FRAMES, Program, Result, render, run

BYTES = FRAMES * layout.FRAME_BYTES


@pytest.fixture(scope="module", params=["uring", "threads"])
def result(request: pytest.FixtureRequest) -> Result:
    return run(request.param)


def test_what_moved_and_what_was_copied(result: Result) -> None:
    straight, swapped = result.passes
    assert (straight.bswp, swapped.bswp) == (True, False)
    for each in result.passes:
        assert each.frames == FRAMES
        assert (each.network.out, each.network.back) == (BYTES, BYTES)
        assert (each.disk.out, each.disk.back) == (AREA, AREA)
        assert each.disk.copied == 0
        assert each.network.python < BYTES and each.disk.python < 1024
        # A batch goes with one request; a frame that comes takes a look and a receive.
        assert each.network.requests <= 4 * FRAMES
    assert straight.network.copied == 0 and straight.network.why == {}
    assert swapped.network.why == {"lanes": 2 * BYTES}


def test_both_passes_stand_side_by_side(result: Result) -> None:
    text = render(result)
    assert "CSR3.BSWP=1" in text and "CSR3.BSWP=0" in text
    assert f"{2 * BYTES:,} (lanes {2 * BYTES:,})" in text


def test_the_buffers_cross_pages_that_lie_apart() -> None:
    crossing = 0
    for number in range(FRAMES):
        first = layout.BUFFERS + number * layout.STRIDE
        last = first + layout.FRAME_BYTES - 1
        apart = layout.physical(last) - layout.physical(first)
        crossing += apart != layout.FRAME_BYTES - 1
    assert crossing >= FRAMES // 4


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.json"
    assert main(["demo", "sun4m", "--json", "--trace", str(trace)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["bswp"] for each in told["passes"]] == [True, False]
    events = json.loads(trace.read_text())["traceEvents"]
    names = {str(each["args"].get("name")) for each in events if each.get("ph") == "M"}
    assert any("lance" in name for name in names), names
    assert main(["demo", "sun4m", "--swap", "2"]) == 1
    assert "neither --direct nor --swap" in capsys.readouterr().err


def test_what_arrives_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Program, address: int, length: int) -> bytes:
        return bytes(length)

    monkeypatch.setattr(Program, "get", wrong)
    with pytest.raises(DemoError, match="came back as another"):
        run()
