"""A guest that writes what it likes on the SPARCstation 5: nothing hangs, fails or is left behind.

Its pages are RAM, and also the registers of every device, so that DMA hits whatever there is: the
devices themselves, the IOMMU that translates it, the interrupt controller.
"""

from __future__ import annotations

import contextlib
import socket
import time
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from iodma import Buffer, Datagram
from iodma.boards.sun4m import PLACES, Sun4m
from iodma.devices import DeviceState
from iodma.scsi import Disk, Target
from iodma.testing import strict_engine
from iodma.transports.qtest import SteppedClock
from tests.peers.sun4m.machine import RAP, RDP
from tests.peers.sun4m.script import descriptor, init_block
from tests.unit.test_sun4m import IOMMU, LEDMA, TABLE, Guest, frame

#: Seconds in which a board comes to rest, on a machine that does much else.
MOST_S = 20.0
#: Bus pages: 0 to 7 are RAM, then the page of each device's registers, then nothing.
RAM_PAGES = 8
PAGES = [0x4000 + 4096 * page for page in range(RAM_PAGES)]
PAGES += sorted({place.base & ~0xFFF for place in PLACES})
BUSES = [0xFF00_0000 + 4096 * number for number in range(len(PAGES) + 1)]

WORD = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.sampled_from([0, 1, 4, 8, 0x10, 0x41, 0x80, 0xC2, 0x0300, 0x8300, 0xFFFF_FFFF]),
    st.sampled_from(BUSES).flatmap(lambda at: st.integers(at, at + 64)),
)
#: A register of any device, at its width and others.
POKE = st.tuples(
    st.just("poke"),
    st.sampled_from(PLACES).flatmap(
        lambda place: st.integers(0, min(place.size, 0x40) // place.most - 1).map(
            lambda number: (place.base + number * place.most, place.most)
        )
    ),
    WORD,
)
MEMORY = st.tuples(
    st.just("store"), st.integers(0, RAM_PAGES * 4096 // 8 - 1), st.binary(min_size=8, max_size=8)
)
#: LANCE begins with a block and rings that lie anywhere, and frames that do.
LANCE = st.tuples(
    st.just("lance"),
    st.sampled_from([0, 4, 0x40, 0x44, 0x8000, 0x8044]),
    st.lists(
        st.tuples(
            st.integers(0, 0xFF_FFFF) | st.sampled_from([bus & 0xFF_FFFF for bus in BUSES]),
            st.integers(0, 0xFFFF) | st.sampled_from([0x8300, 0x8200, 0x8100, 0x8000]),
            st.integers(1, 4096),
        ),
        min_size=4,
        max_size=4,
    ),
)
CSR0 = st.tuples(st.just("csr"), st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(0, 0xFFFF))
FRAME = st.tuples(st.just("frame"), st.integers(1, 2000), st.integers(0, 3))
TURNS = st.tuples(st.just("turns"), st.integers(1, 5), st.just(0))
TIME = st.tuples(st.just("time"), st.integers(1, 3), st.just(0))
STEPS = st.lists(
    st.one_of(POKE, POKE, MEMORY, LANCE, CSR0, FRAME, TURNS, TIME), min_size=1, max_size=40
)


def step(board: Sun4m, peer: socket.socket, clock: SteppedClock, what: tuple[object, ...]) -> None:
    match what:
        case ("poke", (int(address), int(width)), int(value)):
            board.store(address, width, value & (1 << 8 * width) - 1)
            board.load(address, width)
        case ("store", int(at), bytes(data)):
            board.write(PAGES[0] + 8 * at, data)
        case ("lance", int(mode), list(entries)):
            board.write(PAGES[0], init_block(mode, Guest.STATION, bytes(8), (0x40, 1), (0x60, 1)))
            for number, (address, flags, size) in enumerate(entries):
                entry = descriptor(address, flags, size)
                board.write(PAGES[0] + 0x40 + 8 * number + 0x10 * (number // 2), entry)
            for csr, value in ((0, 4), (3, 4), (1, 0), (2, 0), (0, 0x43)):
                board.store(RAP, 2, csr)
                board.store(RDP, 2, value)
        case ("csr", int(number), int(value)):
            board.store(RAP, 2, number)
            board.store(RDP, 2, value)
        case ("frame", int(size), int(seed)):
            with contextlib.suppress(BlockingIOError):
                peer.send(frame(max(size, 6), seed), socket.MSG_DONTWAIT)
        case ("turns", int(count), 0):
            for _ in range(count):
                board.engine.pump()
        case ("time", int(ms), 0):
            clock.go_to(clock.now_ns() + ms * 1_000_000)


def rest(board: Sun4m, peer: socket.socket) -> None:
    """What was begun ends."""
    end = time.monotonic() + MOST_S
    while time.monotonic() < end:
        if not board.busy:
            return
        board.engine.pump()
        with contextlib.suppress(BlockingIOError):
            peer.recv(1 << 16, socket.MSG_DONTWAIT)
    raise AssertionError("the board does not come to rest")


@given(steps=STEPS)
def test_whatever_a_guest_writes(steps: list[tuple[object, ...]]) -> None:
    clock = SteppedClock()
    with ExitStack() as stack:
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.enter_context(ours)
        stack.enter_context(peer)
        engine = stack.enter_context(strict_engine(slow_step=None, clock=clock))
        cable = stack.enter_context(Datagram(ours))
        disk = stack.enter_context(Buffer(1 << 16))
        target = Target(engine, Disk(disk))
        stack.callback(target.close)
        board = stack.enter_context(
            Sun4m(engine, memory=2 << 20, network=cable, targets={0: target})
        )
        for number, physical in enumerate(PAGES):
            board.store(TABLE + 4 * number, 4, physical >> 4 | 6)
        board.store(IOMMU + 4, 4, TABLE >> 4)
        board.store(IOMMU, 4, 1)
        board.store(LEDMA + 12, 4, 0xFF00_0000)
        for each in steps:
            step(board, peer, clock, each)
        rest(board, peer)
        engine.run(board.reset())
        assert all(device.state is DeviceState.RUNNING for device in board.devices.values())
        assert not board.busy and board.load(RDP, 2) == 4
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.recv(1 << 16, socket.MSG_DONTWAIT)
        # And it is a board as before.
        guest = Guest(board)
        board.write(0, bytes(1 << 18))
        data = frame(200)
        guest.put(guest.BUFFERS, data)
        guest.give(guest.TRANSMIT, 0, guest.BUFFERS, len(data))
        guest.begin(True)
        end = time.monotonic() + MOST_S
        while time.monotonic() < end:
            engine.pump()
            with contextlib.suppress(BlockingIOError):
                assert peer.recv(1 << 16, socket.MSG_DONTWAIT) == data
                break
        else:
            raise AssertionError("no frame comes")
        engine.run(board.reset())
