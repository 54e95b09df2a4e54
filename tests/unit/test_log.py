"""What a guest can cause is logged at a rate, per call site, and nothing is lost silently."""

import logging
import weakref
from pathlib import Path

import pytest

import iodma
from iodma.log import GuestLog, place


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> GuestLog:
    caplog.set_level(logging.DEBUG, "iodma.test")
    return GuestLog("iodma.test", burst=3, seconds=5.0, clock=clock)


def test_one_call_site_is_kept_to_its_rate(log: GuestLog, caplog: pytest.LogCaptureFixture) -> None:
    written = [log.warning("bad descriptor %d", number) for number in range(1000)]
    assert written == [True] * 3 + [False] * 997
    assert caplog.messages == ["bad descriptor 0", "bad descriptor 1", "bad descriptor 2"]
    assert log.suppressed == 997


def test_a_noisy_call_site_silences_no_other(
    log: GuestLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        log.warning("noise")
    assert log.error("something else")
    assert caplog.messages[-1] == "something else"
    assert caplog.records[-1].levelno == logging.ERROR


def test_the_next_line_after_a_silence_tells_how_many_are_missing(
    log: GuestLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in (0.0, 0.0, 0.0, 0.0, 1.0, 5.1):
        clock.now = second
        log.info("line at %.1f", second)
    assert len(caplog.messages) == 4
    assert caplog.messages[-1].startswith("line at 5.1")
    assert "2" in caplog.messages[-1].removeprefix("line at 5.1")
    assert log.suppressed == 2


def test_what_no_later_line_tells_is_reported_once(
    log: GuestLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        log.warning("queue %d is broken", number)
    caplog.clear()
    log.report()
    assert caplog.messages == ["7 more lines like 'queue %d is broken'"]
    assert caplog.records[0].levelno == logging.WARNING
    log.report()
    assert len(caplog.messages) == 1
    assert log.suppressed == 7


def test_there_are_as_many_counters_as_call_sites(log: GuestLog) -> None:
    for number in range(500):
        log.warning("a guest's own text: %s", "x" * number)
    assert len(log._lines) == 1


def test_a_level_that_is_off_costs_and_counts_nothing(
    log: GuestLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "iodma.test")
    assert not any(log.debug("detail") for _ in range(10))
    assert log.suppressed == 0


def test_a_record_that_is_kept_holds_nothing_that_an_exception_holds(
    log: GuestLog, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> weakref.ref[iodma.Ram]:
        with iodma.Ram(4096) as ram:
            try:
                ram.view(4096, 1)
            except iodma.Error as error:
                log.warning("refused: %s, %r", error, error)
            return weakref.ref(ram)

    gone = refuse()
    (record,) = caplog.records
    assert gone() is None
    assert record.getMessage().startswith("refused: ")
    assert "AddressRangeError(" in record.getMessage()


def test_an_error_is_told_with_the_line_that_is_not_ours() -> None:
    assert place(ValueError()) == ""
    try:
        iodma.Memory({-1: iodma.Rom(b"x")})
    except iodma.Error as error:
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
        assert place(error) == f" ({Path(__file__).name}:{line})"
    else:
        raise AssertionError("there is no such address")
