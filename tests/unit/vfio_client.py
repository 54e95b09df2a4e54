"""A vfio-user client of the tests' own: negotiate, map, access regions, take interrupts.

Everything happens in one thread: the engine is pumped until what a test waits for is there, and it
is waited for with select, never by sleeping. In a script with a server in another process, give no
engine: then the client waits for its socket.

Invariants:

- The numbers and layouts here are written down a second time, from the specification, and not taken
  from the code under test.
- A client closes what it made; what it sent belongs to who received it.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

# Commands.
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO = 1, 2, 3, 4, 5
GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE = 6, 7, 8, 9, 10
DMA_READ, DMA_WRITE, RESET, DIRTY_PAGES, WRITE_MULTI, FEATURE = 11, 12, 13, 14, 15, 16
# Flags of a header.
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
# Regions.
ROM, CONFIG, VGA = 6, 7, 8
# Interrupt indexes, data and actions.
INTX, MSI, MSIX, ERR, REQ = 0, 1, 2, 3, 4
NONE, BOOL, EVENTFD = 1, 2, 4
MASK, UNMASK, TRIGGER = 8, 16, 32
#: Seconds after which whoever waits has failed.
PATIENCE = 20.0
HEADER = struct.Struct("=HHIII")


class Gone(Exception):
    """The server has closed the connection."""


class Refused(Exception):
    """The answer was an error."""

    def __init__(self, errno: int, command: int) -> None:
        super().__init__(f"command {command}: {os.strerror(errno)}")
        self.errno = errno


class Reply(NamedTuple):
    """A message of the server's."""

    id: int
    command: int
    flags: int
    errno: int
    payload: bytes
    fds: list[int]


class RegionInfo(NamedTuple):
    argsz: int
    flags: int
    region: int
    cap_offset: int
    size: int
    offset: int
    areas: list[tuple[int, int]]
    fds: list[int]


class Client:
    """One connection.

    Args:
        where: a path to connect to, or a socket that is connected.
        engine: pumped while something is waited for; None: the server is somewhere else.
    """

    def __init__(self, where: str | os.PathLike[str] | socket.socket, engine: Any = None) -> None:
        if isinstance(where, socket.socket):
            self.sock = where
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(os.fspath(where))
        self.engine = engine
        self.capabilities: dict[str, Any] = {}
        self.minor = 0
        self.twin: socket.socket | None = None
        #: Answers DMA_READ and DMA_WRITE: (command, address, count or data) -> data, or an errno.
        self.serve: Callable[[int, int, int | bytes], bytes | int] | None = None
        self.asked: list[Reply] = []  # commands of the server's that nobody answers
        self._replies: list[Reply] = []
        self._buffers: dict[socket.socket, bytearray] = {}
        self._fds: dict[socket.socket, list[int]] = {}
        self._id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Goes away."""
        self.sock.close()
        if self.twin is not None:
            self.twin.close()
        for fds in self._fds.values():
            for fd in fds:
                os.close(fd)
        self._fds.clear()

    # --- messages ---------------------------------------------------------------------------------

    def post(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 0,
        size: int | None = None,
        id: int | None = None,
    ) -> int:
        """Sends a message, and waits for nothing. Gives its id."""
        if id is None:
            self._id = id = (self._id + 1) & 0xFFFF
        size = HEADER.size + len(payload) if size is None else size
        self.send(HEADER.pack(id, command, size, flags, 0) + payload, fds)
        return id

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends bytes."""
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        while True:
            try:
                sent = self.sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._pump()
                continue
            self._push(self.sock, data[sent:])
            return

    def _push(self, sock: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[sock.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._pump()

    def ask(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Reply:
        """Sends a command and waits for its answer.

        Raises:
            Refused: it is an error.
        """
        reply = self.reply(self.post(command, payload, fds))
        if reply.flags & ERROR:
            raise Refused(reply.errno, command)
        assert reply.command == command and reply.flags == REPLY, reply
        return reply

    def reply(self, id: int | None = None) -> Reply:
        """The answer to a message that was posted; None: the next one."""
        end = time.monotonic() + PATIENCE
        while True:
            for place, reply in enumerate(self._replies):
                if id is None or reply.id == id:
                    return self._replies.pop(place)
            if not self._read():
                if time.monotonic() > end:
                    raise TimeoutError("no answer")
                self._pump()

    def wait(self, until: Callable[[], Any]) -> None:
        """Goes on, answering the server, until something is true."""
        end = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > end:
                raise TimeoutError(f"not true: {until}")
            with suppress(Gone):
                self._read()
            if not until():
                self._pump()

    def gone(self) -> bool:
        """Whether the server closes the connection, now or soon."""
        try:
            self.reply()
        except (Gone, ConnectionError):
            return True
        return False

    def _pump(self) -> None:
        socks = [each for each in (self.sock, self.twin) if each is not None]
        if self.engine is None:
            select.select(socks, [], [], 1.0)
        elif not self.engine.pump():
            select.select([*socks, self.engine], [], [], 0.05)

    def _read(self) -> bool:
        """Takes what there is. True: something."""
        took = False
        for sock in (self.sock, self.twin):
            if sock is None:
                continue
            buffer = self._buffers.setdefault(sock, bytearray())
            waiting = self._fds.setdefault(sock, [])
            try:
                data, ancillary, _, _ = sock.recvmsg(
                    1 << 21, socket.CMSG_SPACE(256), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except ConnectionError:
                data, ancillary = b"", []
            for _, _, content in ancillary:
                waiting += array.array("i", content)
            if not data:
                raise Gone
            buffer += data
            while len(buffer) >= HEADER.size:
                id, command, size, flags, errno = HEADER.unpack_from(buffer)
                if len(buffer) < size:
                    break
                payload = bytes(buffer[HEADER.size : size])
                del buffer[:size]
                took = True
                message = Reply(id, command, flags, errno, payload, waiting[:])
                waiting.clear()
                if flags & 0xF == REPLY:
                    self._replies.append(message)
                else:
                    self._asked(sock, message)
        return took

    def _asked(self, sock: socket.socket, message: Reply) -> None:
        if self.serve is None:
            self.asked.append(message)
        else:
            self.answer(message, sock=sock)

    def answer(self, message: Reply, *, sock: socket.socket | None = None) -> None:
        """Answers a command of the server's by way of `serve`."""
        assert self.serve is not None
        address, count = struct.unpack_from("=QQ", message.payload)
        what = count if message.command == DMA_READ else message.payload[16:]
        result = self.serve(message.command, address, what)
        if isinstance(result, int):
            data, flags, errno = b"", REPLY | ERROR, result
        else:
            data, flags, errno = struct.pack("=QQ", address, count) + result, REPLY, 0
        head = HEADER.pack(message.id, message.command, HEADER.size + len(data), flags, errno)
        self._push(sock or self.twin or self.sock, head + data)

    # --- what a VMM does --------------------------------------------------------------------------

    def negotiate(self, minor: int = 0, **capabilities: Any) -> dict[str, Any]:
        """VERSION; gives the server's capabilities."""
        capabilities = {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20} | capabilities
        text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
        reply = self.ask(VERSION, struct.pack("=HH", 0, minor) + text)
        major, self.minor = struct.unpack_from("=HH", reply.payload)
        assert major == 0 and self.minor <= minor
        assert reply.payload[-1] == 0
        self.capabilities = json.loads(reply.payload[4:-1])["capabilities"]
        if "twin_socket" in self.capabilities:
            fd = reply.fds[self.capabilities["twin_socket"]["fd_index"]]
            self.twin = socket.socket(fileno=fd)
        return self.capabilities

    def map(
        self, address: int, size: int, fd: int | None = None, offset: int = 0, flags: int = 3
    ) -> None:
        """DMA_MAP."""
        payload = struct.pack("=IIQQQ", 32, flags, offset, address, size)
        assert self.ask(DMA_MAP, payload, [] if fd is None else [fd]).payload == b""

    def unmap(self, address: int, size: int, flags: int = 0) -> bytes:
        """DMA_UNMAP."""
        return self.ask(DMA_UNMAP, struct.pack("=IIQQ", 24, flags, address, size)).payload

    def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ."""
        reply = self.ask(REGION_READ, struct.pack("=QII", offset, region, count)).payload
        assert struct.unpack_from("=QII", reply) == (offset, region, count)
        assert len(reply) == 16 + count
        return reply[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        """REGION_WRITE."""
        head = struct.pack("=QII", offset, region, len(data))
        assert self.ask(REGION_WRITE, head + data).payload == head

    def read32(self, region: int, offset: int) -> int:
        return int.from_bytes(self.read(region, offset, 4), "little")

    def write32(self, region: int, offset: int, value: int) -> None:
        self.write(region, offset, value.to_bytes(4, "little"))

    def bus_master(self, on: bool = True) -> None:
        """Memory Space Enable, and Bus Master Enable."""
        self.write(CONFIG, 4, struct.pack("<H", 6 if on else 2))

    def reset(self) -> None:
        """DEVICE_RESET."""
        assert self.ask(RESET).payload == b""

    def info(self) -> tuple[int, int, int, int]:
        """DEVICE_GET_INFO: argsz, flags, regions, interrupt indexes."""
        return struct.unpack("=IIII", self.ask(GET_INFO, struct.pack("=IIII", 16, 0, 0, 0)).payload)

    def region_info(self, index: int, argsz: int = 32) -> RegionInfo:
        """DEVICE_GET_REGION_INFO, again with what it needs if that is more."""
        reply = self.ask(GET_REGION_INFO, struct.pack("=IIIIQQ", argsz, 0, index, 0, 0, 0))
        needed, flags, region, at, size, offset = struct.unpack_from("=IIIIQQ", reply.payload)
        areas: list[tuple[int, int]] = []
        if at:
            (count,) = struct.unpack_from("=I", reply.payload, at + 8)
            for each in range(count):
                start, length = struct.unpack_from("=QQ", reply.payload, at + 16 + 16 * each)
                areas.append((start, length))
        return RegionInfo(needed, flags, region, at, size, offset, areas, reply.fds)

    def irq_info(self, index: int) -> tuple[int, int, int, int]:
        """DEVICE_GET_IRQ_INFO: argsz, flags, index, count."""
        payload = struct.pack("=IIII", 16, 0, index, 0)
        return struct.unpack("=IIII", self.ask(GET_IRQ_INFO, payload).payload)

    def set_irqs(
        self,
        index: int,
        flags: int,
        start: int = 0,
        count: int = 0,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        """DEVICE_SET_IRQS."""
        payload = struct.pack("=IIIII", 20 + len(data), flags, index, start, count) + data
        assert self.ask(SET_IRQS, payload, fds).payload == b""

    def eventfd(self, index: int, vector: int = 0) -> int:
        """An eventfd that stands for an interrupt from now on; the caller closes it."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.set_irqs(index, EVENTFD | TRIGGER, vector, 1, fds=[fd])
        return fd

    def interrupted(self, fd: int) -> int:
        """Waits for an eventfd; gives how often it was signalled."""
        self.wait(lambda: select.select([fd], [], [], 0)[0])
        return os.eventfd_read(fd)


class SharedMemory:
    """A memory file that a client shares, at a bus address."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)
