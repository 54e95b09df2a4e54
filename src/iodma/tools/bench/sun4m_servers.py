# SPDX-License-Identifier: Apache-2.0
"""The machines of `iodma bench sun4m`: how ours is started, and how QEMU's SS-5 is, as a peer.

Invariants
 - QEMU is 11 or later, with its qtest accelerator: no processor runs, time stands still.
 - It has the same network and the same disk as ours, and sees them through the page cache, too.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.servers import IMAGE, SOCKET

__all__ = ["NETWORK", "our_machine", "qemu_machine"]

#: Stands for the number of the network's descriptor.
NETWORK = "%NETWORK%"
#: A command that starts QEMU, instead of the one that is found.
VARIABLE = "IODMA_QEMU_SPARC"
PROGRAM = "qemu-system-sparc"
SUITE = "trixie-backports"
SCRIPT = Path(__file__).parents[4] / "scripts" / "foreign_debian.sh"
FETCH_S = 170.0


def our_machine(*, network: bool = False, disk: bool = False) -> list[str]:
    """The board, served."""
    command = [sys.executable, "-m", "iodma.tools.bench.sun4m_machine", "--socket-path", SOCKET]
    command += ["--network", NETWORK] if network else []
    return command + (["--disk", IMAGE] if disk else [])


def qemu_machine(*, network: bool = False, disk: bool = False) -> list[str]:
    """QEMU's SS-5.

    Raises:
        BenchError: there is none.
    """
    command = [*find_qemu(), "-accel", "qtest", "-M", "SS-5", "-m", f"{layout.RAM_BYTES >> 20}M"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    command += ["-qtest", f"unix:{SOCKET},server=on,wait=off", "-qtest-log", "/dev/null"]
    if network:
        command += ["-netdev", f"dgram,id=net,local.type=fd,local.str={NETWORK}"]
        command += ["-net", "nic,model=lance,netdev=net"]
    if disk:
        command += ["-drive", f"if=none,id=disk,file={IMAGE},format=raw,cache=writeback"]
        command += ["-device", "scsi-hd,drive=disk,scsi-id=0"]
    return command


def find_qemu() -> list[str]:
    """What starts QEMU 11's `qemu-system-sparc`.

    The checkout's script fetches it from Debian the first time, which takes half a minute.

    Raises:
        BenchError: it cannot be had.
    """
    if given := os.environ.get(VARIABLE):
        return shlex.split(given)
    if not SCRIPT.exists():
        raise BenchError(f"no {PROGRAM}: run from a checkout, or set {VARIABLE} to a command")
    try:
        done = subprocess.run(
            [str(SCRIPT), SUITE, PROGRAM],
            capture_output=True,
            text=True,
            timeout=FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"no {PROGRAM}: {SCRIPT.name} took more than {FETCH_S:.0f} s") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise BenchError(f"no {PROGRAM} of Debian {SUITE}: {why}; or set {VARIABLE} to a command")
    root = Path(done.stdout.strip())
    libraries = {
        str(place.resolve())
        for pattern in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu")
        for place in root.glob(pattern)
    }
    for place in list(libraries):
        libraries |= {str(inner) for inner in Path(place).glob("pulseaudio")}
    loader = next(root.glob("lib/*-linux-gnu/ld-linux-*.so.*"))
    modules = next(root.glob("usr/lib/*-linux-gnu/qemu"))  # its accelerator is one of them
    command = [
        "env",
        f"QEMU_MODULE_DIR={modules}",
        str(loader),
        "--library-path",
        os.pathsep.join(sorted(libraries)),
    ]
    return [*command, str(root / "usr/bin" / PROGRAM), "-L", str(root / "usr/share/qemu")]
