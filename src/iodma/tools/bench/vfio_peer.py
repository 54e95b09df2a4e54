# SPDX-License-Identifier: Apache-2.0
"""The peers of `iodma bench vfio-user` that are servers: C loops of `iodma._peer`, as a process.

    python -m iodma.tools.bench.vfio_peer echo --socket-path S

"echo" answers each message and closes the descriptors that come with it; "doorbell" copies a page
when its register is written, and does nothing else that a device does.

Invariants
 - Once the socket is there all is C: the interpreter waits for the loop to end, and it never does.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys

from iodma import _peer
from iodma.tools.bench import vfio_layout as layout

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m iodma.tools.bench.vfio_peer")
    parser.add_argument("what", choices=("echo", "doorbell"))
    parser.add_argument("--socket-path", metavar="S", required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(options.socket_path)
        listener.listen(1)
        _peer.vfio_serve(
            listener.fileno(),
            copies=options.what == "doorbell",
            source=layout.SOURCE,
            target=layout.TARGET,
            doorbell=layout.COPY,
            bytes=layout.PAGE,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
