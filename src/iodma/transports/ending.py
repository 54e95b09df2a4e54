# SPDX-License-Identifier: Apache-2.0
"""How sessions of all protocols end what they began, and say why.

Invariant: waiting for a task's end does not take what the task raised for one's own.
"""

from __future__ import annotations

from iodma._core import Task
from iodma.errors import Cancelled

__all__ = ["ended", "in_words"]


async def ended(task: Task[None]) -> None:
    """Waits until a task has ended, however it does."""
    try:
        await task
    except (Exception, Cancelled):
        if not task.done:
            raise  # it was the waiting that was cancelled


def in_words(error: Exception) -> str:
    """What a log says of it."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
