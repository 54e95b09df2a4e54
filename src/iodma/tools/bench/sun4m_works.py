# SPDX-License-Identifier: Apache-2.0
"""The rows of `iodma bench sun4m`, as data.

Invariants
 - One row for each figure that the project promises, in the order of its documents.
 - A count has to be right in every sample.
"""

from __future__ import annotations

from collections.abc import Callable

from iodma.tools.bench.sides import Side, Work
from iodma.tools.bench.sun4m_servers import our_machine, qemu_machine

__all__ = ["works"]

LOAD = "iodma.tools.bench.sun4m_load"
OURS, QEMU = "iodma", "QEMU's SS-5"


def machine(name: str, case: str, *, disk: bool = False) -> Side:
    start = our_machine if name == OURS else qemu_machine
    command = tuple(start(network=not disk, disk=disk))
    return Side(name, f"{LOAD}:{case}", command, disk)


def loop(name: str, case: str) -> Side:
    return Side(name, f"{LOAD}:{case}")


#: Made when they are asked for: a peer may have to be found, and the first time fetched.
MAKERS: tuple[tuple[str, Callable[[str], Work]], ...] = (
    (
        "LANCE transmit of 1,514-byte frames, 64 a batch, frames/s",
        lambda name: Work(
            name, 1.0, machine(OURS, "transmit"), machine(QEMU, "transmit"), "higher", start_s=2.0
        ),
    ),
    (
        "BSWP=0 payload path of 1,514-byte frames, frames/s",
        lambda name: Work(
            name,
            0.9,
            loop(OURS, "sends"),
            loop("C loop, memcpy + swap + sendmsg", "swap_sends"),
            "higher",
        ),
    ),
    (
        "BSWP=1 payload bytes copied in user space",
        lambda name: Work(
            name,
            0,
            machine(OURS, "copied_frames"),
            None,
            unit="bytes",
            timed=False,
            seconds=0.2,
            start_s=2.0,
        ),
    ),
    (
        "READ(10) of 64 KiB in scattered pages: payload bytes copied in user space",
        lambda name: Work(
            name,
            0,
            machine(OURS, "copied_reads", disk=True),
            None,
            unit="bytes",
            timed=False,
            seconds=0.2,
            start_s=2.0,
        ),
    ),
    (
        "READ(10) of 64 KiB in scattered pages, MB/s",
        lambda name: Work(
            name,
            1.0,
            machine(OURS, "reads", disk=True),
            machine(QEMU, "reads", disk=True),
            "higher",
            start_s=2.0,
        ),
    ),
    (
        "IOMMU translate, lists of 16 pages, from Python, time",
        lambda name: Work(name, 1.5, loop(OURS, "walks"), loop("C loop", "table_walks")),
    ),
)


def works(wanted: Callable[[str], bool]) -> list[Work]:
    """The rows whose names are wanted.

    Raises:
        BenchError: the peer of one of them is missing.
    """
    return [make(name) for name, make in MAKERS if wanted(name)]
