"""Of a device window every register is read once, however often it takes to write what it gave."""

from __future__ import annotations

import socket
import tempfile

import iodma
from tests.unit.system import Registers

WINDOW = 0x10_0000


class Counter(Registers):
    """Each register is a counter that reading it moves on."""

    def read(self, offset: int, width: int) -> int:
        super().read(offset, width)
        return len(self.log)


def once(size: int) -> list[tuple[str, int, int]]:
    return [("r", offset, 8) for offset in range(0, size, 8)]


def test_when_there_is_no_room_for_the_request() -> None:
    registers = Counter()
    window = iodma.DeviceWindow(registers, 64)
    with (
        iodma.Engine(strict=True, in_flight=1) as engine,
        iodma.Ram(4096) as ram,
        tempfile.TemporaryFile() as held,
        iodma.File(held.fileno()) as file,
        socket.socket(type=socket.SOCK_DGRAM) as nobody,
    ):
        port = engine.port(iodma.Memory({0: ram, WINDOW: window}))
        # What the engine watches itself takes no place in flight: or nothing here would ever move.
        engine.add_reader(nobody.fileno(), print)

        async def main() -> None:
            busy = [port.from_memory((0, 4096), to=file) for _ in range(4)]
            assert (await port.from_memory((WINDOW, 64), to=file, offset=4096)).ok
            assert all([(await each).ok for each in busy])

        engine.run(main())
        assert engine.stats().waited["ring"] > 0
        held.seek(4096)
        assert held.read() == b"".join(n.to_bytes(8, "little") for n in range(1, 9))
    assert registers.log == once(64)
    window.close()


def test_when_the_request_is_cut_short() -> None:
    registers = Counter()
    size = 64 << 10
    window = iodma.DeviceWindow(registers, size)
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer.setblocking(False)
    with (
        iodma.Engine(strict=True) as engine,
        ours,
        peer,
        iodma.Socket(ours) as target,
    ):
        ours.setblocking(
            False
        )  # shared with the endpoint: every send is short, and some find no room
        port = engine.port(iodma.Memory({WINDOW: window}))
        got = bytearray()
        engine.add_reader(peer.fileno(), lambda: got.extend(peer.recv(1000)))

        async def main() -> None:
            done = await port.from_memory((WINDOW, size), to=target)
            assert done.ok and done.moved == size
            while len(got) < size:
                await engine.sleep(0)

        engine.run(main())
        assert engine.stats().requests > 2
        assert got == b"".join(n.to_bytes(8, "little") for n in range(1, size // 8 + 1))
    assert registers.log == once(size)
    window.close()
