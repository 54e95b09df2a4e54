# SPDX-License-Identifier: Apache-2.0
"""The machines that can be held against each other, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.peers.sun4m.board import Board
from tests.peers.sun4m.qemu import Qemu, Qemu7, qemu7_sparc, qemu11_sparc
from tests.peers.sun4m.session import Session

#: Starts a machine; its sockets and its log go into the folder.
Make = Callable[[Path], Session]


def qemu11(folder: Path) -> Session:
    return Qemu(folder, qemu11_sparc(), "QEMU 11")


def qemu7(folder: Path) -> Session:
    return Qemu7(folder, qemu7_sparc(folder), "QEMU 7.2")


SIDES: dict[str, Make] = {"board": Board, "qemu11": qemu11, "qemu7": qemu7}
