# SPDX-License-Identifier: Apache-2.0
"""What iodma raises.

Invariants
 - What a guest, a peer or the host's kernel can cause is a value (`Completion.status`), not an
   exception.  Only `Port.load` and `Port.store` raise for those, and then always `DmaFault`.
 - Everything else here is misuse of the interface by the program, is an `Error`, and its message
   names the value that was wrong and what would be right.
 - `Cancelled` is not an `Error`, nor an `Exception`: it unwinds a coroutine whose device was reset,
   and must not be swallowed by ``except Exception``.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iodma._core import Completion

__all__ = [
    "AddressRangeError",
    "ArgumentError",
    "ArgumentTypeError",
    "BusyError",
    "Cancelled",
    "ClosedError",
    "DmaFault",
    "Error",
    "RevokedError",
    "StaleError",
    "UnsupportedError",
    "WrongThreadError",
    "integer",
]


class Error(Exception):
    """The base of everything that iodma raises, but for `Cancelled`."""


class ArgumentError(Error, ValueError):
    """A value that cannot be right: negative, too large, misaligned, an unknown name."""


class ArgumentTypeError(Error, TypeError):
    """A value of the wrong type, a foreign awaitable among them."""


class AddressRangeError(ArgumentError):
    """An address and a length that do not fit the space they are for, or overlap what is there."""


class ClosedError(Error):
    """The engine, port, endpoint or memory was closed."""


class StaleError(Error):
    """A port, coroutine or ticket from before the last reset."""


class BusyError(Error):
    """Something is still held: a lease, a view, a request in flight."""


class RevokedError(Error):
    """Memory that was quarantined because a revocation passed its deadline."""


class WrongThreadError(Error):
    """An engine used from a thread or process that it does not belong to."""


class UnsupportedError(Error):
    """Something that this kernel, this endpoint or this build cannot do."""


class DmaFault(Error):
    """A `load` or `store` that did not reach memory.

    Attributes:
        completion: the terminal `Completion`: its status, and the fault where there was one.
    """

    def __init__(self, completion: Completion) -> None:
        super().__init__(completion)
        self.completion = completion

    def __str__(self) -> str:
        fault = self.completion.fault
        if fault is None:
            return f"access ended with {self.completion.status.name}"
        return str(fault)


class Cancelled(BaseException):
    """Thrown into the coroutines of a device that was reset, and into a cancelled task."""


def integer(value: object, what: str, unit: str = "") -> int:
    """``value`` as an int, whatever kind of integer it is.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        right = f"an integer number of {unit}" if unit else "an integer"
        raise ArgumentTypeError(f"{what} is {value!r}; {right} would be right") from None
