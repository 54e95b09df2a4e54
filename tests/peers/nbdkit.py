"""nbdkit as a server of the tests' own.

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
from pathlib import Path
from typing import Self

__all__ = ["Nbdkit"]


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
