# SPDX-License-Identifier: Apache-2.0
"""Our side: the board of `iodma.boards.sun4m`, served in a process of its own.

Invariant: what is compared goes over the same protocol as with the oracle.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.peers.guests.process import mortal
from tests.peers.sun4m.session import Session, SharedRam, Wire, csr, fill_disk

SERVED = Path(__file__).with_name("served.py")


class Board(Session):
    """A board in a process.

    Args:
        folder: for its sockets, its disk and its log.
    """

    name = "our board"

    def __init__(self, folder: Path) -> None:
        wire = Wire.at(folder, "board")
        disk = folder / "board.disk"
        fill_disk(disk)
        ram = SharedRam()
        self.log = folder / "board.log"
        ours, theirs = socket.socketpair()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as net, open(self.log, "wb") as log:
            net.bind(str(wire.machine))
            net.connect(str(wire.path))
            numbers = [theirs.fileno(), net.fileno(), ram.fd]
            words = [sys.executable, SERVED, *numbers, disk]
            self._process = subprocess.Popen(
                mortal([str(word) for word in words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=numbers,
            )
        theirs.close()
        super().__init__(ours, wire, disk, ram)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        super().close()

    def reset(self) -> None:
        self.commands(["iodma_reset", *csr(1, 0), *csr(2, 0)])
