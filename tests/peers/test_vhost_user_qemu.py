# SPDX-License-Identifier: Apache-2.0
"""Debian's generic kernel mounts the disk: QEMU is the vhost-user front-end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, after_filesystem, filesystem
from tests.peers.guests.qemu import Boot, Machine, Qemu
from tests.peers.guests.servers import Disk, Server, StorageDaemon

SERVERS = [StorageDaemon]


@pytest.fixture(params=SERVERS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Server]:
    found: type[Server] = request.param
    return found


@pytest.mark.limit(120)
def test_ext4_on_four_queues(work: Path, qemu_boot: Boot, kind: type[Server]) -> None:
    image = make_image(work / "disk.img", 64 * MIB)
    machine = Machine(queues=4, processors=4)
    with (
        kind(work, Disk(image, queues=4)) as server,
        Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest,
    ):
        files = filesystem(guest.start(), image, 4)
        queues = guest.run("ls /sys/block/vda/mq").output.split()
        guest.power_off()
        server.stop()
    assert queues == ["0", "1", "2", "3"]
    after_filesystem(image, files, 4, work)
