# SPDX-License-Identifier: Apache-2.0
"""`iodma qemu-args blk`: the options that give a QEMU guest the disk that `iodma serve blk` serves.

Invariants
 - Guest memory is shared: without that a back-end could see none of it.
 - Every value is one word of the command line; commas in a path are written as QEMU reads them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from iodma.errors import ArgumentError

__all__ = ["Options", "arguments", "render"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the guest is to have.

    Attributes:
        socket_path: where the server listens.
        memory: guest memory, as QEMU has it: "512M".
        num_queues: at most those of the server.
        iommu: the guest has an IOMMU, and the disk's addresses go through it.
    """

    socket_path: str
    memory: str = "512M"
    num_queues: int = 1
    iommu: bool = False


def arguments(options: Options) -> list[str]:
    """The words to put behind `qemu-system-x86_64`.

    Raises:
        ArgumentError: a memory size with more in it than a number and a unit.
    """
    if not (options.memory.isalnum() and options.memory[0].isdigit()):
        raise ArgumentError(f"memory is {options.memory!r}; 512M or 4G would be right")
    path = options.socket_path.replace(",", ",,")
    words = ["-m", options.memory]
    words += ["-object", f"memory-backend-memfd,id=mem0,size={options.memory},share=on"]
    words += ["-M", "q35,memory-backend=mem0"]
    device = f"vhost-user-blk-pci,chardev=disk0,num-queues={options.num_queues}"
    if options.iommu:
        words += ["-device", "intel-iommu,device-iotlb=on,caching-mode=on,intremap=off"]
        device += ",iommu_platform=on,ats=on,disable-legacy=on"
    words += ["-chardev", f"socket,id=disk0,path={path}"]
    words += ["-device", device]
    return words


def render(words: list[str]) -> str:
    """As a shell reads them."""
    return shlex.join(words)
