# SPDX-License-Identifier: Apache-2.0
"""Host mappings of the files that a client shares: one a file, whatever the number of its regions.

A guest behind an IOMMU makes thousands of regions of a page, all in one file, and makes and unmakes
them all the time. Mapping each would cost a system call, page faults and a shootdown of every
processor's translations each time, and the kernel has a limit on how many there may be.

Invariants
 - Of a file, known by device and inode, there is one mapping that new regions use, or one that may
   be written to and one that may not; it begins with the file's first byte, where that is possible.
 - A region of the file keeps the mapping that it was made with; one that has to be longer takes the
   place of the other, and is at least twice as long: however a file grows, they are few.
 - A mapping that no region uses is kept for a moment, and no more than a few of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from iodma._core import Region, file_of
from iodma.engine import Engine
from iodma.engine.timers import Timer
from iodma.transports.vfio_user.messages import Refusal

__all__ = ["MOST_BYTES", "PAGE", "File", "Mapping", "Mappings"]

PAGE = 4096
#: Bytes of a region, and of a mapping: as in libvfio-user.
MOST_BYTES = 8 << 40
#: Seconds that a mapping without regions is kept, and how many are.
HOLD_S, MOST_IDLE = 1.0, 4
#: Files that are known to be the client's own; beyond, they are asked for again.
MOST_PRIVATE = 64
_RAM, _ROM = 0, 1
#: Device and inode.
File = tuple[int, int]


class Mapping:
    """Bytes of a file, mapped.

    Attributes:
        file: which.
        writable: whether they may be written to.
        region: them.
        start: where in the file they begin.
        end: and end.
        users: regions of the client.
    """

    __slots__ = ("end", "file", "region", "start", "users", "writable")

    def __init__(self, file: File, writable: bool, region: Region, start: int) -> None:
        self.file = file
        self.writable = writable
        self.region = region
        self.start = start
        self.end = start + region.size
        self.users = 0


class Mappings:
    """The mappings of one session.

    Args:
        private: whether what the client writes to a file is its own, asked of each that is new,
            with a descriptor of it.
    """

    def __init__(self, engine: Engine, private: Callable[[File, int], bool] | None = None) -> None:
        self._engine = engine
        self._ask_private = private
        self._private: set[File] = set()
        self._writable: dict[File, Mapping] = {}
        self._read_only: dict[File, Mapping] = {}
        self._all: set[Mapping] = set()
        #: Those that no region uses, and whether the sweep has seen them so; the oldest first.
        self._idle: dict[Mapping, bool] = {}
        self._sweep: Timer | None = None
        self._log_page = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._all)

    def take(self, fd: int, offset: int, size: int, writable: bool) -> Mapping | None:
        """The mapping that holds ``size`` bytes at ``offset`` of a file, used once more: `give` it
        back. None: what the client has there cannot be seen in the file.

        Args:
            fd: of the file; it stays the caller's.
            writable: whether they may be written to.

        Raises:
            Refusal: the descriptor cannot be mapped; the error is the kernel's.
        """
        file = file_of(fd)
        found = self._writable.get(file)
        if found is None and not writable:
            found = self._read_only.get(file)
        if found is None or offset < found.start or offset + size > found.end:
            if self._keeps(file, fd):
                return None
            found = self._map(fd, file, offset, size, writable)
        if not found.users:
            self._idle.pop(found, None)
        found.users += 1
        return found

    def give(self, mapping: Mapping) -> None:
        """A region of it is gone."""
        mapping.users -= 1
        if mapping.users:
            return
        if self._of(mapping.writable).get(mapping.file) is not mapping:
            self._drop(mapping)
            return
        self._idle[mapping] = False
        if len(self._idle) > MOST_IDLE:
            self._drop(next(iter(self._idle)))
        if self._sweep is None:
            self._sweep = self._engine.call_later(HOLD_S, self._look)

    def _keeps(self, file: File, fd: int) -> bool:
        """Whether the client has a file for itself; asked where it is about to be mapped."""
        if file in self._private:
            return True
        if self._ask_private is None or not self._ask_private(file, fd):
            return False
        if len(self._private) >= MOST_PRIVATE:
            self._private.clear()
        self._private.add(file)
        return True

    def _of(self, writable: bool) -> dict[File, Mapping]:
        return self._writable if writable else self._read_only

    def _map(self, fd: int, file: File, offset: int, size: int, writable: bool) -> Mapping:
        held = os.fstat(fd)
        old = self._of(writable).get(file)
        unit = max(PAGE, held.st_blksize)  # that of huge pages, if it is made of those
        least = offset + size
        whole = max(least, held.st_size if stat.S_ISREG(held.st_mode) else 0)
        twice = max(whole, 2 * old.end if old else 0)
        start = offset - offset % unit
        tries = [(0, twice), (0, least), (start, least)]
        tries = [(first, end) for first, end in tries if end - first <= MOST_BYTES]
        error: OSError | None = None
        for first, end in dict.fromkeys(tries):
            length = -(-(end - first) // unit) * unit
            try:
                region = Region(_RAM if writable else _ROM, fd, first, length)
            except OSError as what:
                error = what
                continue
            return self._use(Mapping(file, writable, region, first), old)
        why = f"{size:#x} bytes at {offset:#x} of the file cannot be mapped"
        if error is None:
            raise Refusal(errno.EINVAL, why)
        raise Refusal(error.errno or errno.EINVAL, f"{why}: {error.strerror}")

    def _use(self, made: Mapping, old: Mapping | None) -> Mapping:
        self._all.add(made)
        if self._log_page and made.writable:
            made.region._start_dirty(self._log_page, None, 0)
        if made.start == 0 or old is None:
            self._of(made.writable)[made.file] = made
            if old is not None and not old.users:
                self._drop(old)
        return made

    def _drop(self, mapping: Mapping) -> None:
        """Its bytes stay mapped until the last transfer there has let go."""
        self._all.discard(mapping)
        self._idle.pop(mapping, None)
        current = self._of(mapping.writable)
        if current.get(mapping.file) is mapping:
            del current[mapping.file]
        mapping.region._close()

    def _look(self) -> None:
        self._sweep = None
        for each, seen in [*self._idle.items()]:
            if seen:
                self._drop(each)
            else:
                self._idle[each] = True
        if self._idle:
            self._sweep = self._engine.call_later(HOLD_S, self._look)

    # --- dirty pages ------------------------------------------------------------------------------

    def start_log(self, page: int) -> None:
        """Logs which pages are written to, also of mappings that come."""
        self._log_page = page
        for each in self._all:
            if each.writable:
                each.region._start_dirty(page, None, 0)

    def stop_log(self) -> None:
        """Logs no more."""
        self._log_page = 0
        for each in self._all:
            if each.writable:
                each.region._stop_dirty()

    def close(self) -> None:
        """Lets go of all of them."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for each in [*self._all]:
            self._drop(each)
