# SPDX-License-Identifier: Apache-2.0
"""What libvfio-user's sample client does, message by message, as it was recorded from that program
(of June 2026) while it drove the device in vfio_user/sample.py: no package has it, so what runs
here is its conversation. How the program itself is run stands in docs/how-to-vfio-user.md.

It ends where the client would move the device to another server, which is refused.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import time
from pathlib import Path

import iodma
from iodma.testing import strict_engine
from tests.peers.vfio_user.sample import PAGE, PIECE, served
from tests.unit import vfio_client as vc
from tests.unit.vfio_client import CONFIG, DMA_READ, DMA_WRITE, ERROR, Client, Reply

#: Of the program: what it says of itself, regions of memory, its ids.
CAPABILITIES = b'{"capabilities":{"max_msg_fds":32,"max_data_xfer_size":1024}}\0'
REGIONS = 32
START, STOP, REPORT, STATE = 6, 7, 8, 2
GET, SET = 1 << 16, 1 << 17


class Program(Client):
    """The program: its ids and payloads."""

    def __init__(self, where: Path, engine: iodma.Engine) -> None:
        super().__init__(where, engine)
        self.memory = os.memfd_create("sample")
        os.ftruncate(self.memory, REGIONS * PAGE)
        self.irq = os.eventfd(0)
        self._access = 0xF00F
        self.served: list[tuple[int, int, int]] = []

    def close(self) -> None:
        super().close()
        os.close(self.memory)
        os.close(self.irq)

    def say(self, id: int, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> Reply:
        reply = self.reply(self.post(command, payload, fds, id=id))
        assert reply.command == command
        return reply

    def access(self, region: int, count: int, data: bytes | None = None) -> Reply:
        """At offset 0: it counts its ids down."""
        id, self._access = self._access, self._access - 1
        payload = struct.pack("=QII", 0, region, count)
        if data is None:
            return self.say(id, vc.REGION_READ, payload)
        return self.say(id, vc.REGION_WRITE, payload + data)

    def feature(self, id: int, flags: int, data: bytes, more: int = 0) -> Reply:
        return self.say(id, vc.FEATURE, struct.pack("=II", 8 + len(data) + more, flags) + data)

    def move(self, command: int, address: int, what: int | bytes) -> bytes:
        """DMA by messages, which it serves from its file."""
        count = len(what) if isinstance(what, bytes) else what
        self.served.append((command, address, count))
        if isinstance(what, bytes):
            os.pwrite(self.memory, what, address)
            return b""
        return os.pread(self.memory, what, address)


def set_up(client: Program) -> None:
    """From the version to the memory."""
    said = client.say(0xDA55, vc.VERSION, struct.pack("=HH", 0, 2) + CAPABILITIES)
    assert struct.unpack_from("=HH", said.payload) == (0, 1)
    assert client.access(0xDEADBEEF, 4).errno == errno.EINVAL

    info = client.say(0xB10C, vc.GET_INFO, struct.pack("=IIII", 16, 0, 0, 0)).payload
    assert struct.unpack("=IIII", info) == (16, 3, 9, 5)
    for index, size in enumerate((16, 4 * PAGE, 0, 0, 0, 0, 0, 256, 0)):
        ask = struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0)
        reply = client.say(0xABCD, vc.GET_REGION_INFO, ask)
        needed = struct.unpack_from("=I", reply.payload)[0]
        assert needed == (64 if index == 1 else 32) and not reply.fds
        assert struct.unpack_from("=Q", reply.payload, 16)[0] == size
        if needed > 32:
            ask = struct.pack("=IIIIQQ", needed, 0, index, 0, 0, 0).ljust(needed, b"\0")
            reply = client.say(0xABCD, vc.GET_REGION_INFO, ask)
            assert len(reply.payload) == needed and len(reply.fds) == 1
            os.close(reply.fds[0])

    config = client.access(CONFIG, 64).payload[16:]
    assert struct.unpack_from("<HH", config) == (0xDEAD, 0xBEEF)
    assert struct.unpack_from("<HH", config, 0x2C) == (0xCAFE, 0xBABE)
    assert client.say(1, vc.RESET).errno == 0
    for page in range(REGIONS):
        region = struct.pack("=IIQQQ", 32, 3, page * PAGE, page * PAGE, PAGE)
        assert client.say(0x1234 + page, vc.DMA_MAP, region, (client.memory,)).errno == 0


def interrupts(client: Program) -> None:
    for index, count in enumerate((1, 0, 0, 1, 1)):
        ask = struct.pack("=IIII", 16, 0, index, 0)
        reply = client.say(0x1BAD, vc.GET_IRQ_INFO, ask)
        assert struct.unpack_from("=IIII", reply.payload)[3] == count
    intx = struct.pack("=IIIII", 20, vc.EVENTFD | vc.TRIGGER, 0, 0, 1)
    assert client.say(0x1BAE, vc.SET_IRQS, intx, (client.irq,)).errno == 0


def test_the_sample_client(tmp_path: Path) -> None:
    with (
        strict_engine(slow_step=None) as engine,
        served(engine, tmp_path / "s") as (device, _server),
        Program(tmp_path / "s", engine) as client,
    ):
        client.serve = client.move
        set_up(client)
        interrupts(client)
        control = struct.pack("=QII", PAGE, 0, 0)
        assert client.feature(0, START | SET, control).errno == 0

        # The timer; only then does it look for what it is asked.
        now = struct.pack("=q", int(time.time()))
        assert client.access(0, 8, now).errno == 0
        assert len(client.access(0, 8).payload) == 24
        client.wait(lambda: select.select([client.irq], [], [], 0)[0])
        client.wait(lambda: device.done)
        moved = [(PIECE * place, PIECE) for place in range(4)]
        assert client.served == [
            *((DMA_WRITE, *each) for each in moved),
            *((DMA_READ, *each) for each in moved),
        ]
        for page in (0, PAGE):
            letters = os.pread(client.memory, PAGE, page)[::PIECE]
            assert letters == b"ABCD"

        # What was written by messages it has noted itself.
        for page in range(REGIONS):
            ask = struct.pack("=QQQ", page * PAGE, PAGE, PAGE)
            reply = client.feature(0x99, REPORT | GET, ask, 8)
            assert reply.payload[32:] == bytes([page == 1]).ljust(8, b"\0")
        assert client.feature(0, STOP | SET, control).errno == 0
        for page in range(REGIONS // 2):
            region = struct.pack("=IIQQ", 24, 0, page * PAGE, PAGE)
            assert client.say(7, vc.DMA_UNMAP, region).errno == 0

        later = struct.pack("=q", int(time.time()) + 3600)
        assert client.access(0, 8, later).errno == 0
        reply = client.feature(0xFAB1, STATE | SET, struct.pack("=Ii", 6, -1))
        assert reply.flags & ERROR and reply.errno == errno.EINVAL
