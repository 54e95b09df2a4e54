# SPDX-License-Identifier: Apache-2.0
"""A disk on another machine, or in another program: the export of an NBD server.

libnbd (1.12 or later), which is loaded when the first connection is made, speaks the protocol
(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md); its requests are handed over,
watched and answered in the engine's own thread.

Invariants
 - Bytes go between the connection and guest memory by the kernel alone: a page that is gone is the
   end of the transfer, and of the connection.
 - A transfer that was cancelled holds its memory until the server has answered, or the connection
   is gone: the protocol has no cancel.
 - A connection that is gone stays gone: what was under way ends with PEER_GONE, and so does all
   that comes later.
"""

from __future__ import annotations

import errno
import os
from typing import Final, Self
from urllib.parse import urlsplit

from iodma import _core
from iodma.endpoints.base import KIND_FILE, Endpoint
from iodma.errors import ArgumentError, ArgumentTypeError, UnsupportedError, integer
from iodma.types import Constraints

__all__ = ["LIBRARY", "Nbd", "library_version"]

#: What is loaded.
LIBRARY: Final = "libnbd.so.0"

_SCHEMES = ("nbd", "nbd+unix", "nbd+vsock")
#: Bytes a segment, on average: each costs a request, and below this a copy into one is cheaper.
_SMALL = 65536


def library_version() -> str:
    """The version of libnbd that `Nbd` would use.

    Raises:
        UnsupportedError: there is none, or it is too old.
    """
    try:
        return _core.nbd_version(LIBRARY)
    except UnsupportedError as error:
        raise _absent(error) from None


def _absent(error: UnsupportedError) -> UnsupportedError:
    why = str(error.args[1])
    if "too old" in why:
        return UnsupportedError(why)
    return UnsupportedError("libnbd is not installed: apt install libnbd0")


class Nbd(Endpoint):
    """The export of an NBD server: random access, as a file's.

        with iodma.Nbd("nbd://host/disk") as disk: ...
        with iodma.Nbd("nbd+unix:///disk?socket=/tmp/nbd.sock") as disk: ...

    The connection is made here, and this waits for it. It is one connection; requests to it go out
    in order and are answered in any. Each takes one piece of memory, so a list of n pieces is n
    requests, unless the pieces are small: those go through the bounce arena (`Reason.SMALL`).

    Args:
        uri: ``nbd://host[:port]/[export]``, ``nbd+unix:///[export]?socket=path`` or
            ``nbd+vsock://...``. Encrypted ones (``nbds:``) are refused.
        read_only: writes end with IO_ERROR (EROFS), also if the server would take them.
        write_through: a write has reached the medium when it completes: with the protocol's FUA
            flag, or a flush after each write where the server does not know that.
        depth: most requests at the server at a time.
        small: bytes; segments that are smaller on average are copied to go as one request.
        timeout: seconds that connecting may take, after the name was resolved.

    Attributes:
        uri: as given.
        size: bytes, when it was connected to; whole smallest blocks.
        read_only: it takes no writes.
        minimum_block: bytes; requests to the server are multiples of it.
        preferred_block: bytes, as the server says; 0: it does not.
        maximum_request: bytes; longer ones are split.
        can_flush: the server can be asked to flush. Where not, a flush does nothing and ends
            with OK: nothing is known of when writes reach the medium.
        can_fua, can_trim, can_zero: what else it can. Without trim, discards end with IO_ERROR
            (EOPNOTSUPP); without zero, zeroes are written.

    Raises:
        UnsupportedError: libnbd is not there, or too old; the URI asks for encryption; the server
            cannot do ``write_through``.
        ArgumentError: it is no URI of an NBD export.
        TimeoutError: the server does not answer in time.
        OSError: it cannot be connected to, or refuses.
    """

    uri: str
    size: int
    read_only: bool
    minimum_block: int
    preferred_block: int
    maximum_request: int
    can_flush: bool
    can_fua: bool
    can_trim: bool
    can_zero: bool

    def __new__(
        cls,
        uri: str,
        *,
        read_only: bool = False,
        write_through: bool = False,
        depth: int = 64,
        small: int = _SMALL,
        timeout: float = 10.0,
    ) -> Self:
        _check_uri(uri)
        if not 1 <= integer(depth, "depth") <= 1024:
            raise ArgumentError(f"depth is {depth}; 1 to 1024 would be right")
        if not 0 <= integer(small, "small", "bytes") <= 1 << 20:
            raise ArgumentError(f"small is {small}; 0 to {1 << 20} bytes would be right")
        if not 0 < timeout < 1e6:
            raise ArgumentError(
                f"timeout is {timeout}; a positive number of seconds would be right"
            )
        try:
            found = _core.nbd_connect(LIBRARY, uri, depth, int(timeout * 1000))
        except UnsupportedError as error:
            raise _absent(error) from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ArgumentError(f"{uri}: {error.strerror}") from None
            raise OSError(error.errno, error.strerror, uri) from None
        driver, size, minimum, preferred, maximum, server_read_only, flush, fua, trim, zero = found
        if write_through and not (fua or flush):
            raise UnsupportedError(f"{uri} can neither flush nor write through (FUA)")
        self = cls._make(
            KIND_FILE,
            uri,
            Constraints(offset_alignment=minimum),
            read_only=read_only or server_read_only,
            write_through=write_through,
            driver=driver,
            small=max(small, 1),
        )
        self.uri = uri
        self.size = size
        self.read_only = read_only or server_read_only
        self.minimum_block, self.preferred_block = minimum, preferred
        self.maximum_request = maximum
        self.can_flush, self.can_fua, self.can_trim, self.can_zero = flush, fua, trim, zero
        return self

    @property
    def write_through(self) -> bool:
        """Whether a write has reached the medium when it completes.

        Set, it is for requests that begin from then on. Of a server that can neither flush nor
        write through it changes nothing.
        """
        return self._write_through

    @write_through.setter
    def write_through(self, value: bool) -> None:
        self._write_through = value

    @property
    def gone(self) -> str:
        """Why the connection is gone, in libnbd's words; empty while it is there."""
        return self._why_gone

    def abort(self) -> None:
        """Break the connection: what is under way ends with PEER_GONE at the next turn.

        For a server that does not answer any more, whose requests would hold their memory.

        Raises:
            WrongThreadError: the engine that uses it belongs to another thread.
        """
        if self._driven:
            self._abort()

    def __del__(self) -> None:
        self._warn_if_open(self._driven)


def _check_uri(uri: object) -> None:
    if not isinstance(uri, str):
        hint = " (a File takes a path)" if isinstance(uri, os.PathLike) else ""
        raise ArgumentTypeError(f"{uri!r} is not the URI of an NBD export{hint}")
    scheme = urlsplit(uri).scheme
    if scheme.startswith("nbds"):
        raise UnsupportedError(
            f"{uri}: encrypted connections would copy guest memory outside the SIGBUS guard;"
            " a tunnel to an nbd+unix socket would do"
        )
    if scheme not in _SCHEMES or "\0" in uri:
        raise ArgumentError(
            f"{uri!r} is not the URI of an NBD export: nbd://host/export or"
            " nbd+unix:///export?socket=path would be right"
        )
