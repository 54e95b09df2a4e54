# SPDX-License-Identifier: Apache-2.0
"""Memory that tells of requests in flight, and outlives this process (specification: "Inflight I/O
tracking").

The front-end keeps it. A server that is started again after it was killed gets it back, and takes
first what the one before had not answered.

Invariants
 - A ring has an area of its own in it, as large as the queue size and the ring's format say; rings
   that are larger are refused.
 - The core alone reads and writes it, as guest memory: nothing in it is trusted.
"""

from __future__ import annotations

import os
import stat

from iodma.errors import ArgumentError
from iodma.memory import Ram
from iodma.transports.descriptors import Descriptor
from iodma.transports.vhost_user.messages import InflightArea, Refusal

__all__ = ["Inflight", "make_area"]

#: Bytes of a ring's area - its fields, and each entry - if it is split, and packed.
_SPLIT, _PACKED = (16, 16), (32, 32)
#: Areas begin at multiples of it.
_ALIGNMENT = 64
_PAGE = 4096


def _stride(queue_size: int, packed: bool) -> int:
    head, entry = _PACKED if packed else _SPLIT
    length = head + entry * queue_size
    return length + -length % _ALIGNMENT


def _check(area: InflightArea, queues: int, queue_max: int) -> None:
    if not 1 <= area.queues <= queues:
        raise Refusal(f"{area.queues} queues in flight; 1 to {queues} would be right")
    if not 1 <= area.queue_size <= queue_max:
        raise Refusal(f"queues of {area.queue_size} in flight; 1 to {queue_max} would be right")


def make_area(
    area: InflightArea, queues: int, queue_max: int, packed: bool
) -> tuple[InflightArea, Descriptor]:
    """New memory for so many queues of such a size; all of it zero.

    Args:
        queues, queue_max: of the device.
        packed: its rings' format.

    Raises:
        Refusal: the device has no such queues.
    """
    _check(area, queues, queue_max)
    size = _stride(area.queue_size, packed) * area.queues
    descriptor = Descriptor(os.memfd_create("iodma-inflight", os.MFD_CLOEXEC))
    try:
        os.ftruncate(descriptor.fileno(), size)
    except BaseException:
        descriptor.close()
        raise
    return InflightArea(size, 0, area.queues, area.queue_size), descriptor


class Inflight:
    """The memory that the front-end has given.

    Args:
        descriptor: of its file; the caller closes it.
        queues, queue_max: of the device.
        packed: the format of the rings, as far as it is known.

    Raises:
        Refusal: it cannot be.
    """

    def __init__(
        self,
        area: InflightArea,
        descriptor: Descriptor,
        queues: int,
        queue_max: int,
        packed: bool,
    ) -> None:
        _check(area, queues, queue_max)
        self._queues, self._queue_size = area.queues, area.queue_size
        need = _stride(area.queue_size, packed) * area.queues
        if area.size < need:
            raise Refusal(f"{area.size} bytes for what is in flight; {need} would be right")
        most = min(area.size, _stride(area.queue_size, True) * area.queues)
        if area.offset % 8 or area.offset + most > 1 << 63:
            raise Refusal(f"what is in flight at offset {area.offset:#x} of its file")
        if not stat.S_ISREG(os.fstat(descriptor.fileno()).st_mode):
            raise Refusal("a descriptor that is no file")
        start = area.offset - area.offset % _PAGE
        self._first = area.offset - start
        try:
            self.ram = Ram.from_fd(descriptor.fileno(), start, self._first + most)
        except (OSError, ArgumentError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refusal(f"what is in flight cannot be mapped: {why}") from None

    def at(self, index: int, size: int, packed: bool) -> int | None:
        """Where in `ram` the area of a ring of so many entries is; None: it has none.

        Raises:
            Refusal: it is too small for that ring.
        """
        if index >= self._queues:
            return None
        if size > self._queue_size:
            raise Refusal(
                f"ring {index} has {size} entries, and what is in flight is for {self._queue_size}"
            )
        stride = _stride(self._queue_size, packed)
        if self._first + stride * self._queues > self.ram.size:
            raise Refusal("the rings are packed, and what is in flight has no room for that")
        return self._first + stride * index

    def close(self) -> None:
        """Lets go of it. Rings that run keep their areas until they are stopped."""
        self.ram.close()
