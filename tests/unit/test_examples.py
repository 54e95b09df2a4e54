"""Every example is checked, run as a user runs it, on both engines, and so are the tests in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from iodma.cli import main
from iodma.tools.check import check
from iodma.tools.load import load
from iodma.tools.run import Options, run

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
RUNGS = ("rung1_registers", "rung2_doorbell", "rung3_copy_engine")
TESTS = [
    pytest.param(path, name, id=f"{path.stem}-{name}")
    for path in EXAMPLES
    for name in sorted(vars(load(str(path)).module))
    if name.startswith("test_")
]


def test_the_ladder_is_complete() -> None:
    assert set(RUNGS) <= {path.stem for path in EXAMPLES}
    assert {each.values[0].stem for each in TESTS} == {path.stem for path in EXAMPLES}  # type: ignore[union-attr]


def test_a_doorbell_with_dma_and_interrupt_takes_at_most_40_lines() -> None:
    text = (FOLDER / "rung2_doorbell.py").read_text()
    assert len(text.splitlines()) <= 40
    assert "def test_" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_checks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert check(str(path)).device in out
    assert err == ""


@pytest.mark.parametrize("engine", ["auto", "threads"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_its_driver_runs(path: Path, engine: str) -> None:
    result = run(Options(str(path), engine))
    assert result.returned is not None
    assert result.interrupts > 0
    assert "failures" not in result.counts


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_its_own_tests_pass(path: Path, name: str) -> None:
    test: Callable[[], None] = getattr(load(str(path)).module, name)
    test()
