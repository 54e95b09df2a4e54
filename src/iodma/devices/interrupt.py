# SPDX-License-Identifier: Apache-2.0
"""An interrupt line, from a device to whoever delivers it.

A device drives it in one of two ways: `set` holds a level until the guest has done what the
datasheet asks (INTx, sysbus), `pulse` makes one edge (MSI, an edge-triggered line).

Invariants
 - A listener is told of changes only, each once, in the order they happened, also when a listener
   makes the next change itself (an interrupt handler that acknowledges at once).
 - `count` is the number of rising edges so far; each was told to every listener.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from iodma.errors import ArgumentTypeError, BusyError

__all__ = ["Interrupt"]

Listener = Callable[[bool], object]

#: Changes that listeners may make in answer to one, each in turn, before it is called a storm.
STORM = 1000


class Interrupt:
    """One line. `Device.interrupt` is made for you; `Device.interrupt_line` makes more.

    Args:
        name: for messages.
        guard: called before the device drives the line; raises if it must not.

    Attributes:
        level: whether the line is raised now.
        count: rising edges so far.
    """

    __slots__ = (
        *("_guard", "_listeners", "_repeats", "_telling", "_untold"),
        *("count", "level", "name"),
    )

    def __init__(self, name: str = "interrupt", guard: Callable[[], None] | None = None) -> None:
        self.name = name
        self.level = False
        self.count = 0
        self._guard = guard
        self._listeners: list[Listener] = []
        self._repeats: list[Callable[[], object]] = []
        self._untold: deque[bool] = deque()
        self._telling = False

    def __repr__(self) -> str:
        return f"<Interrupt {self.name}: {'raised' if self.level else 'low'}, {self.count} edges>"

    def set(self, level: bool) -> None:
        """Raises or lowers the line; nothing happens if it is so already.

        Raises:
            StaleError: the caller is a coroutine from before the device's last reset.
        """
        if self._guard is not None:
            self._guard()
        if not level:
            if self.level:
                self._change(False)
        elif not self.level:
            self._change(True)
        elif self._repeats:
            for told in tuple(self._repeats):
                told()

    def pulse(self) -> None:
        """Raises the line and lowers it: one edge, one message.

        Raises:
            BusyError: the line is held raised by `set`, so there is no edge to make.
            StaleError: the caller is a coroutine from before the device's last reset.
        """
        if self._guard is not None:
            self._guard()
        if self.level:
            raise BusyError(
                f"{self.name}: pulse() on a line that set(True) holds raised makes no edge; "
                "drive a line by set() or by pulse(), not both"
            )
        # Both changes are queued before anyone is told, so that a listener which lowers the line
        # in answer to the edge cannot take this pulse apart.
        self.level = True
        self.count += 1
        self._untold.append(True)
        self._change(False)

    def connect(self, listener: Listener) -> Callable[[], None]:
        """Has `listener(level)` called at every change, at once, in the engine's thread.

        A pulse calls it with True, then with False. If the line is raised now, it is called with
        True before this returns. What a listener raises passes to the device that drove the line.
        It may access devices over a bus, but the one that drives the line from a register handler
        refuses: a processor's model notes the interrupt, and takes it when the access is over.

        Returns:
            A function that disconnects it again; calling it twice does no harm.

        Raises:
            ArgumentTypeError: `listener` cannot be called.
        """
        if not callable(listener):
            raise ArgumentTypeError(f"{self.name}: connect takes a function, not {listener!r}")
        self._listeners.append(listener)
        listening = True

        def disconnect() -> None:
            nonlocal listening
            if listening:
                listening = False
                self._listeners.remove(listener)

        if self.level:
            listener(True)
        return disconnect

    def _on_repeat(self, told: Callable[[], object]) -> Callable[[], None]:
        """For what makes messages of levels: `told()` when `set(True)` finds the line raised.

        Returns:
            A function that ends it; called once.
        """
        self._repeats.append(told)
        return lambda: self._repeats.remove(told)

    def _change(self, level: bool) -> None:
        """Sets the level, whoever asks, and tells the listeners."""
        changed, untold = level is not self.level, self._untold
        if changed:
            self.level = level
            self.count += level
            if self._telling or untold:
                untold.append(level)
        if self._telling or not (changed or untold):
            return
        if not self._listeners:
            untold.clear()
            return
        change = untold.popleft() if untold else level
        told = 1
        self._telling = True
        try:
            while True:
                for listener in tuple(self._listeners):
                    listener(change)
                if not untold:
                    break
                change = untold.popleft()
                told += 1
                if told > STORM:
                    raise BusyError(
                        f"{self.name}: {STORM} changes made by its listeners in answer to one: "
                        "an interrupt storm that would never end"
                    )
        finally:
            untold.clear()
            self._telling = False
