# SPDX-License-Identifier: Apache-2.0
"""Endpoints that are no descriptor: host memory, and nothing.

Invariants
 - The core moves these bytes itself, once; byte lanes are swapped on the way.
 - A `Buffer` has an end like a file's: reads stop there, writes past it end with IO_ERROR (ENOSPC).
"""

from __future__ import annotations

from typing import Self

from iodma.endpoints.base import KIND_BUFFER, KIND_NULL, Endpoint
from iodma.memory.regions import Ram
from iodma.types import Constraints

__all__ = ["Buffer", "Null"]


class Buffer(Endpoint):
    """Host memory as an endpoint.

    Args:
        memory: a `Ram`, which stays its owner's, or a number of bytes to make.
    """

    ram: Ram
    _own: bool

    def __new__(cls, memory: Ram | int) -> Self:
        own = not isinstance(memory, Ram)
        ram = memory if isinstance(memory, Ram) else Ram(memory)
        self = cls._make(KIND_BUFFER, f"buffer of {ram.size} bytes", Constraints(), region=ram)
        self.ram = ram
        self._own = own
        return self

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ram.size

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """Its bytes; see `Ram.view`."""
        return self.ram.view(offset, length)

    def close(self) -> None:
        """Let go of it, and of the memory if it made that."""
        super().close()
        if self._own:
            self.ram.close()

    def __del__(self) -> None:
        if self._own and not self.closed:
            super().close()


class Null(Endpoint):
    """Takes everything, and gives zeroes."""

    def __new__(cls) -> Self:
        return cls._make(KIND_NULL, "null", Constraints())
