# SPDX-License-Identifier: Apache-2.0
"""The client of `iodma bench vfio-user` as a driver's machine: it sets a server up and loads it.

It says what a machine monitor says: version, information, interrupts, memory, Bus Master Enable.

Invariants
 - A command that the server refuses ends the benchmark.
 - What was copied is compared with what it was copied from, once a session, and each time where one
   page is copied.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from iodma._peer import VfioUser
from iodma.tools.bench import vfio_layout as layout
from iodma.tools.bench.harness import BenchError

__all__ = ["Session"]

VERSION, DMA_MAP, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, SET_IRQS = 1, 2, 4, 5, 7, 8
REGION_READ, REGION_WRITE = 9, 10
MAY_READ, MAY_WRITE = 1, 2
DATA_EVENTFD, ACTION_TRIGGER = 4, 32
BAR0, CONFIG = 0, 7
MSIX = 2
COMMAND, MEMORY_SPACE, BUS_MASTER = 4, 2, 4
CAPABILITIES = {
    "capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "pgsizes": layout.PAGE}
}


class Session:
    """One connection to a server, with the memory of the machine.

    Args:
        socket: the server's.
        memory: a path of the memory that is shared with it.
        shared: map all of it at `layout.MEMORY_AT`, and set the interrupts up.
    """

    def __init__(self, socket: Path, memory: str, *, shared: bool = True) -> None:
        with ExitStack() as opened:
            self.client = opened.enter_context(VfioUser(socket))
            self.fd = os.open(memory, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, self.fd)
            self.memory = opened.enter_context(mmap.mmap(self.fd, layout.MEMORY_BYTES))
            self.interrupts = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
            for fd in self.interrupts:
                opened.callback(os.close, fd)
            self._greet()
            if shared:
                self._share()
            self._opened = opened.pop_all()

    def _greet(self) -> None:
        text = json.dumps(CAPABILITIES).encode() + b"\0"
        self.ask(VERSION, struct.pack("<HH", 0, 0) + text)
        self.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
        self.ask(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, BAR0, 0, 0, 0))
        self.ask(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, MSIX, 0))
        command = struct.pack("<H", MEMORY_SPACE | BUS_MASTER)
        self.ask(REGION_WRITE, struct.pack("<QII", COMMAND, CONFIG, 2) + command)

    def _share(self) -> None:
        place = (0, layout.MEMORY_AT, layout.MEMORY_BYTES)
        self.ask(DMA_MAP, struct.pack("<IIQQQ", 32, MAY_READ | MAY_WRITE, *place), [self.fd])
        flags = DATA_EVENTFD | ACTION_TRIGGER
        irqs = struct.pack("<IIIII", 20, flags, MSIX, 0, len(self.interrupts))
        self.ask(SET_IRQS, irqs, self.interrupts)

    def ask(self, command: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes:
        """A command that has to succeed, and its answer.

        Raises:
            BenchError: it was refused.
            OSError: no answer, or none that is right.
        """
        error, answer = self.client.request(command, payload, fds or [])
        if error:
            raise BenchError(f"the server refuses command {command}: {os.strerror(error)}")
        return answer

    def read(self, offset: int, width: int) -> int:
        """A register."""
        answer = self.ask(REGION_READ, struct.pack("<QII", offset, BAR0, width))
        return int.from_bytes(answer[16 : 16 + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Sets a register."""
        access = struct.pack("<QII", offset, BAR0, width)
        self.ask(REGION_WRITE, access + value.to_bytes(width, "little"))

    # --- loops ------------------------------------------------------------------------------------

    def reads(self, seconds: float) -> dict[str, int]:
        """Reads of a register."""
        return self.client.reads(BAR0, layout.STATUS, 4, seconds=seconds)

    def prepare_page(self) -> None:
        """For `doorbells`: one page that is copied."""
        self.write(layout.SOURCE, 8, layout.MEMORY_AT + layout.PAGE_SOURCE)
        self.write(layout.TARGET, 8, layout.MEMORY_AT + layout.PAGE_TARGET)

    def doorbells(self, seconds: float) -> dict[str, int]:
        """Doorbell, copy of a page, interrupt."""
        return self.client.doorbells(
            BAR0,
            layout.COPY,
            self.memory,
            layout.PAGE_SOURCE,
            layout.PAGE_TARGET,
            layout.PAGE,
            self.interrupts[layout.PAGE_DONE],
            seconds=seconds,
        )

    def prepare_lists(self) -> None:
        """For `lists`: the ring and its tables; then one round, whose result is compared.

        Raises:
            BenchError: what was copied is not what it was copied from.
        """
        memory = np.frombuffer(self.memory, np.uint8)
        sources, targets = layout.list_tables()
        for number, table in enumerate((sources, targets)):
            on_bus = table + np.array([layout.MEMORY_AT, 0], np.uint64)
            begin = layout.TABLES_AT + number * table.nbytes
            memory[begin : begin + table.nbytes] = np.frombuffer(on_bus.tobytes(), np.uint8)
            for at in table[:, 0].tolist():
                page = os.urandom(layout.PAGE) if number == 0 else bytes(layout.PAGE)
                memory[at : at + layout.PAGE] = np.frombuffer(page, np.uint8)
        each = layout.SEGMENTS * layout.ENTRY_BYTES
        for number in range(layout.LISTS):
            begin = layout.MEMORY_AT + layout.TABLES_AT + number * each
            fields = (begin, begin + sources.nbytes, layout.SEGMENTS, 0, 0, 0)
            at = layout.RING_AT + number * layout.DESCRIPTOR_BYTES
            struct.pack_into("<QQIIII", self.memory, at, *fields)
        self.write(layout.ENTRIES, 4, layout.LISTS)
        self.write(layout.RING, 8, layout.MEMORY_AT + layout.RING_AT)
        self.run_lists(seconds=60.0, requests=layout.LISTS)
        for source, target in zip(sources[:, 0].tolist(), targets[:, 0].tolist(), strict=True):
            if (
                self.memory[source : source + layout.PAGE]
                != (self.memory[target : target + layout.PAGE])
            ):
                raise BenchError(f"the page at {target:#x} is not a copy of that at {source:#x}")

    def run_lists(self, seconds: float, requests: int = 0) -> dict[str, int]:
        """Keeps the ring of lists full."""
        return self.client.lists(
            BAR0,
            layout.TAIL,
            self.memory,
            layout.RING_AT,
            layout.LISTS,
            layout.GROUP,
            layout.LIST_BYTES,
            self.interrupts[layout.LISTS_DONE],
            seconds=seconds,
            requests=requests,
        )

    def map_regions(self) -> int:
        """Maps all the small regions, one message each: nanoseconds."""
        return self.client.map(*self._regions(), step=layout.FILE_STEP)["ns"]

    def unmap_regions(self) -> int:
        """Unmaps them: nanoseconds."""
        return self.client.unmap(*self._regions(), step=layout.FILE_STEP)["ns"]

    def _regions(self) -> tuple[int, int, int, int]:
        return self.fd, layout.FIRST_REGION, layout.REGIONS, layout.FILE_PAGES

    def mappings(self, pid: int) -> int:
        """How often another process has the memory mapped: lines of its /proc/PID/maps."""
        inode = os.fstat(self.fd).st_ino
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return sum(line.split()[4] == str(inode) for line in lines)

    def close(self) -> None:
        """Closes the connection."""
        self._opened.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
