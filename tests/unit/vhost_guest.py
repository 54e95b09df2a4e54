"""A guest with a disk over vhost-user: a front-end, and the driver in its guest.

Invariants:

- The guest has its memory in a memory file of its own, makes requests as a driver does, and knows
  nothing of the device but what goes over the socket.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from iodma import Engine, File
from iodma.devices.virtio_blk import VirtioBlk
from iodma.testing import strict_engine
from iodma.transports.vhost_user import VhostUserServer
from tests.unit import vhost_front as fe
from tests.unit.guestring import GuestRing
from tests.unit.vhost_front import USER, FrontEnd

IN, OUT, FLUSH = 0, 1, 4
SECTOR = 512
MEMORY = 1 << 20
#: Beside the rings.
BUFFER = 0x40000


class Guest:
    """A VMM with one disk: a front-end, and the driver in its guest.

    Attributes:
        bus: added to an address of the guest to make it one that the device is told.
        rings_at: the same for the addresses of rings that the front-end tells.
    """

    bus = 0
    rings_at = USER
    features = 0
    protocol: tuple[int, ...] = (fe.MQ, fe.REPLY_ACK, fe.CONFIG, fe.MEM_SLOTS, fe.STATUS)

    def __init__(self, engine: Engine, path: str, queues: int = 1) -> None:
        self.engine = engine
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.front = FrontEnd(engine, sock)
        self.map = mmap.mmap(self.front.memory, MEMORY)
        self.view = memoryview(self.map)
        self.rings = [GuestRing(self.view, 0x1000 + 0x4000 * at, 16) for at in range(queues)]
        self.free = BUFFER

    def boot(self) -> None:
        """As a VMM starts a device, and a driver its queues."""
        front = self.front
        front.negotiate(self.protocol, bits=self.features)
        table = fe.regions((0, MEMORY, USER, 0))
        assert front.tell(fe.SET_MEM_TABLE, table, [front.memory]) == 0
        self.prepare()
        for index in range(len(self.rings)):
            self.start(index)
        front.tell(fe.SET_STATUS, fe.u64(15))

    def prepare(self) -> None:
        """What else there is before rings are started."""

    def start(self, index: int = 0) -> None:
        front, ring = self.front, self.rings[index]
        front.tell(fe.SET_VRING_NUM, fe.state(index, ring.size))
        front.tell(fe.SET_VRING_BASE, fe.state(index, ring.seen))
        parts = [self.rings_at + at for at in (ring.base, ring.used_ring, ring.available)]
        front.tell(fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", index, 0, *parts, 0))
        front.tell(fe.SET_VRING_ERR, fe.u64(index), [ring.error_fd])
        front.tell(fe.SET_VRING_CALL, fe.u64(index), [ring.call_fd])
        front.tell(fe.SET_VRING_KICK, fe.u64(index), [ring.kick_fd])
        assert front.tell(fe.SET_VRING_ENABLE, fe.state(index, 1)) == 0

    def add(
        self,
        type: int,
        sector: int,
        out: bytes = b"",
        into: int = 0,
        at: int = 0,
        index: int = 0,
        status_at: int = 0,
    ) -> tuple[int, int]:
        """Makes a request; where its status will be, and its data."""
        header, status, data = self.free, status_at or self.free + 16, at or self.free + 64
        self.free += 64 + (0 if at else max(len(out), into))
        self.view[header : header + 16] = struct.pack("<IIQ", type, 0, sector)
        self.view[status] = 0xEE
        if not at:
            self.view[data : data + len(out)] = out
        size = len(out) or into
        payload = [(self.bus + data, size)] if size else []
        readable = [(self.bus + header, 16), *(payload if out else [])]
        writable = [*(payload if into else []), (self.bus + status, 1)]
        self.rings[index].add(readable, writable)
        self.rings[index].kick()
        return status, data

    def request(
        self, type: int, sector: int, out: bytes = b"", into: int = 0, index: int = 0
    ) -> tuple[int, bytes]:
        """A request and its answer: the status, and what was read."""
        status, data = self.add(type, sector, out, into, index=index)
        self.wait(1, index)
        return self.view[status], bytes(self.view[data : data + into])

    def wait(self, count: int, index: int = 0) -> None:
        """Until so many requests were given back, and the driver was told."""
        ring, back = self.rings[index], 0

        def all_back() -> bool:
            nonlocal back
            back += sum(1 for _ in ring.used())
            return back >= count and fe.readable(ring.call_fd)

        fe.drive(self.engine, all_back, ring.call_fd)
        assert os.eventfd_read(ring.call_fd) > 0

    def close(self) -> None:
        self.front.close()
        while self.rings:
            self.rings.pop().close()
        self.view.release()
        self.map.close()


class GuestWithIommu(Guest):
    """... whose addresses go through an IOMMU that the front-end has.

    Attributes:
        mapped: page of I/O virtual addresses -> (page of the guest's, access).
        misses: what was asked for: (address, access).
        silent: misses are not answered, but kept in `unanswered`.
        exact: answers tell of the rights that were asked for, and of no others.
        tells_less: where rights are missing, the front-end tells of those that there are.
    """

    bus = rings_at = 0x10_0000_0000
    features = fe.PLATFORM
    protocol = (*Guest.protocol, fe.BACKEND_REQ, fe.INFLIGHT)

    def __init__(self, engine: Engine, path: str, queues: int = 1) -> None:
        super().__init__(engine, path, queues)
        self.mapped = {self.bus + at: (at, 3) for at in range(0, MEMORY, fe.PAGE)}
        self.misses: list[tuple[int, int]] = []
        self.silent = False
        self.unanswered: list[tuple[int, int]] = []
        self.exact = self.tells_less = self.acks = False

    def prepare(self) -> None:
        assert self.front.channel is not None
        self.engine.add_reader(self.front.channel.fileno(), self.asked)

    def asked(self) -> None:
        """Misses: each is answered, and then acknowledged."""
        assert self.front.channel is not None
        data = self.front.channel.recv(1 << 20)
        if not data:
            self.drop_channel()
            return
        for at in range(0, len(data), 44):
            request, flags, size = struct.unpack_from("=III", data, at)
            iova, length, _, access, type = struct.unpack_from("=QQQBB", data, at + 12)
            assert (request, size, length, type) == (1, 32, fe.PAGE, 1)
            self.acks = bool(flags & fe.NEED_REPLY)
            self.misses.append((iova, access))
            if self.silent:
                self.unanswered.append((iova, access))
            else:
                self.answer(iova, access)

    def speak(self) -> None:
        """Answers what came while it was silent."""
        self.silent = False
        while self.unanswered:
            self.answer(*self.unanswered.pop(0))

    def answer(self, iova: int, access: int) -> None:
        found = self.mapped.get(iova)
        enough = found is not None and found[1] & access == access
        if found is not None and (enough or self.tells_less):
            rights = access if self.exact else found[1]
            self.front.send(fe.IOTLB_MSG, fe.iotlb(iova, fe.PAGE, USER + found[0], rights, 2))
        assert self.front.channel is not None
        if self.acks:
            failed = not (enough or self.tells_less)
            self.front.channel.send(struct.pack("=III", 1, 5, 8) + fe.u64(failed))

    def invalidate(self, iova: int, size: int) -> int:
        """Tells of what is not mapped any more; the acknowledgement."""
        payload = fe.iotlb(iova, size, 0, 0, 3)
        return fe.u64_of(self.front.ask(fe.IOTLB_MSG, payload, (), 9))

    def drop_channel(self) -> None:
        if self.front.channel is not None:
            self.engine.remove_reader(self.front.channel.fileno())
            self.front.channel.close()
            self.front.channel = None

    def close(self) -> None:
        self.drop_channel()
        super().close()


G = TypeVar("G", bound=Guest)


@contextmanager
def machine_with(kind: type[G], folder: Path, queues: int = 1, disk: Any = None) -> Iterator[G]:
    """An engine, a server with a disk (None: an image in `folder`), and a guest of that kind."""
    image = folder / "image"
    image.write_bytes(bytes(range(256)) * 512)
    with strict_engine(slow_step=None) as engine, File(image) as file:
        device = VirtioBlk(disk or file, queues=queues)
        server = VhostUserServer(engine, device, folder / "vhost.sock")
        guest = kind(engine, str(folder / "vhost.sock"), queues)
        try:
            yield guest
        finally:
            guest.close()
            fe.finish(engine, server.close)


def machine(folder: Path, queues: int = 1) -> AbstractContextManager[Guest]:
    """... a plain one."""
    return machine_with(Guest, folder, queues)


def pattern(count: int = 1) -> bytes:
    """What every sector of the image holds."""
    return bytes(range(256)) * 2 * count
