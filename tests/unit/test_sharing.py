# SPDX-License-Identifier: Apache-2.0
"""Memory that a client has for itself alone, seen in its own list of mappings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from iodma._core import file_of
from iodma.transports.sharing import is_private, peer_of

CLIENT = """
import mmap, sys
flags = {"s": mmap.MAP_SHARED, "p": mmap.MAP_PRIVATE}
held = [mmap.mmap(int(sys.argv[1]), 4096, flags[how]) for how in sys.argv[2]]
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("how", "private"), [("p", True), ("s", False), ("ps", False), ("pp", True), ("", False)]
)
def test_how_a_client_has_a_file(how: str, private: bool) -> None:
    fd = os.memfd_create("guest memory")
    os.truncate(fd, 8192)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(fd), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
    )
    with client:
        assert client.stdout is not None and client.stdin is not None
        assert client.stdout.readline() == b"mapped\n"
        assert is_private(client.pid, file_of(fd)) is private
        client.stdin.close()
        client.wait(20)
    assert is_private(client.pid, file_of(fd)) is None  # there is no such process
    assert is_private(0, file_of(fd)) is None
    assert is_private(-1, file_of(fd)) is False
    os.close(fd)


def test_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == -1  # this process made it
