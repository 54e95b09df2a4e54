# SPDX-License-Identifier: Apache-2.0
"""What a device asks of the engine, of its tasks and of its ports: nothing more.

Invariants
 - The engine calls `_task_done` of a task's owner exactly once, when the task has ended in whatever
   way, and before it resumes anyone who waits for that task. The owner deals with the exception.
 - A stale task is refused: each await of it, and each submit on a port while it is the current
   task, raises `StaleError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, runtime_checkable

__all__ = ["EngineLike", "OwnerLike", "PortLike", "TaskLike"]


class TaskLike(Protocol):
    """What a scope asks of the engine's tasks.

    Attributes:
        done: it has ended.
        exception: what it raised, once done; None if it returned.
        stale: set by the scope, never cleared: from then on the engine refuses its awaits and its
            submits with `StaleError`.
        ended: the owner's, to find again in `_task_done`.
        depth: how many messages of DMA led to it, each caused by the one before.
    """

    stale: bool
    ended: Any
    depth: int

    @property
    def done(self) -> bool: ...
    @property
    def exception(self) -> BaseException | None: ...
    def cancel(self) -> object:
        """Throws `Cancelled` where it waits; if it runs now, at its next await."""

    def __await__(self) -> Any:
        """Any number of tasks may wait for it, before and after its end."""


class EngineLike(Protocol):
    """What a device asks of its engine."""

    @property
    def current_task(self) -> TaskLike | None:
        """The task being stepped now, or None."""

    @property
    def _depth(self) -> int:
        """How many messages of DMA led to what runs now: a task started now has it as its own."""

    def _spawn(self, coro: Coroutine[Any, Any, Any], *, owner: Any, name: str | None = None) -> Any:
        """Starts a task, never inside the call. At its end, however: `owner._task_done(task)`."""

    def _spawn_task(
        self, coro: Coroutine[Any, Any, Any], owner: Any, name: str | None, notify: bool, /
    ) -> Any:
        """The same; without `notify`, an owner that has nothing to do is not told of a return.

        It has something to do for a task that raised, is stale, or has `ended` set.
        """

    def _tasks_of(self, owner: Any, /) -> list[Any]:
        """The owner's tasks that have not ended, the oldest first."""

    def _device_failed(self, device: Any, error: BaseException) -> None:
        """Told of every failure; raises it again if the engine is strict."""

    def sleep(self, seconds: float) -> Awaitable[None]: ...


class OwnerLike(Protocol):
    """Whom the engine tells that a task has ended."""

    def _task_done(self, task: TaskLike) -> None:
        """May raise, if the engine is strict: the engine lets it out of `run` and `pump`."""


@runtime_checkable
class PortLike(Protocol):
    """What a device asks of its ports, beyond what its author does with them."""

    @property
    def in_flight(self) -> int: ...
    def reset(self) -> Awaitable[object]:
        """Refuses new work and cancels the old, both within the call; await it for the drain.

        Submits are accepted again once it has drained, from tasks that are not stale. The result
        may be dropped without a wait; a reset during a reset joins it.
        """
