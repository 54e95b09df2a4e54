# SPDX-License-Identifier: Apache-2.0
"""The server dies and comes again while the guest writes: nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, begin_load, end_load, no_trouble, wait_writes
from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.servers import Disk, Iodma

TIMES = 100 if os.environ.get("IODMA_SOAK") == "1" else 3


@pytest.mark.limit(180 if TIMES < 100 else 1800)
@pytest.mark.parametrize("device", ["", "packed=on"], ids=["split", "packed"])
@pytest.mark.parametrize("queues", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_killed_under_load(work: Path, qemu_boot: Boot, queues: int, device: str) -> None:
    """SIGKILL, and the same socket again; QEMU connects again after a second."""
    image = make_image(work / "disk.img", 64 * MIB)
    machine = Machine(queues=queues, processors=queues, reconnect=1, device=device)
    with (
        Iodma(work, Disk(image, queues=queues)) as server,
        Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest,
    ):
        guest.start()
        begin_load(guest)
        for _ in range(TIMES):
            server.kill()
            server.start()
            wait_writes(guest, 50)
        assert end_load(guest)
        no_trouble(guest)
        guest.power_off()
        server.stop()


@pytest.mark.limit(180)
def test_ended_under_load(work: Path, qemu_boot: Boot) -> None:
    """SIGTERM is no different to the guest: it waits."""
    image = make_image(work / "disk.img", 64 * MIB)
    with (
        Iodma(work, Disk(image)) as server,
        Qemu(work, qemu_boot, server.socket, Machine(reconnect=1), logs=[server.log]) as guest,
    ):
        guest.start()
        begin_load(guest)
        for _ in range(2):
            server.stop()
            server.start()
            wait_writes(guest, 50)
        assert end_load(guest)
        guest.power_off()
        server.stop()
