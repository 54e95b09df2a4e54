# SPDX-License-Identifier: Apache-2.0
"""Descriptors between loops: those of others in ours, and one of ours for theirs.

Invariants
 - A reader is called for as long as its descriptor is readable, once a turn.
 - The descriptor that is given away is readable as long as `Engine.pump` has something to do.
 - A signal ends the engine's sleep also when it comes just before it, or to another thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

from iodma import _core
from iodma.errors import BusyError

__all__ = ["Outer", "Readers", "SignalPipe"]


class Readers:
    """Foreign descriptors, and whom to call when they are readable."""

    __slots__ = ("_callbacks", "_epoll")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}

    def fileno(self) -> int:
        """Readable when one of them is."""
        return self._epoll.fileno()

    def add(self, fd: int, callback: Callable[[], object]) -> None:
        """Raises BusyError for one that is there already, OSError for one that cannot be."""
        if fd in self._callbacks:
            raise BusyError(f"descriptor {fd} has a reader already")
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Nothing happens if it is not there."""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already: the kernel took it out
                self._epoll.unregister(fd)

    def call_ready(self, call: Callable[[Callable[[], object]], None]) -> None:
        """``call`` the callbacks whose descriptors are readable, unless one removes another."""
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is not None:
                call(callback)

    def clear(self) -> None:
        """Call nobody any more."""
        self._callbacks.clear()

    def close(self) -> None:
        """Let go of them."""
        self._epoll.close()


class SignalPipe:
    """Where Python writes a byte for every signal, while an engine runs in the main thread.

    Without it a signal that comes between the last look and the sleep would be answered only
    when something else ends that sleep.
    """

    __slots__ = ("_before", "_read", "_write")

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = -1

    @staticmethod
    def wanted() -> bool:
        """Signals are answered by the main thread alone."""
        return threading.current_thread() is threading.main_thread()

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._read

    def drain(self) -> None:
        """Hear the next one, too."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def __enter__(self) -> None:
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(self._before)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._read)
        os.close(self._write)


class Outer:
    """The one descriptor for another loop: completions, a timer, and foreign descriptors."""

    __slots__ = ("_epoll", "_timer_fd")

    def __init__(self, backend_fd: int) -> None:
        self._epoll = select.epoll()
        self._timer_fd = _core.timer()
        self.watch(backend_fd)
        self.watch(self._timer_fd)

    def fileno(self) -> int:
        """Readable when something watched is."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Be readable when this is."""
        self._epoll.register(fd, select.EPOLLIN)

    def arm(self, when_ns: int) -> None:
        """Be readable from then on; -1: not because of the time."""
        _core.timer_set(self._timer_fd, 0 if when_ns < 0 else max(1, when_ns))

    def close(self) -> None:
        """Let go of both."""
        self._epoll.close()
        os.close(self._timer_fd)
