# SPDX-License-Identifier: Apache-2.0
"""libblkio, a front-end that nobody here wrote, as a process that does what it is told.

libblkio comes with Debian 13. Its packages are unpacked by scripts/foreign_debian.sh; client.c is
compiled against them, and runs under their own loader and C library. Memory is shared with it, so
that data is put there and looked at here, and only calls and completions go through its pipes.

Invariants:

- One process for each `Blkio`, which is over when its `with` is.
- A call that fails raises `BlkioError` with libblkio's words; a request's failure is in what
  `wait` and `sleep` give.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.peers.guests.foreign import unpack

SUITE, PACKAGES = "trixie", ("libblkio-dev", "libc6-dev")
SOURCE = Path(__file__).with_name("client.c")

FUA, NO_UNMAP, NO_FALLBACK = 1, 2, 4


class BlkioError(Exception):
    """A call of libblkio's failed; `number` is its errno."""

    def __init__(self, call: str, number: int, text: str) -> None:
        super().__init__(f"{call}: error {number}, {text}")
        self.number = number


@dataclass(frozen=True)
class Program:
    """The compiled client, and what starts it."""

    command: tuple[str, ...]


def make_program(folder: Path) -> Program:
    """Compiles the client.

    Raises:
        FileNotFoundError: the packages cannot be had here, and why.
    """
    foreign = unpack(SUITE, *PACKAGES)
    program = folder / "client"
    loader = foreign.one("usr/lib/*/ld-linux*.so.*")
    libraries = loader.parent
    subprocess.run(
        [
            *("gcc", f"--sysroot={foreign.root}", "-std=gnu11", "-O1", "-g", "-Wall", "-Werror"),
            # gcc looks beside itself first, also for a sysroot.
            *(f"-B{libraries}/", f"-L{libraries}"),
            *("-o", str(program), str(SOURCE), "-lblkio"),
        ],
        timeout=60,
        check=True,
    )
    return Program((str(loader), "--library-path", str(libraries), str(program)))


class Memory:
    """A region of memory that both processes have.

    Attributes:
        index: its number there.
        bytes: the memory.
    """

    def __init__(self, index: int, fd: int, size: int) -> None:
        self.index = index
        self.bytes = mmap.mmap(fd, size)

    def piece(self, offset: int, size: int) -> str:
        """So many bytes of it, for a request."""
        return f"{self.index}:{offset}:{size}"


class Blkio:
    """libblkio's virtio-blk-vhost-user driver, connected.

    Args:
        queues, poll_queues: None: as libblkio has them.
        memories: bytes of each of the regions that are shared with it from the beginning; they
            are `memory`, and none of them is mapped.
    """

    def __init__(
        self,
        program: Program,
        socket: Path,
        *,
        read_only: bool = False,
        queues: int | None = None,
        poll_queues: int = 0,
        queue_size: int | None = None,
        memories: Iterable[int] = (),
    ) -> None:
        self._sizes = tuple(memories)
        self._fds = [os.memfd_create("test") for _ in self._sizes]
        for fd, size in zip(self._fds, self._sizes, strict=True):
            os.truncate(fd, size)
        self._process = subprocess.Popen(
            program.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self._fds,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to: IO[str] = self._process.stdin
        self._from: IO[str] = self._process.stdout
        self.memory: list[Memory] = []
        try:
            self("set read-only", "true" if read_only else "false")
            self("set path", str(socket))
            self("connect")
            if queues is not None:
                self("set num-queues", str(queues))
            self("set num-poll-queues", str(poll_queues))
            if queue_size is not None:
                self("set queue-size", str(queue_size))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = self._process.returncode is not None
        status = self._end()
        if kind is None and not killed:
            assert status == 0, f"libblkio's process ended with status {status}"

    def _end(self) -> int:
        try:
            self._to.close()
            return self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._from.close()
            for memory in self.memory:
                memory.bytes.close()
            for fd in self._fds:
                os.close(fd)

    def kill(self) -> None:
        """SIGKILL, at any time."""
        self._process.kill()
        self._process.wait()

    def __call__(self, call: str, *words: str) -> list[str]:
        """One call, in client.c's words; gives the words of its answer."""
        self._to.write(" ".join((call, *words)) + "\n")
        self._to.flush()
        outcome, *answer = self._from.readline().split() or ["nothing"]
        if outcome == "error":
            raise BlkioError(call, int(answer[0]), " ".join(answer[1:]))
        assert outcome == "ok", f"{call} {words}: libblkio's process has ended"
        return answer

    # --- the device -------------------------------------------------------------------------------

    def get(self, name: str) -> str:
        """A property."""
        return self("get", name)[0]

    def start(self) -> None:
        """Starts the rings, and shares the memory; nothing of it is mapped yet."""
        self("start")
        for fd, size in zip(self._fds, self._sizes, strict=True):
            index, _ = self("memory", str(fd), str(size))
            self.memory.append(Memory(int(index), fd, size))

    def alloc(self, size: int) -> Memory:
        """Memory that libblkio allocates."""
        index, fd = self("alloc", str(size))
        ours = os.open(f"/proc/{self._process.pid}/fd/{fd}", os.O_RDWR)
        try:
            self.memory.append(Memory(int(index), ours, size))
        finally:
            os.close(ours)
        return self.memory[-1]

    def map(self, memory: Memory) -> None:
        """Adds a memory region."""
        self("map", str(memory.index))

    def unmap(self, memory: Memory) -> None:
        """Removes a memory region; libblkio says nothing of how that went."""
        self("unmap", str(memory.index))

    @contextmanager
    def mapped(self, *memories: Memory) -> Iterator[None]:
        """Regions that are there for a while."""
        for memory in memories:
            self.map(memory)
        yield
        for memory in memories:
            self.unmap(memory)

    # --- requests ---------------------------------------------------------------------------------

    def read(self, queue: str, id: int, start: int, *pieces: str) -> None:
        self("read", queue, str(id), str(start), "0", *pieces)

    def write(self, queue: str, id: int, start: int, *pieces: str, flags: int = 0) -> None:
        self("write", queue, str(id), str(start), str(flags), *pieces)

    def zeroes(self, queue: str, id: int, start: int, size: int, flags: int = 0) -> None:
        self("zeroes", queue, str(id), str(start), str(size), str(flags))

    def discard(self, queue: str, id: int, start: int, size: int) -> None:
        self("discard", queue, str(id), str(start), str(size), "0")

    def flush(self, queue: str, id: int) -> None:
        self("flush", queue, str(id))

    def wait(self, queue: str, count: int, how: str = "wait") -> dict[int, int]:
        """Waits for so many of a queue's requests, and gives the result of each by its id.

        Args:
            how: "wait" in libblkio, which polls on a poll queue; "sleep" on the completion
                descriptor.
        """
        results: dict[int, int] = {}
        for each in self(how, queue, str(count)):
            id, result = each.split(":")
            assert id != "failed", f"error {-int(result)} after {sorted(results)} were complete"
            assert int(id) not in results, f"request {id} is complete twice"
            results[int(id)] = int(result)
        return results
