# SPDX-License-Identifier: Apache-2.0
"""What this machine is and has: facts for `iodma doctor` and beside every benchmark.

Invariants
 - Only the standard library: this works where the core cannot be imported.
 - Nothing here changes the machine, and what cannot be found out is an empty string or None.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

__all__ = [
    "available_memory",
    "filesystem_of",
    "find_program",
    "kernel_release",
    "processor",
    "program_version",
    "read_text",
    "status_field",
]

#: Programs of the administrator are of use to others too, and often not on their PATH.
MORE_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"


def read_text(path: str | Path) -> str:
    """The file's text without white space at its ends; empty when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def kernel_release() -> tuple[str, tuple[int, int]]:
    """The kernel's release as it calls itself, and its first two numbers: ("6.1.0-18", (6, 1))."""
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    major, minor = (*numbers, 0, 0)[:2]
    return release, (major, minor)


def processor() -> str:
    """The processor's name, such as "AMD EPYC"."""
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def status_field(name: str, status: str = "/proc/self/status") -> str:
    """A line of /proc/self/status, such as status_field("Seccomp") -> "0"."""
    for line in read_text(status).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def available_memory() -> int | None:
    """Bytes that new work can have without swapping."""
    for line in read_text("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def filesystem_of(path: str | Path) -> str:
    """The type of the file system that `path` lies on, such as "ext4"."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in read_text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def find_program(name: str) -> str | None:
    """The path of a program, also where only the administrator's PATH has it."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{MORE_PATHS}")


def program_version(path: str, option: str = "--version") -> str:
    """The first line of what the program says its version is; empty when it says nothing."""
    try:
        done = subprocess.run(
            [path, option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if lines else ""
