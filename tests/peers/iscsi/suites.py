"""Runs iscsi-test-cu against a target in this process, and reads what it says.

Invariants:

- One process a suite: the program's tests leave things behind for those after them.
- A test that skips itself, wholly or in part, has not passed.
- The program is killed when it takes longer than its deadline.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from iodma import Engine, File
from iodma.scsi import Disk, Target
from tests.peers.iscsi.server import Server

SIZE = 4 << 20
SECONDS = 50.0
#: What the program says at its end of what this target has not, whatever the suite.
_FAREWELL = "[SKIPPED] PERSISTENT RESERVE IN is not implemented."


def suites(program: str) -> list[str]:
    """The names of the suites that the program has."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=20)
    names = (line.strip() for line in listed.stdout.splitlines())
    return [name[4:] for name in names if name.startswith("ALL.") and name.count(".") == 1]


def run_suite(program: str, suite: str, lun: int, folder: Path) -> tuple[dict[str, str], str]:
    """What each test of a suite did - "passed", "failed", "skipped" - and all that was said."""
    paths = [folder / f"lun{index}.img" for index in range(3)]
    for path in paths:
        path.touch()
        os.truncate(path, SIZE)
    with (
        Engine(strict=True, slow_step=None) as engine,
        File(paths[0]) as plain,
        File(paths[1]) as removable,
        File(paths[2], read_only=True) as read_only,
    ):
        units = {
            0: Disk(plain, serial="plain"),
            1: Disk(removable, removable=True, serial="removable"),
            2: Disk(read_only, serial="read only"),
        }
        target = Target(engine, units)
        server = Server(engine, target)
        urls = [server.url(lun)] * (2 if suite == "MultipathIO" else 1)
        said = _run(engine, [program, "-d", "-S", "-v", "-t", f"ALL.{suite}", *urls], folder)
        server.close()
        engine.run(server.ended())
        target.close()
    return results(said), said


def _run(engine: Engine, command: list[str], folder: Path) -> str:
    """A program to its end, while the engine runs."""
    out = folder / "said"
    with (
        out.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as child,
    ):
        pid = os.pidfd_open(child.pid)
        engine.add_reader(pid, engine.stop)
        deadline = engine.call_later(SECONDS, child.kill)
        try:
            engine.run()
        finally:
            deadline.cancel()
            engine.remove_reader(pid)
            os.close(pid)
            child.kill()
    return out.read_text(errors="replace")


def results(said: str) -> dict[str, str]:
    """By the name of the test. One that did not come to its end is "failed"."""
    found = {}
    body = said.partition("Run Summary")[0].rstrip()
    while body.endswith(_FAREWELL):  # one for each path to the unit
        body = body.removesuffix(_FAREWELL).rstrip()
    for part in re.split(r"(?m)^(?=  Test: )", body)[1:]:
        named = re.match(r"  Test: (\S+) \.\.\.", part)
        if named is None:
            raise AssertionError(f"no test has this form: {part[:80]!r}")
        if "FAILED\n" in part or "passed" not in part:
            found[named[1]] = "failed"
        else:
            found[named[1]] = "skipped" if "[SKIPPED]" in part else "passed"
    return found
