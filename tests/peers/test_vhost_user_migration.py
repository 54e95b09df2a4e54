# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one QEMU to another while it writes: each has a server on the same image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, begin_load, end_load
from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.servers import Disk, Iodma


@pytest.mark.limit(180)
def test_live_migration(work: Path, qemu_boot: Boot) -> None:
    disk = Disk(make_image(work / "disk.img", 64 * MIB), extra=("--no-lock",))
    machine = Machine()
    places = [work / "source", work / "target"]
    for place in places:
        place.mkdir()
    with (
        Iodma(places[0], disk) as first,
        Iodma(places[1], disk) as second,
        Qemu(places[0], qemu_boot, first.socket, machine, logs=[first.log]) as source,
        Qemu(
            places[1],
            qemu_boot,
            second.socket,
            replace(machine, incoming=True),
            logs=[second.log],
        ) as target,
    ):
        source.start()
        target.start(wait=False)
        begin_load(source)
        source.migrate(target)
        assert end_load(target)
        begin_load(target)
        assert end_load(target)
        target.power_off()
        first.stop()
        second.stop()
