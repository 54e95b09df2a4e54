# SPDX-License-Identifier: Apache-2.0
"""The interrupts of a session: which eventfd stands for which, what the client has masked.

An interrupt is told by a write to the eventfd that the client has given for it. INTx masks itself
when it is told, and is told again at the unmask if it is still asserted: a level makes one event
for each time that the guest has looked. What has no eventfd is as if it were masked: it is pending,
and told when it has one.

Source: vfio-user protocol specification, VFIO_USER_DEVICE_SET_IRQS; `linux/vfio.h`; errors as
libvfio-user gives them.

Invariants
 - An eventfd is written only if that does not wait, and its flags stay as the client has them.
 - A message is checked as a whole before any of it is done.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial

from iodma._core import notify
from iodma.engine import Engine
from iodma.pci.interrupts import InterruptKind, Interrupts
from iodma.transports.descriptors import Descriptor, is_eventfd
from iodma.transports.vfio_user.messages import IRQ_INFO, IRQ_SET, Refusal

__all__ = ["Irqs"]

INTX, MSI, MSIX, ERR, REQ = range(5)
KINDS: tuple[InterruptKind, ...] = ("intx", "msi", "msix")

_EVENTFD, _MASKABLE, _AUTOMASKED = 1, 2, 4
_DATA_NONE, _DATA_BOOL, _DATA_EVENTFD = 1, 2, 4
_MASK, _UNMASK, _TRIGGER = 8, 16, 32
_DATA, _ACTION = 7, 56


class Irqs:
    """SET_IRQS, and where interrupts go.

    Args:
        interrupts: the function's.
    """

    def __init__(self, engine: Engine, interrupts: Interrupts) -> None:
        self._engine = engine
        self._interrupts = interrupts
        counts = interrupts.counts
        self._counts = (counts["intx"], counts["msi"], counts["msix"], 1, 1)
        #: By index: what each vector's eventfd is.
        self._events: list[list[Descriptor | None]] = [[None] * count for count in self._counts]
        self._messages: dict[str, list[Descriptor | None]] = {
            "msi": self._events[MSI],
            "msix": self._events[MSIX],
        }
        #: (index, vector, action) -> what the client signals to mask or unmask.
        self._actions: dict[tuple[int, int, int], Descriptor] = {}
        self._route: int | None = None
        self._intx_masked = False  # by itself, or by the client
        if self._counts[INTX]:
            interrupts.mask("intx", 0)  # until there is an eventfd
        self._disconnect: Callable[[], None] = interrupts.connect(self)

    # --- from the device --------------------------------------------------------------------------

    def intx(self, level: bool) -> None:
        """INTx was asserted, or not any more, of which nobody is told."""
        if level and (event := self._events[INTX][0]) is not None:
            notify(event.fileno())
            self._intx_masked = True
            self._interrupts.mask("intx", 0)

    def message(self, vector: int) -> bool:
        """A message is due, which nothing masks. False: it has no eventfd, and stays pending."""
        event = self._messages[self._interrupts.mode][vector]
        if event is None:
            return False
        notify(event.fileno())
        return True

    # --- from the client --------------------------------------------------------------------------

    def info(self, payload: bytes) -> bytes:
        """VFIO_USER_DEVICE_GET_IRQ_INFO."""
        argsz, _, index, _ = IRQ_INFO.unpack_from(payload)
        if argsz < IRQ_INFO.size:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {IRQ_INFO.size} is the least")
        if index >= len(self._counts):
            raise Refusal(errno.EINVAL, f"there is no interrupt index {index}")
        flags = _EVENTFD
        if index == INTX:
            flags |= _MASKABLE | _AUTOMASKED
        elif index in (MSI, MSIX):
            flags |= _MASKABLE
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, self._counts[index])

    def set(self, payload: bytes, descriptors: list[Descriptor]) -> None:
        """VFIO_USER_DEVICE_SET_IRQS."""
        index, start, count, data, action = self._check(payload, descriptors)
        vectors = range(start, start + (count or self._counts[index]))
        if data == _DATA_EVENTFD:
            given: list[Descriptor | None] = [*descriptors] or [None] * count
            descriptors.clear()
            if action == _TRIGGER:
                self._assign(index, vectors, given)
            else:
                for vector, each in zip(vectors, given, strict=True):
                    self._listen(index, vector, action, each)
            return
        if action == _TRIGGER and count == 0:
            self._disable(index)
            return
        if data == _DATA_BOOL:
            bools = payload[IRQ_SET.size :]
            wanted = [vector for vector, yes in zip(vectors, bools, strict=True) if yes]
        else:
            wanted = [*vectors]
        for vector in wanted:
            if action == _TRIGGER:
                if (event := self._events[index][vector]) is not None:
                    notify(event.fileno())
            else:
                self._act(index, vector, action)

    def _check(
        self, payload: bytes, descriptors: list[Descriptor]
    ) -> tuple[int, int, int, int, int]:
        given = len(descriptors)
        argsz, flags, index, start, count = IRQ_SET.unpack_from(payload)
        data, action = flags & _DATA, flags & _ACTION
        if argsz < IRQ_SET.size:
            why = f"argsz {argsz}; {IRQ_SET.size} is the least"
        elif index >= len(self._counts):
            why = f"there is no interrupt index {index}"
        elif flags & ~(_DATA | _ACTION) or action not in (_MASK, _UNMASK, _TRIGGER):
            why = f"flags {flags:#x}: one action would be right"
        elif data not in (_DATA_NONE, _DATA_BOOL, _DATA_EVENTFD):
            why = f"flags {flags:#x}: one kind of data would be right"
        elif data == _DATA_BOOL and len(payload) - IRQ_SET.size != count:
            why = f"{len(payload) - IRQ_SET.size} booleans for {count} interrupts"
        elif start >= self._counts[index] or start + count > self._counts[index]:
            why = f"interrupts {start} to {start + count}; there are {self._counts[index]}"
        elif index in (ERR, REQ) and action != _TRIGGER:
            why = f"interrupt index {index} cannot be masked"
        elif count == 0 and (start or action != _TRIGGER or data != _DATA_NONE):
            why = "a count of 0, which is for disabling all"
        elif given and data != _DATA_EVENTFD:
            why = f"{given} descriptors with data that are none"
        elif given not in (0, count):
            why = f"{given} descriptors for {count} interrupts"
        elif not all(is_eventfd(each) for each in descriptors):
            why = "a descriptor that is no eventfd"
        else:
            return index, start, count, data, action
        raise Refusal(errno.EINVAL, why)

    def _assign(self, index: int, vectors: range, given: Sequence[Descriptor | None]) -> None:
        """These eventfds stand for these interrupts from now on; None: none does."""
        events = self._events[index]
        for vector, descriptor in zip(vectors, given, strict=True):
            before = events[vector]
            if before is not None:
                before.close()
            events[vector] = descriptor
        if index not in (INTX, MSI, MSIX):
            return
        if any(each is not None for each in given):
            self._choose(index)
        if index == INTX:
            self._update_intx()
        else:
            self._interrupts.retry()

    def _disable(self, index: int) -> None:
        """None of an index is told any more, and the client masks nothing of it."""
        self._assign(index, range(self._counts[index]), [None] * self._counts[index])
        for key in [each for each in self._actions if each[0] == index]:
            self._forget(key)
        if index == INTX:
            self._intx_masked = False
        elif index in (MSI, MSIX):
            for vector in range(self._counts[index]):
                self._interrupts.unmask(KINDS[index], vector)
        if self._route == index:
            self._choose(None)

    def _choose(self, index: int | None) -> None:
        if self._route != index:
            self._route = index
            self._interrupts.route(None if index is None else KINDS[index])

    def _act(self, index: int, vector: int, action: int) -> None:
        """Masks or unmasks."""
        if index == INTX:
            self._intx_masked = action == _MASK
            self._update_intx()
        elif action == _MASK:
            self._interrupts.mask(KINDS[index], vector)
        else:
            self._interrupts.unmask(KINDS[index], vector)

    def _update_intx(self) -> None:
        if self._intx_masked or self._events[INTX][0] is None:
            self._interrupts.mask("intx", 0)
        else:
            self._interrupts.unmask("intx", 0)

    # --- masking by eventfd -----------------------------------------------------------------------

    def _listen(self, index: int, vector: int, action: int, given: Descriptor | None) -> None:
        """The client masks or unmasks by a write to this eventfd from now on."""
        key = (index, vector, action)
        self._forget(key)
        if given is not None:
            self._actions[key] = given
            self._engine.add_reader(given.fileno(), partial(self._signalled, key))

    def _signalled(self, key: tuple[int, int, int]) -> None:
        # Its flags are the client's, and somebody else may read it, too.
        try:
            os.preadv(self._actions[key].fileno(), [bytearray(8)], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._forget(key)
            return
        self._act(*key)

    def _forget(self, key: tuple[int, int, int]) -> None:
        descriptor = self._actions.pop(key, None)
        if descriptor is not None:
            self._engine.remove_reader(descriptor.fileno())
            descriptor.close()

    # --- the end ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """The device was reset: INTx is not asserted. Who is told of interrupts stays."""
        if self._counts[INTX]:
            self._intx_masked = False
            self._update_intx()

    def close(self) -> None:
        """Tells nobody any more, and lets go of the eventfds."""
        self._disconnect()
        for index, count in enumerate(self._counts):
            if count:
                self._disable(index)
        if self._counts[INTX]:
            self._interrupts.unmask("intx", 0)
