# SPDX-License-Identifier: Apache-2.0
"""`iodma serve sun4m`: a SPARCstation 5 that programs drive over QEMU's qtest protocol.

Invariants
 - What cannot work fails before the socket is there, with one line.
 - The machine is made once; clients that come and go leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from iodma.boards.sun4m import Sun4m
from iodma.endpoints import Endpoint, File, Nbd
from iodma.engine import Engine
from iodma.errors import ArgumentError
from iodma.scsi import Disk, Target
from iodma.tools.netdev import network
from iodma.tools.serve import lock_image
from iodma.tools.service import Service, Where, socket_path
from iodma.trace import attach
from iodma.transports.qtest import QtestServer, SteppedClock

__all__ = ["Options", "serve"]

#: SCSI IDs of targets: 7 is the ESP's own.
MOST_DRIVES = 7
#: A client that asks again so soon has the engine for itself, as nothing else is served here.
LINGER_US = 100


@dataclass(frozen=True, slots=True)
class Options:
    """What is served, and how.

    Attributes:
        where: where clients connect, and for how long.
        memory: bytes of RAM.
        netdev: what LANCE is connected to, as `tools.netdev` has it; None: to nothing.
        drives: disks on the SCSI bus, from ID 0 on: images, block devices, URIs of NBD exports.
        engine: "auto", "uring" or "threads".
        trace: the file to write a trace to; None: no trace.
    """

    where: Where
    memory: int = 64 << 20
    netdev: str | None = None
    drives: Sequence[Path | str] = ()
    engine: str = "auto"
    trace: Path | None = None


def serve(options: Options, tell: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT, the end of the command, or that of a connection given.

    Args:
        tell: is given a line when clients can connect.

    Returns:
        The exit status: the command's, or 0.

    Raises:
        ArgumentError, BusyError, OSError: it cannot be served so.
    """
    if len(options.drives) > MOST_DRIVES:
        raise ArgumentError(f"{len(options.drives)} drives: at most {MOST_DRIVES} would be right")
    with ExitStack() as stack:
        path = stack.enter_context(socket_path(options.where, "sun4m"))
        cable: Endpoint | None = None
        engine = stack.enter_context(Engine(options.engine, name="sun4m", clock=SteppedClock()))
        if options.netdev is not None:
            cable = stack.enter_context(network(options.netdev))
        targets = {id: disk(each, id, engine, stack) for id, each in enumerate(options.drives)}
        board = stack.enter_context(
            Sun4m(engine, memory=options.memory, network=cable, targets=targets)
        )
        if options.trace is not None:
            attach(engine, options.trace)  # until the engine is closed, whatever ends it

        def banner(place: str) -> None:
            size = options.memory >> 20
            tell(f"iodma: a SPARCstation 5 with {size} MiB is served at {place}, by {engine.kind}")

        def server() -> QtestServer:
            fd = options.where.fd
            return QtestServer(engine, board.machine, path, fd=fd, linger_us=LINGER_US)

        return Service(engine, options.where).serve(server, banner)


def disk(image: Path | str, id: int, engine: Engine, stack: ExitStack) -> Target:
    """A target with a disk, which is locked as long as anybody else could write to it."""
    if isinstance(image, str):
        return Target(engine, Disk(stack.enter_context(Nbd(image))), name=f"disk{id}")
    file = stack.enter_context(File(image))
    lock_image(file)
    return Target(engine, Disk(file), name=f"disk{id}")
