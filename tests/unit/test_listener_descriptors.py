# SPDX-License-Identifier: Apache-2.0
"""A server whose process can open no more descriptors: it says so, and goes on when it can."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iodma.testing import strict_engine
from iodma.transports import listener
from iodma.transports.qtest import Machine, PhysicalSpace, QtestServer, SteppedClock
from tests.qtest import Qtest


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Only so many more descriptors can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.dup(0) for _ in range(count + 1)]
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("left", [0, 1], ids=["connection", "session"])
def test_a_client_is_served_when_there_are_descriptors_again(
    tmp_path: Path,
    left: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Real time passes, though the clock of the engine stands."""
    monkeypatch.setattr(listener, "_RETRY_NS", 1_000_000)
    clock = SteppedClock()
    with strict_engine(slow_step=None, clock=clock) as engine:
        machine = Machine(PhysicalSpace(), clock=clock)
        server = QtestServer(engine, machine, tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX) as second:
            stream.connect(str(tmp_path / "s"))
            with descriptors_left(left):
                while "no client can be accepted: Too many open files" not in caplog.text:
                    engine.pump()
            assert server.session is None and server.sessions == 0
            if left:  # that connection was taken, and is over: there is no session for it
                second.connect(str(tmp_path / "s"))
            client = Qtest(second if left else stream, engine.pump)
            assert client("endianness") == "little"
            assert server.sessions == 1
        task = engine.start(server.close())
        while not task.done:
            engine.pump()
