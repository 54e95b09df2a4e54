# SPDX-License-Identifier: Apache-2.0
"""ioeventfds: writes to doorbells of which a VMM tells by an eventfd, and not by a message.

Only for doorbells that were declared so (`Doorbell(..., eventfd=value)`): the eventfd says that
there was a write, and not what was written.

Source: vfio-user protocol specification, VFIO_USER_DEVICE_GET_REGION_IO_FDS.

Invariants
 - As many rings come of an eventfd as were signalled, up to what the doorbell can hold; the rest is
   dropped and counted, as the doorbell does it.
 - A device that is in reset, or has failed, is not rung.
"""

from __future__ import annotations

import errno
import os
from functools import partial

from iodma.devices.doorbell import Bell, Doorbell
from iodma.engine import Engine
from iodma.pci import Function
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user.messages import IO_FDS, IOEVENTFD, MOST_TRANSFER, Refusal

__all__ = ["Doorbells"]

_IOEVENTFD = 0


class _Watched:
    """A doorbell with its eventfd."""

    def __init__(self, engine: Engine, bell: Bell, doorbell: Doorbell, offset: int) -> None:
        self.offset = offset
        self.width = doorbell.width
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._engine = engine
        engine.add_reader(self.fd, partial(self._signalled, bell))

    def _signalled(self, bell: Bell) -> None:
        try:
            count = os.eventfd_read(self.fd)
        except BlockingIOError:
            return
        bell.signalled(count)

    def close(self) -> None:
        self._engine.remove_reader(self.fd)
        os.close(self.fd)


class Doorbells:
    """The eventfds of one session, made when they are asked for."""

    def __init__(self, engine: Engine, function: Function) -> None:
        self._engine = engine
        self._function = function
        self._made: dict[int, list[_Watched]] = {}

    def info(self, payload: bytes, size: int, most: int) -> tuple[bytes, list[Descriptor]]:
        """VFIO_USER_DEVICE_GET_REGION_IO_FDS: the answer's payload, and eventfds to go with it.

        Args:
            size: bytes of the region.
            most: descriptors that the client takes.
        """
        argsz, flags, index, count = IO_FDS.unpack_from(payload)
        if flags or count:
            raise Refusal(errno.EINVAL, f"flags {flags:#x}, count {count}; 0 would be right")
        if not IO_FDS.size <= argsz <= MOST_TRANSFER:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {IO_FDS.size} is the least")
        bells = self._bells(index, size)[:most]
        needed = IO_FDS.size + len(bells) * IOEVENTFD.size
        head = IO_FDS.pack(needed, 0, index, len(bells))
        if argsz < needed:
            return head, []
        made = self._made.get(index)
        if made is None:
            made = [_Watched(self._engine, *each) for each in bells]
            self._made[index] = made
        areas = b"".join(
            IOEVENTFD.pack(each.offset, each.width, place, _IOEVENTFD, 0, 0, 0)
            for place, each in enumerate(made)
        )
        return head + areas, [Descriptor(os.dup(each.fd)) for each in made]

    def _bells(self, index: int, size: int) -> list[tuple[Bell, Doorbell, int]]:
        """Those behind a BAR: with its offset in it."""
        device = self._function.device
        bar = self._function.description.placement.bars.get(index)
        if bar is None or bar.ram is not None or bar.msix:
            return []
        found = []
        for name, (doorbell, _, _) in device.registers.doorbells.items():
            offset = doorbell.offset - bar.at
            if doorbell.eventfd is not None and 0 <= offset <= size - doorbell.width:
                found.append((device._bells[name], doorbell, offset))
        return found

    def close(self) -> None:
        """Lets go of them."""
        for made in self._made.values():
            for each in made:
                each.close()
        self._made.clear()
