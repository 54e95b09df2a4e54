# SPDX-License-Identifier: Apache-2.0
"""The chip's FIFO as a space, so that a data phase without DMA is a transfer like any other.

Invariants
 - A write is put into the FIFO, a read takes from it; while padding, writes go nowhere and reads
   are zeroes.
 - Who moves bytes sees that there are as many in the FIFO, or as much room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iodma.devices.esp.registers import FIFO_BYTES
from iodma.engine import Engine
from iodma.memory import Memory, RemoteMemory
from iodma.port import Port

__all__ = ["FifoSpace"]

_BYTES = 1 << 24


class FifoSpace:
    """The FIFO at address 0 of a memory of its own.

    Args:
        fifo: the bytes in it; the same object always.
    """

    def __init__(self, fifo: bytearray) -> None:
        self._fifo = fifo
        self._padding = False
        self._port: Port | None = None
        self._memory = Memory({0: RemoteMemory(self, _BYTES)}, name="fifo")

    def port(self, engine: Engine) -> Port:
        """The port that reaches it."""
        if self._port is None or self._port.closed or self._port.engine is not engine:
            self._port = engine.port(self._memory, "fifo")
        return self._port

    @contextmanager
    def padding(self) -> Iterator[None]:
        """Within it, transfers pad."""
        self._padding = True
        try:
            yield
        finally:
            self._padding = False

    def read(self, offset: int, length: int, request: Any) -> None:
        """For `RemoteMemory`."""
        if self._padding:
            request.done(bytes(length))
        else:
            data = bytes(self._fifo[:length])
            del self._fifo[:length]
            request.done(data.ljust(length, b"\0"))

    def write(self, offset: int, data: Any, request: Any) -> None:
        """For `RemoteMemory`."""
        if not self._padding:
            self._fifo += bytes(data[: FIFO_BYTES - len(self._fifo)])
        request.done()
