"""Log lines that a guest can cause: kept to a rate, and what was left out is counted."""

from __future__ import annotations

import logging

import pytest

from iodma.ratelimit import RateLimit

logger = logging.getLogger("iodma.test")


def test_a_burst_then_silence_then_the_count(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    limit = RateLimit(logger, burst=2, seconds=10, clock=lambda: now)
    written = [limit.log(logging.WARNING, "line %d", number) for number in range(5)]
    assert written == [True, True, False, False, False]
    now = 10.0
    assert limit.log(logging.WARNING, "line %d", 5)
    assert caplog.messages == ["line 0", "line 1", "line 5 (3 lines like it were left out)"]
    assert limit.suppressed == 0


def test_a_level_that_is_off_costs_nothing_of_the_burst(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="iodma.test")
    limit = RateLimit(logger, burst=1)
    assert not limit.log(logging.DEBUG, "unheard")
    assert limit.suppressed == 0
    assert limit.log(logging.WARNING, "heard")
