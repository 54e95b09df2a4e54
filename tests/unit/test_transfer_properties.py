"""Transfers of every kind, many at once and in any order, do what the byte-by-byte model says.

`Driver` submits, cancels, resets and changes maps; after each completion status, bytes moved,
fault, memory, file, buffer and stream are what the model has.
"""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.conftest import SOAK
from tests.unit.chains import Plan, plans
from tests.unit.driver import ACTS, Driver

seeds = st.integers(0, 1 << 32)
#: Of a chain: the likelier the more often it is here.
STAGES = ["window", "iommu", "iommu", "table", "lanes"]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()

    @initialize(
        plan=plans(8, 4),
        seed=seeds,
        bounce=st.sampled_from([64 << 10, 1 << 20]),
        small=st.sampled_from([(0, 0), None]),
        in_flight=st.sampled_from([2, 4096]),
    )
    def begin(
        self, plan: Plan, seed: int, bounce: int, small: tuple[int, int] | None, in_flight: int
    ) -> None:
        self.driver.begin(plan, seed, bounce, small, in_flight)

    @rule(name=st.sampled_from(list(ACTS)), seed=seeds)
    def act(self, name: str, seed: int) -> None:
        self.driver.act(name, random.Random(seed))

    def teardown(self) -> None:
        self.driver.end()


Machine.TestCase.settings = settings(
    max_examples=2000 if SOAK else 25,
    stateful_step_count=60 if SOAK else 30,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=list(HealthCheck),
)
TestTransfers = Machine.TestCase


@pytest.mark.parametrize("part", range(4))
def test_long_runs(part: int, rng: random.Random) -> None:
    """The same rules, drawn evenly: hypothesis prefers what is small and short."""
    for _ in range(500 if SOAK else 6):
        run_at_random(rng.getrandbits(40))


def run_at_random(seed: int) -> None:
    rng = random.Random(seed)
    plan = Plan(
        rng.getrandbits(32),
        tuple(rng.choice([4096, 70_000, 70_000]) for _ in range(rng.randint(1, 3))),
        rng.choice([b"", b"rom" * 100]),
        rng.randint(1, 12),
        tuple(rng.choice(STAGES) for _ in range(rng.randint(0, 4))),
        tuple(rng.choice([16, 5000, 70_000]) for _ in range(rng.choice([0, 0, 1, 2]))),
    )
    driver = Driver()
    steps: list[str] = [repr(plan)]
    try:
        small = rng.choice([(0, 0), None])
        driver.begin(plan, rng.getrandbits(32), 64 << 10, small, rng.choice([2, 4096]))
        for name in rng.choices(list(ACTS), list(ACTS.values()), k=50):
            steps.append(name)
            driver.act(name, rng)
        driver.end()
    except BaseException as error:
        error.add_note(f"run_at_random({seed}): {' '.join(steps)}")
        with contextlib.suppress(Exception):
            driver.stack.close()
        raise
