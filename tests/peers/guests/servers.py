# SPDX-License-Identifier: Apache-2.0
"""The servers that guests have: this project's, and of a disk another one to compare it with.

Invariants:

- A server is one process that was started here, and is ended by its id.
- `start` returns when the socket can be connected to; a server that ends before that raises
  `ServerError` with what it said.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.peers.guests.guest import tail
from tests.peers.guests.process import Child, Deadline
from tests.peers.guests.root import find_program


class ServerError(AssertionError):
    """A server did not start, or did not end as it should; the message has the end of its log."""


@dataclass(frozen=True)
class Disk:
    """What is to be served.

    Attributes:
        image: A raw file.
        block_size: Logical block size in bytes.
        extra: More options, in the words of the server that is used.
    """

    image: Path
    read_only: bool = False
    queues: int = 1
    block_size: int = 512
    extra: tuple[str, ...] = ()


class Process(Child):
    """A server: one process, one log.

    Args:
        work: A folder for the log.
        name: What it is called, in what is said of it.
    """

    def __init__(self, work: Path, name: str) -> None:
        super().__init__()
        self.name = name
        self.log = work / f"{name}.log"
        self._told = 0

    def command(self) -> Sequence[str]:
        """What is started."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Before each start."""

    def ready(self) -> bool:
        """Since it was started: can the socket be connected to?"""
        raise NotImplementedError

    def said(self) -> str:
        """What it has said since it was started."""
        with open(self.log, "rb") as log:
            log.seek(self._told)
            return log.read().decode(errors="replace")

    def wait_said(self, text: str, seconds: float = 60) -> None:
        """Waits until it says so."""
        deadline = Deadline(seconds)
        while text not in self.said():
            if not deadline.left:
                raise self.failed(f"has not said {text!r} after {seconds:g} s")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self.start()

    def start(self, seconds: float = 20) -> Self:
        """Starts it; also again after `stop` or `kill`."""
        self._told = self.log.stat().st_size if self.log.exists() else 0
        self.prepare()
        with open(self.log, "ab") as log:
            self.spawn(self.command(), log)
        deadline = Deadline(seconds)
        while not self.ready():
            if self.process.poll() is not None:
                raise self.failed(f"ended with status {self.process.returncode} at the start")
            if not deadline.left:
                raise self.failed(f"no socket after {seconds:g} s")
            time.sleep(0.005)
        return self

    def stop(self, seconds: float = 10) -> None:
        """SIGTERM, by which it must end soon and without an error."""
        if self.process.poll() is not None:
            raise self.failed(f"ended by itself with status {self.process.returncode}")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"still runs {seconds:g} s after SIGTERM") from None
        if status:
            raise self.failed(f"ended with status {status} after SIGTERM")

    def failed(self, reason: str) -> ServerError:
        return ServerError(f"{self.name} {reason}\n{tail(self.log)}")


class Server(Process):
    """One disk on one socket.

    Args:
        work: A folder for the socket and the log.
    """

    name = "server"

    def __init__(self, work: Path, disk: Disk) -> None:
        super().__init__(work, self.name)
        self.disk = disk
        self.socket = work / "vhost.sock"


class Iodma(Server):
    """`iodma serve blk`."""

    name = "iodma"

    def command(self) -> Sequence[str]:
        disk = self.disk
        return [
            *(sys.executable, "-m", "iodma", "serve", "blk"),
            *("--socket-path", str(self.socket), "--blk-file", str(disk.image)),
            *(["--read-only"] if disk.read_only else []),
            *("--num-queues", str(disk.queues), "--block-size", str(disk.block_size)),
            *disk.extra,
        ]

    def ready(self) -> bool:
        return " is served at " in self.said()


class StorageDaemon(Server):
    """`qemu-storage-daemon`, Debian's 7.2 or newer."""

    name = "qemu-storage-daemon"

    def command(self) -> Sequence[str]:
        disk = self.disk
        on_or_off = {True: "on", False: "off"}
        file = f"driver=file,node-name=file,filename={disk.image},discard=unmap"
        return [
            find_program("qemu-storage-daemon"),
            *("--blockdev", f"{file},read-only={on_or_off[disk.read_only]}"),
            "--export",
            "type=vhost-user-blk,id=disk,node-name=file,addr.type=unix"
            f",addr.path={self.socket},writable={on_or_off[not disk.read_only]}"
            f",num-queues={disk.queues},logical-block-size={disk.block_size}",
            *disk.extra,
        ]

    def prepare(self) -> None:
        self.socket.unlink(missing_ok=True)

    def ready(self) -> bool:
        return self.socket.exists()
