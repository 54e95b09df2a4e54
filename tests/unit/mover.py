"""A device that tests of the device model share.

Invariant: all that happens to it is in its `log`, in order.
"""

from __future__ import annotations

from typing import Any

from iodma.devices import Device, Doorbell, Register
from tests.unit.engines import Held


class Mover(Device):
    """Moves what it is told to; everything that happens goes to `log`."""

    go = Register(0x00, write="begin")
    status = Register(0x04, access="ro", reset=1)
    control = Register(0x08, always=True, write="controlled")
    ring = Doorbell(0x0C, run="move")
    held: Held

    def __init__(self, port: Any = None, **endpoints: Any) -> None:
        self.log: list[object] = []
        super().__init__(port, **endpoints)

    def begin(self, value: int) -> None:
        self.start(self.move(value))

    def controlled(self, value: int) -> None:
        if value == 1:
            self.request_reset()

    async def move(self, value: int) -> None:
        self.log.append(("begin", value))
        try:
            await self.port.from_memory((0, 16), to=self.held)
            self.status = 2
            self.log.append(("moved", value))
        finally:
            self.log.append(("end", value))

    def reset(self) -> None:
        self.log.append("reset")

    def failure(self, error: Exception) -> None:
        self.log.append(type(error).__name__)
