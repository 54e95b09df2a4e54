# SPDX-License-Identifier: Apache-2.0
"""`iodma serve blk`: a file, or an NBD export, as the disk of a virtual machine, over vhost-user.

Invariants
 - What cannot work fails before the socket is there, with one line.
 - An image that may be written is locked as long as any request of this process is under way, also
   one that outlives the process: who gets the lock after that may trust the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iodma.devices.virtio_blk import SECTOR, VirtioBlk
from iodma.endpoints import File, Nbd
from iodma.engine import Engine
from iodma.errors import ArgumentError, BusyError
from iodma.tools import qemu_args
from iodma.tools.service import Service, Where, socket_path
from iodma.trace import attach
from iodma.transports.vhost_user import VhostUserServer

__all__ = ["CAPABILITIES", "Options", "serve"]

#: As `--print-capabilities` prints them.
CAPABILITIES: dict[str, Any] = {"type": "block", "features": ["blk-file", "read-only"]}

#: Seconds that the lock of a server that was killed may take to go, with its last requests.
LOCK_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is served, and how.

    Attributes:
        blk_file: the image, or block device; or the URI of an NBD export.
        socket_path, fd: where front-ends connect; neither: in a folder of its own, for `command`.
        read_only: the guest may not write.
        direct: past the page cache.
        num_queues: request queues.
        serial: what the guest sees as the disk's.
        block_size: bytes of a logical block.
        lock: see that nobody else uses the image.
        engine: "auto", "uring" or "threads".
        spin_us: the longest spin before a sleep.
        trace: the file to write a trace to; None: no trace.
        command: a shell command to serve for the life of; None: until a signal.
    """

    blk_file: Path | str
    socket_path: Path | None = None
    fd: int | None = None
    read_only: bool = False
    direct: bool = False
    num_queues: int = 1
    serial: str = ""
    block_size: int = SECTOR
    lock: bool = True
    engine: str = "auto"
    spin_us: float = 50
    trace: Path | None = None
    command: str | None = None


def serve(options: Options, tell: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT, the end of the command, or that of a connection given.

    SIGHUP looks at the image's size again.

    Args:
        tell: is given a line when front-ends can connect, and what is odd about the image.

    Returns:
        The exit status: the command's, or 0.

    Raises:
        ArgumentError, BusyError, OSError: it cannot be served so.
    """
    with ExitStack() as stack:
        disk = open_image(options)
        stack.enter_context(disk)
        where = Where(options.socket_path, options.fd, options.command)
        path = stack.enter_context(socket_path(where, "blk"))
        engine = stack.enter_context(
            Engine(options.engine, spin_us=options.spin_us, name=Path(options.blk_file).name)
        )
        device = VirtioBlk(
            disk,
            serial=options.serial,
            queues=options.num_queues,
            block_size=options.block_size,
            name="blk",
        )
        size, block = disk.size, options.block_size
        if device.size == 0:
            raise ArgumentError(f"{disk.name} has {size} bytes: less than one block of {block}")
        if rest := size - device.size:
            tell(
                f"iodma: {disk.name} has {size} bytes, which is not a multiple of {block}:"
                f" the last {rest} are not served"
            )
        if isinstance(disk, Nbd) and not (disk.can_flush or disk.read_only):
            tell(f"iodma: {disk.name} cannot flush: nobody knows when writes are on its medium")
        if options.trace is not None:
            attach(engine, options.trace)  # until the engine is closed, whatever ends it

        def words(path: str) -> str:
            guest = qemu_args.Guest(path)
            return qemu_args.render(qemu_args.disk(guest, options.num_queues))

        def banner(place: str) -> None:
            mode = ", read-only" if device.read_only else ""
            tell(
                f"iodma: {options.blk_file} ({device.size} bytes{mode}) is served at {place},"
                f" by {engine.kind}"
            )

        service = Service(engine, where, words, device.resize)
        return service.serve(lambda: VhostUserServer(engine, device, path, fd=options.fd), banner)


def open_image(options: Options) -> File | Nbd:
    """The image, locked; an export is connected to, and locks are the server's business.

    Raises:
        ArgumentError: it is neither a file nor a block device, nor the URI of an export.
        BusyError: somebody else has it.
        OSError: it cannot be opened so.
        UnsupportedError: there is no libnbd.
    """
    if isinstance(options.blk_file, str):
        return open_export(options.blk_file, options)
    disk = File(options.blk_file, read_only=options.read_only, direct=options.direct)
    try:
        if options.lock:
            lock_image(disk)
        return disk
    except BaseException:
        disk.close()
        raise


def open_export(uri: str, options: Options) -> Nbd:
    if options.direct:
        raise ArgumentError(f"{uri} has no page cache here: leave out --direct")
    disk = Nbd(uri, read_only=options.read_only)
    if options.block_size % disk.minimum_block:
        disk.close()
        raise ArgumentError(
            f"{uri} takes no blocks of {options.block_size} bytes: --block-size"
            f" {disk.minimum_block} would be right"
        )
    return disk


def lock_image(disk: File) -> None:
    """Locks it; a server that was killed a moment ago may have requests under way."""
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            disk.lock(shared=disk.read_only)
            return
        except BusyError:
            if time.monotonic() > end:
                raise
        time.sleep(0.01)
