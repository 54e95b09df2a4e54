# SPDX-License-Identifier: Apache-2.0
"""What tests of walkers run on: an engine, memory, and an Iommu that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import iodma
from iodma import Access, Mapping

#: The fixture.
__all__ = ["guest_fixture"]

PAGE = 4096
READ, WRITE, RW = Access.READ, Access.WRITE, Access.RW
Key = tuple[int, Access]


class Guest:
    """RAM, an Iommu with a walker above it, and a port above that."""

    def __init__(self, walk: Callable[[int, Access], Any] | None = None) -> None:
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(4 << 20)
        self.memory = iodma.Memory({0: self.ram})
        self.walks: list[Key] = []
        self.answer: Callable[[int, Access], Any] = walk or self.identity
        self.iommu = iodma.Iommu(self.memory, walk=self._walk)
        self.port = self.engine.port(self.iommu)
        self.null = iodma.Null()
        self.zeroes = iodma.Buffer(1 << 20)

    def _walk(self, address: int, access: Access) -> Any:
        self.walks.append((address, access))
        return self.answer(address, access)

    @staticmethod
    def identity(address: int, access: Access) -> Mapping:
        return Mapping(address, address, PAGE, access)

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    def read(self, *pages: int) -> Any:
        return self.port.from_memory([(page, PAGE) for page in pages], to=self.null)

    def write(self, *pages: int) -> Any:
        return self.port.to_memory([(page, PAGE) for page in pages], source=self.zeroes)

    def close(self) -> None:
        self.engine.close()
        self.zeroes.close()
        self.ram.close()


async def settle(guest: Guest, walks: int) -> None:
    """Until the walker was asked so often."""
    while len(guest.walks) < walks:
        await guest.engine.sleep(0)


@pytest.fixture(name="guest")
def guest_fixture() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()
