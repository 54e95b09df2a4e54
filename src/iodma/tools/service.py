# SPDX-License-Identifier: Apache-2.0
"""What every server of the command line does: for how long it serves, and what ends it.

The conventions are those of QEMU's back-end programs ("vhost-user back-end program conventions" of
its documents): a socket by path or descriptor, no daemon, an end soon after SIGTERM.

Invariants
 - Whatever ends it, the front-end's requests are drained, the socket file is gone, and a command
   that was started has ended.
 - A command is started when the socket can be connected to, and not before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from iodma.engine import Engine, Event

__all__ = ["Server", "Service", "Where", "socket_path"]


class Server(Protocol):
    """What is served: a listening socket, or one connection, until it is closed."""

    @property
    def path(self) -> str | None: ...

    async def wait(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Where:
    """Where front-ends connect, and for how long.

    Attributes:
        socket_path, fd: one of them; neither: in a folder of its own, for `command`.
        command: a shell command to serve for the life of; None: until a signal.
    """

    socket_path: Path | None = None
    fd: int | None = None
    command: str | None = None


@contextmanager
def socket_path(where: Where, name: str) -> Iterator[Path | None]:
    """The path to listen at: as it was given, or called ``name`` in a folder that goes with it."""
    if where.socket_path is not None or where.fd is not None:
        yield where.socket_path
        return
    with tempfile.TemporaryDirectory(prefix="iodma-") as folder:
        yield Path(folder) / name


class Service:
    """One run of a server.

    Args:
        where: where it listens, and the command.
        words: the socket's path -> what `iodma qemu-args` would print, for the command; None: that
            prints nothing for it.
        hang_up: called on SIGHUP; None: the signal is not looked at.
    """

    def __init__(
        self,
        engine: Engine,
        where: Where,
        words: Callable[[str], str] | None = None,
        hang_up: Callable[[], object] | None = None,
    ) -> None:
        self.engine = engine
        self.where = where
        self.words = words
        self.hang_up = hang_up
        self.over = Event(engine)
        self.child: subprocess.Popen[bytes] | None = None
        self.terminations = 0

    def serve(self, made: Callable[[], Server], tell: Callable[[str], None]) -> int:
        """Serves until SIGTERM or SIGINT, the end of the command, or that of a connection given.

        Args:
            made: makes the server; signals are the service's before its socket can be seen.
            tell: is given where it is, unless there is a command.

        Returns:
            The exit status: the command's, or 0.
        """
        with self.signals():
            server = made()
            try:
                status: int | None = self.engine.run(self._run(server, tell))
            finally:
                self.engine.run(server.close())
            return status or 0

    async def _run(self, server: Server, tell: Callable[[str], None]) -> int:
        watch = self.engine.start(self._gone(server))
        try:
            if self.where.command is None:
                tell(server.path or f"descriptor {self.where.fd}")
                await self.over.wait()
                return 0
            return await self._command(self.where.command, server.path)
        finally:
            watch.cancel()

    async def _gone(self, server: Server) -> None:
        """A connection that was given as a descriptor ends."""
        await server.wait()
        self.over.set()

    # --- signals ----------------------------------------------------------------------------------

    @contextmanager
    def signals(self) -> Iterator[None]:
        """From here on SIGTERM, SIGINT and SIGHUP are the service's."""

        def heard(number: int, frame: FrameType | None) -> None:
            self.engine.call_threadsafe(self._signal, number)

        numbers = [signal.SIGTERM, signal.SIGINT]
        numbers += [signal.SIGHUP] if self.hang_up is not None else []
        before = {number: signal.signal(number, heard) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self.hang_up is not None:
                self.hang_up()
        elif self.child is None:
            self.over.set()
        elif number == signal.SIGTERM:  # Ctrl-C comes to the command by itself
            self.terminations += 1
            self.child.send_signal(signal.SIGTERM if self.terminations == 1 else signal.SIGKILL)

    # --- a command --------------------------------------------------------------------------------

    async def _command(self, command: str, path: str | None) -> int:
        environment = dict(os.environ)
        if path is not None:
            environment["IODMA_SOCKET"] = path
            if self.words is not None:
                environment["IODMA_QEMU"] = self.words(path)
        self.child = child = subprocess.Popen(command, shell=True, env=environment)
        pidfd = os.pidfd_open(child.pid)
        try:
            self.engine.add_reader(pidfd, self.over.set)
            # A connection that ends does not end the command.
            while child.poll() is None:
                await self.over.wait()
                if child.poll() is None:
                    self.over.clear()
            self.engine.remove_reader(pidfd)
        finally:
            os.close(pidfd)
            if child.poll() is None:
                child.kill()
                child.wait()
        status = child.returncode
        return status if status >= 0 else 128 - status
