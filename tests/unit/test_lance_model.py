"""LANCE beside a model that does the same the plain way: a byte and a descriptor at a time.

What is compared after every step, when the chip has come to rest: all of memory, CSR0 and the
frames on the wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.lancekit import BROADCAST, RX_RING, STATION, TX_RING, lance_machine

SIZE = 1 << 18
RX_AREA, TX_AREA, SLOT = 0x10000, 0x20000, 0x1000
OWN, ERR, STP, ENP = 0x8000, 0x4000, 0x0200, 0x0100
BABL, MISS, RINT, TINT = 0x4000, 0x1000, 0x0400, 0x0200
INEA, RXON, TXON, STRT, INIT = 0x40, 0x20, 0x10, 2, 1
MULTICAST = bytes.fromhex("01005e0000fb")
STRANGER = bytes.fromhex("080020000001")


@dataclass
class Model:
    """The chip, after its initialization, and the machine's memory."""

    mode: int
    ladrf: int
    swaps: bool
    entries: int
    memory: bytearray = field(default_factory=lambda: bytearray(SIZE))
    csr0: int = INIT | STRT | INEA
    tx: int = 0
    rx: int = 0

    def __post_init__(self) -> None:
        self.csr0 |= (0 if self.mode & 1 else RXON) | (0 if self.mode & 2 else TXON)

    # --- memory -----------------------------------------------------------------------------------

    def words(self, address: int) -> list[int]:
        return list(struct.unpack_from(">4H", self.memory, address))

    def put(self, address: int, words: list[int]) -> None:
        struct.pack_into(">4H", self.memory, address, *words)

    def place(self, address: int, first: int, length: int) -> int:
        """Where the byte for bus address `address` is, of a buffer's bytes from `first` on."""
        other = address ^ 1
        return other if self.swaps and first <= other < first + length else address

    # --- transmitter ------------------------------------------------------------------------------

    def transmit(self) -> list[bytes]:
        sent: list[bytes] = []
        chain: list[int] = []
        data = b""
        for _ in range(self.entries + 1):
            if not self.csr0 & TXON:
                break
            at = TX_RING + 8 * self.tx
            low, high, count, errors = self.words(at)
            if not high & OWN:
                if chain:
                    last = TX_RING + 8 * ((self.tx - 1) % self.entries)
                    words = self.words(last)
                    words[1] |= ERR
                    words[3] |= 0xC000
                    self.put(last, words)
                    self.csr0 = self.csr0 & ~TXON | TINT
                break
            self.put(at, [low, high & ~OWN, count, errors])
            self.tx = (self.tx + 1) % self.entries
            if high & STP:
                chain, data = [at], b""
            elif chain:
                chain.append(at)
            else:
                continue
            first, length = (high & 0xFF) << 16 | low, 4096 - (count & 0xFFF)
            data += bytes(
                self.memory[self.place(a, first, length)] for a in range(first, first + length)
            )
            if high & ENP:
                sent.append(data)
                self.csr0 |= TINT
                if len(data) + (0 if self.mode & 8 else 4) > 1518:
                    self.csr0 |= BABL
                chain = []
        return sent

    # --- receiver ---------------------------------------------------------------------------------

    def accepts(self, frame: bytes) -> bool:
        to = frame[:6]
        if self.mode & 0x8000 or to in (STATION, BROADCAST):
            return True
        bit = (crc32(to) ^ 0xFFFFFFFF) >> 26
        return len(to) == 6 and bool(to[0] & 1) and bool(self.ladrf >> bit & 1)

    def receive(self, frame: bytes) -> None:
        if not self.csr0 & RXON or not frame or not self.accepts(frame):
            return
        data = frame.ljust(60, b"\0") + bytes(4)
        total, used = len(data), 0
        while used < self.entries:
            at = RX_RING + 8 * self.rx
            low, high, count, length = self.words(at)
            if not high & OWN:
                break
            first, room = (high & 0xFF) << 16 | low, 4096 - (count & 0xFFF)
            part, data = data[:room], data[room:]
            for i, byte in enumerate(part):
                self.memory[self.place(first + i, first, len(part))] = byte
            high &= ~OWN
            if not used:
                high |= STP
            if not data:
                high, length = high | ENP, total & 0xFFF
            self.put(at, [low, high, count, length])
            used += 1
            self.rx = (self.rx + 1) % self.entries
            if not data:
                break
        if not used:
            self.csr0 |= MISS
            return
        self.csr0 |= RINT
        if data:
            last = RX_RING + 8 * ((self.rx - 1) % self.entries)
            words = self.words(last)
            words[1] |= ERR | 0x0400 | (0x1000 if len(data) > 48 else 0)
            self.put(last, words)

    # --- registers --------------------------------------------------------------------------------

    def write(self, value: int) -> None:
        self.csr0 = self.csr0 & ~(value & 0x7F00) & ~INEA | value & INEA

    def read(self) -> int:
        value = self.csr0
        value |= 0x8000 if value & 0x7800 else 0
        return value | (0x80 if value & 0x5F00 else 0)


SIZES = st.one_of(
    st.integers(1, 64), st.integers(60, 130), st.sampled_from([1514, 1515, 1536, 4096])
)
STATUS = st.sampled_from([0x8300, 0x8300, 0x8200, 0x8100, 0x8000, 0x0300, 0x8F00])


@dataclass
class Descriptor:
    slot: int
    offset: int
    size: int
    status: int

    def words(self, area: int) -> list[int]:
        address = area + SLOT * self.slot + self.offset
        return [address & 0xFFFF, self.status | address >> 16, -self.size & 0xFFFF, 0]


DESCRIPTORS = st.builds(Descriptor, st.integers(0, 7), st.integers(0, 3), SIZES, STATUS)
OFFERS = st.builds(
    Descriptor,
    st.integers(0, 7),
    st.integers(0, 3),
    SIZES,
    st.sampled_from([0x8000, 0x8000, 0x8000, 0x0000]),
)
FRAMES = st.tuples(
    st.sampled_from([STATION, STATION, BROADCAST, MULTICAST, STRANGER]),
    st.one_of(st.integers(1, 70), st.integers(0, 1600)),
)
STEPS = st.one_of(
    st.tuples(st.just("transmit"), st.lists(DESCRIPTORS, min_size=1, max_size=12)),
    st.tuples(st.just("offer"), st.lists(OFFERS, min_size=1, max_size=8)),
    st.tuples(st.just("frames"), st.lists(FRAMES, min_size=1, max_size=6)),
    st.tuples(st.just("write"), st.integers(0, 0xFFFF).map(lambda value: value & ~0x0F)),
)


def content(length: int, seed: int) -> bytes:
    return bytes((seed + i * 7) % 253 + 1 for i in range(length))


@given(
    st.sampled_from([0, 0, 0x8000, 0x0008, 1, 2]),
    st.sampled_from([0, (1 << 64) - 1]),
    st.booleans(),
    st.sampled_from([1, 2, 4, 8]),
    st.lists(STEPS, min_size=1, max_size=10),
)
def test_the_chip_does_what_the_model_does(
    mode: int, ladrf: int, swaps: bool, entries: int, steps: list[tuple[str, Any]]
) -> None:
    model = Model(mode, ladrf, swaps, entries)
    with lance_machine(SIZE) as driver:
        driver.start(0 if swaps else 4, mode=mode, ladrf=ladrf, rlen=entries, tlen=entries)
        model.memory[:0x2000] = driver.memory.read(0, 0x2000)
        for area in (RX_AREA, TX_AREA):
            model.memory[area : area + 0x9000] = content(0x9000, area >> 16)
        driver.memory.write(0, bytes(model.memory))
        for seed, (what, given_) in enumerate(steps):
            expected: list[bytes] = []
            if what == "write":
                driver.write(0, given_)
                model.write(given_)
            elif what == "frames":
                for to, length in given_:
                    frame = (to + content(1600, seed))[:length]
                    driver.wire.send(frame)
                    model.receive(frame)
            elif what == "offer":
                for i, each in enumerate(given_):
                    model.put(RX_RING + 8 * ((model.rx + i) % entries), each.words(RX_AREA))
            else:
                # From where the chip is on, and nothing behind; so it cannot go around for ever.
                for i in range(entries):
                    at = TX_RING + 8 * ((model.tx + i) % entries)
                    each = given_[i] if i < len(given_) else None
                    words = each.words(TX_AREA) if isinstance(each, Descriptor) else [0] * 4
                    model.put(at, words)
            if what in ("offer", "transmit"):
                driver.memory.write(0, bytes(model.memory))
            if what == "transmit":
                driver.write(0, INEA | 8)
                model.write(INEA)
                expected = model.transmit()
            driver.settle()
            seen = driver.sent()
            while len(seen) < len(expected):
                driver.settle()
                more = driver.sent()
                assert more, "a frame that never comes"
                seen += more
            driver.settle()
            assert seen == expected
            assert f"{driver.csr0:#x}" == f"{model.read():#x}", what
            assert driver.line() == bool(model.read() & 0x80 and model.csr0 & INEA)
            if driver.memory.read(0, SIZE) != bytes(model.memory):
                found = driver.memory.read(0, SIZE)
                first = next(i for i in range(SIZE) if found[i] != model.memory[i])
                raise AssertionError(
                    f"{what}: at {first:#x} {found[first : first + 16].hex(' ')}, expected "
                    f"{model.memory[first : first + 16].hex(' ')}"
                )
