"""nbdkit as a server of the tests' own, and a machine whose disk is there.

Invariants:

- It is given a socket that listens already, so that nothing has to wait until it is up.
- It is gone, with its socket, when the block is left.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

import iodma
from iodma.endpoints.nbd import library_version
from iodma.testing import strict_engine

__all__ = ["RAM", "Machine", "Nbdkit", "nbdkit_fixture"]

#: Bytes of a `Machine`'s memory.
RAM = 4 << 20


class Nbdkit:
    """A running server.

        with Nbdkit("memory", "1M", filters=["delay"]) as server: iodma.Nbd(server.uri)

    Attributes:
        uri: of its export.
    """

    def __init__(self, *words: str, filters: list[str] | None = None, tcp: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="iodma-nbd-")
        path = Path(self._folder.name) / "socket"
        self._log = Path(self._folder.name) / "log"
        command = ["nbdkit", "-f", *(f"--filter={name}" for name in filters or ()), *words]
        if "log" in (filters or ()):
            command.append(f"logfile={self._log}")
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as listening:
            listening.bind(("127.0.0.1", 0) if tcp else str(path))
            listening.listen(8)
            self.uri = f"nbd+unix:///?socket={path}"
            if tcp:
                self.uri = f"nbd://127.0.0.1:{listening.getsockname()[1]}/"
            self._process = subprocess.Popen(
                # As systemd would start it: with the socket as descriptor 3.
                ["bash", "-c", 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&"$0"',
                 str(listening.fileno()), *command],
                pass_fds=[listening.fileno()],
            )  # fmt: skip

    def pause(self) -> None:
        """It does not answer any more."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def kill(self) -> None:
        """It is gone at once."""
        self._process.kill()
        self._process.wait()

    def log(self) -> list[str]:
        """The lines of the log filter, so far."""
        return self._log.read_text().splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._folder.cleanup()


class Machine:
    """An engine, memory and a disk at a server."""

    def __init__(self, stack: ExitStack, server: Nbdkit, kind: str, **options: Any) -> None:
        self.server = server
        self.engine = stack.enter_context(strict_engine(kind))
        self.ram = stack.enter_context(iodma.Ram(RAM))
        self.memory = iodma.Memory({0: self.ram})
        self.port = self.engine.port(self.memory)
        self.disk = stack.enter_context(iodma.Nbd(server.uri, **options))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.run(coroutine)

    def write(self, at: int, data: bytes | bytearray) -> None:
        self.ram.view()[at : at + len(data)] = data

    async def states(self, *wanted: str) -> None:
        """Until the transfers are in these states."""
        while {info.state for info in self.engine.transfers()} != {*wanted}:
            await self.engine.sleep(0)

    def read(self, at: int, length: int) -> bytes:
        return bytes(self.ram.view()[at : at + length])


@pytest.fixture(name="nbdkit", autouse=True)
def nbdkit_fixture(peer: Callable[[str], str]) -> None:
    peer("nbdkit")
    try:
        library_version()
    except iodma.UnsupportedError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
