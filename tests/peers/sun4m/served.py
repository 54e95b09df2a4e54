# SPDX-License-Identifier: Apache-2.0
"""The process that our board runs in: `python served.py QTEST-FD NET-FD RAM-FD DISK`.

Invariant: it serves one client, and ends with it.
"""

from __future__ import annotations

import socket
import sys

from iodma import Datagram, Engine, File, Ram
from iodma.boards.sun4m import Sun4m
from iodma.scsi import Disk, Target
from iodma.transports.qtest import QtestServer, SteppedClock


def main(qtest: int, net: int, ram: int, disk: str) -> None:
    clock = SteppedClock()
    with (
        Engine(clock=clock) as engine,
        socket.socket(fileno=net) as wire,
        Datagram(wire) as network,
        File(disk) as file,
        Ram.from_fd(ram) as memory,
        Sun4m(
            engine, memory=memory, network=network, targets={0: Target(engine, Disk(file))}
        ) as board,
    ):

        async def serve() -> None:
            async with QtestServer(engine, board.machine, fd=qtest) as server:
                await server.wait()

        engine.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
