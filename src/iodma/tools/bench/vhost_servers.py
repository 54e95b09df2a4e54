# SPDX-License-Identifier: Apache-2.0
"""vhost-user-blk servers: how each is started.

Invariants
 - Every way to run the peer does the same for the same client: the options differ, not the disk.
"""

from __future__ import annotations

import sys

from iodma._peer import VhostBlk
from iodma.tools.bench import servers
from iodma.tools.bench.harness import BenchError
from iodma.tools.bench.servers import IMAGE, SOCKET
from iodma.tools.machine import find_program, program_version

__all__ = [
    "IMAGE",
    "PEER",
    "SOCKET",
    "Server",
    "find_storage_daemon",
    "null_storage_daemon",
    "our_server",
    "peer_variants",
    "storage_daemon",
]

PEER = "qemu-storage-daemon"


def storage_daemon(
    *, thread: bool = False, poll_max_ns: int = 0, direct: bool = False, queues: int = 1
) -> list[str]:
    """qemu-storage-daemon with an image file, as its manual has it.

    Args:
        thread: the export runs in an I/O thread, else in the main loop.
        poll_max_ns: how long that thread polls before it sleeps.
        direct: O_DIRECT.
        queues: request queues.
    """
    command = [PEER]
    export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={SOCKET}"
    export += f",writable=on,num-queues={queues}"
    if thread:
        command += ["--object", f"iothread,id=io0,poll-max-ns={poll_max_ns}"]
        export += ",iothread=io0"
    file = f"driver=file,node-name=file,filename={IMAGE},aio=io_uring,locking=off"
    file += f",cache.direct={'on' if direct else 'off'}"
    command += ["--blockdev", file, "--blockdev", "driver=raw,node-name=disk,file=file"]
    return [*command, "--export", export]


def null_storage_daemon(size: int) -> list[str]:
    """qemu-storage-daemon with a disk that does nothing."""
    disk = f"driver=null-co,node-name=disk,size={size},read-zeroes=off"
    export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={SOCKET}"
    thread = "iothread,id=io0,poll-max-ns=32768"
    return [
        *(PEER, "--object", thread, "--blockdev", disk),
        *("--export", f"{export},writable=on,iothread=io0"),
    ]


def peer_variants(direct: bool) -> dict[str, list[str]]:
    """The ways to run the peer that are tried for each row; the best one counts."""
    variants = {"main loop": storage_daemon(direct=direct)}
    for poll_max_ns in (0, 32768, 200_000):
        name = f"iothread, poll-max-ns={poll_max_ns}"
        variants[name] = storage_daemon(thread=True, poll_max_ns=poll_max_ns, direct=direct)
    return variants


def our_server(*, direct: bool = False, spin: bool = True) -> list[str]:
    """`iodma serve blk`."""
    command = [sys.executable, "-m", "iodma", "serve", "blk", "--socket-path", SOCKET]
    command += ["--blk-file", IMAGE]
    command += ["--direct"] if direct else []
    return command if spin else [*command, "--spin-us", "0"]


def find_storage_daemon() -> tuple[str, str]:
    """The peer's path and version.

    Raises:
        BenchError: there is none.
    """
    path = find_program(PEER)
    if path is None:
        raise BenchError(
            f"{PEER} is not installed, and is the peer of this benchmark:"
            " install qemu-system-common (Debian 12)"
        )
    return path, program_version(path)


class Server(servers.Server):
    """One of them, with its socket in a directory of its own."""

    def connect(self, **options: object) -> VhostBlk:
        """A client, as soon as the server listens.

        Raises:
            BenchError: it has ended, or did not listen in time.
            OSError: it was not understood.
            ValueError: an option that cannot be right, or that the server cannot meet.
        """
        return self.reach(lambda socket: VhostBlk(socket, **options))  # type: ignore[arg-type]
