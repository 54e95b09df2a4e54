# SPDX-License-Identifier: Apache-2.0
"""A real kernel mounts the disk: User Mode Linux is the vhost-user front-end.

Invariant: what is asked of iodma here is asked of another server where that answers a doubt: is it
the disk, or the job that is wrong?
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.peers.guests import jobs
from tests.peers.guests.images import check_filesystem, make_image
from tests.peers.guests.jobs import MIB
from tests.peers.guests.root import find_program
from tests.peers.guests.servers import Disk, Iodma, Server, StorageDaemon
from tests.peers.guests.uml import Uml


def uml(work: Path, root: Path, server: Server) -> Uml:
    return Uml(work, root, server.socket, logs=[server.log])


@pytest.mark.parametrize("kind", [Iodma, StorageDaemon], ids=lambda kind: kind.name)
def test_ext4(work: Path, uml_root: Path, kind: type[Server]) -> None:
    """Made, filled, verified, trimmed: the same files are on the image, and e2fsck is content."""
    image = make_image(work / "disk.img", 96 * MIB)
    with kind(work, Disk(image)) as server, uml(work, uml_root, server) as guest:
        files = jobs.filesystem(guest.start(), image, 8)
        guest.power_off()
        server.stop()
    jobs.after_filesystem(image, files, 8, work)


@pytest.mark.parametrize(
    "extra", [(), ("--engine", "threads"), ("--direct",)], ids=lambda extra: " ".join(extra)
)
def test_random_reads_writes_and_trims(work: Path, uml_root: Path, extra: tuple[str, ...]) -> None:
    image = make_image(work / "disk.img", 48 * MIB)
    block = 4096 if "--direct" in extra else 512
    disk = Disk(image, block_size=block, extra=extra)
    with Iodma(work, disk) as server, uml(work, uml_root, server) as guest:
        jobs.raw_verify(guest.start(), 12, block=block)
        guest.power_off()
        server.stop()


@pytest.mark.parametrize("block", [512, 4096])
def test_what_the_kernel_sees(work: Path, uml_root: Path, block: int) -> None:
    """Size, serial number, block sizes and limits; and a cache mode that the guest can change."""
    image = make_image(work / "disk.img", 24 * MIB)
    disk = Disk(image, block_size=block, extra=("--serial", "a disk of 20 letters"))
    with Iodma(work, disk) as server, uml(work, uml_root, server) as guest:
        seen = jobs.read_queue(guest.start())
        guest.run(
            f"""
            cd /sys/block/vda
            echo 'write through' >cache_type
            [ "$(cat cache_type) $(cat queue/write_cache)" = 'write through write through' ]
            {jobs.fio("through", "/dev/vda", rw="randwrite", bs="4k", size="1m", verify="crc32c")}
            echo 'write back' >cache_type
            [ "$(cat cache_type) $(cat queue/write_cache)" = 'write back write back' ]
            {jobs.fio("back", "/dev/vda", rw="randwrite", bs="4k", size="1m", verify="crc32c")} \\
                --fsync=1
            """
        )
        jobs.no_trouble(guest)
        guest.power_off()
        server.stop()
    assert int(seen["size"]) == 24 * MIB // 512
    assert (seen["ro"], seen["serial"]) == ("0", "a disk of 20 letters")
    assert (seen["cache_type"], seen["queue/write_cache"]) == ("write back", "write back")
    assert int(seen["queue/logical_block_size"]) == block
    assert int(seen["queue/physical_block_size"]) == 4096
    assert int(seen["queue/minimum_io_size"]) == 4096
    assert int(seen["queue/max_segments"]) == 126
    assert int(seen["queue/discard_granularity"]) == 4096
    assert int(seen["queue/discard_max_bytes"]) >= 1 << 30
    assert int(seen["queue/write_zeroes_max_bytes"]) >= 1 << 30


def test_a_disk_that_grows(work: Path, uml_root: Path) -> None:
    """The server looks again at SIGHUP; the guest hears of it, and uses what is new."""
    image = make_image(work / "disk.img", 16 * MIB)
    with Iodma(work, Disk(image)) as server, uml(work, uml_root, server) as guest:
        guest.start()
        os.truncate(image, 24 * MIB)
        os.kill(server.pid, signal.SIGHUP)
        sectors = 24 * MIB // 512
        guest.run(f"while [ $(cat /sys/block/vda/size) != {sectors} ]; do sleep 0.1; done")
        options = {"offset": "15m", "size": "9m", "bs": "64k", "verify": "crc32c"}
        guest.run(jobs.fio("new", "/dev/vda", rw="randwrite", **options))
        jobs.no_trouble(guest)
        guest.power_off()
        server.stop()


def test_a_read_only_disk(work: Path, uml_root: Path, rng: random.Random) -> None:
    """It is mounted and read; nothing gets onto it, neither writes nor discards."""
    (work / "folder").mkdir()
    data = rng.randbytes(3 * MIB + 17)
    (work / "folder/file").write_bytes(data)
    image = make_image(work / "disk.img", 24 * MIB)
    made = [find_program("mkfs.ext4"), "-q", "-d", str(work / "folder"), str(image)]
    subprocess.run(made, check=True, timeout=60)
    before = hashlib.md5(image.read_bytes()).digest()
    with (
        Iodma(work, Disk(image, read_only=True)) as server,
        uml(work, uml_root, server) as guest,
    ):
        told = guest.start().run(
            """
            cat /sys/block/vda/ro
            mount -t ext4 -o ro /dev/vda /mnt
            md5sum </mnt/file
            umount /mnt
            ! mount -t ext4 -o rw /dev/vda /mnt 2>/dev/null
            ! dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null
            ! blkdiscard /dev/vda 2>/dev/null
            e2fsck -fn /dev/vda >/dev/null 2>&1
            """
        )
        guest.power_off()
        server.stop()
    assert told.output.split() == ["1", hashlib.md5(data).hexdigest(), "-"]
    assert hashlib.md5(image.read_bytes()).digest() == before
    check_filesystem(image)
