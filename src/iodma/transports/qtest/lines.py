# SPDX-License-Identifier: Apache-2.0
"""The socket of a session: whole lines in, answers out.

Invariants
 - A line is at most `MOST_LINE` bytes; a longer one is given once, as None, when its end comes.
 - Nothing ever blocks but where a client lingers, which is bounded.
 - Nothing is read while answers wait to be read by the other side, or lines to be done: a client
   that does not keep up is not answered faster than it reads, and its lines stay in its socket.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable

from iodma._core import clock_ns
from iodma.engine import Engine
from iodma.transports.ending import in_words
from iodma.transports.qtest.words import MOST_LINE

__all__ = ["Lines"]

_RECEIVE = 1 << 16
#: Lines that are kept before no more are read.
_MOST_LINES = 256
#: Commands that are waited for in a row, before the engine has its turn.
_IN_A_ROW = 64
#: Descriptors that select(2) takes.
_MOST_SELECTED = 1024
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Lines:
    """One connection.

    Args:
        sock: connected; this object's from now on.
        came: called in a turn when there are lines in `lines`.
        gone: called once when the other side is gone; the text says how.
        most_line: bytes of a line.
        linger_s: seconds that the engine may wait for a client that asks again at once; 0: none.

    Attributes:
        lines: whole lines that nobody has taken out yet; None: one that was too long.
        working: whoever takes them out is at one, and has to go on before the next.
    """

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        came: Callable[[], None],
        gone: Callable[[str], None],
        most_line: int = MOST_LINE,
        linger_s: float = 0.0,
    ) -> None:
        self.lines: deque[bytes | None] = deque()
        self._engine = engine
        self._socket = sock
        self._came = came
        self._gone = gone
        self._most = most_line
        self._linger_s = linger_s
        self._sent_ns = -1 << 62
        self._quick = False  # the last line came soon after the answer before it
        self.working = False
        self._part = bytearray()  # of a line whose end is not there
        self._skips = False  # the line under way is too long
        self._unsent: deque[memoryview] = deque()
        self._epoll: select.epoll | None = None  # while something is unsent
        self._watches = False
        sock.setblocking(False)
        self._watch(True)

    def _watch(self, on: bool) -> None:
        """Has the engine watch the socket for lines, or not."""
        if on is not self._watches and self._socket.fileno() >= 0:
            self._watches = on
            if on:
                self._engine.add_reader(self._socket.fileno(), self._readable)
            else:
                self._engine.remove_reader(self._socket.fileno())

    # --- in ---------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._quick = clock_ns() - self._sent_ns < self._linger_s * 1e9
        self._take()
        self.linger()

    def linger(self) -> None:
        """A client that asks as soon as it has its answer: waits for its next line here.

        That saves the engine's turns around it, which are most of what a short command takes. What
        else comes to the engine waits meanwhile, so it is not for long, and not often in a row.
        """
        engine, sock, left = self._engine, self._socket, _IN_A_ROW
        while self._quick and left and not self.working:
            if not self._watches or self.lines or engine._soon or engine._has_work:
                return
            if not 0 <= sock.fileno() < _MOST_SELECTED:
                return
            if not select.select((sock,), (), (), self._linger_s)[0]:
                self._quick = False
                return
            left -= 1
            self._take()

    def _take(self) -> None:
        """Receives what is there, and has it done."""
        try:
            data = self._socket.recv(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(f"the client is gone: {in_words(error)}")
            return
        if not data:
            self._end("the client is gone")
            return
        if self._part or self._skips or data.count(b"\n") != 1 or data[-1] != 10:
            self._cut(data)
        else:  # one line, as a client sends it that waits for the answer
            self.lines.append(data[:-1])
        if len(self.lines) > 1 and self._full():
            self._watch(False)
        if self.lines:
            self._came()

    def _cut(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        for end in ends:
            if self._skips or len(self._part) + len(end) > self._most:
                self.lines.append(None)
                self._skips = False
            else:
                self.lines.append(bytes(self._part) + end)
            self._part = bytearray()
        if not self._skips:
            self._part += rest
            if len(self._part) > self._most:
                self._skips = True
                self._part = bytearray()

    def more(self) -> None:
        """Lines were taken out: read on, if there is room."""
        if not self._watches and not self._unsent and not self._full():
            self._watch(True)

    def _full(self) -> bool:
        """Enough lines wait to be done: so many, or more than the longest has bytes."""
        lines = self.lines
        return len(lines) >= _MOST_LINES or sum(len(line or b"") for line in lines) > self._most

    # --- out --------------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """The other side has not read what was sent."""
        return bool(self._unsent)

    def send(self, data: bytes) -> None:
        """Sends, now or when there is room."""
        if self._socket.fileno() < 0:
            return
        if self._unsent:
            self._unsent.append(memoryview(data))
            return
        self._sent_ns = clock_ns()
        try:
            sent = self._socket.send(data, _SEND)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._end(f"the client is gone: {in_words(error)}")
            return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._watch(False)
            self._epoll = select.epoll()
            self._epoll.register(self._socket, select.EPOLLOUT)
            self._engine.add_reader(self._epoll.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            while self._unsent:
                piece = self._unsent[0]
                sent = self._socket.send(piece, _SEND)
                if sent < len(piece):
                    self._unsent[0] = piece[sent:]
                else:
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(f"the client is gone: {in_words(error)}")
            return
        self._forget_epoll()
        self.more()
        self._came()

    def _forget_epoll(self) -> None:
        if self._epoll is not None:
            self._engine.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # --- the end ----------------------------------------------------------------------------------

    def _end(self, why: str) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._gone(why)

    def close(self) -> None:
        """Lets go of the connection; what was not sent or not taken out is dropped."""
        self._watch(False)
        self._forget_epoll()
        self._unsent.clear()
        self.lines.clear()
        self._part = bytearray()
        self._socket.close()
