# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one QEMU to another, with what its disk has put into its memory."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, begin_load, end_load
from tests.peers.guests.migration import two_places
from tests.peers.guests.qemu import Boot, Qemu

#: MiB: where the data of the host's choice is, and how much.
KEPT, LENGTH = 32, 16


def hold_back(source: Qemu, held: bool) -> None:
    """Whether the migration comes to no end: what may be left for the time that the guest stands
    still is a few pages."""
    rate, limit = (20 * MIB, 1) if held else (1024 * MIB, 5000)
    limits = {"max-bandwidth": rate, "downtime-limit": limit}
    source.qmp.execute("migrate-set-parameters", **limits)


def third_pass(source: Qemu) -> None:
    """Until all memory was sent, and what changed meanwhile: what is not marked now is lost."""
    while source.qmp.wait_event("MIGRATION_PASS", seconds=60)["data"]["pass"] < 3:
        pass


@pytest.mark.limit(300)
def test_what_the_disk_has_read_moves_along(
    work: Path, qemu_boot: Boot, rng: random.Random
) -> None:
    image = make_image(work / "disk.img", 64 * MIB)
    data = rng.randbytes(LENGTH * MIB)
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), data, KEPT * MIB)
    digest = hashlib.md5(data).hexdigest()
    # The device puts it into the guest's page cache, where it is found again.
    read = f"dd if=/dev/vda bs=1M skip={KEPT} count={LENGTH} 2>/dev/null | md5sum"
    busy = "while dd if=/dev/urandom of=busy bs=1M count=1; do :; done"
    with two_places(work, qemu_boot, image) as (source, target):
        source.run("sleep 1000 < /dev/vda > /dev/null 2>&1 &")  # its cache lasts while it is open
        source.run(f"({busy}) > /dev/null 2>&1 &")
        hold_back(source, True)
        source.begin_migration(target)
        third_pass(source)
        assert source.run(read).output.split()[0] == digest
        hold_back(source, False)
        source.end_migration(target)
        with open(image, "r+b") as file:  # not read again
            os.pwrite(file.fileno(), b"\xff" * (LENGTH * MIB), KEPT * MIB)
        assert target.run(read, seconds=90).output.split()[0] == digest
        begin_load(target)
        assert end_load(target)
