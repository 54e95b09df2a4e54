# SPDX-License-Identifier: Apache-2.0
"""Attributes that are worked out when they are first asked for.

`functools.cached_property` puts what it has worked out into the object's ``__dict__``. An object
whose ``__dict__`` was ever asked for keeps its attributes there from then on, and CPython 3.11
looks each of them up anew every time: 0.2 us a request for a device with a coroutine a request.

Invariants
 - Nothing here asks for an object's ``__dict__``.
 - What has raised is asked again the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

__all__ = ["Lasting"]

T = TypeVar("T")


class Lasting(Generic[T]):
    """A method of no arguments that is called once, and whose value then is the attribute."""

    def __init__(self, work_out: Callable[[Any], T]) -> None:
        self._work_out = work_out
        self.__doc__ = work_out.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object, owner: type) -> Self | T:
        if instance is None:
            return self
        value = self._work_out(instance)
        setattr(instance, self._name, value)
        return value
