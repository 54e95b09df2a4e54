# SPDX-License-Identifier: Apache-2.0
"""Lines that were done before: what is done of them again, and where that ends."""

from __future__ import annotations

import gc
import weakref

import pytest

from iodma import ArgumentError, ArgumentTypeError
from iodma._core import KnownLines


class Owner:
    """Who keeps lines: a machine that may be busy."""

    def __init__(self, most: int = 8) -> None:
        self.is_busy = False
        self.done: list[int] = []
        self.lines = KnownLines(self.busy, self.failed, most, 16)
        self.out: list[bytes] = []

    def busy(self) -> bool:
        return self.is_busy

    def failed(self, why: BaseException) -> bytes:
        if isinstance(why, ValueError):
            return b"FAIL %b\n" % str(why).encode()
        raise why

    def write(self, value: int) -> None:
        self.done.append(value)

    def read(self, value: int) -> int:
        return value


def test_it_does_what_it_knows_and_stops_at_the_first_other_line() -> None:
    owner = Owner()
    owner.lines.keep(b"write", False, owner.write, 7)
    owner.lines.keep(b"read", True, owner.read, 0xFFFF_FFFF_FFFF_FFFF)
    data = b"read\nwrite\nwrite\nother\nread\n"
    assert owner.lines.run(data, 0, 64, owner.out) == (17, 3, None)
    assert owner.out == [b"OK 0xffffffffffffffff\n", b"OK\n", b"OK\n"]
    assert owner.done == [7, 7]
    assert owner.lines.run(data, 17, 64, owner.out) == (17, 0, None)
    assert owner.lines.run(data, 23, 64, owner.out) == (len(data), 1, None)
    assert owner.lines.run(data, len(data), 64, owner.out) == (len(data), 0, None)


def test_so_many_at_once_and_no_line_without_its_end() -> None:
    owner = Owner()
    owner.lines.keep(b"w", False, owner.write, 1)
    assert owner.lines.run(b"w\nw\nw\nw", 0, 2, owner.out) == (4, 2, None)
    assert owner.lines.run(b"w\nw\nw\nw", 4, 64, owner.out) == (6, 1, None)
    assert owner.done == [1, 1, 1]


def test_the_answer_of_what_makes_the_machine_busy_is_held_back() -> None:
    owner = Owner()

    def begin() -> None:
        owner.is_busy = True

    owner.lines.keep(b"go", False, begin)
    owner.lines.keep(b"w", False, owner.write, 1)
    assert owner.lines.run(b"w\ngo\nw\n", 0, 64, owner.out) == (5, 2, b"OK\n")
    assert owner.out == [b"OK\n"] and owner.done == [1]


def test_what_a_line_raises_is_its_answer_or_is_let_out() -> None:
    owner = Owner()

    def refuse(why: Exception) -> None:
        raise why

    owner.lines.keep(b"bad", True, refuse, ValueError("so"))
    owner.lines.keep(b"worse", True, refuse, RuntimeError("not so"))
    owner.lines.keep(b"big", True, owner.read, 1 << 64)
    assert owner.lines.run(b"bad\nbad\n", 0, 64, owner.out) == (8, 2, None)
    assert owner.out == [b"FAIL so\n"] * 2
    with pytest.raises(RuntimeError, match="not so"):
        owner.lines.run(b"worse\n", 0, 64, owner.out)
    with pytest.raises(OverflowError):
        owner.lines.run(b"big\n", 0, 64, owner.out)


def test_what_is_kept_is_bounded() -> None:
    owner = Owner(most=8)
    for value in range(100):
        owner.lines.keep(b"%d" % value, False, owner.write, value)
        assert len(owner.lines) <= 8
    assert owner.lines.run(b"99\n98\n0\n", 0, 64, owner.out)[:2] == (6, 2)
    owner.lines.keep(b"x" * 17, False, owner.write, 0)
    owner.lines.keep(b"y" * 16, False, owner.write, 1)
    assert owner.lines.run(b"x" * 17 + b"\n", 0, 64, owner.out)[1] == 0
    assert owner.lines.run(b"y" * 16 + b"\n", 0, 64, owner.out)[1] == 1


def test_it_can_be_told_to_forget_by_what_it_calls() -> None:
    owner = Owner()

    def end() -> None:
        owner.lines.forget()
        owner.lines.keep(b"w", False, owner.write, 1)  # too late

    owner.lines.keep(b"end", False, end)
    owner.lines.keep(b"w", False, owner.write, 1)
    assert owner.lines.run(b"w\nend\nw\n", 0, 64, owner.out) == (6, 2, None)
    assert owner.done == [1] and not len(owner.lines)


def test_bad_arguments() -> None:
    owner = Owner()
    with pytest.raises(ArgumentError, match="at is 3 of 2"):
        owner.lines.run(b"w\n", 3, 64, owner.out)
    with pytest.raises(ArgumentTypeError, match="a list"):
        owner.lines.run(b"w\n", 0, 64, ())  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="callable"):
        owner.lines.keep(b"w", False, 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="at least 1"):
        KnownLines(owner.busy, owner.failed, 0, 16)


def test_it_is_collected_with_its_owner() -> None:
    owner = Owner()
    owner.lines.keep(b"w", False, owner.write, 1)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
