# SPDX-License-Identifier: Apache-2.0
"""Finding the handlers that registers and doorbells name, and refusing the ones that cannot work.

Invariants
 - All of it happens when the device class is made. What is found there is what runs: a method that
   is overridden in a subclass is found for the subclass, one that is put on an instance later is
   not.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import (
    Parameter,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from typing import Any

from iodma.devices.doorbell import Doorbell
from iodma.devices.registers import Handler, Mapped
from iodma.errors import ArgumentError, ArgumentTypeError

__all__ = ["asynchronous", "plain", "takes"]


def plain(
    device: type, each: Mapped, role: str, handler: Handler | None, arguments: int
) -> Callable[..., Any] | None:
    """The handler that answers at once, or None if none is declared.

    Args:
        device: the class.
        each: what declares it.
        role: the argument it was declared with: "read", "write" or "full".
        handler: its name, or itself.
        arguments: how many it is called with, the device among them. A write handler may take one
            more.

    Raises:
        ArgumentError: the class has no method of that name.
        ArgumentTypeError: not a function, an ``async def``, or one with other arguments.
    """
    if handler is None:
        return None
    place = f"{device.__name__}.{each.name}: its {role} handler"
    function = _resolved(device, place, handler)
    if _is_any(function, iscoroutinefunction, isasyncgenfunction, isgeneratorfunction):
        raise ArgumentTypeError(
            f"{place}, {_title(function)}, is an async def or a generator, but a register handler "
            "answers at once; to start work from a write, declare "
            f'Doorbell({each.offset:#x}, {each.width}, run="{_title(function)}")'
        )
    if not takes(function, arguments) and not (role == "write" and takes(function, arguments + 1)):
        wanted = {"read": "(self)", "write": "(self, value) or (self, value, old)"}
        raise ArgumentTypeError(
            f"{place}, {_title(function)}, must take {wanted.get(role, '(self, value)')}"
        )
    return function


def asynchronous(device: type, each: Doorbell) -> Callable[..., Any]:
    """What the doorbell runs.

    Raises:
        ArgumentError: the class has no method of that name.
        ArgumentTypeError: not an ``async def``, or one with other arguments.
    """
    place = f"{device.__name__}.{each.name}: its run handler"
    function = _resolved(device, place, each.run)
    if not _is_any(function, iscoroutinefunction):
        raise ArgumentTypeError(
            f"{place}, {_title(function)}, is not an async def; for a plain function, declare "
            f'Register({each.offset:#x}, {each.width}, "wo", write="{_title(function)}")'
        )
    if not takes(function, 2):
        raise ArgumentTypeError(f"{place}, {_title(function)}, must take (self, value)")
    return function


def takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function has that many positional parameters without a default.

    ``*args`` takes the place of any that are missing. True if nobody can tell.
    """
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    needed = sum(each.kind in positional and each.default is each.empty for each in parameters)
    if any(each.kind is each.KEYWORD_ONLY and each.default is each.empty for each in parameters):
        return False
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return needed <= arguments
    accepted = sum(each.kind in positional for each in parameters)
    return needed <= arguments <= accepted


def _resolved(device: type, place: str, handler: Handler) -> Callable[..., Any]:
    function: Any = getattr(device, handler, None) if isinstance(handler, str) else handler
    if function is None:
        raise ArgumentError(f"{place}: {device.__name__} has no method called {handler}")
    if not callable(function) or isinstance(function, type):
        raise ArgumentTypeError(f"{place} is a method's name or a function, not {function!r}")
    return function  # type: ignore[no-any-return]


def _is_any(function: Callable[..., Any], *kinds: Callable[[object], bool]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object may be async there
    return any(kind(function) or kind(call) for kind in kinds)


def _title(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
