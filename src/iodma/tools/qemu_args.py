# SPDX-License-Identifier: Apache-2.0
"""`iodma qemu-args`: the options that give a QEMU guest what iodma serves.

| of | what serves it | what QEMU has it with |
|---|---|---|
| `blk` | `iodma serve blk`, over vhost-user | `vhost-user-blk-pci` |
| FILE.py | `iodma run FILE.py --socket-path=S`, over vfio-user | `vfio-user-pci` of 10.1 or later |

Invariants
 - Guest memory is shared: without that a server could see none of it.
 - Every value is one word of the command line; commas in a path are written as QEMU reads them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import iodma
from iodma.errors import ArgumentError

__all__ = ["Guest", "disk", "function", "id_of", "render"]


@dataclass(frozen=True, slots=True)
class Guest:
    """What the guest is to have.

    Attributes:
        socket_path: where the server listens.
        memory: guest memory, as QEMU has it, with its unit: "512M". (Without one it would be MiB
            in one option and bytes in the other.)
        iommu: the guest has an IOMMU, and the device's addresses go through it.
    """

    socket_path: str
    memory: str = "512M"
    iommu: bool = False


def disk(guest: Guest, num_queues: int = 1) -> list[str]:
    """The words to put behind `qemu-system-x86_64` for a disk. `num_queues`: at most the server's.

    Raises:
        ArgumentError: a memory size that is not a number and a unit.
    """
    path = guest.socket_path.replace(",", ",,")
    words = machine(guest)
    device = f"vhost-user-blk-pci,chardev=disk0,num-queues={num_queues}"
    if guest.iommu:
        words += ["-device", "intel-iommu,device-iotlb=on,caching-mode=on,intremap=off"]
        device += ",iommu_platform=on,ats=on,disable-legacy=on"
    words += ["-chardev", f"socket,id=disk0,path={path}"]
    words += ["-device", device]
    return words


def function(guest: Guest, id: str) -> list[str]:
    """The words to put behind `qemu-system-x86_64` for a PCI function.

    Args:
        id: the device's, for QEMU's monitor.

    Raises:
        ArgumentError: a memory size that is not a number and a unit; an id that QEMU
            takes for none.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", id):
        raise ArgumentError(f"id is {id!r}; a letter, then letters, digits and -._ would be right")
    words = machine(guest)
    if guest.iommu:
        words += ["-device", "intel-iommu,caching-mode=on"]
    path = {"type": "unix", "path": guest.socket_path}
    device = {"driver": "vfio-user-pci", "id": id, "socket": path}
    words += ["-device", one_word(json.dumps(device, separators=(",", ":")))]
    return words


def machine(guest: Guest) -> list[str]:
    memory = guest.memory
    if not re.fullmatch(r"0*[1-9][0-9]*[KMGT]", memory, re.IGNORECASE | re.ASCII):
        raise ArgumentError(f"memory is {memory!r}; 512M or 4G would be right")
    words = ["-m", memory]
    words += ["-object", f"memory-backend-memfd,id=mem0,size={memory},share=on"]
    words += ["-M", "q35,memory-backend=mem0"]
    return words


def id_of(device: type[iodma.Device]) -> str:
    """The id of a device of this class, unless another is asked for."""
    return re.sub(r"[^a-z0-9]", "", device.__name__.lower()) or "device"


def one_word(text: str) -> str:
    """JSON, written so that a shell leaves it one word also where it is not quoted: what a shell
    would look at in the result of $(...) is there by its number."""
    return re.sub(r"[\s*?\[\]]", lambda found: f"\\u{ord(found[0]):04x}", text)


def render(words: Sequence[str], terminal: bool = False) -> str:
    """As a shell reads them. In the result of $(...) or $VARIABLE a shell takes quotes as they
    are, so JSON has none; for a terminal, from which it is copied, it has."""
    return " ".join(
        word if word.startswith("{") and not terminal else shlex.quote(word) for word in words
    )
