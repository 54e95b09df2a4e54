# SPDX-License-Identifier: Apache-2.0
"""The port: all that a device knows of DMA.

Invariants
 - Everything returns at once with a `Transfer` (or tickets); its completion comes in a later turn
   of the engine.
 - Only `load` and `store` raise for what happened to memory: `DmaFault`.  All others give a
   `Completion`.
 - After `reset`, what was submitted before it touches memory no more.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from iodma import _core
from iodma._core import Target, Transfer
from iodma.engine import Engine
from iodma.errors import ArgumentError, ArgumentTypeError, DmaFault, integer
from iodma.sg import Completions, ScatterList
from iodma.types import Access, Status

__all__ = ["Peek", "Port"]

_FLUSH, _DISCARD, _ZEROES, _DROP = 4, 5, 6, 8
_PEEK_MOST = 64
_CAUSE_LIMIT = 3
_PAIRS = "<QQ"
_structs: dict[str, tuple[int, Callable[[bytes], Any], Callable[..., bytes]]] = {}


def _struct(format: str) -> tuple[int, Callable[[bytes], Any], Callable[..., bytes]]:
    try:
        made = struct.Struct(format)
    except (struct.error, TypeError) as error:
        raise ArgumentError(f"{format!r} is not a format of the struct module: {error}") from None
    found = _structs[format] = (made.size, made.unpack, made.pack)
    return found


class Peek(NamedTuple):
    """What `Port.peek` saw of the next packet.

    Attributes:
        done: how the peek ended; ``done.moved`` is ``len(head)``.
        head: the packet's first bytes, as many as were asked for or as there are.
        length: of the whole packet, bytes; 0 unless ``ok``.
    """

    done: _core.Completion
    head: bytes
    length: int

    @property
    def ok(self) -> bool:
        """Whether there is a packet."""
        return self.done.ok


class Port(_core.Port):
    """Where a device's DMA goes: made by `Engine.port`.

    Every list may be a `ScatterList`, a sequence of ``(address, length)`` or a single one, in
    addresses of the port's space.
    """

    def load(self, format: str, address: int) -> Transfer[tuple[Any, ...]]:
        """Read a structure: ``count, table = await port.load("<IQ", address)``.

        Raises:
            DmaFault: when awaited: memory refused.
            ArgumentError: the format is not one of the `struct` module.
        """
        try:
            size, unpack, _ = _structs[format]
        except (KeyError, TypeError):
            size, unpack, _ = _struct(format)
        return self._load(address, size, unpack)

    def load_bytes(self, address: int, length: int) -> Transfer[bytes]:
        """Read ``length`` bytes. Raises DmaFault when awaited."""
        return self._load(address, length, None)

    def store(self, format: str, address: int, *values: Any) -> Transfer[_core.Completion]:
        """Write a structure: ``await port.store("<I", address, status)``.

        Raises:
            DmaFault: when awaited: memory refused.
            ArgumentError: the values do not fit the format.
        """
        try:
            pack = _structs[format][2]
        except (KeyError, TypeError):
            pack = _struct(format)[2]
        try:
            data = pack(*values)
        except struct.error as error:
            raise ArgumentError(f"{values!r} do not fit the format {format!r}: {error}") from None
        return self._store(address, data)

    def store_bytes(self, address: int, data: bytes | bytearray | memoryview) -> Transfer[Any]:
        """Write bytes. Raises DmaFault when awaited."""
        return self._store(address, data)

    def load_segments(
        self, table: int, count: int, limit: int = 1024, format: str = _PAIRS
    ) -> Awaitable[ScatterList]:
        """Read a table of ``count`` entries (bus address, length) at bus address ``table``.

        Args:
            count: as the guest says; it is checked against ``limit``.
            limit: most entries that are read.
            format: of an entry: an address and a length, in `struct` notation.

        Raises:
            DmaFault: when awaited: the table could not be read, or has more than ``limit`` entries.
        """
        # What most devices have never becomes Python's numbers.
        if format == _PAIRS and count.__class__ is limit.__class__ is int and 0 <= count <= limit:
            return self._load(table, count * 16, ScatterList._from_table)
        return self._load_segments(table, count, limit, format)

    async def _load_segments(self, table: int, count: int, limit: int, format: str) -> ScatterList:
        size, _, _ = _structs.get(format) or _struct(format)
        if not 0 <= integer(count, "count") <= integer(limit, "limit"):
            raise DmaFault(
                _core.completion(
                    Status.FAULT,
                    0,
                    0,
                    f"{self.name} table",
                    limit * size,
                    table,
                    Access.READ,
                    _CAUSE_LIMIT,
                )
            )
        data = await self.load_bytes(table, count * size)
        try:
            return ScatterList([(a, n) for a, n in struct.iter_unpack(format, data)])
        except ValueError as error:
            raise ArgumentError(f"{format!r} is not an address and a length: {error}") from None

    def flush(self, endpoint: Target) -> Transfer[_core.Completion]:
        """Make durable what completed before."""
        return self._control(_FLUSH, endpoint, 0, 0)

    def discard(self, endpoint: Target, offset: int, length: int) -> Transfer[_core.Completion]:
        """Give ``length`` bytes at ``offset`` back to the host; they read as zeroes afterwards.

        A file gets no shorter, and no longer. Where the file system cannot, it ends with IO_ERROR
        (EOPNOTSUPP) and nothing has changed.
        """
        return self._control(_DISCARD, endpoint, offset, length)

    def write_zeroes(
        self, endpoint: Target, offset: int, length: int
    ) -> Transfer[_core.Completion]:
        """Write ``length`` zero bytes at ``offset``, without moving any where the host can do that.

        A file grows as by a write. Where the host cannot, the zeroes are written.
        """
        return self._control(_ZEROES, endpoint, offset, length)

    def peek(self, endpoint: Target, length: int = _PEEK_MOST) -> Transfer[Peek]:
        """Look at the next packet of a packet endpoint, when it comes, and leave it there.

        It takes its turn among the endpoint's receives. The packet stays until the next
        `to_memory` or `drop`. Of an endpoint that is not made of packets: IO_ERROR (EOPNOTSUPP).

        Args:
            endpoint: a `Datagram` or `Tap`. A tap's packet is read into a buffer of the endpoint's,
                and what receives it gets a copy (`Reason.PEEKED`).
            length: bytes to look at, 1 to 64.
        """
        if not 1 <= integer(length, "length") <= _PEEK_MOST:
            raise ArgumentError(f"length is {length}; 1 to {_PEEK_MOST} would be right")
        return self._peek(endpoint, length, Peek)

    def drop(self, endpoint: Target) -> Transfer[_core.Completion]:
        """Take the next packet of a packet endpoint, when it comes, and forget it."""
        return self._control(_DROP, endpoint, 0, 0)

    def completions(
        self, limit: int = 16, *, at_least: int = 1, forever: bool = False
    ) -> _core.Stream[Completions]:
        """What finishes of the batches, in any order: ``async for done in port.completions(): ...``

        A `reset` drops what was not given yet: those completions are of the generation before.

        Args:
            limit: most completions at a time.
            at_least: wait for this many, as long as as many are outstanding.
            forever: go on waiting when nothing is outstanding; otherwise the loop ends then.
        """
        for what, value in (("limit", limit), ("at_least", at_least)):
            if not 1 <= integer(value, what) <= 65536:
                raise ArgumentError(f"{what} is {value}; 1 to 65536 would be right")
        return _core.Stream(self, Completions, limit, at_least, forever)

    def close(self) -> None:
        """Take nothing more, and cancel what is in flight."""
        if not self.closed:
            if not self.engine.closed and self.outstanding and not self.resetting:
                self.reset()
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Port {self.name} on {self.space!r}, {self.in_flight} in flight>"


def _make_port(engine: Engine, space: _core.Space, name: str, depth: int) -> Port:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name is {name!r}; a string would be right")
    if not 1 <= integer(depth, "depth") <= 1 << 20:
        raise ArgumentError(f"depth is {depth}; 1 to 2^20 would be right")
    return Port(engine, space, name, depth)


# The engine is below this module and may not import it.
Engine._make_port = staticmethod(_make_port)
