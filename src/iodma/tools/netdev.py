# SPDX-License-Identifier: Apache-2.0
"""What a network card is connected to, in the words of QEMU's ``-netdev``.

    dgram,local.type=unix,local.path=HERE,remote.type=unix,remote.path=THERE
    dgram,local.type=inet,local.host=H,local.port=P,remote.type=inet,remote.host=H,remote.port=P
    dgram,local=HERE,remote=THERE                       unix sockets, for short
    socket,udp=HOST:PORT,localaddr=HOST:PORT
    socket,fd=N, or dgram,local.type=fd,local.str=N     a socket that was opened for us
    stream,addr.type=unix,addr.path=THERE               or addr.type=inet,addr.host=,addr.port=
    socket,connect=HOST:PORT
    tap,ifname=NAME

A frame is a datagram, or has its length in front on a stream (`Framed`), without its FCS. ``id=``
is allowed, and says nothing here; a comma in a path is written twice. The other end has to be
there: a socket is connected to it.

Invariants
 - What is not understood is refused, not left out.
 - A socket's file is removed when it is closed; one whose owner is gone is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from iodma.endpoints import Datagram, Endpoint, Tap
from iodma.errors import ArgumentError, BusyError
from iodma.packets import Framed

__all__ = ["network"]

_Address = str | tuple[str, int]


@contextmanager
def network(text: str) -> Iterator[Endpoint]:
    """The endpoint that a text describes, until it is left.

    Raises:
        ArgumentError: it is not understood.
        BusyError: somebody has the local address.
        OSError: it cannot be opened, or nobody is at the other end.
    """
    kind, options = _split(text)
    options.pop("id", None)
    opened = _KINDS.get(kind)
    if opened is None:
        raise ArgumentError(f"a network {kind!r}: {', '.join(_KINDS)} would be right")
    with opened(options, text) as endpoint:
        yield endpoint


def _split(text: str) -> tuple[str, dict[str, str]]:
    kind, *rest = (word.replace(",,", ",") for word in re.split(r"(?<!,),(?!,)", text))
    options: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or key in options:
            raise ArgumentError(f"{word!r} in {text!r}: NAME=VALUE, once each, would be right")
        options[key] = value
    return kind, options


def _take(options: dict[str, str], key: str, text: str) -> str:
    try:
        return options.pop(key)
    except KeyError:
        raise ArgumentError(f"{text!r} does not say {key}=") from None


def _nothing_more(options: dict[str, str], text: str) -> None:
    if options:
        raise ArgumentError(f"{next(iter(options))}= in {text!r} is not understood")


@contextmanager
def _dgram(options: dict[str, str], text: str) -> Iterator[Endpoint]:
    if options.get("local.type") == "fd":
        del options["local.type"]
        options["fd"] = _take(options, "local.str", text)
        with _given(options, text) as endpoint:
            yield endpoint
        return
    local, remote = _end(options, "local", text), _end(options, "remote", text)
    _nothing_more(options, text)
    with _connected(local, remote) as endpoint:
        yield endpoint


def _end(options: dict[str, str], which: str, text: str) -> _Address:
    if which in options:
        return options.pop(which)
    kind = _take(options, f"{which}.type", text)
    if kind == "unix":
        return _take(options, f"{which}.path", text)
    if kind == "inet":
        host, port = (_take(options, f"{which}.{key}", text) for key in ("host", "port"))
        return host, _port(port, text)
    raise ArgumentError(f"{which}.type={kind} in {text!r}: unix or inet would be right")


def _port(word: str, text: str) -> int:
    if not word.isdecimal() or int(word) > 0xFFFF:
        raise ArgumentError(f"port {word!r} in {text!r}: 0 to 65535 would be right")
    return int(word)


@contextmanager
def _socket(options: dict[str, str], text: str) -> Iterator[Endpoint]:
    if "fd" in options:
        with _given(options, text) as endpoint:
            yield endpoint
        return
    if "connect" in options:
        address = _host(options.pop("connect"), text)
        _nothing_more(options, text)
        with _to(address) as endpoint:
            yield endpoint
        return
    local, remote = (_host(_take(options, key, text), text) for key in ("localaddr", "udp"))
    _nothing_more(options, text)
    with _connected(local, remote) as endpoint:
        yield endpoint


def _host(word: str, text: str) -> tuple[str, int]:
    host, _, port = word.rpartition(":")
    return host or "127.0.0.1", _port(port, text)


@contextmanager
def _given(options: dict[str, str], text: str) -> Iterator[Endpoint]:
    word = _take(options, "fd", text)
    _nothing_more(options, text)
    if not word.isdecimal():
        raise ArgumentError(f"{word!r} in {text!r} is no descriptor")
    with socket.socket(fileno=os.dup(int(word))) as sock:
        stream = sock.type == socket.SOCK_STREAM
        with (Framed if stream else Datagram)(sock) as endpoint:
            yield endpoint


@contextmanager
def _stream(options: dict[str, str], text: str) -> Iterator[Endpoint]:
    if options.pop("server", "off") != "off":
        raise ArgumentError(f"server= in {text!r}: off would be right: the other end listens")
    kind = _take(options, "addr.type", text)
    address: _Address
    if kind == "unix":
        address = _take(options, "addr.path", text)
    elif kind == "inet":
        host, port = (_take(options, f"addr.{key}", text) for key in ("host", "port"))
        address = host, _port(port, text)
    else:
        raise ArgumentError(f"addr.type={kind} in {text!r}: unix or inet would be right")
    _nothing_more(options, text)
    with _to(address) as endpoint:
        yield endpoint


@contextmanager
def _to(address: _Address) -> Iterator[Endpoint]:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(address)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(address)) from None
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with Framed(sock) as endpoint:
            yield endpoint


@contextmanager
def _tap(options: dict[str, str], text: str) -> Iterator[Endpoint]:
    name = _take(options, "ifname", text)
    for key in ("script", "downscript"):  # none is run, whatever they say
        options.pop(key, None)
    _nothing_more(options, text)
    with Tap(name) as endpoint:
        yield endpoint


@contextmanager
def _connected(local: _Address, remote: _Address) -> Iterator[Endpoint]:
    unix = isinstance(local, str)
    if unix != isinstance(remote, str):
        raise ArgumentError(f"{local} and {remote} are addresses of two families")
    family = socket.AF_UNIX if unix else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.ExitStack() as stack:
        _bind(sock, local)
        if isinstance(local, str):
            stack.callback(_remove, local, os.lstat(local).st_ino)
        try:
            sock.connect(remote)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise OSError(
                error.errno, "nobody is there, and somebody has to be", str(remote)
            ) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(remote)) from None
        yield stack.enter_context(Datagram(sock))


def _bind(sock: socket.socket, local: _Address) -> None:
    try:
        try:
            sock.bind(local)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not isinstance(local, str):
                raise
            _remove_stale(local)
            sock.bind(local)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(local)) from None


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody has. Raises BusyError for anything else."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise BusyError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise BusyError(f"somebody has the socket {path}")


def _remove(path: str, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


_KINDS = {"dgram": _dgram, "stream": _stream, "socket": _socket, "tap": _tap}
