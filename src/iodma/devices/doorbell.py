# SPDX-License-Identifier: Apache-2.0
"""A doorbell: a write to it starts work.

    class Copier(iodma.Device):
        go = iodma.Doorbell(0x10, run="copy")

        async def copy(self, ring):            # ring: what was written
            ...

Invariants
 - The write itself returns at once; the work runs in the device's scope, never inside the write.
 - Serial (the default): one run at a time, in the order of the writes. The next begins when the
   one before has ended, however it ended.
 - Bounded: at most `depth` runs are unfinished, waiting ones included. **A ring past that is
   dropped**, counted (`Device.counts.doorbells_dropped`), logged, and told to the `full` handler,
   which can set the overrun bit that the datasheet has. Rings are never merged.
 - A run is as deep as the message that rang for it, also when it had to wait: a device whose DMA
   rings its own doorbell ends at the limit.
 - A reset, or a failure of the device, forgets the waiting rings and cancels the running ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, overload

from iodma.devices.registers import Handler, Mapped, checked
from iodma.errors import ArgumentError

if TYPE_CHECKING:
    from typing import Self

    from iodma.devices.base import Device

__all__ = ["Bell", "Doorbell"]

AsyncHandler = str | Callable[..., Coroutine[Any, Any, Any]]


class Doorbell(Mapped):
    """A write-only register; each write starts ``run(self, value)``, an ``async def`` method.

    As an attribute of a device it is a `Bell`, for the device's own code.

    Args:
        offset: bytes from the start of the device's window; a multiple of `width`.
        width: bytes: 1, 2, 4 or 8. No other width is accepted from the bus.
        run: the name of an ``async def`` method, or a coroutine function called with the device
            first.
        concurrent: every run starts at once, beside those that are not finished.
        depth: the most runs that may be unfinished at once: the one running and those waiting or,
            if `concurrent`, all running.
        full: plain handler ``full(self, value)`` of a ring that was dropped.
        eventfd: a VMM may tell of a write by an eventfd, which costs it and the server no message,
            but does not say what was written: `run` gets this value then. None: what is written
            matters, and every write is a message.
        doc: what the datasheet says of it.

    Raises:
        ArgumentError: a value that cannot be right.
    """

    def __init__(
        self,
        offset: int,
        width: int = 4,
        *,
        run: AsyncHandler,
        concurrent: bool = False,
        depth: int = 256,
        full: Handler | None = None,
        eventfd: int | None = None,
        doc: str = "",
    ) -> None:
        super().__init__(offset, width, doc)
        if depth < 1:
            raise ArgumentError(f"the doorbell at {offset:#x}: depth is at least 1, not {depth!r}")
        if eventfd is not None:
            eventfd = checked(eventfd, width, lambda: f"the doorbell at {offset:#x}, eventfd")
        self.run = run
        self.concurrent = concurrent
        self.depth = depth
        self.full = full
        self.eventfd = eventfd

    @overload
    def __get__(self, device: None, owner: type) -> Self: ...
    @overload
    def __get__(self, device: Device, owner: type | None = None) -> Bell: ...
    def __get__(self, device: Device | None, owner: type | None = None) -> Self | Bell:
        if device is None:
            return self
        return device._bells[self.name]

    def __set__(self, device: Device, value: object) -> None:
        raise ArgumentError(
            f"{device.name}.{self.name} is a doorbell and stores nothing: ring it with "
            f".ring({value!r})"
        )


class Bell:
    """One device's doorbell: what is running and what waits.

    Attributes:
        running: runs that have begun and not ended.
        dropped: rings that found it full, since the device was made.
    """

    __slots__ = ("_device", "_doorbell", "_full", "_run", "_waiting", "dropped", "running")

    def __init__(
        self,
        device: Device,
        doorbell: Doorbell,
        run: Callable[..., Coroutine[Any, Any, Any]],
        full: Callable[..., Any] | None,
    ) -> None:
        self._device = device
        self._doorbell = doorbell
        self._run = run
        self._full = full
        # What was written, and how deep in messages that was, which counts for its run.
        self._waiting: deque[tuple[int, int]] = deque()
        self.running = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Rings that wait for their turn."""
        return len(self._waiting)

    def ring(self, value: int) -> None:
        """What a write from the bus does; the device's own code may do it too.

        Raises:
            ArgumentError, ArgumentTypeError: `value` does not fit the width.
            StaleError: the device is in reset or has failed, or the caller's coroutine is from
                before its last reset.
        """
        device = self._device
        if not device._open:
            device._refuse_closed(self._doorbell.name)
        self._ring(checked(value, self._doorbell.width, lambda: self._name))

    def signalled(self, count: int) -> None:
        """For transports: an eventfd tells of `count` writes. While the device is in reset or has
        failed they are refused, and counted, as such writes are."""
        device, value = self._device, self._doorbell.eventfd or 0
        for _ in range(min(count, self._doorbell.depth + 1)):
            device.bus_write(self._doorbell.offset, self._doorbell.width, value)

    def _ring(self, value: int) -> None:
        unfinished = self.running + len(self._waiting)
        if unfinished >= self._doorbell.depth:
            self._drop(value)
        elif self.running and not self._doorbell.concurrent:
            self._waiting.append((value, self._device._scope.depth))
        else:
            self._begin(value)

    def _begin(self, value: int, depth: int | None = None) -> None:
        device = self._device
        device._scope.start(self._run(device, value), self._name, self._ended, depth)
        self.running += 1

    def _ended(self) -> None:
        """A run of the present generation has ended."""
        self.running -= 1
        if self._waiting:
            self._begin(*self._waiting.popleft())

    def _drop(self, value: int) -> None:
        device = self._device
        self.dropped += 1
        device.counts.doorbells_dropped += 1
        device._note(
            "%s: ring %#x dropped: %d runs are unfinished", self._name, value, self._doorbell.depth
        )
        if self._full is not None:
            self._full(device, value)

    def _clear(self) -> None:
        """Forgets everything: the runs are of an earlier generation now."""
        self._waiting.clear()
        self.running = 0

    @property
    def _name(self) -> str:
        return f"{self._device.name}.{self._doorbell.name}"
