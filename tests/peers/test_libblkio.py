# SPDX-License-Identifier: Apache-2.0
"""libblkio, Debian 13's library for vhost-user disks, is the front-end: no guest, no VMM.

It reads the configuration space by itself, adds and removes memory slots under way, has several
queues and polls some of them. What it says that it wrote is compared with the file, and what it
says that it read with a model. A run takes a second or two.

The library is fetched as Debian's packages once (scripts/foreign_debian.sh: mmdebstrap, a few
seconds, no root), and kept in ~/.cache/iodma. Without network and cache the tests are skipped, and
fail under CI. By themselves: `.venv/bin/python -m pytest tests/peers/test_libblkio.py`.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.blkio.client import (
    FUA,
    NO_UNMAP,
    Blkio,
    BlkioError,
    Memory,
    Program,
    make_program,
)
from tests.peers.conftest import needed
from tests.peers.guests.images import allocated, make_image
from tests.peers.guests.servers import Disk, Iodma

pytestmark = pytest.mark.limit(180)  # the packages may have to be fetched

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
#: Requests at a time, each in a part of the disk; most bytes of one.
DEPTH = 24
PART = SIZE // DEPTH // 512 * 512
MOST = 64 * KIB
ROUNDS = 1000 if os.environ.get("IODMA_SOAK") == "1" else 20
#: Regions that come and go.
SLOTS = 200


@pytest.fixture(scope="module")
def program(peer: Callable[[str], str]) -> Iterator[Program]:
    for name in ("gcc", "mmdebstrap"):
        peer(name)
    with tempfile.TemporaryDirectory(prefix="iodma-blkio-") as folder:
        with needed():
            made = make_program(Path(folder))
        yield made


def quiet(server: Iodma) -> None:
    """The server ends as it should, and had nothing to complain of."""
    server.stop()
    assert "WARNING" not in server.said() and "ERROR" not in server.said(), server.said()


def test_properties(work: Path, program: Program) -> None:
    """What the configuration space says, in libblkio's words."""
    image = make_image(work / "disk.img", SIZE)
    disk = Disk(image, queues=4, block_size=4096)
    with Iodma(work, disk) as server:
        with Blkio(program, server.socket) as blkio:
            assert int(blkio.get("capacity")) == SIZE
            assert int(blkio.get("request-alignment")) == 4096
            assert int(blkio.get("max-queues")) == 4
            assert blkio.get("flush-needed") == "true"
            assert blkio.get("supports-poll-queues") == "true"
            assert int(blkio.get("max-segments")) >= 64
            assert int(blkio.get("max-mem-regions")) >= 32
            assert int(blkio.get("max-queue-size")) >= 256
            assert int(blkio.get("discard-alignment")) % 4096 == 0
            assert int(blkio.get("max-discard-len")) >= MIB
            assert int(blkio.get("max-write-zeroes-len")) >= MIB
            with pytest.raises(BlkioError):
                blkio("set num-queues", "5")
                blkio.start()
        quiet(server)


class Load:
    """Random requests and a model of the disk.

    Each round has one request in each of `DEPTH` parts of the disk, so that no two of them meet.
    """

    def __init__(self, blkio: Blkio, rng: random.Random) -> None:
        self.blkio = blkio
        self.rng = rng
        self.model = bytearray(SIZE)
        self.reads = 0

    def round(self, memories: list[Memory], queues: list[str], how: str = "wait") -> None:
        """One request in each part, on these queues, with data in this memory; none fails."""
        expected: list[tuple[list[tuple[Memory, int, int]], bytes]] = []
        for memory in memories:
            memory.bytes[:] = self.rng.randbytes(len(memory.bytes))
        sent = dict.fromkeys(queues, 0)
        for id in range(DEPTH):
            queue = self.rng.choice(queues)
            sent[queue] += 1
            size = self.rng.randrange(1, MOST // 512 + 1) * 512
            start = id * PART + self.rng.randrange(0, (PART - size) // 512 + 1) * 512
            pieces = self._pieces(memories[id % len(memories)], id // len(memories) * MOST, size)
            words = [memory.piece(offset, length) for memory, offset, length in pieces]
            match self.rng.choice(["read", "read", "write", "write", "fua", "zeroes"]):
                case "read":
                    self.blkio.read(queue, id, start, *words)
                    expected.append((pieces, bytes(self.model[start : start + size])))
                case "zeroes":
                    self.blkio.zeroes(queue, id, start, size, self.rng.choice([0, NO_UNMAP]))
                    self.model[start : start + size] = bytes(size)
                case what:
                    flags = FUA if what == "fua" else 0
                    self.blkio.write(queue, id, start, *words, flags=flags)
                    self.model[start : start + size] = _gather(pieces)
        for queue, count in sent.items():
            results = self.blkio.wait(queue, count, "wait" if queue[0] == "p" else how)
            assert len(results) == count and not any(results.values()), results
        for pieces, data in expected:
            assert _gather(pieces) == data
            self.reads += 1

    def _pieces(self, memory: Memory, offset: int, size: int) -> list[tuple[Memory, int, int]]:
        """(memory, offset, bytes), in any order; their lengths are of any number of bytes."""
        count = self.rng.choice([1, 1, 2, 5, 60])
        cuts = sorted({0, size, *(self.rng.randrange(1, size) for _ in range(count - 1))})
        pieces = [(memory, offset + first, end - first) for first, end in itertools.pairwise(cuts)]
        self.rng.shuffle(pieces)
        return pieces


def _gather(pieces: list[tuple[Memory, int, int]]) -> bytes:
    return b"".join(memory.bytes[offset : offset + size] for memory, offset, size in pieces)


@pytest.mark.parametrize("how", ["wait", "sleep"])
def test_random_requests(work: Path, program: Program, rng: random.Random, how: str) -> None:
    """Two queues and two poll queues; two of memory's four regions are there at any time."""
    image = make_image(work / "disk.img", SIZE)
    queues = ["q0", "q1", "p0", "p1"]
    with Iodma(work, Disk(image, queues=4)) as server:
        with Blkio(program, server.socket, queues=2, poll_queues=2, memories=[MIB] * 4) as blkio:
            blkio.start()
            load = Load(blkio, rng)
            for _ in range(ROUNDS):
                here = rng.sample(blkio.memory, 2)
                with blkio.mapped(*here):
                    load.round(here, queues, how)
            blkio.flush("p0", 0)
            assert blkio.wait("p0", 1) == {0: 0}
            assert load.reads
            assert image.read_bytes() == load.model
        quiet(server)


def test_slots_come_and_go_while_others_work(
    work: Path, program: Program, rng: random.Random
) -> None:
    """Some hundred regions, added and removed while requests are in flight in another one."""
    image = make_image(work / "disk.img", SIZE)
    with Iodma(work, Disk(image)) as server:
        with Blkio(program, server.socket, memories=[MIB, *[64 * KIB] * SLOTS]) as blkio:
            blkio.start()
            busy, *others = blkio.memory
            blkio.map(busy)
            most = int(blkio.get("max-mem-regions"))
            assert most > SLOTS
            for end in range(4):
                busy.bytes[:] = data = rng.randbytes(MIB)
                for id in range(16):
                    blkio.write("q0", id, id * 64 * KIB, busy.piece(id * 64 * KIB, 64 * KIB))
                done = blkio.wait("q0", 0)  # they are on their way
                for memory in others:
                    blkio.unmap(memory) if end % 2 else blkio.map(memory)
                done |= blkio.wait("q0", 16 - len(done))
                assert done == dict.fromkeys(range(16), 0)
                assert image.read_bytes()[:MIB] == data
                if end % 2 == 0:
                    for id, memory in enumerate(others):
                        blkio.read("q0", id, id * KIB, memory.piece(0, 64 * KIB))
                    assert blkio.wait("q0", SLOTS) == dict.fromkeys(range(SLOTS), 0)
                    for id, memory in enumerate(others):
                        assert memory.bytes[:] == data[id * KIB : id * KIB + 64 * KIB]
        quiet(server)


def test_memory_of_its_own(work: Path, program: Program, rng: random.Random) -> None:
    """What libblkio allocates is as good."""
    image = work / "disk.img"
    image.write_bytes(rng.randbytes(SIZE))
    with Iodma(work, Disk(image)) as server:
        with Blkio(program, server.socket) as blkio:
            blkio.start()
            memory = blkio.alloc(MIB)
            with blkio.mapped(memory):
                blkio.read("q0", 0, 3 * MIB, memory.piece(0, MIB))
                assert blkio.wait("q0", 1) == {0: 0}
                assert memory.bytes[:] == image.read_bytes()[3 * MIB : 4 * MIB]
        quiet(server)


def test_space_is_given_back(work: Path, program: Program, rng: random.Random) -> None:
    """Discards and write-zeroes reach the file; without unmapping its blocks stay."""
    image = work / "disk.img"
    data = rng.randbytes(SIZE)
    image.write_bytes(data)
    full = allocated(image)
    with Iodma(work, Disk(image)) as server:
        with Blkio(program, server.socket) as blkio:
            blkio.start()
            blkio.zeroes("q0", 0, 0, MIB, NO_UNMAP)
            assert blkio.wait("q0", 1) == {0: 0}
            blkio.flush("q0", 0)
            assert blkio.wait("q0", 1) == {0: 0}
            assert image.read_bytes() == bytes(MIB) + data[MIB:]
            assert allocated(image) >= full
            blkio.zeroes("q0", 0, MIB, 2 * MIB)
            blkio.discard("q0", 1, 4 * MIB, 2 * MIB)
            assert blkio.wait("q0", 2) == {0: 0, 1: 0}
            now = image.read_bytes()
            assert now[: 4 * MIB] == bytes(3 * MIB) + data[3 * MIB : 4 * MIB]
            assert now[6 * MIB :] == data[6 * MIB :]
            assert allocated(image) <= full - 2 * MIB
        quiet(server)


def test_read_only(work: Path, program: Program, rng: random.Random) -> None:
    """A disk that cannot be written is seen to be one, and reads."""
    image = work / "disk.img"
    image.write_bytes(rng.randbytes(SIZE))
    with Iodma(work, Disk(image, read_only=True)) as server:
        with (
            Blkio(program, server.socket) as blkio,
            pytest.raises(BlkioError, match="read-only"),
        ):
            blkio.start()
        with Blkio(program, server.socket, read_only=True, memories=[MIB]) as blkio:
            assert blkio.get("read-only") == "true"
            blkio.start()
            with blkio.mapped(*blkio.memory):
                blkio.write("q0", 0, 0, blkio.memory[0].piece(0, 4096))
                blkio.read("q0", 1, MIB, blkio.memory[0].piece(0, MIB))
                assert blkio.wait("q0", 2) == {0: -errno.EBADF, 1: 0}
                assert blkio.memory[0].bytes[:] == image.read_bytes()[MIB : 2 * MIB]
        quiet(server)


def test_what_is_not_there(work: Path, program: Program) -> None:
    """Requests past the end, and of memory that was removed, fail; those beside them do not."""
    image = make_image(work / "disk.img", SIZE)
    with Iodma(work, Disk(image)) as server:
        with Blkio(program, server.socket, memories=[MIB, MIB]) as blkio:
            blkio.start()
            here, gone = blkio.memory
            with blkio.mapped(here, gone):
                pass
            with blkio.mapped(here):
                blkio.read("q0", 0, SIZE, here.piece(0, 4096))
                blkio.read("q0", 1, 0, gone.piece(0, 4096))
                blkio.read("q0", 2, 0, here.piece(0, 4096))
                results = blkio.wait("q0", 3)
                assert results[0] < 0 and results[1] < 0 and results[2] == 0
        server.stop()


def test_one_after_the_other(work: Path, program: Program, rng: random.Random) -> None:
    """Front-ends that end in order, that remove their queues, and that are killed under load."""
    image = make_image(work / "disk.img", SIZE)
    with Iodma(work, Disk(image, queues=2)) as server:
        for how in ("killed", "removed", "killed", "ended"):
            with Blkio(
                program, server.socket, queues=2, queue_size=64, memories=[MIB] * 2
            ) as blkio:
                blkio.start()
                for memory in blkio.memory:
                    blkio.map(memory)
                load = Load(blkio, rng)
                load.model[:] = image.read_bytes()
                load.round(blkio.memory, ["q0", "q1"])
                if how == "removed":
                    blkio("remove", "q0")
                    load.round(blkio.memory, ["q1"])
                assert image.read_bytes() == load.model
                if how == "killed":
                    for id in range(32):
                        blkio.write("q1", id, id * 4096, blkio.memory[0].piece(0, 4096))
                    blkio.wait("q1", 0)
                    blkio.kill()
        quiet(server)
