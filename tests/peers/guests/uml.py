# SPDX-License-Identifier: Apache-2.0
"""User Mode Linux: a kernel as a process, and a vhost-user front-end that is neither QEMU nor slow.

Invariant: its root is a folder of this machine, mounted read-only; its memory file, its id and its
sockets are in the guest's work folder.

All its memory is one region whose guest physical address, user address and file offset are equal.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from tests.peers.guests.guest import UNWATCHED, Guest
from tests.peers.guests.root import find_modules, find_program, make_root

BLOCK = 2  # device id (virtio 1.2, section 5)


def make_uml_root(folder: Path) -> Path:
    """The root for UML guests, with the modules of the kernel that linux.uml is."""
    trees = sorted(Path("/usr/lib/uml/modules").glob("*/modules.dep"))
    if not trees:
        raise FileNotFoundError("no modules of the package user-mode-linux")
    return make_root(folder, find_modules(trees[-1].parent, ["virtio_blk", "ext4"]))


class Uml(Guest):
    """A UML guest whose disk /dev/vda is served on `socket`.

    Args:
        root: What `make_uml_root` made; any number of guests may use it at once.
    """

    name = "uml"

    def __init__(
        self,
        work: Path,
        root: Path,
        socket: Path,
        *,
        memory: str = "192M",
        logs: Sequence[Path] = (),
    ) -> None:
        super().__init__(work, logs=logs)
        self.root, self.socket, self.memory = root, socket, memory

    def has_halted(self, status: int) -> bool:
        """Once in a while it aborts as it goes, when its kernel has said its last word."""
        return status == -signal.SIGABRT and b"reboot: System halted" in self.console.read_bytes()

    def command(self, channel: int) -> list[str]:
        return [
            find_program("linux.uml"),
            f"mem={self.memory}",
            *("root=/dev/root", "rootfstype=hostfs", f"rootflags={self.root}", "ro"),
            *("init=/init", "panic=-1", *UNWATCHED),
            *(f"uml_dir={self.work}", f"umid={self.token}"),
            *("con=null", "con0=null,fd:1", f"con1=fd:{channel}"),
            f"virtio_uml.device={self.socket}:{BLOCK}",
            *("CHANNEL=tty1", f"TOKEN={self.token}"),
        ]
