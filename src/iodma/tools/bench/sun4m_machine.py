# SPDX-License-Identifier: Apache-2.0
"""Our machine of `iodma bench sun4m`: a SPARCstation 5 behind a qtest socket.

    python -m iodma.tools.bench.sun4m_machine --socket-path S [--network FD] [--disk FILE]

Invariants
 - The board is the one that users have, and its time stands, as that of QEMU's; nothing is done for
   the benchmark but that the engine's own counters can be read, at an address where the machine has
   nothing.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

import iodma
from iodma.boards.sun4m import Sun4m
from iodma.engine.dump import dump_on_signal
from iodma.scsi import Disk, Target
from iodma.tools.bench import sun4m_layout as layout
from iodma.tools.serve_sun4m import LINGER_US
from iodma.transports.qtest import QtestServer, SteppedClock

__all__ = ["main"]


class Counters:
    """What the engine has counted, as registers."""

    def __init__(self, engine: iodma.Engine) -> None:
        self._engine = engine

    def read(self, offset: int, width: int) -> int:
        """One of the counters; all is zero elsewhere."""
        stats = self._engine.stats()
        counted = {
            layout.COPIED: stats.copied,
            layout.PYTHON_BYTES: stats.python_bytes,
            layout.FROM_MEMORY: stats.bytes_from_memory,
            layout.TO_MEMORY: stats.bytes_to_memory,
        }
        return counted.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        """Nothing."""


async def serve(engine: iodma.Engine, board: Sun4m, path: str) -> None:
    """Until the process ends."""
    async with QtestServer(engine, board.machine, path, linger_us=LINGER_US) as server:
        await server.wait()


def main(arguments: list[str]) -> int:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m iodma.tools.bench.sun4m_machine")
    parser.add_argument("--socket-path", metavar="S", required=True)
    parser.add_argument("--network", metavar="FD", type=int)
    parser.add_argument("--disk", metavar="FILE")
    options = parser.parse_args(arguments)
    dump_on_signal()
    with ExitStack() as opened:
        engine = opened.enter_context(iodma.Engine(clock=SteppedClock()))
        network, targets = None, {}
        if options.network is not None:
            network = opened.enter_context(iodma.Datagram(options.network))
        if options.disk is not None:
            file = opened.enter_context(iodma.File(options.disk))
            targets[0] = Target(engine, Disk(file))
            opened.callback(targets[0].close)
        board = Sun4m(engine, memory=layout.RAM_BYTES, network=network, targets=targets)
        opened.enter_context(board)
        board.space.add_window(layout.COUNTERS, 32, Counters(engine))
        engine.run(serve(engine, board, options.socket_path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
