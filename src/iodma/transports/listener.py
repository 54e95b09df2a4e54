# SPDX-License-Identifier: Apache-2.0
"""Where the peers of a server come from: a socket that they connect to, one at a time.

Invariants
 - There is at most one session. The next peer is accepted when nothing is left of the one before;
   until then it waits in the socket's backlog, and the log says so once.
 - A socket file is this server's from its bind to its close, and only that one is removed. A path
   where another server listens is refused; the socket of one that is gone is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Generic, Protocol, Self, TypeVar

from iodma.engine import Engine, Event
from iodma.errors import ArgumentError, BusyError, integer
from iodma.log import GuestLog
from iodma.transports.alarm import Alarm

__all__ = ["Listener", "SessionLike"]

#: Peers that wait.
_BACKLOG = 4
#: ns until the next try, where this process can open no more descriptors.
_RETRY_NS = 1_000_000_000
#: Bytes of a socket's path: of `struct sockaddr_un`, less the end of the text.
_MOST_PATH = 107


class SessionLike(Protocol):
    """One peer, as long as anything is left of it."""

    over: Event

    def end(self, why: str) -> None: ...


S = TypeVar("S", bound=SessionLike)


class Listener(Generic[S]):
    """The socket of a server, and the session of whoever is connected.

    A server derives from it: it gives `_open`, sets what that needs, and then calls `_serve`.

    Args:
        name: whom it serves, for messages.
        log: where they go.
        path: where to listen. A socket there that nobody listens on is replaced.
        fd: instead of a path: a unix stream socket, which listens or is connected. The descriptor
            is duplicated.

    Attributes:
        path: as it was given, or None.
        session: the peer that is connected, or None.
        sessions: how many there were.
        closed: nobody is served any more.

    Raises:
        ArgumentError: neither or both of path and fd.
    """

    #: What a peer is called.
    _peer = "peer"

    def __init__(
        self,
        engine: Engine,
        name: str,
        log: GuestLog,
        path: str | os.PathLike[str] | None,
        fd: int | None,
    ) -> None:
        if (path is None) == (fd is None):
            raise ArgumentError("a path or a descriptor: one of them would be right")
        self.engine = engine
        self.path = None if path is None else os.fspath(path)
        self.session: S | None = None
        self.sessions = 0
        self.closed = False
        self._name = name
        self._log = log
        self._fd = fd
        self._listening: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        self._waits = False
        self._over = Event(engine)
        self._alarm: Alarm | None = None  # while it listens

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.session else "waits"
        return f"<{type(self).__name__} of {self._name}: {state}>"

    def _open(self, sock: socket.socket) -> S:
        """The session of a peer that has just connected; it calls `_ended` when it is over."""
        raise NotImplementedError

    def _serve(self) -> None:
        """Begins to listen.

        Raises:
            ArgumentError: a path that is too long; a descriptor that is no unix stream socket.
            BusyError: somebody listens at the path, or something else than a socket is there.
            OSError: the socket cannot be made there.
        """
        if self.path is not None:
            self._listening = _listen(self.path)
            self._file = _identity(self.path)
        else:
            assert self._fd is not None
            sock, listens = _given(self._fd)
            if not listens:
                self._begin(sock)
                return
            self._listening = sock
        self._alarm = Alarm(self.engine, self._accept_again)
        self._accept_more()

    # --- peers ------------------------------------------------------------------------------------

    def _accept_more(self) -> None:
        if self._listening is not None and not self._waits and not self.closed:
            self._waits = True
            self.engine.add_reader(self._listening.fileno(), self._accept)

    def _accept_no_more(self) -> None:
        if self._waits and self._listening is not None:
            self._waits = False
            self.engine.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        assert self._listening is not None
        if self.session is not None:
            self._log.warning(
                "%s: another %s has connected, and waits until the one before is gone",
                *(self._name, self._peer),
            )
            self._accept_no_more()
            return
        sock = None
        try:
            sock, _ = self._listening.accept()
            self._begin(sock)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._log.warning(
                "%s: no %s can be accepted: %s", self._name, self._peer, error.strerror
            )
            self._accept_no_more()
            if sock is not None:
                sock.close()
            if self._alarm is not None:
                self._alarm.set(_RETRY_NS)

    def _accept_again(self) -> None:
        if self.session is None:
            self._accept_more()

    def _begin(self, sock: socket.socket) -> None:
        self.session = self._open(sock)
        self.sessions += 1

    def _ended(self) -> None:
        self.session = None
        if self._listening is None:
            self.closed = True
            self._over.set()
        else:
            self._accept_more()

    # --- the end ----------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Waits until nobody can be served any more: after `close`, or when the peer of a
        descriptor that was connected is gone."""
        await self._over.wait()

    async def close(self) -> None:
        """Ends the session, drains what is in flight, and removes the socket file."""
        self._stop_listening()
        session = self.session
        if session is not None:
            session.end("the server closes")
            await session.over.wait()
        self.closed = True
        self._over.set()

    def _stop_listening(self) -> None:
        self._accept_no_more()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
        if self.path is not None and self._file is not None:
            # Somebody else's by now, or gone: then it is left alone.
            if _identity(self.path) == self._file:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            self._file = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _given(fd: int) -> tuple[socket.socket, bool]:
    """A socket that was given, duplicated, and whether it listens."""
    try:
        own = os.dup(integer(fd, "fd"))
    except OSError:
        raise ArgumentError(f"descriptor {fd} is not open") from None
    try:
        if not stat.S_ISSOCK(os.fstat(own).st_mode):
            raise ArgumentError(f"descriptor {fd} is no socket")
        sock = socket.socket(fileno=own)
    except BaseException:
        os.close(own)
        raise
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ArgumentError(f"descriptor {fd} is no unix stream socket")
    sock.setblocking(False)
    return sock, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _listen(path: str) -> socket.socket:
    if not 0 < len(os.fsencode(path)) <= _MOST_PATH:
        raise ArgumentError(
            f"{path!r} cannot be the path of a socket: 1 to {_MOST_PATH} bytes would be right"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, error.strerror, path) from None
            _remove_stale(path)
            sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody listens on. Raises BusyError for anything else."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise BusyError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full
            pass
    raise BusyError(f"another server listens at {path}")
