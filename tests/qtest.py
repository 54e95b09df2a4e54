# SPDX-License-Identifier: Apache-2.0
"""A client of the qtest protocol: of QEMU's server, and of the one that is made here.

Invariants:

- A command is sent when the one before was answered, and each answer has a deadline.
- Lines about interrupts are kept, in the order they came in.
"""

from __future__ import annotations

import base64
import select
import socket
import time
from collections.abc import Callable

LETTER = {1: "b", 2: "w", 4: "l", 8: "q"}


class QtestError(AssertionError):
    """A line was refused, was not answered in time, or the machine is gone."""


class Qtest:
    """A connection.

    Args:
        stream: connected to the server.
        turn: lets a server in this process run; None: it is another process.
        said: what a refusal is told with, such as the end of a log.
        seconds: that an answer may take.

    Attributes:
        irqs: what came about interrupts, such as "raise 16".
    """

    def __init__(
        self,
        stream: socket.socket,
        turn: Callable[[], object] | None = None,
        said: Callable[[], str] = str,
        seconds: float = 20,
    ) -> None:
        self.stream = stream
        self.irqs: list[str] = []
        self._turn = turn
        self._said = said
        self._seconds = seconds
        self._received = b""
        if turn is not None:
            stream.setblocking(False)

    def close(self) -> None:
        self.stream.close()

    def __call__(self, *words: str | int) -> str:
        """Sends a line, and gives what is behind OK in the answer."""
        line = " ".join(f"{word:#x}" if isinstance(word, int) else word for word in words)
        answer = self.ask(line.encode() + b"\n")
        outcome, _, rest = answer.partition(" ")
        if outcome != "OK":
            raise self.failed(f"{line[:200]}: {answer}")
        return rest

    def ask(self, data: bytes) -> str:
        """Sends bytes, and gives the first line that comes and is not about an interrupt."""
        deadline = time.monotonic() + self._seconds
        try:
            self._send(data, deadline)
        except OSError as error:
            raise self.failed(f"{data[:200]!r}: {error}") from error
        return self.answer(deadline)

    def answer(self, deadline: float | None = None) -> str:
        """The next line that is not about an interrupt."""
        deadline = time.monotonic() + self._seconds if deadline is None else deadline
        while True:
            line = self._line(deadline)
            if not line.startswith("IRQ "):
                return line
            self.irqs.append(line.removeprefix("IRQ "))

    def _send(self, data: bytes, deadline: float) -> None:
        if self._turn is None:
            self.stream.sendall(data)
            return
        left = memoryview(data)
        while left:
            try:
                left = left[self.stream.send(left) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            self._turn()

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._received:
            left = max(0, deadline - time.monotonic())
            if self._turn is not None:
                self._turn()
            elif not select.select([self.stream], [], [], left)[0]:
                raise self.failed("nothing came in time")
            try:
                data = self.stream.recv(1 << 16)
            except BlockingIOError:
                if not left:
                    raise self.failed("nothing came in time") from None
                continue
            except OSError as error:
                raise self.failed(str(error)) from error
            if not data:
                raise self.failed("the machine is gone")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def failed(self, reason: str) -> QtestError:
        return QtestError("\n".join(filter(None, (reason, self._said()))))

    # --- accesses ---------------------------------------------------------------------------------

    def read(self, address: int, size: int = 4) -> int:
        """A value of 1, 2, 4 or 8 bytes."""
        return int(self(f"read{LETTER[size]}", address), 0)

    def write(self, address: int, value: int, size: int = 4) -> None:
        self(f"write{LETTER[size]}", address, value)

    def store(self, address: int, data: bytes) -> None:
        """Into memory, as a processor would."""
        self("b64write", address, len(data), base64.b64encode(data).decode())

    def load(self, address: int, size: int) -> bytes:
        return base64.b64decode(self("b64read", address, size))
