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
#: Commands that are waited for in a row, before the engine has its turn.
_IN_A_ROW = 64
#: ns of a wait that do not sleep: falling asleep and waking up takes longer than most answers.
_AWAKE_NS = 100_000
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Lines:
    """One connection.

    Args:
        sock: connected; this object's from now on.
        came: called in a turn when lines wait.
        gone: called once when the other side is gone; the text says how.
        most_line: bytes of a line.
        linger_s: seconds that the engine may wait for a client that asks again at once; 0: none.

    Attributes:
        data: whole lines, each with its end; those before `at` were taken out. Who takes some out
            moves `at`.
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
        self.data = b""
        self.at = 0
        self._too_long = False  # such a line came before `data`
        self._engine = engine
        self._socket = sock
        self._came = came
        self._gone = gone
        self._most = most_line
        self._linger_ns = int(linger_s * 1e9)
        self._sent_ns = -1 << 62
        self._quick = False  # the last line came soon after the answer before it
        self.working = False
        self._part = bytearray()  # of a line whose end is not there
        self._skips = False  # the line under way is too long
        self._unsent: deque[memoryview] = deque()
        self._epoll: select.epoll | None = None  # while something is unsent
        self._watches = False
        self._poll = select.poll()
        sock.setblocking(False)
        self._poll.register(sock, select.POLLIN)
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

    @property
    def waiting(self) -> bool:
        """Lines wait to be taken out."""
        return self.at < len(self.data) or self._too_long

    def take(self) -> bytes | None:
        """The next of those that wait, without its end; None: it was too long."""
        if self._too_long:
            self._too_long = False
            return None
        end = self.data.index(b"\n", self.at)
        line = self.data[self.at : end]
        self.at = end + 1
        return line if len(line) <= self._most else None

    def _readable(self) -> None:
        if self.waiting:
            self._watch(False)  # until `more`
            return
        self._quick = clock_ns() - self._sent_ns < self._linger_ns
        self._receive()
        self.linger()

    def linger(self) -> None:
        """A client that asks as soon as it has its answer: looks out for its next line here.

        That saves the engine's turns around it, and the processor's way into sleep and out of it,
        which are most of what a short command takes. What else comes to the engine waits
        meanwhile, so it is not for long, and not often in a row.
        """
        engine, left = self._engine, _IN_A_ROW
        while self._quick and left and not self.working:
            if not self._watches or self.waiting or engine._soon or engine._has_work:
                return
            if not self._asks_again():
                self._quick = False
                return
            left -= 1
            self._receive()

    def _asks_again(self) -> bool:
        """Whether the next line comes soon."""
        poll, awake = self._poll.poll, min(self._linger_ns, _AWAKE_NS)
        end = clock_ns() + awake
        while not poll(0):
            if clock_ns() >= end:
                return bool(poll((self._linger_ns - awake) / 1e6))
        return True

    def _receive(self) -> None:
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
        if self._part or self._skips or data[-1] != 10:
            data = self._whole(data)
        self.data, self.at = data, 0
        if self.waiting:
            self._came()

    def _whole(self, data: bytes) -> bytes:
        """The whole lines of what is there now; what is left of it is kept for later."""
        end = data.rfind(b"\n") + 1
        lines, rest = data[:end], data[end:]
        if self._skips and lines:
            self._skips, self._too_long = False, True
            lines = lines[lines.index(b"\n") + 1 :]
        if self._part and lines:
            self._part += lines
            lines = bytes(self._part)
            self._part = bytearray()
        if not self._skips:
            self._part += rest
            if len(self._part) > self._most:
                self._skips = True
                self._part = bytearray()
        return lines

    def more(self) -> None:
        """Lines were taken out: read on, if none are left."""
        if self.waiting:
            return
        if len(self.data) > _RECEIVE:
            self.data, self.at = b"", 0
        if not self._watches and not self._unsent:
            self._watch(True)

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
        self.data, self.at, self._too_long = b"", 0, False
        self._part = bytearray()
        self._socket.close()
