# SPDX-License-Identifier: Apache-2.0
"""The oracle: QEMU's SS-5 without a processor, and an older QEMU as a second opinion.

Invariants:

- QEMU 11 comes from trixie-backports, unpacked beside the checkout and started by its own loader;
  its time stands still but for `clock_step` (-accel qtest).
- QEMU 7.2 is this machine's own package. It has no such accelerator for a foreign processor's
  board without firmware, so a processor spins in a branch to itself, and its time passes by itself.
- A process is ended by its id, and dies with the run; `restart` makes a new one after a crash.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from pathlib import Path

from tests.peers.guests.foreign import unpack
from tests.peers.guests.process import mortal
from tests.peers.guests.qmp import Qmp, QmpError
from tests.peers.sun4m.machine import RAM_BYTES
from tests.peers.sun4m.session import Gone, Session, SharedRam, Wire, csr, fill_disk

PROGRAM = "qemu-system-sparc"
#: SLAVIO's processor counter: 31 bits that count in 500 ns, from bit 9 on in its low word.
COUNTER, COUNTER_NS = 0x71D0_0004, 500
BRANCH_TO_SELF = 0x3080_0000

DISK = "scsi-hd,drive=disk,scsi-id=0,lun=0"
#: Registers of its network card that a reset does not touch: CSR1 and CSR2, and of PCnet's, which
#: the Am7990 has not, the mode and the poll counter.
LEFT_BY_RESET = (1, 2, 15, 46, 47)


def qemu11_sparc() -> list[str]:
    """What starts QEMU 11's `qemu-system-sparc`; the first time it is fetched, in some seconds.

    Everything that needs it asks here, so that it is unpacked once.

    Raises:
        FileNotFoundError: It cannot be had, and why.
    """
    files = unpack("trixie-backports", PROGRAM)
    modules = files.one("usr/lib/*-linux-gnu/qemu")
    firmware = files.root / "usr/share/qemu"
    loaded = ["env", f"QEMU_MODULE_DIR={modules}", *files.command(PROGRAM)]
    return [*loaded, "-L", str(firmware), "-accel", "qtest"]


def qemu7_sparc(folder: Path) -> list[str]:
    """... this machine's own. Raises FileNotFoundError."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise FileNotFoundError(f"this machine has no program {PROGRAM!r}")
    firmware = folder / "spin.bin"
    firmware.write_bytes(struct.pack(">I", BRANCH_TO_SELF) * 1024)
    return [found, "-accel", "tcg", "-bios", str(firmware)]


class Qemu(Session):
    """An SS-5 of QEMU.

    Args:
        folder: for its sockets and its log.
        command: what `qemu11_sparc` or `qemu7_sparc` gave.
    """

    def __init__(self, folder: Path, command: list[str], name: str = "QEMU") -> None:
        self.name, self.folder, self.command = name, folder, command
        ours, theirs = socket.socketpair()
        qmp, far = socket.socketpair()
        wire = Wire.at(folder, name.replace(" ", "-"))
        disk = folder / f"{name.replace(' ', '-')}.disk"
        fill_disk(disk)
        ram = SharedRam()
        size = f"{RAM_BYTES >> 20}M"
        words = [
            *(*command, "-M", "SS-5,memory-backend=ram", "-m", size),
            *("-object", f"memory-backend-file,id=ram,size={size},share=on"
              f",mem-path=/proc/self/fd/{ram.fd}"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
            *("-chardev", f"socket,id=qtest,fd={theirs.fileno()}", "-qtest", "chardev:qtest"),
            *("-qtest-log", "/dev/null"),
            *("-chardev", f"socket,id=qmp,fd={far.fileno()}", "-qmp", "chardev:qmp"),
            *("-netdev", "dgram,id=net,local.type=unix,remote.type=unix"
              f",local.path={wire.machine},remote.path={wire.path}"),
            *("-net", "nic,model=lance,netdev=net"),
            *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={disk}", "-device", DISK),
        ]  # fmt: skip
        self.log = folder / f"{name.replace(' ', '-')}.log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                mortal(words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno(), far.fileno(), ram.fd],
            )
        theirs.close()
        far.close()
        self._qmp = Qmp(qmp)
        super().__init__(ours, wire, disk, ram)
        self._prime()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._qmp.close()
        super().close()

    def reset(self) -> None:
        try:
            self._qmp.execute("system_reset")
            self._qmp.wait_event("RESET")
        except QmpError as error:
            raise Gone(f"{self.name}: {error}") from error
        self.commands([line for number in LEFT_BY_RESET for line in csr(number, 0)])

    def rest(self) -> None:
        """A machine that is stopped has no transfer of its disk under way."""
        try:
            self._qmp.execute("stop")
            self._qmp.execute("cont")
            self._qmp.events.clear()
        except QmpError as error:
            raise Gone(f"{self.name}: {error}") from error

    def _prime(self) -> None:
        """A network card that has polled once: the first start of a process is unlike the others.

        It notes when its time began, and polls at a start only if that is some time ago.
        """
        self.reset()
        for _ in range(2):
            self.advance(10_000_000)
            self.commands([*csr(0, 2), *csr(0, 4)])
        self.reset()


class Qemu7(Qemu):
    """One whose time passes by itself."""

    def advance(self, nanoseconds: int) -> None:
        begin = self._counter()
        while (self._counter() - begin) % (1 << 22) * COUNTER_NS < nanoseconds:
            pass

    def _counter(self) -> int:
        (said,) = self.commands([f"readl {COUNTER:#x}"])
        return int(said, 0) >> 9 & (1 << 22) - 1
