# SPDX-License-Identifier: Apache-2.0
"""The socket of a session: whole messages in, whole messages out, nothing ever blocks.

How a message is read, and which one a descriptor comes with, is in the core: `csrc/frames.h`.

Invariants
 - No more is read than the message under way has: what is not yet asked for stays in the socket,
   and while the channel is paused nothing is read at all.
 - The end of the other side is told also while it is paused: `gone` is called then.
 - Descriptors that were received are in the message, or closed.
 - What the other side does not read is kept, up to `MOST_UNREAD` bytes; beyond, the session ends.
"""

from __future__ import annotations

import array
import errno
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence

from iodma._core import Frames, frame_send
from iodma.engine import Engine
from iodma.transports.descriptors import Descriptor, close_all
from iodma.transports.vfio_user.messages import (
    COMMAND,
    ERROR,
    HEADER,
    MOST_DESCRIPTORS,
    MOST_MESSAGE,
    REPLY,
)

__all__ = ["Channel", "EndOfStream", "Message"]

#: Bytes that the other side has not read.
MOST_UNREAD = 24 << 20
_HEAD = HEADER.size
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

#: id, command, flags, error; its payload, or None where the size that its header gives cannot be;
#: and the descriptors that came with it: whoever takes one out of the list owns it.
Message = tuple[int, int, int, int, bytes | None, list[Descriptor]]


class EndOfStream(Exception):
    """The other side is gone."""


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
        self._frames = Frames(MOST_MESSAGE)
        self._fd = sock.fileno()
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
            wanted = self._fd
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
        try:
            message = self._frames.read(self._fd)
        except OSError as error:
            raise EndOfStream(_in_words(error)) from None
        if message is None:
            return None
        if message[5]:
            return *message[:5], [Descriptor(fd) for fd in message[5]]
        return *message[:5], []

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
        self._frame(id, command, REPLY, 0, payload, descriptors)

    def fail(self, id: int, command: int, errno: int) -> None:
        """Answers a message with an error."""
        self._frame(id, command, REPLY | ERROR, errno, b"")

    def ask(self, id: int, command: int, payload: bytes) -> None:
        """Sends a command."""
        self._frame(id, command, COMMAND, 0, payload)

    def _frame(
        self,
        id: int,
        command: int,
        flags: int,
        error: int,
        payload: bytes,
        descriptors: Sequence[Descriptor] = (),
    ) -> None:
        """Sends a whole message, now or when there is room."""
        if self._fd < 0 or self._told:
            close_all(descriptors)
            return
        sent, size = 0, _HEAD + len(payload)
        if not self._unsent and not descriptors:
            try:
                sent = frame_send(self._fd, id, command, flags, error, payload)
            except OSError as gone:
                self._tell(_in_words(gone))
                return
            if sent == size:
                return
        data = HEADER.pack(id, command, size, flags, error) + payload
        self._unsent.append((memoryview(data)[sent:], list(descriptors)))
        self._unread_bytes += size - sent
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
        except OSError as gone:
            self._tell(_in_words(gone))
        self._watch()

    # --- the end ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing is read or sent any more."""
        return self._fd < 0

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
        self._fd = -1
        self._socket.close()
        self._frames.close()
        for _, descriptors in self._unsent:
            close_all(descriptors)
        self._unsent.clear()


def _in_words(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return (
            f"more than {MOST_DESCRIPTORS} descriptors came at once, or more than this process may"
            " have open (ulimit -n)"
        )
    return f"the client is gone: {error.strerror}"
