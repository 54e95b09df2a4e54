# SPDX-License-Identifier: Apache-2.0
"""What waits on the network, looked at before it is taken.

The address filter decides before a byte of a frame is in the host's memory, so the receiver looks
at the first bytes of a frame, and then takes it into the buffers that it is for, or drops it.

- A packet socket is looked into: the frame stays there, and goes from there to its buffers.
- What cannot be looked into (a tap, an endpoint that is no descriptor) is read into a buffer of the
  device's own, and copied from there.

Invariants
 - A frame is taken once, or dropped, in the order in which they came.
 - Nothing is read from the network before somebody has asked what waits there, so that what nobody
   takes holds up who sends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iodma._core import Completion, Task
from iodma.endpoints import Buffer, Endpoint
from iodma.memory import Memory
from iodma.port import Port
from iodma.types import Status

if TYPE_CHECKING:
    from iodma.devices.lance.device import Lance

__all__ = ["Frame", "StagedWire", "Wire", "make_wire", "readable", "writable"]

#: Bytes of a frame that are looked at: an Ethernet header.
HEAD = 14
#: The most that is taken from an endpoint that cannot be looked into.
LONGEST = 1 << 16

Segments = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that waits: its first bytes, and its length in bytes."""

    head: bytes
    length: int


def _ready(endpoint: Endpoint | None, event: int) -> bool:
    if endpoint is None or endpoint.closed or endpoint._fd < 0:
        return False
    poll = select.poll()
    poll.register(endpoint._fd, event)
    return any(events & event for _, events in poll.poll(0))


def writable(endpoint: Endpoint | None) -> bool:
    """Whether the host would take a frame now."""
    return _ready(endpoint, select.POLLOUT)


def readable(endpoint: Endpoint | None) -> bool:
    """Whether a frame waits in the host."""
    return _ready(endpoint, select.POLLIN)


class Wire:
    """A packet socket."""

    def __init__(self, chip: Lance, network: Endpoint, sock: socket.socket) -> None:
        self._chip = chip
        self._network = network
        self._socket = sock
        self._head = bytearray(HEAD)
        self._listening = False
        # The descriptor is the endpoint's: it alone closes it.
        self._fd = network._fd
        weakref.finalize(self, sock.detach)

    def look(self) -> Frame | None:
        """The frame that is next; None: there is none."""
        flags = socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT
        while not self._network.closed:
            try:
                length = self._socket.recv_into(self._head, HEAD, flags)
            except BlockingIOError:
                return None
            except OSError:  # what became of a frame that was sent, told once
                continue
            if length:
                return Frame(bytes(self._head[:length]), length)
            if self._socket.type == socket.SOCK_SEQPACKET:
                return None  # the other end is closed
            self.drop()
        return None

    async def take(self, port: Port, segments: Segments) -> Completion:
        """Moves the frame that is next into memory, as much of it as there is room for."""
        return await port.to_memory(segments, source=self._network)

    def drop(self) -> None:
        """Throws the frame away that is next."""
        with contextlib.suppress(OSError):
            os.read(self._fd, 1)

    def listen(self, told: Callable[[], object]) -> None:
        """Calls `told` once, in a later turn, when a frame waits; nobody else any more."""
        self.deafen()

        def heard() -> None:
            self.deafen()
            told()

        if not self._network.closed and not self._ended():
            self._chip.engine.add_reader(self._fd, heard)
            self._listening = True

    def deafen(self) -> None:
        """Listens no more."""
        if self._listening:
            self._listening = False
            self._chip.engine.remove_reader(self._fd)

    def waits(self) -> bool:
        """Whether a frame is there that nobody was told of yet."""
        return self._listening and readable(self._network)

    def listening(self) -> int:
        """Tasks that wait for a frame."""
        return 0

    def _ended(self) -> bool:
        """Whether nothing will ever come: a sequenced-packet socket whose other end is closed."""
        return self._socket.type == socket.SOCK_SEQPACKET and readable(self._network)


class StagedWire:
    """An endpoint that cannot be looked into: a frame is read whole, and then copied."""

    def __init__(self, chip: Lance, network: Endpoint) -> None:
        self._chip = chip
        self._network = network
        self._stage = stage = Buffer(LONGEST)
        weakref.finalize(self, stage.close)
        self._port = chip.port.engine.port(Memory({0: stage.ram}), f"{chip.name} staging")
        self._frame: Frame | None = None
        self._reading: Task[None] | None = None

    def look(self) -> Frame | None:
        """The frame that is next; None: there is none."""
        return self._frame

    async def take(self, port: Port, segments: Segments) -> Completion:
        """Moves the frame that is next into memory, as much of it as there is room for."""
        done = await port.to_memory(segments, source=self._stage)
        self._frame = None
        return done

    def drop(self) -> None:
        """Throws the frame away that is next."""
        self._frame = None

    def listen(self, told: Callable[[], object]) -> None:
        """Calls `told` once, in a later turn, when a frame waits; nobody else any more."""
        self.deafen()
        if not self._network.closed:
            self._reading = self._chip.start(self._read(told))

    def deafen(self) -> None:
        """Listens no more."""
        if self._reading is not None and not self._reading.done:
            self._reading.cancel()
        self._reading = None

    def waits(self) -> bool:
        """Whether a frame is there that nobody was told of yet."""
        return self._reading is not None and readable(self._network)

    def listening(self) -> int:
        """Tasks that wait for a frame."""
        return int(self._reading is not None and not self._reading.done)

    async def _read(self, told: Callable[[], object]) -> None:
        done = await self._port.to_memory((0, LONGEST), source=self._network)
        self._reading = None
        if done.ok and done.moved:
            self._frame = Frame(bytes(self._stage.view(0, HEAD))[: done.moved], done.moved)
        elif done.status in (Status.PEER_GONE, Status.CANCELLED) and not done.error:
            return  # nothing will ever come
        told()


def make_wire(chip: Lance, network: Endpoint | None) -> Wire | StagedWire | None:
    """How the frames of an endpoint are looked at."""
    if network is None:
        return None
    if network._fd >= 0:
        try:
            return Wire(chip, network, socket.socket(fileno=network._fd))
        except OSError:  # it is no socket
            pass
    return StagedWire(chip, network)
