# SPDX-License-Identifier: Apache-2.0
"""A running guest: jobs go in, output and exit status come back; it never outlives its test.

Invariants:

- A guest is one process group of its own, ended by its id. `close()` returns when it is gone.
- Everything waited for has a deadline; what comes too late, and a guest that ends by itself, raise
  `GuestError`, which carries the ends of the console, of the job's output and of every other log.
- Jobs run as root inside the guest and nowhere else.

The other side of the channel, and what goes over it, is init.sh.
"""

from __future__ import annotations

import base64
import secrets
import select
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.peers.guests.process import Child, Deadline

TAIL_LINES = 40
#: A guest that the host gives no processor for a while is not to complain of it: what tells only
#: that time has passed is left to the deadlines here. A task that waits for a disk is told of.
UNWATCHED = ("nosoftlockup", "rcupdate.rcu_cpu_stall_suppress=1")
PIECE = 384  # bytes of base64 in a line: less than what a terminal holds for a slow reader


class GuestError(AssertionError):
    """A guest did not do what was asked; the message says what it did last."""


@dataclass(frozen=True)
class Answer:
    """What a job left: its exit status, and its output and errors as they came."""

    status: int
    output: str


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, under a heading; "" when there is nothing in it."""
    text = path.read_text(errors="replace") if path.exists() else ""
    last = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join([f"--- {path.name}", *last, ""]) if last else ""


class Guest(Child):
    """A machine that is started by `start`, used by `run`, ended by `power_off` or `close`.

    Args:
        work: An empty folder for what this guest needs while it runs.
        logs: Files of others, e.g. a server's log, whose ends are shown when something fails.
    """

    name = "guest"
    boot_seconds = 30.0

    def __init__(self, work: Path, *, logs: Sequence[Path] = ()) -> None:
        super().__init__()
        self.work = work
        self.token = secrets.token_hex(8)
        self.console = work / f"{self.name}.console"
        self.errors = work / f"{self.name}.errors"
        self.logs = [*logs, self.errors, self.console]
        self.output = b""  # of the job that runs, or ran last
        self._received = b""
        self._channel, self._far = socket.socketpair()

    # --- for the kinds of guests

    def command(self, channel: int) -> list[str]:
        """The command that runs this machine, with `channel` as its job terminal's descriptor."""
        raise NotImplementedError

    def inherited(self) -> list[int]:
        """Descriptors that the command needs besides the channel."""
        return []

    # --- life

    def start(self, *, wait: bool = True) -> Self:
        """Starts the machine, and returns when its init says that it is up."""
        far = self._far.fileno()
        with open(self.errors, "wb") as errors, open(self.console, "wb") as console:
            fds = [far, *self.inherited()]
            self.spawn(self.command(far), console, errors=errors, fds=fds, folder=self.work)
        self._far.close()
        if wait:
            self.wait_up()
        return self

    def wait_up(self, seconds: float | None = None) -> None:
        """Until init runs, also after the guest was reset."""
        said = self._said(self.boot_seconds if seconds is None else seconds, "boot")
        if said != "up":
            raise self.failed(f"said {said!r} instead of coming up")

    def close(self) -> None:
        """Ends the machine, whatever it does."""
        self._channel.close()
        self._far.close()
        super().close()

    def power_off(self, seconds: float = 15) -> None:
        """Lets the guest end itself; it must do so without an error."""
        self.submit("sync; poweroff -f")
        self.wait_end(seconds)

    def wait_end(self, seconds: float) -> None:
        """Until the machine has ended by itself, as it should."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"still runs {seconds:g} s after it should have ended") from None
        if status and not self.has_halted(status):
            raise self.failed(f"ended with status {status}")

    def has_halted(self, status: int) -> bool:
        """Whether a guest that ends with that status has ended as it should, all the same."""
        return False

    def adopt(self, source: Guest) -> None:
        """The guest of another machine runs here now: what it says is understood."""
        self.token = source.token
        self._received = source._received
        source._received = b""

    # --- jobs

    def run(self, script: str, *, seconds: float = 20, status: int | None = 0) -> Answer:
        """Runs a shell script and waits for its end.

        Args:
            script: What /bin/sh (busybox) runs, in /tmp, with `set -e` in front.
            seconds: How long it may take.
            status: The exit status that it must have; None: any.

        Raises:
            GuestError: Another status, or the time is over.
        """
        self.submit(script)
        return self.answer(seconds=seconds, status=status)

    def submit(self, script: str) -> None:
        """Begins a job. `answer` or `wait_for` must follow before the next one."""
        encoded = base64.b64encode(f"set -e\n{script}\n".encode())
        for begin in range(0, len(encoded), PIECE):
            self._send(encoded[begin : begin + PIECE])
            said = self._said(10, "take a job")
            if said != "+":
                raise self.failed(f"said {said!r} instead of taking a job")
        self._send(b".")

    def answer(self, *, seconds: float = 20, status: int | None = 0) -> Answer:
        """Waits for the end of the job that `submit` began."""
        said = self._said(seconds, "end a job")
        word, _, number = said.partition(" ")
        if word != "exit":
            raise self.failed(f"said {said!r} instead of ending a job")
        answer = Answer(int(number), self.output.decode(errors="replace"))
        if status is not None and answer.status != status:
            raise self.failed(f"a job ended with status {answer.status}, not {status}")
        return answer

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Until the running job has put this out."""
        deadline = Deadline(seconds)
        while text.encode() not in self._received:
            if f"\n{self.token} exit".encode() in self._received:
                raise self.failed(f"a job ended without saying {text!r}")
            self._receive(deadline, f"say {text!r}")

    # --- the channel

    def _send(self, line: bytes) -> None:
        try:
            self._channel.sendall(line + b"\n")
        except OSError as error:
            raise self.failed(f"its channel: {error}") from error

    def _said(self, seconds: float, what: str) -> str:
        """The next line that begins with the token; what was before it is `output`."""
        deadline = Deadline(seconds)
        mark = f"\n{self.token} ".encode()
        while True:
            before, found, rest = self._received.partition(mark)
            line, end, rest = rest.partition(b"\n")
            if found and end:
                self.output, self._received = before, rest
                return line.decode(errors="replace").rstrip("\r")
            self._receive(deadline, what)

    def _receive(self, deadline: Deadline, what: str) -> None:
        while not select.select([self._channel], [], [], deadline.step)[0]:
            if not deadline.left:
                raise self.failed(f"did not {what} in time")
        try:
            data = self._channel.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise self.failed(f"ended instead of going on to {what}")
        self._received += data

    def failed(self, reason: str) -> GuestError:
        """An error that shows what led to it."""
        output = (self.output + b"\n" + self._received).decode(errors="replace").strip()
        (self.work / f"{self.name}.job").write_text(output)
        logs = [tail(path) for path in (*self.logs, self.work / f"{self.name}.job")]
        return GuestError("\n".join([f"{self.name} {reason}", *(log for log in logs if log)]))
