# SPDX-License-Identifier: Apache-2.0
"""Finds what a test left behind: descriptors, mappings, leases, views, engines.

Invariants
 - What is looked at is what the kernel says (/proc/self/fd and /proc/self/maps) and what the core
   says of regions; no close() is taken at its word, and garbage that is collected is no leak.
 - Only what is there afterwards and was not there before is a leak.
 - A look costs about as much as reading /proc/self/maps, however many objects there are; a
   collection comes only after a look that found something.

As a pytest plugin (``-p iodma.testing.leaks``, or ``pytest_plugins = ["iodma.testing.leaks"]``) it
looks around each test; the marker ``leaks_allowed`` exempts one.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iodma._core import held_regions
from iodma.engine.loop import engines
from iodma.errors import Error

__all__ = ["LeakError", "Snapshot", "no_leaks"]

#: Mappings that are somebody's: memory files, and the rings of io_uring.
_WATCHED = (b"/memfd:", b"io_uring")


class LeakError(Error, AssertionError):
    """Something was left behind; the message says what, one a line."""


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment.

    Attributes:
        descriptors: number -> what it is, of /proc/self/fd.
        mappings: what is mapped -> bytes, of /proc/self/maps.
        held: description -> how many regions have leases or views like that.
        engines: names of open engines.
    """

    descriptors: dict[int, str]
    mappings: dict[str, int]
    held: Counter[str]
    engines: Counter[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Now."""
        held = Counter(
            f"{each!r} with {each.leases} leases and {each.views} views" for each in held_regions()
        )
        open_engines = Counter(engine.name for engine in engines if not engine.closed)
        return cls(_descriptors(), _mappings(), held, open_engines)

    def leaks(self) -> list[str]:
        """What is there now and was not there then, in words."""
        return self._then()[0]

    def _then(self) -> tuple[list[str], Snapshot]:
        """The leaks since, and what there is now."""
        now = Snapshot.take()
        found = now._but_not(self)
        for generation in (1, 2):  # the young, which most of it is, cost next to nothing
            if found:  # or only garbage, which is collected later than it could be
                gc.collect(generation)
                now = Snapshot.take()
                found = now._but_not(self)
        return found, now

    def _but_not(self, before: Snapshot) -> list[str]:
        found = [
            f"descriptor {fd}: {what}"
            for fd, what in self.descriptors.items()
            if before.descriptors.get(fd) != what
        ]
        for what, size in self.mappings.items():
            more = size - before.mappings.get(what, 0)
            if more > 0:
                found.append(f"mapping of {what}: {more} bytes")
        found += [f"region: {what}" for what in (self.held - before.held).elements()]
        found += [f"engine {name} is open" for name in (self.engines - before.engines).elements()]
        return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that the listing itself used
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _mappings() -> dict[str, int]:
    found: Counter[str] = Counter()
    for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
        if any(each in line for each in _WATCHED):
            addresses, _, _, _, inode, what = line.decode(errors="replace").split(maxsplit=5)
            first, last = (int(each, 16) for each in addresses.split("-"))
            found[f"{what} (inode {inode})"] += last - first
    return dict(found)


@contextmanager
def no_leaks() -> Iterator[None]:
    """Raise `LeakError` if what runs inside leaves something behind.

    >>> import os
    >>> from iodma.testing import no_leaks
    >>> with no_leaks():
    ...     fd = os.open("/dev/null", os.O_RDONLY)
    Traceback (most recent call last):
        ...
    iodma.testing.leaks.LeakError: left behind:
      descriptor ...: /dev/null
    >>> os.close(fd)
    """
    before = Snapshot.take()
    yield
    found = before.leaks()
    if found:
        raise LeakError("left behind:\n  " + "\n  ".join(found))


try:
    import pytest
except ModuleNotFoundError:  # it is only needed by who uses the plugin
    pass
else:
    _before = pytest.StashKey[tuple[Snapshot, int]]()
    #: What there was after a test that left nothing: what there is before the next.
    _after = pytest.StashKey[Snapshot | None]()

    def pytest_configure(config: pytest.Config) -> None:
        """Make the marker known."""
        config.addinivalue_line("markers", "leaks_allowed: what it leaves behind is no error")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish() -> None:
        """What is there before the first test is not looked through for garbage after each."""
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
        """Before any fixture is made."""
        before = item.session.stash.get(_after, None) or Snapshot.take()
        item.stash[_before] = before, item.session.testsfailed
        item.session.stash[_after] = None
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
        """After all its fixtures are gone: fail a test that passed and left something behind."""
        result = yield
        before, failed = item.stash[_before]
        # The traceback of a test that failed holds on to its variables.
        if item.session.testsfailed == failed and not item.get_closest_marker("leaks_allowed"):
            if isinstance(item, pytest.Function):
                item.funcargs.clear()  # what the fixtures made, which they have closed by now
            found, now = before._then()
            if found:
                pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)
            item.session.stash[_after] = now
        return result
