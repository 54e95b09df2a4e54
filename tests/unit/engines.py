"""What tests of devices run on: the real engine, and an endpoint whose answers a test holds back.

Invariants:

- Nothing runs but inside `settle`, `run` and `Engine.pump`; `pump(1)` resumes one coroutine.
- Leaving `device_engine` fails on a task that was never ended.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self

from iodma import Constraints, Endpoint, Engine, Error, Memory, Port, Ram
from iodma.endpoints.base import KIND_SCRIPT
from iodma.testing import Clock


class WatchedEngine(Engine):
    """Notes the devices that fail."""

    def __init__(self, strict: bool = False, clock: Clock | None = None) -> None:
        super().__init__(strict=strict, slow_step=None, clock=clock)
        self.failures: list[tuple[Any, BaseException]] = []

    def _device_failed(self, device: Any, error: BaseException) -> None:
        self.failures.append((device, error))
        super()._device_failed(device, error)


@contextmanager
def device_engine(strict: bool = False) -> Iterator[WatchedEngine]:
    with WatchedEngine(strict) as engine:
        yield engine
        assert engine.stats().tasks == 0, "tasks that never ended"


class Held(Endpoint):
    """Takes requests, and answers them when the test says so; a cancel alone never ends one."""

    asked: dict[int, int]
    cancelled: list[int]

    def __new__(cls) -> Self:
        self = cls._make(KIND_SCRIPT, "held", Constraints())
        asked = self.asked = {}
        cancelled = self.cancelled = []
        self._set_script(
            lambda ticket, direction, offset, length, kind: asked.update({ticket: length}),
            lambda ticket, direction, offset, length, kind: cancelled.append(ticket),
        )
        return self

    def finish(self) -> None:
        """Completes everything that was asked of it."""
        for ticket, length in self.asked.items():
            self._finish(ticket, length)
        self.asked.clear()


@contextmanager
def held_port(engine: Engine) -> Iterator[tuple[Port, Held]]:
    """A port on a page of RAM, and an endpoint for it."""
    with Ram(4096) as ram, Held() as held:
        yield engine.port(Memory({0: ram})), held
        held.finish()
        settle(engine)


def settle(engine: Engine, limit: int = 10_000) -> None:
    """Runs until nothing can go on by itself."""
    for _ in range(limit):
        if not engine.pump():
            return
    raise AssertionError("the tasks never come to rest")


def run(engine: Engine, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine to its end and gives its value."""
    task = engine.start(main())
    settle(engine)
    if not task.done:
        raise Error("the coroutine waits for something that never comes")
    return task.result
