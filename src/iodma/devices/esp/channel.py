# SPDX-License-Identifier: Apache-2.0
"""What the chip asks of the DMA controller that answers its requests.

Invariants
 - The chip keeps no address: it asks for the next bytes' each time it moves some, and tells how
   many have moved.
 - What was not told as moved is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from iodma.port import Port

__all__ = ["Channel"]


class Channel(Protocol):
    """A channel of a DMA controller, such as `iodma.devices.dma2.EspDma`.

    Attributes:
        on_ready: set by the chip: called when requests that were not answered may be now.
    """

    on_ready: Callable[[], object] | None

    @property
    def port(self) -> Port:
        """What the addresses of `segments` are of."""
        ...

    def answers(self, to_memory: bool) -> bool:
        """Whether a request of the chip, to memory or from there, is answered now."""
        ...

    def segments(self, length: int) -> Sequence[tuple[int, int]]:
        """The next `length` bytes, or as many of them as the controller will move, at least one."""
        ...

    def advance(self, moved: int) -> None:
        """So many bytes of `segments` were moved."""
        ...

    def memory_error(self) -> None:
        """Memory refused the byte at the front of `segments`."""
        ...
