# SPDX-License-Identifier: Apache-2.0
"""What is driven: addresses, interrupt lines, a time, and whether anything is under way.

Invariant: the server knows nothing else of a machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from iodma.devices import Interrupt
from iodma.transports.qtest.clock import SteppedClock
from iodma.transports.qtest.space import PhysicalSpace

__all__ = ["Machine", "Pins"]


@dataclass(frozen=True)
class Pins:
    """The interrupt lines of one device, in QEMU's words its GPIO pins.

    Attributes:
        inputs: those that lead to it; None where a number is no line.
        outputs: those that it drives, by the name of their list: QEMU's is "sysbus-irq" for a
            system bus device's interrupts, and None for a list without a name.
    """

    inputs: Sequence[Interrupt | None] = ()
    outputs: Mapping[str | None, Sequence[Interrupt]] = field(default_factory=dict)


def nothing() -> bool:
    return False


@dataclass(frozen=True)
class Machine:
    """What a `QtestServer` drives.

    Attributes:
        space: what its processor would see.
        name: for messages.
        pins: QOM path -> the lines of the device that a client calls so.
        busy: whether anything goes on that will end without help from outside. A command is done,
            and answered, when nothing does.
        reset: begins a reset of everything but RAM; await what it gives for the end. None: the
            machine has no reset.
        clock: the engine's, if clients are to move it; None: `clock_step` is no command.
    """

    space: PhysicalSpace
    name: str = "machine"
    pins: Mapping[str, Pins] = field(default_factory=dict)
    busy: Callable[[], bool] = nothing
    reset: Callable[[], Awaitable[object]] | None = None
    clock: SteppedClock | None = None
