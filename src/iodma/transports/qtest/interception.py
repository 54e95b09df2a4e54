# SPDX-License-Identifier: Apache-2.0
"""The interrupt lines that a client has asked to be told of.

Invariants
 - One device is listened to at a time, as QEMU does; what it is stays so until the session ends.
 - A client is told of changes, and takes a line that it was told nothing of for low.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iodma.devices import Interrupt
from iodma.transports.qtest.machine import Pins
from iodma.transports.refusal import Refusal

__all__ = ["Interception"]

#: Lines of one list; those beyond are not told of.
MOST_LINES = 256


class Interception:
    """What one session listens to.

    Args:
        tell: is given ``IRQ raise N`` and ``IRQ lower N``.
    """

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._of: Pins | None = None
        self._levels: dict[int, bool] = {}
        self._ends: list[Callable[[], None]] = []

    def inputs(self, pins: Pins, named: bool) -> None:
        """Listens to the lines that lead to a device.

        Raises:
            Refusal: there is none; another device is listened to.
        """
        if named:
            raise Refusal("Interception of named in-GPIOs not yet supported")
        if self._is_new(pins):
            if not pins.inputs and not pins.outputs:
                raise Refusal("No intercepts installed")
            self._begin(pins, enumerate(pins.inputs))

    def outputs(self, pins: Pins, name: str | None) -> None:
        """Listens to the lines that a device drives, of the list with that name.

        Raises:
            Refusal: there is none; another device is listened to.
        """
        if self._is_new(pins):
            if name not in pins.outputs:
                raise Refusal("No intercepts installed")
            self._begin(pins, enumerate(pins.outputs[name]))

    def _is_new(self, pins: Pins) -> bool:
        if self._of is not None and self._of is not pins:
            raise Refusal("IRQ intercept already enabled")
        return self._of is None

    def _begin(self, pins: Pins, lines: Iterable[tuple[int, Interrupt | None]]) -> None:
        self._of = pins
        for place, line in lines:
            if line is not None and place < MOST_LINES:
                self._listen(place, line)

    def _listen(self, place: int, line: Interrupt) -> None:
        began = False

        def changed(level: bool) -> None:
            if began and self._levels.get(place, False) is not level:
                self._levels[place] = level
                self._tell(b"IRQ raise %d\n" % place if level else b"IRQ lower %d\n" % place)

        self._ends.append(line.connect(changed))  # which tells of a level that is there already
        began = True

    def end(self) -> None:
        """Listens to nothing any more."""
        for end in self._ends:
            end()
        self._ends.clear()
        self._levels.clear()
        self._of = None
