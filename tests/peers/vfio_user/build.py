# SPDX-License-Identifier: Apache-2.0
"""Drivers for the guests, compiled when they are needed: programs, and modules of Debian's kernels.

Invariants:

- A program is one static file, made by this machine's gcc.
- A module is built against Debian's header packages, which are unpacked and not installed; where
  they are another architecture's, by Debian's cross compiler, unpacked as well.
- The sources are copied first: nothing is written beside them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.peers.guests.foreign import Foreign, unpack

SOURCES = Path(__file__).with_name("guest")
SUITE = "bookworm"


@dataclass(frozen=True)
class Kernel:
    """A kernel of Debian's with all that belongs to it.

    Attributes:
        files: the unpacked packages.
        arch: Debian's name of its architecture.
        tools: the folder with what this machine runs to build a module for it.
        cross: the folder with the compiler; None: this machine's own.
    """

    files: Foreign
    arch: str
    tools: Foreign
    cross: Foreign | None = None

    @property
    def image(self) -> Path:
        return self.files.one("boot/vmlinuz-*")

    @property
    def modules(self) -> Path:
        return self.files.one("lib/modules/*")


def amd64() -> Kernel:
    """Raises FileNotFoundError where its packages cannot be had."""
    files = unpack(SUITE, "linux-image-amd64", "linux-headers-amd64", "pciutils")
    return Kernel(files, "amd64", files)


def s390x() -> Kernel:
    """Raises FileNotFoundError where its packages cannot be had."""
    packages = ("linux-image-s390x", "linux-headers-s390x", "busybox-static")
    files = unpack(SUITE, *packages, arch="s390x")
    return Kernel(files, "s390x", amd64().files, unpack(SUITE, "gcc-s390x-linux-gnu"))


def compile_program(name: str, folder: Path) -> Path:
    """`guest/NAME.c` as a program for this architecture."""
    out = folder / name
    flags = ("-static", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *flags, "-o", str(out), str(SOURCES / f"{name}.c")], check=True)
    return out


def compile_module(name: str, kernel: Kernel, folder: Path, sources: Path = SOURCES) -> Path:
    """NAME.c of a folder that has a Kbuild, as a module of this kernel."""
    build = folder / "build"
    shutil.copytree(sources, build)
    headers = _headers(kernel, folder / "headers")
    compiler = ["CC=gcc"]
    environment = dict(os.environ)
    if kernel.cross:
        gcc = kernel.cross.one("usr/bin/*-linux-gnu-gcc")
        compiler = [f"CROSS_COMPILE={str(gcc).removesuffix('gcc')}", f"CC={gcc}"]
        places = (str(place) for place in kernel.cross.libraries)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(places)
    makefile = headers.parent / "common" / "Makefile"
    done = subprocess.run(
        [
            *("make", "--silent", "-C", str(headers), "-f", str(makefile)),
            *(f"M={build}", *compiler, "KCFLAGS=-Wall -Werror", "modules"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return build / f"{name}.ko"


def _headers(kernel: Kernel, folder: Path) -> Path:
    """The header packages as links, with the scripts and tools of this machine's architecture."""
    tools = kernel.tools.one("usr/lib/linux-kbuild-*")
    for name in (kernel.arch, "common"):
        (folder / name).mkdir(parents=True)
        for path in kernel.files.one(f"usr/src/linux-headers-*-{name}").iterdir():
            here = tools / path.name if path.name in ("scripts", "tools") else path
            (folder / name / path.name).symlink_to(here)
    return folder / kernel.arch
