"""The watch over slow steps: it tells of them, and it always ends."""

import logging
import threading
import time

import pytest

import iodma
from iodma.engine.slow import SlowStepWatch


def test_a_slow_step_is_told_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    async def dawdle() -> None:
        for _ in range(600):  # until it is told, however busy the machine is
            time.sleep(0.1)
            if caplog.records:
                break

    with caplog.at_level(logging.WARNING, "iodma.engine.slow"), iodma.Engine() as engine:
        engine.run(dawdle())
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 1
    assert "dawdle" in told[0]


def test_a_close_at_the_moment_it_goes_to_sleep_ends_it() -> None:
    class Late(threading.Event):
        """Closed by somebody just before it is cleared."""

        def clear(self) -> None:
            watch._stop.set()
            self.set()
            super().clear()

    with iodma.Engine(slow_step=None) as engine:
        watch = SlowStepWatch(engine, 0.02)
        watch._go = Late()
        watch._thread.join(timeout=10)
        assert not watch._thread.is_alive()


def test_what_follows_an_error_is_no_step(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        await engine.sleep(0)
        raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING, "iodma.engine.slow"), iodma.Engine() as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.run(fail())
        time.sleep(0.3)
    assert caplog.records == []
