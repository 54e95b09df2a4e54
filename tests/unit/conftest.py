"""What tests of devices share: the engine they run on, and a port whose transfers a test ends.

Invariant: a task that is left when a test is over fails it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iodma import Port
from tests.unit.engines import Held, WatchedEngine, device_engine, held_port


@pytest.fixture
def engine() -> Iterator[WatchedEngine]:
    """Of the kind that IODMA_ENGINE says."""
    with device_engine() as engine:
        yield engine


@pytest.fixture
def port_and_held(engine: WatchedEngine) -> Iterator[tuple[Port, Held]]:
    with held_port(engine) as both:
        yield both


@pytest.fixture
def port(port_and_held: tuple[Port, Held]) -> Port:
    return port_and_held[0]


@pytest.fixture
def held(port_and_held: tuple[Port, Held]) -> Held:
    return port_and_held[1]
