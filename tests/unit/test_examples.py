"""Every example is checked, run as a user runs it, on both engines, and so are the tests in it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iodma
from iodma.cli import main
from iodma.testing import Clock, strict_engine
from iodma.tools.check import check
from iodma.tools.load import load
from iodma.tools.run import Options, run

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
RUNGS = ("rung1_registers", "rung2_doorbell", "rung3_copy_engine", "rung4_faulty_engine")
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


def test_a_plan_of_faults_comes_from_the_command_line_or_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rung4 = str(FOLDER / "rung4_faulty_engine.py")
    plan = tmp_path / "plan.txt"
    plan.write_text("# what goes wrong\nwrite fault nth=2\n\ndone repeat  # twice\n")
    assert main(["run", rung4, "--json", f"faults={plan}"]) == 0
    returned = json.loads(capsys.readouterr().out)["returned"]
    assert returned == {
        "copies": {"done": 23, "failed": 1},
        "faults": {"write fault": 1, "done repeat": 23},
    }
    for word, words in (
        ("faults=write brake", "'write brake': of write there is fault, delay, hang"),
        ("faults=none.txt", "No such file or directory: 'none.txt'"),
        ("seed=x", "seed=x: 'x' is no int"),
    ):
        assert main(["run", rung4, word]) == 1
        out, err = capsys.readouterr()
        assert out == "" and words in err and len(err.splitlines()) == 1


# --- the copy engine against a model of it --------------------------------------------------------

RING, SIZE, HALF = 0x1000, 1 << 17, 1 << 16
INSIDE = st.integers(0x2000, HALF - 1)
SOURCES = INSIDE | st.sampled_from([0x1800, SIZE - 1, SIZE, 1 << 40, (1 << 64) - 1])
TARGETS = INSIDE.map(lambda at: at + HALF) | st.sampled_from([SIZE - 1, SIZE, (1 << 64) - 4096])
LENGTHS = st.integers(0, 5000) | st.sampled_from([1 << 20, (1 << 32) - 1])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(SOURCES, TARGETS, LENGTHS), min_size=1, max_size=7), st.binary(min_size=8)
)
def test_the_copy_engine_does_what_its_ring_says(
    descriptors: list[tuple[int, int, int]], seed: bytes
) -> None:
    module = load(str(FOLDER / "rung3_copy_engine.py")).module
    with iodma.Engine(strict=True) as engine, iodma.Ram(SIZE) as ram:
        device = module.CopyEngine(engine.port(iodma.Memory({0: ram})))
        bus = iodma.Bus()
        bus.attach(device, 0)
        guest = module.Guest(bus, 0, device, engine, ram)
        guest.set_up()
        with ram.view(0x2000, SIZE - 0x2000) as view:
            view[:] = (seed * (len(view) // len(seed) + 1))[: len(view)]
        for index, (source, target, length) in enumerate(descriptors):
            guest.describe(index, source, target, length, flags=1)
        expected = bytearray(ram.view())
        results = []
        for source, target, length in descriptors:
            length = min(length, module.LONGEST)
            good = length == 0 or (source + length <= SIZE and target + length <= SIZE)
            if good:
                expected[target : target + length] = expected[source : source + length]
            status = iodma.Status.OK if good else iodma.Status.FAULT
            results.append((module.DONE | status, length if good else 0))

        async def work() -> None:
            bus.write32(0x18, len(descriptors))
            while bus.read32(0x14) != len(descriptors):
                await engine.sleep(0)

        engine.run(work())
        assert [guest.result(index) for index in range(len(descriptors))] == results
        assert bytes(ram.view(0x2000)) == bytes(expected[0x2000:])
        causes = bus.read32(0x1C)
        assert bool(causes & module.Cause.FAILED) == any(
            status != module.DONE | iodma.Status.OK for status, _ in results
        )


# --- the faulty one: whatever its plan and its guest are ------------------------------------------

STEPS = {
    **dict.fromkeys(("fetch", "read", "write", "report"), ("fault", "delay", "hang")),
    **dict.fromkeys(("done", "error"), ("lose", "delay", "repeat")),
    "reset": ("delay", "hang"),
}
FAULTS = st.sampled_from([(step, action) for step, has in STEPS.items() for action in has])
WHEN = st.sampled_from(["", "nth=1", "nth=3", "every=2", "chance=0.5"])
RINGS = st.sampled_from([RING, RING, RING, SIZE - 64, 1 << 40, (1 << 64) - 48, (1 << 64) - 1])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(SOURCES, TARGETS, LENGTHS), min_size=1, max_size=7),
    st.lists(st.tuples(FAULTS, WHEN, st.integers(0, 30) | st.integers(0, 5000)), max_size=4),
    RINGS,
    st.integers(0, 9),
)
def test_no_plan_and_no_guest_make_the_faulty_engine_fail(
    descriptors: list[tuple[int, int, int]],
    plan: list[tuple[tuple[str, str], str, int]],
    ring: int,
    seed: int,
) -> None:
    module = load(str(FOLDER / "rung4_faulty_engine.py")).module
    faults = "; ".join(f"{a} {b} {when} offset={offset}" for (a, b), when, offset in plan)
    with strict_engine(clock=Clock()) as engine, iodma.Ram(SIZE) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        device = module.FaultyEngine(port, faults=faults or "# none", seed=seed)
        bus = iodma.Bus()
        bus.attach(device, 0)
        guest = module.Patient(bus, 0, device, engine, ram)

        async def work() -> None:
            for _ in range(2):
                guest.set_up()
                bus.write64(0x00, ring)
                for index, (source, target, length) in enumerate(descriptors):
                    guest.describe(index, source, target, length, flags=1)
                bus.write32(0x18, len(descriptors))
                await engine.sleep(1)
                bus.write32(0x1C, 7)
                bus.write32(0x0C, 1)
                await engine.sleep(1)
                assert device.state == "running"
                assert bus.read32(0x14) == bus.read32(0x1C) == 0
            assert device.tasks == 0 and not device.inject.rules

        engine.run(work())
        assert "failures" not in {key for key, value in device.counts.as_dict().items() if value}
