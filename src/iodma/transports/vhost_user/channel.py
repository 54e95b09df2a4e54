# SPDX-License-Identifier: Apache-2.0
"""The socket of a session: whole messages in, whole messages out, nothing ever blocks.

A message is read in two steps, its header and then its payload. So the descriptors that stand
beside its first byte come with that byte and no other, however many messages lie in the socket: the
kernel hands descriptors out with the first of the bytes that they were sent with.

Invariants
 - No more is read than the message under way has: what is not yet asked for stays in the socket,
   and while the channel is paused nothing is read at all.
 - The end of the other side is told also while it is paused: `closed_there` is called then.
 - Descriptors that were received are in the message, or closed.
 - What the other side does not read is kept, up to `MOST_UNREAD` bytes; beyond, the session ends.
"""

from __future__ import annotations

import array
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iodma.engine import Engine
from iodma.transports.descriptors import Descriptor, close_all
from iodma.transports.vhost_user.messages import (
    HEADER,
    MOST_DESCRIPTORS,
    NEED_REPLY,
    REPLY,
    Kind,
    ProtocolFeature,
    Refusal,
    check,
)

__all__ = ["Channel", "EndOfStream", "Message"]

#: Bytes that the other side has not read.
MOST_UNREAD = 64 << 10
#: Bytes of an answer's payload.
MOST_REPLY = 64
#: One more than there can be, to see that there were too many.
_ROOM = socket.CMSG_SPACE((MOST_DESCRIPTORS + 1) * array.array("i").itemsize)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class EndOfStream(Exception):
    """The other side is gone."""


@dataclass(slots=True)
class Message:
    """One message, with the descriptors that came with it until somebody takes them."""

    request: int
    kind: Kind
    flags: int
    payload: bytes = b""
    descriptors: list[Descriptor] = field(default_factory=list)

    @property
    def needs_reply(self) -> bool:
        """The sender waits for an acknowledgement."""
        return bool(self.flags & NEED_REPLY)

    def take(self) -> Descriptor | None:
        """The next of its descriptors, which is the caller's from now on."""
        return self.descriptors.pop(0) if self.descriptors else None

    def close(self) -> None:
        """Closes the descriptors that nobody took."""
        close_all(self.descriptors)
        self.descriptors.clear()


class Channel:
    """One connection.

    Args:
        sock: connected; the channel's from now on.
        readable: called in a turn when there may be a message to `read`.
        closed_there: called once when the other side is gone while the channel is paused, or does
            not take what is sent; the text says which.
        most_unread: bytes that are kept for the other side.

    Attributes:
        name: of this end of the connection; empty if it has none.
        request: the number of the last message that began, for texts; 0: none did.
    """

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        readable: Callable[[], None],
        closed_there: Callable[[str], None],
        *,
        most_unread: int = MOST_UNREAD,
    ) -> None:
        self._engine = engine
        self._socket = sock
        self._readable = readable
        self._closed_there = closed_there
        self._header = bytearray()
        self._payload = bytearray()
        self._message: Message | None = None  # its header is complete
        self._size = 0
        self._received: list[Descriptor] = []  # with the message under way
        self._unsent: list[tuple[memoryview, list[Descriptor]]] = []
        self._unread_bytes = 0
        self._most_unread = most_unread
        self._paused = False
        self._told = False
        self.request = 0
        self.name = sock.getsockname()
        sock.setblocking(False)
        # One descriptor for the engine to watch, whatever is waited for on the socket just now.
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        engine.add_reader(self._epoll.fileno(), self._ready)

    # --- waiting ----------------------------------------------------------------------------------

    def _wait_for(self) -> int:
        mask = select.EPOLLRDHUP
        if not self._paused:
            mask |= select.EPOLLIN
        if self._unsent:
            mask |= select.EPOLLOUT
        return mask

    def _rearm(self) -> None:
        if not self.closed:
            self._epoll.modify(self._socket, self._wait_for())

    def _ready(self) -> None:
        for _, events in self._epoll.poll(0):
            if events & select.EPOLLOUT and not self.closed:
                self._flush()
            if self.closed:
                return
            gone = events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
            if self._paused and gone:
                self._tell("the front-end is gone")
            elif not self._paused and events & ~select.EPOLLOUT:
                self._readable()

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._closed_there(why)

    def pause(self) -> None:
        """Reads no more; only the other side's end is watched for."""
        if not self._paused:
            self._paused = True
            self._rearm()

    def resume(self) -> None:
        """Reads again."""
        if self._paused:
            self._paused = False
            self._rearm()

    # --- in ---------------------------------------------------------------------------------------

    def read(self, offered: ProtocolFeature) -> Message | None:
        """The next whole message; None: it is not there yet.

        Raises:
            Refusal: what came is no message of the protocol.
            EndOfStream: the other side is gone.
        """
        if self._message is None and not self._read_header(offered):
            return None
        message = self._message
        assert message is not None
        while len(self._payload) < self._size:
            data = self._receive(self._size - len(self._payload), first=False)
            if data is None:
                return None
            self._payload += data
        self._message = None
        message.payload = bytes(self._payload)
        self._payload.clear()
        return message

    def _read_header(self, offered: ProtocolFeature) -> bool:
        while len(self._header) < HEADER.size:
            data = self._receive(HEADER.size - len(self._header), first=not self._header)
            if data is None:
                return False
            self._header += data
        request, flags, self._size = HEADER.unpack(self._header)
        self._header.clear()
        self.request = request
        kind = check(request, flags, self._size, offered)
        fewest, most = kind.descriptors
        if not fewest <= len(self._received) <= most:
            right = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise Refusal(f"{len(self._received)} descriptors; {right} would be right")
        self._message = Message(request, kind, flags, b"", self._received)
        self._received = []
        return True

    def _receive(self, most: int, *, first: bool) -> bytes | None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(most, _ROOM, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise EndOfStream(f"the front-end is gone: {error.strerror}") from None
        came = False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._received += [Descriptor(fd) for fd in numbers]
                came = True
        if flags & socket.MSG_CTRUNC:
            raise Refusal(
                f"more than {MOST_DESCRIPTORS} descriptors with one message, or more than this"
                " process may have open (ulimit -n)"
            )
        if came and not first:
            raise Refusal("descriptors beside something else than a message's first byte")
        if not data:
            raise EndOfStream("the front-end is gone")
        return data

    def read_reply(self) -> tuple[int, bytes] | None:
        """For a channel on which this side asks: the next answer, its request and payload.

        Raises:
            Refusal: what came is no answer.
            EndOfStream: the other side is gone.
        """
        while len(self._header) < HEADER.size:
            data = self._receive(HEADER.size - len(self._header), first=False)
            if data is None:
                return None
            self._header += data
        request, flags, size = HEADER.unpack(self._header)
        if not flags & REPLY or size > MOST_REPLY:
            raise Refusal(f"message {request}, flags {flags:#x}, {size} bytes: that is no answer")
        while len(self._payload) < size:
            data = self._receive(size - len(self._payload), first=False)
            if data is None:
                return None
            self._payload += data
        payload = bytes(self._payload)
        self._header.clear()
        self._payload.clear()
        return request, payload

    # --- out --------------------------------------------------------------------------------------

    def send(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        """Sends a whole message, now or when there is room.

        Args:
            descriptors: go with its first byte; the channel's from now on.
        """
        if self.closed or self._told:
            close_all(descriptors)
            return
        self._unsent.append((memoryview(data), list(descriptors)))
        self._unread_bytes += len(data)
        if len(self._unsent) == 1:
            self._flush()
        if self._unread_bytes > self._most_unread:
            self._tell(f"the front-end does not read: {self._unread_bytes} bytes wait")

    def _flush(self) -> None:
        try:
            while self._unsent:
                data, descriptors = self._unsent[0]
                sent = self._send(data, descriptors)
                self._unread_bytes -= sent
                close_all(descriptors)
                if sent < len(data):
                    self._unsent[0] = (data[sent:], [])
                else:
                    self._unsent.pop(0)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._tell(f"the front-end is gone: {error.strerror}")
        self._rearm()

    def _send(self, data: memoryview, descriptors: list[Descriptor]) -> int:
        ancillary = []
        if descriptors:
            numbers = array.array("i", [each.fileno() for each in descriptors])
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers))
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        return self._socket.sendmsg([data], ancillary, flags)

    # --- the end ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing is read or sent any more."""
        return self._epoll.closed

    def close(self) -> None:
        """Lets go of the connection and of all that came and was not asked for."""
        if self.closed:
            return
        self._engine.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._socket.close()
        if self._message is not None:
            self._message.close()
            self._message = None
        close_all(self._received)
        self._received.clear()
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()
