# SPDX-License-Identifier: Apache-2.0
"""vfio-user servers: how each is started.

Invariants
 - Each is a process of its own, and takes the path of its socket.
"""

from __future__ import annotations

import sys

from iodma.tools.bench.servers import SOCKET

__all__ = ["our_server", "peer_server"]


def our_server() -> list[str]:
    """The device of this benchmark, served."""
    return [sys.executable, "-m", "iodma.tools.bench.vfio_device", "--socket-path", SOCKET]


def peer_server(what: str) -> list[str]:
    """A server in C: "echo" or "doorbell"."""
    return [sys.executable, "-m", "iodma.tools.bench.vfio_peer", what, "--socket-path", SOCKET]
