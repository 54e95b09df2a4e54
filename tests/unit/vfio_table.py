"""A table of DMA regions with a device's port on its memory, and the guest memory that is mapped.

Invariants:

- Guest memory is a file that the test writes to and reads from by itself, not through the table.
- Deadlines run on a clock that the test advances.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Access
from iodma.testing import Clock, strict_engine
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.messages import Refusal
from iodma.transports.vfio_user.remote import Remote

PAGE = 4096
TOP = 1 << 64
READ, WRITE, RW = 1, 2, 3
MMAP, FILE_IO = 4, 8


class Session:
    """A table, a device's port on its memory, and a file of guest memory."""

    def __init__(self, pages: int = 64) -> None:
        self.stack = ExitStack()
        self.asked: list[tuple[int, int, bytes]] = []
        self.clock = Clock()
        self.engine = self.stack.enter_context(strict_engine(clock=self.clock))
        self.memory = iodma.Memory(name="dma")
        self.remote = Remote(self.ask)
        self.table = DmaTable(self.engine, self.memory, self.remote)
        self.port = self.engine.port(self.memory)
        self.fd = self.file(pages * PAGE)

    def ask(self, id: int, command: int, payload: bytes) -> None:
        self.asked.append((id, command, payload))

    def file(self, size: int) -> int:
        fd = os.memfd_create("guest")
        self.stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def map(
        self,
        address: int,
        size: int = PAGE,
        flags: int = RW,
        fd: int | None = None,
        offset: int = 0,
        *,
        shared: bool = True,
    ) -> None:
        """With a descriptor of its own for each, as a client sends them."""
        if not shared:
            self.table.map(address, size, flags, None, offset)
            return
        with Descriptor(os.dup(self.fd if fd is None else fd)) as descriptor:
            self.table.map(address, size, flags, descriptor, offset)

    def refused(self, *args: Any, call: Callable[..., Any] | None = None, **kw: Any) -> int:
        before = self.table.regions
        with pytest.raises(Refusal) as caught:
            (call or self.map)(*args, **kw)
        assert self.table.regions == before
        return caught.value.errno

    def where(self, address: int, access: Access = Access.READ) -> int | None:
        """The offset in the file that a byte is mapped to."""
        found = self.memory.translate((address, 1), access)
        return None if isinstance(found, iodma.Fault) else found[0][2]

    def run(self, main: Any) -> Any:
        return self.engine.run(main)

    def close(self) -> None:
        self.run(self.table.close())
        assert self.table.regions == self.table.mappings == 0
        self.stack.close()


def mapped() -> int:
    return sum("memfd:guest" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture(name="session")
def session_fixture() -> Iterator[Session]:
    made = Session()
    yield made
    made.close()
