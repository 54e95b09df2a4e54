# SPDX-License-Identifier: Apache-2.0
"""What a front-end has said of one ring, and what follows from it.

A ring is stopped or it runs. It runs while everything is known of it (size, addresses, where it
gets its kicks) and it is enabled; what is said of it while it runs is checked here, too.

Invariants
 - Sizes, addresses and notifiers are checked when they are said; what depends on guest memory, when
   the ring starts, by `setup`.
 - The notifiers are the ring's own, until others come in their place or the ring is forgotten.
 - While a ring runs, neither its size, its addresses nor its position change.
"""

from __future__ import annotations

from collections.abc import Callable

from iodma.transports.descriptors import Descriptor, as_notifier, close_all
from iodma.transports.vhost_user.messages import Refusal, RingAddresses
from iodma.virtio import QueueSetup

__all__ = ["Ring"]

#: A split ring: bytes of its parts, fixed and for each entry (virtio 1.2, section 2.7).
_DESCRIPTOR, _AVAILABLE, _USED = (0, 16), (6, 2), (6, 8)
#: In place of the latter two in a packed ring: event suppression.
_EVENT = (4, 0)
#: What their addresses are multiples of.
_ALIGNMENT = (16, 2, 4)
#: Of SET_VRING_ADDR: writes to the used ring are logged.
_LOG = 1


class Ring:
    """One ring.

    Attributes:
        index: which of the device's queues.
        size: entries; 0: not known yet.
        addresses: as the front-end has them, or None.
        next: the available entry that it goes on from.
        stopped_at: the one that it has come to, which a reset does not forget: QEMU 7.2 stops a
            device by status 0, and asks only then.
        enabled: it may run.
        running: it was started, and its stop has not begun.
        queue_max: most entries.
    """

    def __init__(self, index: int, queue_max: int) -> None:
        self.index = index
        self.queue_max = queue_max
        self.size = 0
        self.addresses: RingAddresses | None = None
        self.next = self.stopped_at = 0
        self.enabled = False
        self.running = False
        #: What it was started with.
        self.setup: QueueSetup | None = None
        self._kick: Descriptor | None = None
        self._call: Descriptor | None = None
        self._error: Descriptor | None = None
        self._has_kick = False

    @property
    def ready(self) -> bool:
        """Everything is known that a ring must have to run."""
        return self.enabled and self.size > 0 and self.addresses is not None and self._has_kick

    # --- what is said of it -----------------------------------------------------------------------

    def set_size(self, size: int) -> None:
        """Entries. Raises Refusal."""
        if not 1 <= size <= self.queue_max or size & (size - 1):
            raise Refusal(
                f"ring {self.index} of {size} entries; a power of two up to {self.queue_max} would"
                " be right"
            )
        if self.running and size != self.size:
            raise Refusal(f"ring {self.index} runs: its size cannot change")
        self.size = size

    def set_addresses(self, addresses: RingAddresses) -> None:
        """Where its parts are, in the front-end's terms. Raises Refusal."""
        if unknown := addresses.flags & ~_LOG:
            raise Refusal(f"ring {self.index}: flags {unknown:#x}, which there are not")
        parts = (addresses.descriptor, addresses.available, addresses.used)
        names = ("descriptor table", "available ring", "used ring")
        for name, address, unit in zip(names, parts, _ALIGNMENT, strict=True):
            if address % unit:
                raise Refusal(
                    f"ring {self.index}: its {name} at {address:#x} is not a multiple of {unit}"
                )
        if self.running and self.addresses is not None:
            before = self.addresses
            if parts != (before.descriptor, before.available, before.used):
                raise Refusal(f"ring {self.index} runs: its addresses cannot change")
        self.addresses = addresses

    def set_next(self, next: int, packed: bool) -> None:
        """The available entry to begin with; of a packed ring the used one, too. Raises Refusal."""
        if next > 0xFFFF and not packed:
            raise Refusal(f"ring {self.index}: entry {next}; 0 to 65535 would be right")
        if self.running:
            raise Refusal(f"ring {self.index} runs: its position cannot be set")
        self.next = self.stopped_at = next

    def set_kick(self, descriptor: Descriptor | None) -> int:
        """What tells of available entries; None: the ring is looked at all the time.

        Returns:
            Its number, or -1. So do the others.

        Raises:
            Refusal: it is no notifier.
        """
        self._kick = self._replace(self._kick, descriptor, "kick")
        self._has_kick = True
        return _number(self._kick)

    def set_call(self, descriptor: Descriptor | None) -> int:
        """What the driver is told of used entries by; None: it looks by itself."""
        self._call = self._replace(self._call, descriptor, "call")
        return _number(self._call)

    def set_error(self, descriptor: Descriptor | None) -> int:
        """What the front-end is told by that the ring is broken; None: it is not."""
        self._error = self._replace(self._error, descriptor, "error")
        return _number(self._error)

    def _replace(
        self, before: Descriptor | None, descriptor: Descriptor | None, what: str
    ) -> Descriptor | None:
        if descriptor is not None:
            try:
                as_notifier(descriptor, f"ring {self.index}: its {what} notifier")
            except BaseException:
                descriptor.close()
                raise
        close_all([before])
        return descriptor

    # --- what follows -----------------------------------------------------------------------------

    def make_setup(self, guest_address: Callable[[int, int, str], int], packed: bool) -> QueueSetup:
        """What it is to be started with.

        Args:
            guest_address: (address, bytes, what) -> the address in the space that it is started on.
            packed: the layout that was negotiated.

        Raises:
            Refusal: a part of it is not where a ring can be.
        """
        assert self.addresses is not None
        found = []
        for name, address, (fixed, each) in (
            ("descriptor table", self.addresses.descriptor, _DESCRIPTOR),
            ("available ring", self.addresses.available, _EVENT if packed else _AVAILABLE),
            ("used ring", self.addresses.used, _EVENT if packed else _USED),
        ):
            length = fixed + each * self.size
            found.append(guest_address(address, length, f"ring {self.index}'s {name}"))
        descriptor, available, used = found
        return QueueSetup(
            index=self.index,
            size=self.size,
            descriptor=descriptor,
            available=available,
            used=used,
            next=self.next,
            call=_number(self._call),
            kick=_number(self._kick),
            error=_number(self._error),
        )

    def forget_kick(self) -> None:
        """It was stopped, and runs again when it is told once more where its kicks come from."""
        close_all([self._kick])
        self._kick = None
        self._has_kick = False

    def reset(self) -> None:
        """Nothing is known of it any more."""
        close_all([self._kick, self._call, self._error])
        self._kick = self._call = self._error = None
        self._has_kick = self.enabled = self.running = False
        self.size = self.next = self.stopped_at = 0
        self.addresses = self.setup = None

    def __repr__(self) -> str:
        state = "running" if self.running else "ready" if self.ready else "stopped"
        return f"<Ring {self.index}: {state}>"


def _number(descriptor: Descriptor | None) -> int:
    return -1 if descriptor is None else descriptor.fileno()
