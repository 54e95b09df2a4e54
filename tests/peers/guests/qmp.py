# SPDX-License-Identifier: Apache-2.0
"""A small client of QEMU's machine protocol (QMP): commands and their answers, events as they come.

Invariants:

- One command at a time; events that arrive in between are kept, in their order, until asked for.
- Each wait has a deadline. An answer that is an error raises `QmpError` with what QEMU says.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any


class QmpError(AssertionError):
    """QEMU refused a command, did not answer in time, or is gone."""


class Qmp:
    """The client's end of a QMP connection; `stream` is closed by `close`."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.events: list[dict[str, Any]] = []
        self._received = b""
        self._greeted = False

    def close(self) -> None:
        self.stream.close()

    def execute(self, name: str, *, seconds: float = 20, **arguments: Any) -> Any:
        """Runs a command; a name's underscores in `arguments` are sent as hyphens.

        Returns:
            What QEMU answers with under "return".
        """
        if not self._greeted:
            self._greeted = True
            if "QMP" not in self._next(time.monotonic() + seconds):
                raise QmpError("no greeting")
            self.execute("qmp_capabilities", seconds=seconds)
        message: dict[str, Any] = {"execute": name}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): arguments[key] for key in arguments}
        try:
            self.stream.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{name}: {error}") from error
        deadline = time.monotonic() + seconds
        while True:
            answer = self._next(deadline, name)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_event(self, *names: str, seconds: float = 20) -> dict[str, Any]:
        """The next event of these names; what came before it is dropped."""
        deadline = time.monotonic() + seconds
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] in names:
                    return event
            message = self._next(deadline, " or ".join(names))
            assert "event" in message, message
            self.events.append(message)

    def _next(self, deadline: float, what: str = "greeting") -> dict[str, Any]:
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if not select.select([self.stream], [], [], max(0, left))[0]:
                raise QmpError(f"{what}: nothing came in time")
            try:
                data = self.stream.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                raise QmpError(f"{what}: QEMU is gone")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
