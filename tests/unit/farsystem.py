"""A system some of whose memory is somebody else's.

Invariants:

- The fixture is imported by name, and closes what it made.
- Nothing answers but the test, unless it says `by_turns`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.farmemory import FarMemory
from tests.unit.system import (
    System,
)

#: The fixture, and what tests know of it.
__all__ = ["FAR", "WINDOW", "Far", "far_fixture"]

FAR = 1 << 40
WINDOW = 1 << 41


class Far(System):
    """A system with a MiB of far memory; the slot and the injection stage are above it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.far = FarMemory(1 << 20, most=4096)
        self.far.data[:] = bytes(range(256)) * 4096
        self.memory.add(FAR, self.far)

    def by_turns(self) -> None:
        self.far.by_turns_of(self.engine)

    async def asked(self, count: int = 1) -> None:
        await self.until(lambda: len(self.far.waiting) >= count)


@pytest.fixture(name="far")
def far_fixture() -> Iterator[Far]:
    made = Far()
    yield made
    made.close()
