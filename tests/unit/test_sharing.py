# SPDX-License-Identifier: Apache-2.0
"""Memory that a client has for itself alone, seen in its own list of mappings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

import iodma
from iodma._core import file_of
from iodma.testing import strict_engine
from iodma.transports.descriptors import Descriptor
from iodma.transports.sharing import is_private, peer_of
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.messages import Refusal
from iodma.transports.vfio_user.remote import Remote

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


def test_regions_of_a_private_file_are_asked_for_by_messages() -> None:
    asked: list[tuple[int, int]] = []
    sent: list[int] = []
    fds = [os.memfd_create("private"), os.memfd_create("shared")]

    def private(file: tuple[int, int], fd: int) -> bool:
        asked.append(file)
        return file == file_of(fds[0])

    with strict_engine() as engine:
        memory = iodma.Memory()
        remote = Remote(lambda id, command, payload: sent.append(command))
        table = DmaTable(engine, memory, remote, private=private)

        def map_page(fd: int, page: int) -> None:
            with Descriptor(os.dup(fd)) as descriptor:
                table.map(4096 * page, 4096, 3, descriptor, 4096 * page)

        for fd in fds:
            os.truncate(fd, 1 << 16)
        for page in range(8):
            map_page(fds[page % 2], page)
        map_page(fds[0], 2)  # the very same again
        with pytest.raises(Refusal):
            map_page(fds[1], 2)
        assert asked == [file_of(fd) for fd in fds]
        assert (table.regions, table.mappings) == (8, 1)

        async def main() -> None:
            with engine.port(memory) as port:
                await port.store_bytes(4096, b"direct")
                assert not sent and os.pread(fds[1], 6, 4096) == b"direct"
                load = port.load_bytes(0, 6)
                while not sent:
                    await engine.sleep(0)
                remote.close()  # the client is gone
                with pytest.raises(iodma.DmaFault):
                    await load
            await table.close()

        engine.run(main())
    for fd in fds:
        os.close(fd)
