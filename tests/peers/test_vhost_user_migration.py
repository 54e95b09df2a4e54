# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one QEMU to another while it writes: each has a server on the same image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB, begin_load, end_load
from tests.peers.guests.migration import two_places
from tests.peers.guests.qemu import Boot


@pytest.mark.limit(180)
def test_live_migration(work: Path, qemu_boot: Boot) -> None:
    image = make_image(work / "disk.img", 64 * MIB)
    with two_places(work, qemu_boot, image) as (source, target):
        begin_load(source)
        source.migrate(target)
        assert end_load(target)
        begin_load(target)
        assert end_load(target)
