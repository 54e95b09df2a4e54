# SPDX-License-Identifier: Apache-2.0
"""QEMU without a processor: its machine is driven over the qtest protocol, a line for each access.

Invariants:

- The machine runs, and nothing in it does but what the test asks for: no firmware, no kernel.
- The process is gone when the connection is closed.
"""

from __future__ import annotations

import socket
from pathlib import Path

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.guest import tail
from tests.peers.guests.process import Child
from tests.peers.vfio_user.machine import Function, program
from tests.qtest import Qtest as Client
from tests.qtest import QtestError

__all__ = ["Qtest", "QtestError"]

#: I/O ports of the configuration mechanism (PCI 3.0, section 3.2.2.3.2).
ADDRESS, DATA = 0xCF8, 0xCFC
COMMAND, BAR0 = 0x04, 0x10
MEMORY, MASTER = 2, 4
#: Where `Qtest.enable` puts BAR 0.
BAR_AT = 0xE000_0000


class Qtest(Client, Child):
    """A q35 whose only function is served over vfio-user, at 00:04.0.

    Args:
        work: a folder for the log.
        shared: is its memory, of 64 MiB, a file that is shared? None: no file at all.
    """

    def __init__(
        self, work: Path, qemu: Foreign, function: Function, *, shared: bool | None = True
    ) -> None:
        Child.__init__(self)
        self.log = work / "qtest.log"
        stream, far = socket.socketpair()
        memory = "memory-backend-ram,id=ram,size=64M"
        if shared is not None:
            share = "on" if shared else "off"
            memory = f"memory-backend-memfd,id=ram,size=64M,share={share}"
        words = [
            *program(qemu, "qemu-system-x86_64"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "qtest"),
            *("-m", "64M", "-object", memory),
            *("-M", "q35,memory-backend=ram"),
            *("-chardev", f"socket,id=qtest,fd={far.fileno()}", "-qtest", "chardev:qtest"),
            *("-qtest-log", "/dev/null"),
            *("-device", function.option(bus="pcie.0", addr="4")),
        ]
        with open(self.log, "wb") as log:
            self.spawn(words, log, fds=[far.fileno()])
        far.close()
        Client.__init__(self, stream, said=lambda: tail(self.log))

    def close(self) -> None:
        self.kill()
        Client.close(self)

    # --- the function -----------------------------------------------------------------------------

    def config_read(self, offset: int, size: int = 4) -> int:
        """Of the function's configuration space: `size` is 1, 2 or 4 bytes."""
        self("outl", ADDRESS, 0x8000_2000 | (offset & ~3))
        return int(self("in" + " bw l"[size], DATA + offset % 4), 0)

    def config_write(self, offset: int, value: int, size: int = 4) -> None:
        self("outl", ADDRESS, 0x8000_2000 | (offset & ~3))
        self("out" + " bw l"[size], DATA + offset % 4, value)

    def enable(self, *, master: bool = True) -> None:
        """BAR 0 is at `BAR_AT`."""
        self.config_write(BAR0, BAR_AT)
        self.config_write(COMMAND, MEMORY | (MASTER if master else 0), 2)

    def read(self, offset: int, size: int = 4) -> int:
        """A register in BAR 0; `size` is 4 or 8 bytes."""
        return int(self("readq" if size == 8 else "readl", BAR_AT + offset), 0)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self("writeq" if size == 8 else "writel", BAR_AT + offset, value)
