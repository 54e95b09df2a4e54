# SPDX-License-Identifier: Apache-2.0
"""QEMU 11, Debian's kernel and PCI functions that are served over vfio-user.

Invariants:

- QEMU comes from trixie-backports and is started by its own loader, with its own firmware; nothing
  of it is installed, and nobody has to be root.
- Each function is behind a PCIe port of its own: the first one is 0000:01:00.0, the next
  0000:02:00.0, and so on. Any of them can be taken out.
- The guest has the drivers under /drivers, and loads none of them by itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.guests.foreign import Foreign, unpack
from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.root import add_foreign, find_modules, make_root, pack, unpack_kernel
from tests.peers.guests.servers import Process
from tests.peers.vfio_user.build import Kernel, amd64, compile_module, compile_program, s390x

DEVICES = Path(__file__).with_name("devices.py")
LADDER = Path(__file__).parents[3] / "examples"
#: What VFIO needs of the guest's IOMMU, and a guest that takes each mapping away at once.
IOMMU = "intel-iommu,caching-mode=on"
STRICT = "intel_iommu=on iommu.strict=1"


def qemu11() -> Foreign:
    """QEMU with vfio-user-pci. Raises FileNotFoundError where it cannot be had."""
    return unpack("trixie-backports", "qemu-system-x86", "qemu-system-s390x", "seabios")


def program(qemu: Foreign, name: str) -> list[str]:
    """What starts one of its programs, with its modules and its firmware."""
    modules = qemu.one("usr/lib/*-linux-gnu/qemu")
    firmware = [qemu.root / "usr/share" / place for place in ("qemu", "seabios")]
    return [
        *("env", f"QEMU_MODULE_DIR={modules}", *qemu.command(name)),
        *(word for place in firmware for word in ("-L", str(place))),
    ]


def make_vfio_boot(folder: Path) -> Boot:
    """A kernel and an initramfs with all that drives functions; `folder` must not exist yet."""
    kernel = amd64()
    names = ("vfio_pci", "vfio_iommu_type1", "uio_pci_generic")
    root = make_root(folder / "root", find_modules(kernel.modules, names), programs=())
    for name in ("lspci", "setpci"):
        add_foreign(root, kernel.files, name)
    for program in ("vfio_copy", "uio_copy"):
        compile_program(program, root / "bin")
    return _boot(folder, root, kernel, unpack_kernel(kernel.image, folder / "vmlinux"))


def make_s390x_boot(folder: Path) -> Boot:
    """The same, as far as it goes, on a big-endian processor."""
    kernel = s390x()
    modules = find_modules(kernel.modules, ["virtio_console"])
    busybox = kernel.files.one("bin/busybox")
    root = make_root(folder / "root", modules, programs=(), busybox=busybox)
    return _boot(folder, root, kernel, kernel.image)


def _boot(folder: Path, root: Path, kernel: Kernel, image: Path) -> Boot:
    (root / "drivers").mkdir()
    shutil.copy(compile_module("copy_engine", kernel, folder / "module"), root / "drivers")
    return Boot(image, pack(root, folder / "initramfs.cpio"))


@dataclass(frozen=True)
class Function:
    """A device of the machine: its id, and the socket that it is served on."""

    id: str
    socket: Path

    def option(self, **more: Any) -> str:
        """For -device, in QEMU's JSON."""
        path = {"type": "unix", "path": str(self.socket)}
        return json.dumps({"driver": "vfio-user-pci", "id": self.id, "socket": path, **more})


class Served(Process):
    """A device, served by `iodma run`.

    Args:
        work: a folder for its socket and its log.
        target: a class of devices.py, or a file of the ladder.
        id: what the guest's machine calls it; None: as the class or the file.
        engine: "auto", "uring" or "threads".
    """

    def __init__(
        self, work: Path, target: str, *, id: str | None = None, engine: str = "auto"
    ) -> None:
        name = id or target.removesuffix(".py")
        super().__init__(work, name)
        self.target = str(LADDER / target) if target.endswith(".py") else f"{DEVICES}:{target}"
        self.engine = engine
        self.socket = work / f"{name}.sock"
        self.function = Function(name, self.socket)

    def command(self) -> Sequence[str]:
        run = [sys.executable, "-m", "iodma", "run", self.target]
        return [*run, "--engine", self.engine, "--socket-path", str(self.socket)]

    def ready(self) -> bool:
        return " is served at " in self.said()


class VfioQemu(Qemu):
    """A guest with PCI functions.

    Args:
        qemu: what `qemu11` gave.
        devices: whose functions it has, one a port, and whose logs are shown when it fails.
        machine: as for any QEMU; its `arguments` may have an IOMMU.
    """

    binary = "qemu-system-x86_64"

    def __init__(
        self,
        work: Path,
        boot: Boot,
        qemu: Foreign,
        devices: Sequence[Served],
        machine: Machine | None = None,
    ) -> None:
        logs = [device.log for device in devices]
        super().__init__(work, boot, None, machine or Machine(memory=256), logs=logs)
        self.files, self.devices = qemu, devices

    def program(self) -> list[str]:
        return program(self.files, self.binary)

    def device_options(self) -> list[str]:
        words: list[str] = []
        for place, device in enumerate(self.devices, 1):
            words += ["-device", f"pcie-root-port,id=port{place},chassis={place}"]
            words += ["-device", device.function.option(bus=f"port{place}")]
        return words


class S390x(VfioQemu):
    """A mainframe; its functions have no ports."""

    binary = "qemu-system-s390x"
    processor = "max"
    terminals = ("ttysclp0", "vport0p1")

    def terminal_options(self) -> list[str]:
        return [
            *("-serial", "chardev:console"),
            *("-device", "virtio-serial-ccw", "-device", "virtserialport,chardev=jobs"),
        ]

    def memory_options(self) -> list[str]:
        size = f"{self.machine.memory}M"
        return [
            *("-m", size, "-object", f"memory-backend-memfd,id=ram,size={size},share=on"),
            *("-M", "s390-ccw-virtio,memory-backend=ram"),
        ]

    def device_options(self) -> list[str]:
        words: list[str] = []
        for number, device in enumerate(self.devices, 1):
            words += ["-device", f"zpci,uid={number},fid={number},target={device.function.id}"]
            words += ["-device", device.function.option()]
        return words
