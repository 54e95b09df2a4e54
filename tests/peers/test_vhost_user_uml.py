# SPDX-License-Identifier: Apache-2.0
"""A real kernel mounts the disk: User Mode Linux as the vhost-user front-end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, after_filesystem, filesystem, raw_verify, read_queue
from tests.peers.guests.servers import Disk, Server, StorageDaemon
from tests.peers.guests.uml import Uml

SERVERS = [StorageDaemon]


@pytest.fixture(params=SERVERS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Server]:
    found: type[Server] = request.param
    return found


def uml(work: Path, root: Path, server: Server) -> Uml:
    return Uml(work, root, server.socket, logs=[server.log])


def test_ext4(work: Path, uml_root: Path, kind: type[Server]) -> None:
    image = make_image(work / "disk.img", 96 * MIB)
    with kind(work, Disk(image)) as server, uml(work, uml_root, server) as guest:
        files = filesystem(guest.start(), image, 8)
        guest.power_off()
        server.stop()
    after_filesystem(image, files, 8, work)


def test_bare_disk(work: Path, uml_root: Path, kind: type[Server]) -> None:
    image = make_image(work / "disk.img", 48 * MIB)
    with kind(work, Disk(image)) as server, uml(work, uml_root, server) as guest:
        raw_verify(guest.start(), 16)
        print(read_queue(guest))
        guest.power_off()
        server.stop()
