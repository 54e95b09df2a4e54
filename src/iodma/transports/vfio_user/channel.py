# SPDX-License-Identifier: Apache-2.0
"""The socket of a session: whole messages in, whole messages out, nothing ever blocks.

A message is read in two steps, its header and then its payload. So the descriptors that stand
beside its first byte come with that byte and no other, however many messages lie in the socket and
however many of them were sent at once: the kernel hands descriptors out with the first of the
bytes that they were sent with.

Invariants
 - No more is read than the message under way has: what is not yet asked for stays in the socket,
   and while the channel is paused nothing is read at all.
 - The end of the other side is told also while it is paused: `gone` is called then.
 - Descriptors that were received are in the message, or closed.
 - What the other side does not read is kept, up to `MOST_UNREAD` bytes; beyond, the session ends.
"""

from __future__ import annotations

import array
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from iodma.engine import Engine
from iodma.transports.descriptors import Descriptor, close_all
from iodma.transports.vfio_user import messages as wire
from iodma.transports.vfio_user.messages import HEADER, MOST_DESCRIPTORS, MOST_MESSAGE

__all__ = ["Channel", "EndOfStream", "Message"]

#: Bytes that the other side has not read.
MOST_UNREAD = 64 << 20
#: One more than there can be, to see that there were too many.
_ROOM = socket.CMSG_SPACE((MOST_DESCRIPTORS + 1) * array.array("i").itemsize)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class EndOfStream(Exception):
    """The other side is gone."""


class Message(NamedTuple):
    """One message.

    Attributes:
        payload: None: its header is such that there is none, and the size it gives is wrong.
        descriptors: that came with it; whoever takes one out of the list owns it.
    """

    id: int
    command: int
    flags: int
    error: int
    payload: bytes | None
    descriptors: list[Descriptor]


class Channel:
    """One connection.

    Args:
        sock: connected; the channel's from now on.
        readable: called in a turn when there may be a message to `read`.
        gone: called once when the other side is gone while nothing is read, or does not take what
            is sent; the text says which.
    """

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        readable: Callable[[], None],
        gone: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._socket = sock
        self._readable = readable
        self._gone = gone
        self._head = bytearray(HEADER.size)
        self._begun = 0  # bytes of the header that are there
        self._payload: bytearray | None = None  # the header is complete
        self._filled = 0
        self._received: list[Descriptor] = []
        self._unsent: deque[tuple[memoryview, list[Descriptor]]] = deque()
        self._unread_bytes = 0
        self._paused = False
        self._told = False
        self._watched: int | None = None  # the descriptor that the engine watches
        #: For what the engine cannot watch a socket for by itself.
        self._epoll: select.epoll | None = None
        sock.setblocking(False)
        self._watch()

    # --- waiting ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Has the engine watch what is waited for now."""
        if self.closed:
            return
        plain = not (self._paused or self._unsent)
        if not plain:
            events = select.EPOLLRDHUP | (0 if self._paused else select.EPOLLIN)
            events |= select.EPOLLOUT if self._unsent else 0
            if self._epoll is None:
                self._epoll = select.epoll()
                self._epoll.register(self._socket, events)
            else:
                self._epoll.modify(self._socket, events)
            wanted = self._epoll.fileno()
        else:
            wanted = self._socket.fileno()
        if wanted != self._watched:
            if self._watched is not None:
                self._engine.remove_reader(self._watched)
            self._watched = wanted
            self._engine.add_reader(wanted, self._readable if plain else self._ready)
        if plain and self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def _ready(self) -> None:
        if self._epoll is None:
            return
        for _, events in self._epoll.poll(0):
            if self._unsent and events & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
                self._flush()
            if self.closed or self._told:
                return
            if self._paused and events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                self._tell("the client is gone")
            elif not self._paused and events & ~select.EPOLLOUT:
                self._readable()

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._gone(why)

    def pause(self) -> None:
        """Reads no more; only the other side's end is watched for."""
        if not self._paused:
            self._paused = True
            self._watch()

    def resume(self) -> None:
        """Reads again."""
        if self._paused:
            self._paused = False
            self._watch()

    # --- in ---------------------------------------------------------------------------------------

    def read(self) -> Message | None:
        """The next whole message; None: it is not there yet.

        Raises:
            EndOfStream: the other side is gone.
        """
        if self._payload is None:
            while self._begun < HEADER.size:
                into = memoryview(self._head)[self._begun :] if self._begun else self._head
                count = self._receive(into)
                if count == 0:
                    return None
                self._begun += count
            size = HEADER.unpack(self._head)[2]
            if not HEADER.size <= size <= MOST_MESSAGE:
                return self._whole(None)
            self._payload = bytearray(size - HEADER.size)
            self._filled = 0
        payload = self._payload
        while self._filled < len(payload):
            count = self._receive(memoryview(payload)[self._filled :])
            if count == 0:
                return None
            self._filled += count
        self._payload = None
        return self._whole(bytes(payload))

    def _whole(self, payload: bytes | None) -> Message:
        self._begun = 0
        descriptors, self._received = self._received, []
        id, command, _, flags, error = HEADER.unpack(self._head)
        return Message(id, command, flags, error, payload, descriptors)

    def _receive(self, into: bytearray | memoryview) -> int:
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([into], _ROOM, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise EndOfStream(f"the client is gone: {error.strerror}") from None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._received += [Descriptor(fd) for fd in numbers]
        if flags & socket.MSG_CTRUNC or len(self._received) > MOST_DESCRIPTORS:
            raise EndOfStream(
                f"more than {MOST_DESCRIPTORS} descriptors came at once, or more than this process"
                " may have open (ulimit -n)"
            )
        if not count:
            raise EndOfStream("the client is gone")
        return count

    @property
    def has_more(self) -> bool:
        """Bytes lie in the socket."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    # --- out --------------------------------------------------------------------------------------

    def reply(
        self, id: int, command: int, payload: bytes = b"", descriptors: Sequence[Descriptor] = ()
    ) -> None:
        """Answers a message.

        Args:
            descriptors: go with it; the channel's from now on.
        """
        head = HEADER.pack(id, command, HEADER.size + len(payload), wire.REPLY, 0)
        self.send(head + payload, descriptors)

    def fail(self, id: int, command: int, errno: int) -> None:
        """Answers a message with an error."""
        self.send(HEADER.pack(id, command, HEADER.size, wire.REPLY | wire.ERROR, errno))

    def ask(self, id: int, command: int, payload: bytes) -> None:
        """Sends a command."""
        size = HEADER.size + len(payload)
        self.send(HEADER.pack(id, command, size, wire.COMMAND, 0) + payload)

    def send(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Sends a whole message, now or when there is room.

        Args:
            descriptors: go with its first byte; the channel's from now on.
        """
        if self.closed or self._told:
            close_all(descriptors)
            return
        if not self._unsent and not descriptors:
            try:
                sent = self._socket.send(data, _SEND)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._tell(f"the client is gone: {error.strerror}")
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent.append((memoryview(data), list(descriptors)))
        self._unread_bytes += len(data)
        self._flush()
        if self._unread_bytes > MOST_UNREAD:
            self._tell(f"the client does not read: {self._unread_bytes} bytes wait")

    def _flush(self) -> None:
        try:
            while self._unsent:
                data, descriptors = self._unsent[0]
                ancillary = []
                if descriptors:
                    numbers = array.array("i", [each.fileno() for each in descriptors])
                    ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers))
                sent = self._socket.sendmsg([data], ancillary, _SEND)
                self._unread_bytes -= sent
                close_all(descriptors)
                if sent < len(data):
                    self._unsent[0] = (data[sent:], [])
                else:
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._tell(f"the client is gone: {error.strerror}")
        self._watch()

    # --- the end ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing is read or sent any more."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Lets go of the connection and of all that came and was not asked for."""
        if self.closed:
            return
        if self._watched is not None:
            self._engine.remove_reader(self._watched)
            self._watched = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._socket.close()
        close_all(self._received)
        self._received.clear()
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()
