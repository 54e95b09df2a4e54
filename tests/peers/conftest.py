# SPDX-License-Identifier: Apache-2.0
"""What the tests with guests share: their roots, made once a run, and a folder for each test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.qemu import Boot, make_boot
from tests.peers.guests.uml import make_uml_root
from tests.peers.vfio_user.machine import make_s390x_boot, make_vfio_boot
from tests.peers.vfio_user.machine import qemu11 as unpack_qemu11

TOOLS = ("busybox", "fio", "mkfs.ext4", "e2fsck", "debugfs")


@contextmanager
def needed() -> Iterator[None]:
    """A file of a package that is missing skips the test, and fails it under CI."""
    try:
        yield
    except FileNotFoundError as error:
        reason = f"{error}; scripts/prerequisites.sh test lists what is needed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def uml_root(peer: Callable[[str], str]) -> Iterator[Path]:
    """The root folder of UML guests; skips, or fails under CI, where something is missing."""
    for name in ("linux.uml", *TOOLS):
        peer(name)
    with tempfile.TemporaryDirectory(prefix="iodma-uml-") as folder:
        with needed():
            root = make_uml_root(Path(folder) / "root")
        yield root


@pytest.fixture(scope="session")
def qemu_boot(peer: Callable[[str], str]) -> Iterator[Boot]:
    """What QEMU guests are started from."""
    for name in ("qemu-system-x86_64", *TOOLS):
        peer(name)
    with tempfile.TemporaryDirectory(prefix="iodma-qemu-") as folder:
        with needed():
            boot = make_boot(Path(folder) / "boot")
        yield boot


@pytest.fixture(scope="session")
def qemu11(peer: Callable[[str], str]) -> Foreign:
    """QEMU with vfio-user-pci, unpacked; fetched the first time."""
    for name in ("mmdebstrap", "setpriv"):
        peer(name)
    with needed():
        found = unpack_qemu11()
    return found


@pytest.fixture(scope="session")
def vfio_boot(peer: Callable[[str], str]) -> Iterator[Boot]:
    """What guests with PCI functions are started from; its packages are fetched the first time."""
    yield from _boot(peer, make_vfio_boot)


@pytest.fixture(scope="session")
def s390x_boot(peer: Callable[[str], str]) -> Iterator[Boot]:
    """... on a big-endian processor."""
    yield from _boot(peer, make_s390x_boot)


def _boot(peer: Callable[[str], str], make: Callable[[Path], Boot]) -> Iterator[Boot]:
    for name in ("busybox", "gcc", "make", "mmdebstrap"):
        peer(name)
    with tempfile.TemporaryDirectory(prefix="iodma-vfio-") as folder:
        with needed():
            boot = make(Path(folder) / "boot")
        yield boot


@pytest.fixture
def work() -> Iterator[Path]:
    """An empty folder whose name is short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="iodma-") as folder:
        yield Path(folder)
