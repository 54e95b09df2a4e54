# SPDX-License-Identifier: Apache-2.0
"""The tasks of one device, by generation.

A reset or a failure raises the generation. The tasks of the one before are *stale*: `Cancelled` is
thrown into each where it waits, its ``finally`` blocks run, and everything else it tries - awaits,
register writes, interrupts, submits, starting tasks - is refused with `StaleError`.

Invariants
 - A task is in exactly one of `_present` and `_stale` from its start until the engine says that it
   has ended; then in neither.
 - While the device runs, `_stale` is empty: a reset is not over before it is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any

from iodma.devices.host import EngineLike, TaskLike
from iodma.errors import ArgumentTypeError, Cancelled, Error

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

    __slots__ = ("_owner", "_present", "_stale", "engine", "generation")

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._present: dict[TaskLike, Callable[[], None] | None] = {}
        self._stale: set[TaskLike] = set()
        self.engine: EngineLike | None = None
        self.generation = 0

    def __len__(self) -> int:
        """Tasks that have not ended, stale ones included."""
        return len(self._present) + len(self._stale)

    def start(
        self,
        coro: Coroutine[Any, Any, Any],
        name: str,
        ended: Callable[[], None] | None = None,
    ) -> Any:
        """Starts a task of the present generation; `ended` is for `forget` to give back.

        Raises:
            ArgumentTypeError: `coro` is not a coroutine object.
            Error: the device has no engine yet.
        """
        if not iscoroutine(coro):
            raise ArgumentTypeError(
                f"{self._owner.name}: start takes a coroutine, what calling an async def gives, "
                f"not {coro!r}"
            )
        try:
            if self.engine is None:
                raise Error(
                    f"{self._owner.name} has no engine to run {name} in: "
                    "engine.attach(device) comes first"
                )
            task = self.engine._spawn(coro, owner=self._owner, name=name)
        except BaseException:
            coro.close()
            raise
        self._present[task] = ended
        return task

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
        return False, self._present.pop(task, None)

    def next_generation(self) -> None:
        """Makes every task stale and cancels it."""
        self.generation += 1
        present = list(self._present)
        self._present.clear()
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
