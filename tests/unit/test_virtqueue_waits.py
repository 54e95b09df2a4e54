# SPDX-License-Identifier: Apache-2.0
"""How an engine waits for a driver, and for others beside it."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

import iodma
from tests.unit.ringdriver import split_driver

PATIENCE_S = 10.0


@pytest.mark.parametrize("first", ["kick", "descriptor"])
def test_a_route_that_has_work_keeps_no_reader_waiting(first: str) -> None:
    """A descriptor that becomes readable with a kick is its reader's, with no further kick."""
    near, far = socket.socketpair()
    with split_driver() as d, iodma.Buffer(4096) as disk, near, far:
        queue = d.queue()
        queue.route(disk, to_memory=1 << 0, unit=512)
        heard = threading.Event()
        over = iodma.Event(d.engine)
        missed: list[str] = []

        def hear() -> None:
            near.recv(1)
            heard.set()

        def both() -> None:
            if first == "descriptor":
                far.send(b"x")
            d.read(0, 0)
            os.eventfd_write(d.kick, 1)
            if first == "kick":
                far.send(b"x")

        def peer() -> None:
            for _ in range(300):
                both()
                if not heard.wait(PATIENCE_S):
                    missed.append("the descriptor")
                heard.clear()
                if not select.select([d.call], [], [], PATIENCE_S)[0]:
                    missed.append("the kick")
                if missed:
                    break
                os.eventfd_read(d.call)
                assert d.used() == [(0, 513)]
            d.engine.call_threadsafe(over.set)

        async def main() -> None:
            thread = threading.Thread(target=peer)
            thread.start()
            await over.wait()
            thread.join()

        d.engine.add_reader(near.fileno(), hear)
        d.engine.run(main())
        d.engine.remove_reader(near.fileno())
        queue.release()
        assert not missed
