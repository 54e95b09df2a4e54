# SPDX-License-Identifier: Apache-2.0
"""The harness of the guests: what goes wrong in a guest is told, and ends with its test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.peers.guests import jobs
from tests.peers.guests.guest import GuestError
from tests.peers.guests.images import check_filesystem, make_image
from tests.peers.guests.process import Deadline, group_lives
from tests.peers.guests.servers import Disk, ServerError, StorageDaemon
from tests.peers.guests.uml import Uml


def test_jobs_and_their_failures(work: Path, uml_root: Path) -> None:
    image = make_image(work / "disk.img", 16 * jobs.MIB)
    with (
        StorageDaemon(work, Disk(image)) as server,
        Uml(work, uml_root, server.socket, logs=[server.log]) as guest,
    ):
        guest.start()
        assert guest.run("echo one; echo two >&2; echo $0").output == "one\ntwo\n./job\n"
        assert guest.run("exit 3", status=None).status == 3
        long = "#" * 5000
        assert guest.run(f"printf 'no newline {guest.token[:4]}'\n{long}").output.endswith(
            "line " + guest.token[:4]
        )

        with pytest.raises(GuestError, match=r"status 1, not 0\n(.*\n)*--- uml.console\n"):
            guest.run("echo before; false; echo after")
        guest.submit("echo begun; sleep 100")
        guest.wait_for("begun")
        with pytest.raises(GuestError, match=r"in time\n(.*\n)*--- uml.job\nbegun"):
            guest.answer(seconds=0.1)
        pid = guest.pid
    assert not group_lives(pid)


def test_a_panic_is_told(work: Path, uml_root: Path) -> None:
    image = make_image(work / "disk.img", 16 * jobs.MIB)
    with (
        StorageDaemon(work, Disk(image)) as server,
        Uml(work, uml_root, server.socket, logs=[server.log]) as guest,
    ):
        guest.start().submit("echo c >/proc/sysrq-trigger")
        with pytest.raises(GuestError, match=r"ended instead of(.*\n)*.*Kernel panic"):
            guest.answer()


def test_a_server_that_cannot_start_says_why(work: Path, peer: Callable[[str], str]) -> None:
    peer("qemu-storage-daemon")
    with (
        pytest.raises(ServerError, match="No such file"),
        StorageDaemon(work, Disk(work / "none.img")),
    ):
        pass


def test_a_deadline_counts_only_time_in_which_this_run_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("tests.peers.guests.process.time", clock)
    deadline = Deadline(5)
    assert (deadline.left, deadline.step) == (5.0, Deadline.STEP)
    now += 1.5
    assert deadline.left == 3.5
    now += 1000  # it was stopped
    assert deadline.left == 1.5
    now += 1.0
    assert (deadline.left, deadline.step) == (0.5, 0.5)
    now += 1.0
    assert (deadline.left, deadline.step, deadline.left) == (0.0, 0.0, 0.0)


def test_a_run_that_is_killed_takes_its_processes_along(peer: Callable[[str], str]) -> None:
    peer("setpriv")
    script = (
        "import subprocess, time\n"
        "from tests.peers.guests.process import mortal\n"
        "started = subprocess.Popen(mortal(['sleep', '1000']), start_new_session=True)\n"
        "print(started.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        run.kill()
    deadline = time.monotonic() + 20
    try:
        while group_lives(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_wrong_bytes_are_found(work: Path, uml_root: Path) -> None:
    """A disk that changes under the guest is found by fio, by the digests, and by e2fsck."""
    image = make_image(work / "disk.img", 48 * jobs.MIB)
    with (
        StorageDaemon(work, Disk(image)) as server,
        Uml(work, uml_root, server.socket, logs=[server.log]) as guest,
        open(image, "r+b") as file,
    ):
        guest.start()
        wait = "echo written; while ! dd if=/dev/vda bs=512 count=1 2>/dev/null | grep -q go; do"
        wait += " echo 3 >/proc/sys/vm/drop_caches; sleep 0.1; done"
        write = jobs.fio("write", "/dev/vda", rw="write", bs="4k", offset="8m", size="1m")
        check = jobs.fio("write", "/dev/vda", rw="read", bs="4k", offset="8m", size="1m")
        guest.submit(f"{write} --verify=crc32c --do_verify=0; {wait}; {check} --verify=crc32c")
        guest.wait_for("written")
        os.pwrite(file.fileno(), b"\xff", 8 * jobs.MIB + 70_000)
        os.pwrite(file.fileno(), b"go", 0)
        with pytest.raises(GuestError, match="verify"):
            guest.answer()
        os.pwrite(file.fileno(), bytes(512), 0)
        files = jobs.filesystem(guest, image, 1)
        guest.power_off()
    jobs.after_filesystem(image, files, 1, work)
    place = image.read_bytes().rindex(Path("/bin/busybox").read_bytes()[4096:8192])
    for where in (place, 1024 + 0x38):  # the file's second block; the magic number
        with open(image, "r+b") as file:
            os.pwrite(file.fileno(), b"\xff\xfe", where)
        with pytest.raises(AssertionError):
            jobs.after_filesystem(image, files, 1, work)
        if where == place:
            check_filesystem(image)
