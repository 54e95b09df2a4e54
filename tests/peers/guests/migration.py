# SPDX-License-Identifier: Apache-2.0
"""A guest that is to move: two QEMUs, each with a server of its own on the same image.

Invariant: a test that ends well has powered the guest off where it has moved to; the servers end
after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.servers import Disk, Iodma


@contextmanager
def two_places(work: Path, boot: Boot, image: Path) -> Iterator[tuple[Qemu, Qemu]]:
    """The machine that the guest runs on, and the one that waits for it.

    Both servers have the image, which neither may lock for itself.
    """
    disk = Disk(image, extra=("--no-lock",))
    machine = Machine()
    places = [work / "source", work / "target"]
    for place in places:
        place.mkdir()
    with (
        Iodma(places[0], disk) as first,
        Iodma(places[1], disk) as second,
        Qemu(places[0], boot, first.socket, machine, logs=[first.log]) as source,
        Qemu(
            places[1], boot, second.socket, replace(machine, incoming=True), logs=[second.log]
        ) as target,
    ):
        source.start()
        target.start(wait=False)
        yield source, target
        target.power_off()
        first.stop()
        second.stop()
