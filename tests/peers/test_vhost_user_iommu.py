# SPDX-License-Identifier: Apache-2.0
"""The disk's addresses go through the guest's IOMMU, and each mapping is taken away after use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.guests import jobs
from tests.peers.guests.images import make_image
from tests.peers.guests.jobs import MIB
from tests.peers.guests.qemu import Boot, Machine, Qemu, printed_options
from tests.peers.guests.servers import Disk, Iodma

STRICT = "intel_iommu=on iommu.strict=1"
#: Of virtio's feature bits: addresses are the platform's to translate.
ACCESS_PLATFORM = 33


@pytest.mark.limit(180)
def test_every_mapping_is_taken_away_again(work: Path, qemu_boot: Boot) -> None:
    image = make_image(work / "disk.img", 64 * MIB)
    with Iodma(work, Disk(image)) as server:
        told = printed_options("--socket-path", str(server.socket), "--memory", "448M", "--iommu")
        machine = Machine(options=told, kernel=STRICT)
        with Qemu(work, qemu_boot, server.socket, machine, logs=[server.log]) as guest:
            guest.start()
            features = guest.run("cat /sys/bus/virtio/devices/virtio0/features").output
            assert features[ACCESS_PLATFORM] == "1"
            assert "strict mode" in guest.console.read_text()
            jobs.begin_load(guest)
            guest.stop_and_go(10)  # QEMU answers no miss while it waits for a ring to stop
            # QEMU cannot answer a miss while it waits for a ring to stop.
            for _ in range(5):
                guest.qmp.execute("stop")
                guest.qmp.execute("cont")
                guest.run("sleep 0.1")
            assert jobs.end_load(guest)
            files = jobs.filesystem(guest, image, 2)
            guest.power_off()
            server.stop()
    jobs.after_filesystem(image, files, 2, work)
