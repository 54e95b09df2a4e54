"""A small engine that runs coroutines one step at a time, for tests of the device model alone.

Invariants:

- Nothing runs but inside `pump`, in the order in which it became ready: a test sees every step.
- It keeps what `iodma.devices.host` asks of an engine, and checks that devices keep their side:
  leaving `device_engine` fails on a task that was never ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from iodma.devices.host import OwnerLike
from iodma.errors import Cancelled, Error, StaleError


class Waiting:
    """What a coroutine yields to the engine: resumed, once, when `wake` is called."""

    def __init__(self) -> None:
        self.over = False
        self.waiters: list[Task] = []

    def wake(self) -> None:
        self.over = True
        for task in self.waiters:
            if task.waits_for is self:
                task.engine.ready.append(task)
                task.waits_for = None
        self.waiters.clear()

    def __await__(self) -> Generator[Waiting, None, None]:
        if not self.over:
            yield self


class Event(Waiting):
    set = Waiting.wake

    def wait(self) -> Awaitable[None]:
        return self


class Task:
    def __init__(
        self, engine: FakeEngine, coro: Coroutine[Any, Any, Any], owner: OwnerLike | None, name: str
    ) -> None:
        self.engine = engine
        self.coro = coro
        self.owner = owner
        self.name = name
        self.stale = False
        self.begun = False
        self.value: Any = None
        self.exception: BaseException | None = None
        self.waits_for: Waiting | None = None
        self.cancelling = False
        self.ended = Waiting()

    @property
    def done(self) -> bool:
        return self.ended.over

    def cancel(self) -> None:
        if self.done or self.cancelling:
            return
        self.cancelling = True
        if self.waits_for is not None:
            self.waits_for = None
            self.engine.ready.append(self)

    def __await__(self) -> Generator[Waiting, None, Any]:
        yield from self.ended.__await__()
        if self.exception is not None:
            raise self.exception
        return self.value

    def step(self) -> None:
        before, self.engine.current_task = self.engine.current_task, self
        try:
            self._advance()
        except StopIteration as end:
            self._end(end.value, None)
        except (Exception, Cancelled) as error:
            self._end(None, error)
        finally:
            self.engine.current_task = before

    def _advance(self) -> None:
        waiting: Waiting | None = None
        if self.cancelling and not self.begun:
            self.coro.close()
            raise Cancelled
        self.begun = True
        if not self.cancelling:
            waiting = self.coro.send(None)
        while True:
            if self.cancelling:
                self.cancelling = False
                waiting = self.coro.throw(Cancelled())
            elif self.stale:
                waiting = self.coro.throw(StaleError(f"{self.name}: await after a reset"))
            else:
                break
        assert isinstance(waiting, Waiting), "a foreign awaitable"
        self.waits_for = waiting
        waiting.waiters.append(self)

    def _end(self, value: Any, error: BaseException | None) -> None:
        self.value, self.exception = value, error
        self.engine.tasks.discard(self)
        try:
            if self.owner is not None:
                self.owner._task_done(self)
        finally:
            self.ended.wake()


class FakeEngine:
    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.ready: deque[Task] = deque()
        self.tasks: set[Task] = set()
        self.current_task: Task | None = None
        self.failures: list[tuple[Any, BaseException]] = []

    def attach(self, device: Any) -> None:
        device._attach(self)

    def start(self, coro: Coroutine[Any, Any, Any], *, name: str = "task") -> Task:
        return self._spawn(coro, owner=None, name=name)

    def _spawn(self, coro: Coroutine[Any, Any, Any], *, owner: OwnerLike | None, name: str) -> Task:
        task = Task(self, coro, owner, name)
        self.tasks.add(task)
        self.ready.append(task)
        return task

    def _device_failed(self, device: Any, error: BaseException) -> None:
        self.failures.append((device, error))
        if self.strict:
            raise error

    def sleep(self, seconds: float) -> Awaitable[None]:
        raise NotImplementedError("tests of devices need no clock")

    def pump(self, limit: int = 10_000) -> int:
        steps = 0
        while self.ready:
            assert steps < limit, "the tasks never come to rest"
            steps += 1
            self.ready.popleft().step()
        return steps


class Transfer(Waiting):
    """One DMA in flight: ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = False


class FakePort:
    """A port whose transfers a test completes by hand; a cancel alone never ends one."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.transfers: list[Transfer] = []
        self.resets = 0
        self.drain_error: Exception | None = None
        self._drain: Waiting | None = None

    @property
    def in_flight(self) -> int:
        return len(self.transfers)

    def transfer(self) -> Transfer:
        task = self.engine.current_task
        if self._drain is not None or (task is not None and task.stale):
            raise StaleError("a submit after a reset")
        self.transfers.append(Transfer())
        return self.transfers[-1]

    def finish(self) -> None:
        """Completes everything in flight."""
        for transfer in self.transfers:
            transfer.wake()
        self.transfers.clear()
        if self._drain is not None:
            self._drain.wake()
            self._drain = None

    def reset(self) -> Awaitable[None]:
        self.resets += 1
        for transfer in self.transfers:
            transfer.cancelled = True
        if self._drain is None:
            drain = self._drain = Waiting()
            if not self.transfers:
                self.finish()
        else:
            drain = self._drain
        return _Drain(drain, self.drain_error)


class _Drain:
    def __init__(self, waiting: Waiting, error: Exception | None) -> None:
        self.waiting, self.error = waiting, error

    def __await__(self) -> Generator[Waiting, None, None]:
        yield from self.waiting.__await__()
        if self.error is not None:
            raise self.error


@contextmanager
def device_engine(strict: bool = False) -> Iterator[FakeEngine]:
    """The engine for tests of devices: the one place to change for another."""
    engine = FakeEngine(strict)
    yield engine
    left = [task.name for task in engine.tasks]
    assert not left, f"tasks that never ended: {left}"


def settle(engine: FakeEngine) -> None:
    """Runs until nothing can go on by itself."""
    engine.pump()


def run(engine: FakeEngine, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine to its end and gives its value."""
    task = engine.start(main())
    settle(engine)
    if not task.done:
        raise Error("the coroutine waits for something that never comes")
    if task.exception is not None:
        raise task.exception
    return task.value
