# SPDX-License-Identifier: Apache-2.0
"""vhost-user-blk servers as processes: how each is started, and what it has used of its processor.

Invariants
 - A server belongs to the process that started it and does not outlive it, however that one ends.
 - It is pinned before its first instruction; what it says goes to a file, for the error message.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from iodma._peer import VhostBlk
from iodma.tools.bench.harness import BenchError
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
#: Stand for the two paths in a command, and are what the report shows.
SOCKET, IMAGE = "%SOCKET%", "%IMAGE%"
START_S = 15.0
STOP_S = 2.0
PR_SET_PDEATHSIG = 1


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


class Server:
    """A server with its socket in a directory of its own.

    Args:
        command: with `SOCKET` and `IMAGE` where the paths go.
        image: the file that it serves; default: none.
        cpu: the processor it is pinned to; default: as we are.
    """

    def __init__(self, command: Sequence[str], image: Path | None, cpu: int | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="iodma-serve-")
        self.socket = Path(self._directory.name) / "s"
        self._errors = Path(self._directory.name) / "errors"
        paths = {SOCKET: str(self.socket), IMAGE: str(image)}
        words = []
        for word in command:
            for name, path in paths.items():
                word = word.replace(name, path)
            words.append(word)
        self._command = shlex.join(command)
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    preexec_fn=prepare(cpu),
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )
        except BaseException:
            self._directory.cleanup()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self, **options: object) -> VhostBlk:
        """A client, as soon as the server listens.

        Raises:
            BenchError: it has ended, or did not listen in time.
            OSError: it was not understood.
            ValueError: an option that cannot be right, or that the server cannot meet.
        """
        deadline = time.monotonic() + START_S
        while True:
            try:
                return VhostBlk(self.socket, **options)  # type: ignore[arg-type]
            except (FileNotFoundError, ConnectionRefusedError):
                if (status := self._process.poll()) is not None:
                    reason = f"ended with {status}: {self.said()}"
                elif time.monotonic() > deadline:
                    reason = f"did not listen within {START_S:.0f} s: {self.said()}"
                else:
                    time.sleep(0.01)
                    continue
            raise BenchError(f"{self._command} {reason}")

    def processor_ns(self) -> int:
        """Nanoseconds of processor time that its threads have used, the kernel's for them included.

        Raises:
            OSError: it has ended.
        """
        return time.clock_gettime_ns(process_clock(self._process.pid))

    def said(self) -> str:
        """The last line that it wrote."""
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """Ends it, by SIGTERM, and when that does not do by SIGKILL."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(OSError):
            self._directory.cleanup()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def process_clock(pid: int) -> int:
    """The clock of another process's processor time, as clock_getcpuclockid(3) makes it."""
    CPUCLOCK_SCHED = 2
    return (~pid << 3) | CPUCLOCK_SCHED


def prepare(cpu: int | None) -> Callable[[], None]:
    """What the server's process does before it becomes the server."""
    prctl = ctypes.CDLL(None).prctl

    def run() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return run
