# SPDX-License-Identifier: Apache-2.0
"""Virtqueues: what a transport says of one, and what a device does with one.

Virtio 1.2, section 2.6 to 2.8. The rings themselves are read and written by the C core alone.

Invariants
 - A `Queue` is one object for one start to stop of a ring: its geometry never changes.
 - What a driver gets wrong in one chain is answered in the core and counted; what it gets wrong in
   the ring breaks the queue (`broken` says how), and iteration ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from iodma import _core
from iodma._core import Region, Target
from iodma.sg import Completions
from iodma.virtio.chains import Chains
from iodma.virtio.features import Feature

__all__ = ["Queue", "QueueLayout", "QueueSetup", "make_queue", "ring_flags"]

#: Most chains of one batch.
_LIMIT = 64
#: Of `_core.Virtqueue`: which features of a ring were negotiated.
_FLAGS = {Feature.EVENT_IDX: 1, Feature.INDIRECT_DESC: 2, Feature.RING_PACKED: 4}


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """What stands in every chain of a device beside its payload.

    Attributes:
        header: bytes at the start of the device-readable part, which `Chains.header` has.
        trailer: bytes at the end of the device-writable part, which `Queue.push` writes.
        position_at: offset in the header of a little-endian 64-bit number that becomes the
            chain's position; -1: there is none.
    """

    header: int = 0
    trailer: int = 0
    position_at: int = -1


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """A ring, as the driver set it up and the transport tells of it.

    Attributes:
        index: which of the device's queues.
        size: entries.
        descriptor, available, used: addresses of its parts, in the space it is started on.
        next: the next available entry: 0, or where it stopped before.
        call: eventfd that notifies the driver; -1: the driver polls. Duplicated, as the others.
        kick: eventfd that notifies the device; -1: the ring is polled.
        error: eventfd that tells the transport's other end that the queue is broken; -1: none.
        used_next: the next used entry, where that is not `next`; None: it is.
        inflight: memory that outlives this process, in which what is in flight is noted; None:
            there is none. What is noted there when the ring starts is taken first.
        inflight_at: where in that memory, bytes.
    """

    index: int
    size: int
    descriptor: int
    available: int
    used: int
    next: int = 0
    call: int = -1
    kick: int = -1
    error: int = -1
    used_next: int | None = None
    inflight: Region | None = None
    inflight_at: int = 0


class Queue(Protocol):
    """What a device and a transport do with a running queue.

    Attributes:
        port: where its chains are submitted; it carries nothing else that ends in a stream.
        index: which of the device's queues.
        size: entries.
        next: the next available entry that will be taken.
        in_flight: chains taken and not given back.
        running: it takes chains.
        broken: what the driver did to the ring that cannot go on, or None.
    """

    @property
    def port(self) -> Any: ...
    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def next(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def running(self) -> bool: ...
    @property
    def broken(self) -> str | None: ...

    def batches(self, limit: int = 16) -> AsyncIterator[Any]:
        """Chains, as many as there are and at most `limit` at a time; ends when it is stopped."""

    def pop(self, limit: int) -> Any:
        """Chains, now; None: there are none."""

    def route(
        self,
        endpoint: Target | None,
        *,
        to_memory: int = 0,
        from_memory: int = 0,
        unit: int = 1,
        end: int | None = None,
        ok: int = 0,
        error: int = 1,
    ) -> None:
        """Sends plain requests to an endpoint without asking anybody, and answers them; from now on
        only others come as batches.

        Everything that `port.submit` moves is answered then, too: nobody reads the port's
        completions.

        Args:
            endpoint: None: there is no route any more.
            to_memory: bit k: requests with opcode k (the header's first word) that have only
                payload to be written.
            from_memory: the same, for those that have only payload to be read.
            unit, end: as of `Port.submit`; the position is that of `QueueLayout.position_at`.
            ok, error: the trailer's first byte of an answer.

        Raises:
            ArgumentError: a number that is out of range.
            ArgumentTypeError: that is no endpoint.
        """

    def push(self, done: Completions, ok: int = 0, error: int = 1) -> None:
        """Gives back the chains whose transfers finished; the trailer's first byte says how."""

    def finish(self, id: int, written: int, trailer: bytes) -> None:
        """Gives back one chain, into whose payload `written` bytes were put."""

    def stop(self) -> None:
        """Takes nothing more; what is in flight can be given back."""

    def drained(self) -> _core.Wait[Any]:
        """Resolved when nothing is in flight."""

    def release(self) -> None:
        """Lets go of descriptors and memory; the used ring is not touched any more."""

    def set_call(self, fd: int) -> None:
        """Another eventfd for the driver."""

    def set_kick(self, fd: int) -> None:
        """Another eventfd for the device."""

    def set_error(self, fd: int) -> None:
        """Another eventfd for errors."""


class Virtqueue(_core.Virtqueue[Chains]):
    """The queue of the C core; see `Queue`."""

    def route(
        self,
        endpoint: Target | None,
        *,
        to_memory: int = 0,
        from_memory: int = 0,
        unit: int = 1,
        end: int | None = None,
        ok: int = 0,
        error: int = 1,
    ) -> None:
        self._route(endpoint, to_memory, from_memory, unit, end, ok, error)


def ring_flags(negotiated: int) -> int:
    """The flags of `_core.Virtqueue` for these negotiated features."""
    return sum(flag for feature, flag in _FLAGS.items() if negotiated & feature)


def make_queue(port: Any, setup: QueueSetup, layout: QueueLayout, negotiated: int) -> Queue:
    """The queue of the C core.

    Raises:
        ArgumentError: a size that is no power of two, or misaligned addresses.
        OSError: a descriptor that cannot be duplicated.
    """
    made: Queue = Virtqueue(
        port,
        setup.size,
        setup.descriptor,
        setup.available,
        setup.used,
        index=setup.index,
        next=setup.next,
        flags=ring_flags(negotiated),
        header=layout.header,
        trailer=layout.trailer,
        position_at=layout.position_at,
        call=setup.call,
        kick=setup.kick,
        error=setup.error,
        used_next=setup.used_next,
        inflight=setup.inflight,
        inflight_at=setup.inflight_at,
        chains=lambda segments: Chains(_LIMIT, 2 * segments, layout.header),
    )
    return made
