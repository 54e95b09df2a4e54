# SPDX-License-Identifier: Apache-2.0
"""Debian's generic kernel in qemu-system-x86_64, under its emulated processor (TCG).

Invariants:

- The guest has no network, no display and no firmware settings of this machine: what it has is in
  its command line, and `-nodefaults` is part of it.
- Its memory is a shared memory file, as vhost-user wants it, unless a test asks for other memory.
- Its processor has RDRAND, without which programs wait for seconds until the kernel has collected
  random numbers elsewhere.
- The kernel's messages go to the first serial port, the jobs over the second.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.guests.guest import UNWATCHED, Guest
from tests.peers.guests.qmp import Qmp
from tests.peers.guests.root import (
    find_modules,
    find_program,
    generic_kernel,
    make_root,
    pack,
    unpack_kernel,
)

MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")


@dataclass(frozen=True)
class Boot:
    """What QEMU starts, shared by any number of guests."""

    kernel: Path
    initramfs: Path


def make_boot(folder: Path) -> Boot:
    """A kernel and an initramfs in `folder`, which must not exist yet."""
    image, tree = generic_kernel()
    root = make_root(folder / "root", find_modules(tree, MODULES))
    return Boot(unpack_kernel(image, folder / "vmlinux"), pack(root, folder / "initramfs.cpio"))


@dataclass(frozen=True)
class Machine:
    """What differs from guest to guest.

    Attributes:
        memory: In MiB.
        shared: Is its memory file shared? A vhost-user server needs that.
        max_memory: In MiB, with slots for memory that is added while it runs.
        processors: How many.
        queues: Of the disk; None: as many as QEMU chooses.
        reconnect: Seconds after which QEMU connects again to a server that went away; 0: never.
        device: More properties of the vhost-user-blk-pci device.
        machine: More properties of the machine type q35.
        arguments: More arguments of QEMU, before the disk's.
        options: All that says what memory and which disk it has, in place of what follows from the
            above; None: there is no such thing.
        kernel: More of the kernel's command line.
        reboots: May the guest start again? Otherwise that ends QEMU.
        incoming: It waits for a guest that `migrate` brings.
    """

    memory: int = 448
    shared: bool = True
    max_memory: int = 0
    processors: int = 1
    queues: int | None = None
    reconnect: int = 0
    device: str = ""
    machine: str = ""
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None
    kernel: str = ""
    reboots: bool = False
    incoming: bool = False


class Qemu(Guest):
    """A guest whose disk /dev/vda is served on `socket`; `qmp` controls the machine.

    Args:
        disk: The server's socket; None: there is no disk.
    """

    name = "qemu"
    boot_seconds = 60.0
    processor = "qemu64,+rdrand"
    terminals = ("ttyS0", "ttyS1")  # of the kernel's messages, and of the jobs

    def __init__(
        self,
        work: Path,
        boot: Boot,
        disk: Path | None,
        machine: Machine | None = None,
        *,
        logs: Sequence[Path] = (),
    ) -> None:
        super().__init__(work, logs=logs)
        self.boot, self.disk, self.machine = boot, disk, machine or Machine()
        ours, self._monitor = socket.socketpair()
        self.qmp = Qmp(ours)

    def inherited(self) -> list[int]:
        return [self._monitor.fileno()]

    def start(self, *, wait: bool = True) -> Qemu:
        super().start(wait=False)
        self._monitor.close()
        if wait:
            self.wait_up()
        return self

    def close(self) -> None:
        super().close()
        self._monitor.close()
        self.qmp.close()

    def stop_and_go(self, times: int) -> None:
        """QMP stop and cont: the rings stop where they are, and go on there."""
        for _ in range(times):
            self.qmp.execute("stop")
            self.qmp.execute("cont")
            self.run("sleep 0.1")

    def wait_deleted(self, device: str, seconds: float = 30) -> None:
        """Until the guest has let go of a device that `device_del` was said of."""
        while (
            self.qmp.wait_event("DEVICE_DELETED", seconds=seconds)["data"].get("device") != device
        ):
            pass

    def migrate(self, target: Qemu, seconds: float = 60) -> None:
        """The guest goes over to `target`, running; what it says next is said there."""
        self.begin_migration(target)
        self.end_migration(target, seconds)

    def begin_migration(self, target: Qemu) -> None:
        """The guest begins to go over to `target`, running."""
        place = target.work / "migration.sock"
        events = [{"capability": "events", "state": True}]
        for machine in (self, target):
            machine.qmp.execute("migrate-set-capabilities", capabilities=events)
        target.qmp.execute("migrate-incoming", uri=f"unix:{place}")
        self.qmp.execute("migrate", uri=f"unix:{place}")

    def end_migration(self, target: Qemu, seconds: float = 60) -> None:
        """Until it runs there; what it says next is said there.

        When this side has sent all, the other has yet to load it: what is said to its serial port
        before that is lost.
        """
        self._end_of_migration(seconds)
        target._end_of_migration(seconds)
        target.adopt(self)

    def _end_of_migration(self, seconds: float) -> None:
        while True:
            event = self.qmp.wait_event("MIGRATION", seconds=seconds)
            if event["data"]["status"] == "completed":
                return
            if event["data"]["status"] == "failed":
                told = self.qmp.execute("query-migrate")
                raise self.failed(f"was not migrated: {told.get('error-desc', told)}")

    def command(self, channel: int) -> list[str]:
        machine = self.machine
        console, jobs = self.terminals
        words = ("panic=-1", *UNWATCHED, f"CHANNEL={jobs}", f"TOKEN={self.token}", machine.kernel)
        kernel = " ".join((f"console={console}", *words))
        return [
            *self.program(),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *([] if machine.reboots else ["-no-reboot"]),
            *(["-incoming", "defer"] if machine.incoming else []),
            *("-accel", "tcg", "-cpu", self.processor, "-smp", str(machine.processors)),
            *("-kernel", str(self.boot.kernel), "-initrd", str(self.boot.initramfs)),
            *("-append", kernel.strip()),
            *("-chardev", f"file,id=console,path={self.console}"),
            *("-chardev", f"socket,id=jobs,fd={channel}"),
            *self.terminal_options(),
            *("-chardev", f"socket,id=qmp,fd={self._monitor.fileno()}"),
            *("-mon", "chardev=qmp,mode=control"),
            *machine.arguments,
            *(self.memory_options() if machine.options is None else machine.options),
            *(self.device_options() if machine.options is None else []),
        ]

    # --- for kinds of machines

    def program(self) -> list[str]:
        """What starts QEMU."""
        return [find_program("qemu-system-x86_64")]

    def terminal_options(self) -> list[str]:
        """The devices behind the chardevs "console" and "jobs"."""
        return ["-serial", "chardev:console", "-serial", "chardev:jobs"]

    def device_options(self) -> list[str]:
        """What the machine has beside its memory."""
        return self.disk_options(self.disk) if self.disk else []

    def memory_options(self) -> list[str]:
        """The machine type with its memory: one file, to be shared with the server."""
        machine = self.machine
        grows = f",slots=4,maxmem={machine.max_memory}M" if machine.max_memory else ""
        share = "on" if machine.shared else "off"
        more = f",{machine.machine}" if machine.machine else ""
        return [
            *("-m", f"{machine.memory}M{grows}"),
            *("-object", f"memory-backend-memfd,id=ram,size={machine.memory}M,share={share}"),
            *("-M", f"q35,memory-backend=ram{more}"),
        ]

    def disk_options(self, path: Path) -> list[str]:
        """The disk: a character device on the server's socket, and a PCI function behind a port."""
        machine = self.machine
        reconnect = f",reconnect={machine.reconnect}" if machine.reconnect else ""
        queues = "" if machine.queues is None else f",num-queues={machine.queues}"
        more = f",{machine.device}" if machine.device else ""
        return [
            *("-chardev", f"socket,id=vhost,path={path}{reconnect}"),
            *("-device", "pcie-root-port,id=slot0,chassis=1"),
            *("-device", f"vhost-user-blk-pci,id=disk,bus=slot0,chardev=vhost{queues}{more}"),
        ]


def printed_options(*arguments: str) -> tuple[str, ...]:
    """What `iodma qemu-args blk` prints, word by word."""
    command = [sys.executable, "-m", "iodma", "qemu-args", "blk", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return tuple(shlex.split(done.stdout))
