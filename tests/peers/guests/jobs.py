# SPDX-License-Identifier: Apache-2.0
"""What guests are made to do with a disk, and what must be true of its image afterwards.

Invariants:

- A job leaves the disk unmounted, and checks in the guest what the guest can see; `after` functions
  check on this side, when the guest has ended.
- fio's data carries CRC32C of its own; files are compared by their MD5 in the guest and on the
  image. A kernel that reports an error on its console fails the job whatever the programs say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.peers.guests.guest import Guest
from tests.peers.guests.images import allocated, check_filesystem, file_digest

MIB = 1 << 20
TROUBLE = re.compile(r"I/O error|EXT4-fs (error|warning)|BUG:|WARNING:|Call Trace|blocked for")


def no_trouble(guest: Guest) -> None:
    """The guest's kernel has nothing to say against its disk since it was last started."""
    lines = guest.console.read_text(errors="replace").rpartition("Linux version")[2].splitlines()
    bad = [line for line in lines if TROUBLE.search(line)]
    if bad:
        raise guest.failed("complains: " + "; ".join(bad[:5]))


def fio(name: str, target: str, **options: object) -> str:
    """A command line of fio: one job on one file or device, ended by its first wrong byte."""
    merged: dict[str, object] = {
        "ioengine": "libaio",
        "iodepth": 16,
        "direct": 1,
        "randrepeat": 0,
        "verify_fatal": 1,
        "verify_state_save": 0,
        **options,
    }
    words = [f"--{key}={value}" for key, value in merged.items()]
    return " ".join(
        ["fio", "--output-format=terse", f"--name={name}", f"--filename={target}", *words]
    )


def raw_verify(guest: Guest, mebibytes: int, *, block: int = 512, seconds: float = 40) -> None:
    """Random reads, writes and trims, at once and verified, on the bare disk of >= 3 * `mebibytes`.

    Trimmed blocks must read as zeroes: that is what a hole in the image does.

    Args:
        block: Logical block size in bytes, which some of the writes have.
    """
    size = f"{mebibytes}m"
    sizes = {"rw": "randrw", "bsrange": "4k-32k", "verify": "crc32c", "verify_backlog": 64}
    mixed = fio("mixed", "/dev/vda", size=size, **sizes)
    small = {"rw": "randwrite", "bs": block, "io_size": 512 * block, "verify": "crc32c"}
    trim = {"rw": "randtrim", "bs": "16k", "ioengine": "sync", "iodepth": 1}
    begin = 2 * mebibytes
    guest.run(
        f"""
        {mixed} >mixed.log 2>&1 & mixed=$!
        {fio("small", "/dev/vda", offset=f"{mebibytes}m", size=size, **small)} >small.log 2>&1 &
        small=$!
        dd if=/dev/urandom of=/dev/vda bs=1M seek={begin} count={mebibytes} conv=fsync 2>/dev/null
        status=0
        {fio("trim", "/dev/vda", offset=f"{begin}m", size=size, **trim)} || status=$?
        wait $mixed || {{ status=$?; cat mixed.log; }}
        wait $small || {{ status=$?; cat small.log; }}
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/vda of=trimmed bs=1M skip={begin} count={mebibytes} 2>/dev/null
        left=$(tr -d '\\0' <trimmed | wc -c)
        echo "not zero after trim: $left"
        [ "$left" = 0 ]
        exit $status
        """,
        seconds=seconds,
    )
    no_trouble(guest)


@dataclass(frozen=True)
class Files:
    """What `filesystem` left on the disk.

    Attributes:
        digests: Path -> MD5, as the guest read them from the disk.
        before, after: Allocated bytes of the image around fstrim.
    """

    digests: dict[str, str]
    before: int
    after: int


def filesystem(guest: Guest, image: Path, mebibytes: int, seconds: float = 40) -> Files:
    """ext4: made, filled, verified by fio, mounted again, read back, a large file removed, trimmed.

    Args:
        mebibytes: How much is written by fio, and again by copying.
    """
    options = {"size": f"{mebibytes}m", "verify": "crc32c"}
    direct = fio("direct", "/mnt/direct", rw="randrw", bsrange="4k-64k", **options)
    paged = fio("paged", "/mnt/paged", rw="randwrite", bs="4k", **{**options, "direct": 0})
    told = guest.run(
        f"""
        mkfs.ext4 -q /dev/vda
        mount /dev/vda /mnt
        {direct}
        {paged} --fsync=32
        mkdir /mnt/folder
        dd if=/dev/urandom of=/mnt/folder/random bs=64k count={mebibytes * 16} 2>/dev/null
        cp /bin/busybox /mnt/folder
        ln /mnt/folder/busybox /mnt/again
        dd if=/dev/urandom of=/mnt/large bs=64k count={mebibytes * 16} conv=fsync 2>/dev/null
        umount /mnt
        echo 3 >/proc/sys/vm/drop_caches
        mount /dev/vda /mnt
        cd /mnt
        cmp folder/busybox /bin/busybox
        echo begin
        md5sum direct paged folder/random folder/busybox again
        """,
        seconds=seconds,
    ).output
    before = allocated(image)
    guest.run(
        """
        rm /mnt/large
        sync
        fstrim /mnt
        umount /mnt
        e2fsck -fn /dev/vda
        """
    )
    no_trouble(guest)
    lines = told.partition("begin\n")[2].splitlines()
    digests = {name: digest for digest, name in (line.split() for line in lines)}
    return Files(digests, before, allocated(image))


def after_filesystem(image: Path, files: Files, mebibytes: int, scratch: Path) -> None:
    """What `filesystem` promised is on the image."""
    check_filesystem(image)
    assert len(files.digests) == 5
    found = {name: file_digest(image, name, scratch) for name in files.digests}
    assert found == files.digests
    holes = files.before - files.after
    assert holes >= mebibytes * MIB, f"fstrim gave back {holes} bytes"


def read_queue(guest: Guest) -> dict[str, str]:
    """What the guest's kernel knows of the disk: file in /sys/block/vda -> content."""
    names = "size ro serial cache_type queue/*"
    told = guest.run(
        f'cd /sys/block/vda; for name in {names}; do echo "$name=$(cat $name 2>/dev/null)"; done'
    )
    return dict(line.split("=", 1) for line in told.output.splitlines() if "=" in line)


def begin_load(guest: Guest, *, loaders: int = 2, mebibytes: int = 2, begin: int = 0) -> None:
    """Leaves programs running that write, read and verify without end; returns when they do so.

    Each of them has an area of its own of `mebibytes`, the first one at `begin` MiB. Nothing else
    may write there. `end_load` asks for what they found.
    """
    options = {"rw": "randrw", "rwmixread": 30, "bsrange": "4k-16k", "verify": "crc32c"}
    areas = ((name, begin + name * mebibytes) for name in range(loaders))
    commands = [
        fio(f"load{name}", "/dev/vda", offset=f"{place}m", size=f"{mebibytes}m", **options)
        for name, place in areas
    ]
    loops = "\n".join(
        f"""
        (
            while [ ! -e load.stop ]; do
                {command} >load.{name}.log 2>&1 || {{ echo $? >load.{name}.failed; break; }}
                echo pass >>load.passes
            done
            echo ended >>load.ended
        ) >/dev/null 2>&1 &
        """
        for name, command in enumerate(commands)
    )
    guest.run(
        f"""
        rm -f load.*
        : >load.passes >load.ended
        writes() {{ set -- $(cat /sys/block/vda/stat); echo $5; }}
        before=$(writes)
        {loops}
        while [ $(($(writes) - before)) -lt 20 ]; do
            [ ! -s load.ended ] || {{ cat load.*.log; exit 1; }}
            sleep 0.1
        done
        """,
        seconds=60,  # an emulated processor takes long to start its first fio
    )


def wait_writes(guest: Guest, count: int, seconds: float = 120) -> None:
    """Until the disk has answered so many more writes."""
    guest.run(
        f"""
        writes() {{ set -- $(cat /sys/block/vda/stat); echo $5; }}
        before=$(writes)
        while [ $(($(writes) - before)) -lt {count} ]; do sleep 0.1; done
        """,
        seconds=seconds,
    )


def end_load(guest: Guest, *, loaders: int = 2, seconds: float = 40) -> int:
    """Ends what `begin_load` began, which must have found every byte as it was written.

    Returns:
        How many times a loader wrote and verified its whole area.
    """
    told = guest.run(
        f"""
        touch load.stop
        while [ $(wc -l <load.ended) -lt {loaders} ]; do sleep 0.1; done
        for failed in load.*.failed; do
            [ ! -e "$failed" ] || cat load.*.log
            [ ! -e "$failed" ]
        done
        wc -l <load.passes
        """,
        seconds=seconds,
    )
    no_trouble(guest)
    return int(told.output.split()[-1])
