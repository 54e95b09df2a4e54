"""Receives that wait for a peer keep nobody else from the arena."""

from __future__ import annotations

import contextlib
import socket
import tempfile

import pytest

import iodma


@pytest.mark.parametrize("begun", [False, True], ids=["idle", "begun"])
def test_a_file_is_read_behind_receives_that_wait(begun: bool) -> None:
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context
        engine = keep(iodma.Engine(strict=True, bounce_bytes=64 << 10))
        ram = keep(iodma.Ram(1 << 20))
        with tempfile.TemporaryFile() as held:
            held.write(bytes(range(256)) * 16)
            held.flush()
            file = keep(iodma.File(held.fileno()))
        port = engine.port(iodma.ByteLanes(iodma.Memory({0: ram}), 2))
        sources, peers = [], []
        for _ in range(6):
            ours, peer = socket.socketpair()
            peers.append(keep(peer))
            with ours:
                sources.append(keep(iodma.Socket(ours)))

        async def main() -> None:
            idle = [port.to_memory((i << 16, 1 << 16), source=s) for i, s in enumerate(sources)]
            await engine.sleep(0.01)
            if begun:
                for peer in peers:
                    peer.send(b"some")
                await engine.sleep(0.01)
            done = await port.to_memory((6 << 16, 4096), source=file)
            assert (done.status, done.moved) == (iodma.Status.OK, 4096)
            for i, peer in enumerate(peers):
                peer.sendall(bytes([i]) * ((1 << 16) - 4 * begun))
                done = await idle[i]
                assert (done.status, done.moved) == (iodma.Status.OK, 1 << 16)
                assert bytes(ram.view((i << 16) + 4, 100)) == bytes([i]) * 100

        timer = engine.call_later(10, stuck)
        engine.run(main())
        timer.cancel()
        assert engine.stats().arena[1] == 0


def stuck() -> None:
    raise TimeoutError("the file's read waits for receives that wait for nobody")
