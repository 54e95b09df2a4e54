"""A machine with a LANCE in it, and the driver that a test is.

The machine is the one that LANCE was put into by Sun: memory of the other byte order, so words are
big-endian there, and the chip's port goes through byte lanes. The other end of the cable is a unix
datagram socket.

Invariants:

- The driver knows registers, memory and descriptors, and nothing of the model.
- Nothing runs but inside `settle`.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import iodma
from iodma.devices.lance import CSR0, CSR3, RMD1, TMD1, InitializationBlock, Lance
from iodma.testing import Clock, FakeMemory, ScriptedEndpoint
from tests.unit.engines import WatchedEngine

__all__ = ["BROADCAST", "STATION", "Driver", "lance_machine", "swapped"]

STATION = bytes.fromhex("080020aabbcc")
BROADCAST = b"\xff" * 6
MEMORY = 1 << 20
BLOCK, RX_RING, TX_RING = 0x1000, 0x2000, 0x3000
RX_BUFFERS, TX_BUFFERS = 0x10000, 0x80000
BUFFER = 0x600  # 1536

OWNED_TMD = int(TMD1.OWN)
OWNED_RMD = int(RMD1.OWN)
ONE_BUFFER = int(TMD1.STP | TMD1.ENP)
RUN = int(CSR0.INEA | CSR0.STRT)


def swapped(data: bytes) -> bytes:
    """What a chip that has its bytes the other way round makes of them; an odd one stays."""
    whole = len(data) & ~1
    pairs = bytearray(data[:whole])
    pairs[::2], pairs[1::2] = data[1:whole:2], data[:whole:2]
    return bytes(pairs) + data[whole:]


class Driver:
    """What drives the chip.

    Attributes:
        lance: the chip, on its bus.
        memory: the machine's.
        wire: the other end of the cable.
        end: the host's socket at the chip's end.
    """

    def __init__(
        self, engine: WatchedEngine, memory: FakeMemory, lance: Lance, wire: socket.socket
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.lance = lance
        self.wire = wire
        self.end = wire
        self.block = InitializationBlock()
        self.straight = True

    # --- registers --------------------------------------------------------------------------------

    def read(self, csr: int = 0) -> int:
        self.lance.bus_write(2, 2, csr)
        return self.lance.bus_read(0, 2)

    def write(self, csr: int, value: int) -> None:
        self.lance.bus_write(2, 2, csr)
        self.lance.bus_write(0, 2, value)

    @property
    def csr0(self) -> CSR0:
        return CSR0(self.read(0))

    def line(self) -> bool:
        """Whether the interrupt line is raised."""
        return self.lance.interrupt.level

    def settle(self) -> None:
        """Until the chip does nothing by itself any more."""
        for _ in range(100_000):
            more = self.engine.pump()
            if not more and not self.lance.busy:
                return
            if not more:
                select.select([self.engine.fileno()], [], [], 0.01)
        raise AssertionError(f"it never comes to rest: {self.engine.transfers()}")

    # --- starting ---------------------------------------------------------------------------------

    def put_block(self, **fields: Any) -> None:
        """Writes an initialization block, with the rings and the station's address by default."""
        fields = {
            "padr": STATION,
            "rdra": RX_RING,
            "rlen": 4,
            "tdra": TX_RING,
            "tlen": 4,
            **fields,
        }
        self.block = InitializationBlock(**fields)
        self.memory.write(BLOCK, swapped(self.block.to_bytes()))

    def initialize(self, csr3: int = int(CSR3.BSWP), **fields: Any) -> None:
        """STOP, the block's address, CSR3, INIT; waits for IDON, which it acknowledges."""
        self.put_block(**fields)
        self.straight = bool(csr3 & CSR3.BSWP)
        self.write(0, CSR0.STOP)
        self.settle()
        self.write(1, BLOCK & 0xFFFF)
        self.write(2, BLOCK >> 16)
        self.write(3, csr3)
        self.write(0, CSR0.INIT)
        self.settle()
        assert self.csr0 & CSR0.IDON, self.csr0
        self.write(0, CSR0.IDON)

    def start(self, csr3: int = int(CSR3.BSWP), **fields: Any) -> None:
        """Initializes and starts it, with interrupts."""
        self.initialize(csr3, **fields)
        self.write(0, RUN)
        self.settle()

    # --- rings ------------------------------------------------------------------------------------

    def put(self, ring: int, entry: int, words: Sequence[int]) -> None:
        self.memory.write(ring + 8 * entry, struct.pack(">4H", *words))

    def get(self, ring: int, entry: int) -> tuple[int, ...]:
        return struct.unpack(">4H", self.memory.read(ring + 8 * entry, 8))

    def put_tmd(
        self, entry: int, address: int, length: int, status: int = OWNED_TMD | ONE_BUFFER
    ) -> None:
        high = status | address >> 16 & 0xFF
        self.put(self.block.tdra, entry, (address & 0xFFFF, high, -length & 0xFFFF, 0))

    def put_rmd(self, entry: int, address: int, length: int, status: int = OWNED_RMD) -> None:
        high = status | address >> 16 & 0xFF
        self.put(self.block.rdra, entry, (address & 0xFFFF, high, -length & 0xFFFF, 0))

    def tmd(self, entry: int) -> tuple[int, int, int, int]:
        return self.get(self.block.tdra, entry)  # type: ignore[return-value]

    def rmd(self, entry: int) -> tuple[int, int, int, int]:
        return self.get(self.block.rdra, entry)  # type: ignore[return-value]

    def payload(self, address: int, data: bytes) -> None:
        """Puts a frame into memory, as CSR3 wants it."""
        self.memory.write(address, data if self.straight else swapped(data))

    def loaded(self, address: int, length: int) -> bytes:
        data = self.memory.read(address, length)
        return data if self.straight else swapped(data)

    def transmit(self, *frames: bytes, first: int = 0) -> None:
        """Each frame in one buffer, from entry `first` on; TDMD."""
        for i, frame in enumerate(frames):
            address = TX_BUFFERS + 0x800 * i
            self.payload(address, frame)
            self.put_tmd((first + i) % self.block.tlen, address, len(frame))
        self.write(0, CSR0.INEA | CSR0.TDMD)

    def offer(self, count: int | None = None, size: int = BUFFER) -> None:
        """Gives the chip receive buffers, from entry 0 on."""
        for i in range(self.block.rlen if count is None else count):
            self.put_rmd(i, RX_BUFFERS + 0x800 * i, size)

    # --- the wire ---------------------------------------------------------------------------------

    def narrow(self) -> None:
        """Has the host take few frames at a time."""
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def sent(self) -> list[bytes]:
        """The frames that came out."""
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self.wire.recv(1 << 17))
        return frames


@contextmanager
def lance_machine(
    memory: int | dict[int, int] = MEMORY,
    *,
    network: bool | ScriptedEndpoint = True,
    poll: float = 3600.0,
    clock: Clock | None = None,
) -> Iterator[Driver]:
    """A machine: by default the transmitter looks at its ring only when it is told to.

    Args:
        network: instead of a datagram socket: nothing, or an endpoint that the test scripts.
    """
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    wire.setblocking(False)
    with (
        ours,
        wire,
        WatchedEngine(strict=True, clock=clock) as engine,
        FakeMemory(memory) as space,
        iodma.Datagram(ours) as link,
    ):
        lanes = iodma.ByteLanes(space, 2)
        end: iodma.Endpoint | None = link if network else None
        if isinstance(network, ScriptedEndpoint):
            end = network
            end.constraints = iodma.Constraints(order="packet")
        lance = Lance(engine.port(lanes, "lance"), network=end, poll=poll, name="lance")
        engine.attach(lance)
        driver = Driver(engine, space, lance, wire)
        driver.end = ours
        yield driver
        lance.request_reset()
        driver.settle()
        assert engine.stats().tasks == 0, "tasks that never ended"
        assert not engine.failures
