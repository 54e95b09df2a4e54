# SPDX-License-Identifier: Apache-2.0
"""The C core as Python sees it.  Names that begin with an underscore are the package's own."""

from collections.abc import AsyncIterator, Buffer, Callable, Coroutine, Generator, Iterator
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, final

from iodma.types import Access, Fault, Status

_T = TypeVar("_T")

version: str

class _Probe(TypedDict):
    error: int
    features: int
    setup_flags: int
    opcodes: list[int]

def uring_probe() -> _Probe: ...
def transitions() -> list[tuple[str, str, str]]: ...
def clock_ns() -> int: ...
def dio_alignment(fd: int, /) -> tuple[int, int]: ...
def timer() -> int: ...
def timer_set(fd: int, ns: int, /) -> None: ...
def completion(
    status: int,
    moved: int,
    error: int,
    stage: str = ...,
    offset: int = ...,
    address: int = ...,
    access: int = ...,
    cause: int = ...,
    /,
) -> Completion: ...
