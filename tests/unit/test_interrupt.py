"""An interrupt line: levels, edges, and listeners that answer at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.devices import Interrupt
from iodma.errors import ArgumentTypeError, BusyError, StaleError


def test_a_level_is_told_once() -> None:
    line = Interrupt()
    heard: list[bool] = []
    line.connect(heard.append)
    for level in (True, True, False, False, True):
        line.set(level)
    assert heard == [True, False, True]
    assert (line.level, line.count) == (True, 2)


def test_a_pulse_is_an_edge() -> None:
    line = Interrupt()
    heard: list[bool] = []
    line.connect(heard.append)
    line.pulse()
    line.pulse()
    assert heard == [True, False, True, False]
    assert (line.level, line.count) == (False, 2)


def test_a_pulse_of_a_raised_line_is_refused() -> None:
    line = Interrupt("uart.interrupt")
    line.set(True)
    with pytest.raises(BusyError, match=r"uart\.interrupt: pulse\(\) on a line that set\(True\)"):
        line.pulse()
    assert (line.level, line.count) == (True, 1)


def test_connecting_to_a_raised_line_hears_it_and_disconnecting_ends_it() -> None:
    line = Interrupt()
    heard: list[bool] = []
    line.set(True)
    disconnect = line.connect(heard.append)
    assert heard == [True]
    disconnect()
    disconnect()
    line.set(False)
    assert heard == [True]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="takes a function, not 3"):
        Interrupt().connect(3)  # type: ignore[arg-type]


def test_all_listeners_hear_the_same_order_when_one_acknowledges_at_once() -> None:
    line = Interrupt()
    first: list[bool] = []
    second: list[bool] = []

    def acknowledge(level: bool) -> None:
        first.append(level)
        if level:
            line.set(False)

    line.connect(acknowledge)
    line.connect(second.append)
    line.set(True)
    assert first == second == [True, False]
    line.pulse()
    assert first == second == [True, False, True, False], "a pulse cannot be taken apart"


def test_a_storm_ends() -> None:
    line = Interrupt()
    line.connect(lambda level: line.set(not level))
    with pytest.raises(BusyError, match="interrupt storm"):
        line.set(True)
    line.connect(lambda level: None)


def test_what_a_listener_raises_reaches_the_device_and_leaves_no_debt() -> None:
    line = Interrupt()
    heard: list[bool] = []

    def broken(level: bool) -> None:
        raise ValueError

    disconnect = line.connect(broken)
    with pytest.raises(ValueError):
        line.pulse()
    disconnect()
    line.connect(heard.append)
    assert line.level is False
    line.pulse()
    assert heard == [True, False]


def test_the_guard_comes_first() -> None:
    def refuse() -> None:
        raise StaleError

    line = Interrupt("line", refuse)
    for drive in (lambda: line.set(True), line.pulse):
        with pytest.raises(StaleError):
            drive()
    assert (line.level, line.count) == (False, 0)


@given(st.lists(st.sampled_from(["raise", "lower", "pulse"])))
def test_count_is_the_rising_edges_heard(steps: list[str]) -> None:
    line, heard = Interrupt(), [False]
    line.connect(heard.append)
    for step in steps:
        if step != "pulse":
            line.set(step == "raise")
        elif not line.level:
            line.pulse()
    edges = list(pairwise(heard))
    assert all(before is not after for before, after in edges)
    assert line.count == edges.count((False, True))
    assert line.level is heard[-1]
