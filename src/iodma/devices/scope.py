# SPDX-License-Identifier: Apache-2.0
"""The tasks of one device, by generation.

A reset or a failure raises the generation. The tasks of the one before are *stale*: `Cancelled` is
thrown into each where it waits, its ``finally`` blocks run, and everything else it tries - awaits,
register writes, interrupts, submits, starting tasks - is refused with `StaleError`.

Invariants
 - The engine keeps the list of the tasks; only the stale ones are kept here, until they have ended.
 - While the device runs, `_stale` is empty: a reset is not over before it is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from iodma.devices.host import EngineLike, TaskLike
from iodma.errors import Cancelled, Error

__all__ = ["Scope"]


class Scope:
    """The tasks that one device has started.

    Args:
        owner: the device: its ``_task_done(task)`` is called by the engine, and its `name` is used
            in messages.

    Attributes:
        engine: set when the device is attached.
        generation: counts resets and failures.
    """

    __slots__ = ("_owner", "_stale", "engine", "generation")

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._stale: set[TaskLike] = set()
        self.engine: EngineLike | None = None
        self.generation = 0

    def __len__(self) -> int:
        """Tasks that have not ended, stale ones included."""
        return 0 if self.engine is None else len(self.engine._tasks_of(self._owner))

    def start(
        self,
        coro: Coroutine[Any, Any, Any],
        name: str | None = None,
        ended: Callable[[], None] | None = None,
        depth: int | None = None,
    ) -> Any:
        """Starts a task of the present generation; `ended` is for `forget` to give back.

        `depth`: of messages; None: that of the code that asks.

        Raises:
            ArgumentTypeError: `coro` is not a coroutine object.
            Error: the device has no engine yet.
        """
        engine = self.engine
        if engine is None:
            name = name or f"{self._owner.name}.{getattr(coro, '__name__', 'task')}"
            if hasattr(coro, "close"):
                coro.close()
            raise Error(
                f"{self._owner.name} has no engine to run {name} in: "
                "engine.attach(device) comes first"
            )
        task = engine._spawn_task(coro, self._owner, name, False)
        if ended is not None:
            task.ended = ended
        if depth is not None:
            task.depth = depth
        return task

    @property
    def depth(self) -> int:
        """How many messages of DMA led to the code that asks."""
        return 0 if self.engine is None else self.engine._depth

    def is_stale(self) -> bool:
        """Whether the code that asks runs in a task from before the last reset or failure."""
        return (
            bool(self._stale)
            and self.engine is not None
            and self.engine.current_task in self._stale
        )

    def forget(self, task: TaskLike) -> tuple[bool, Callable[[], None] | None]:
        """The task has ended: whether it was stale, and what was given as `ended`."""
        if task in self._stale:
            self._stale.remove(task)
            return True, None
        return False, task.ended

    def next_generation(self) -> None:
        """Makes every task stale and cancels it."""
        self.generation += 1
        if self.engine is None:
            return
        present = [task for task in self.engine._tasks_of(self._owner) if not task.stale]
        self._stale.update(present)
        for task in present:
            task.stale = True
        for task in present:
            task.cancel()

    async def emptied(self) -> None:
        """Waits until every stale task has ended, however it does."""
        for task in list(self._stale):
            try:
                await task
            except (Exception, Cancelled):
                if not task.done:
                    raise  # it was the waiting that was cancelled
