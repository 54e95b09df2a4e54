"""A VMM's memory file that shrinks under the devices that use it: a fault, never a signal.

Invariants:

- Here the test is the VMM: it has the descriptor, and cuts the file off while transfers run.
- Memory that is gone is a FAULT at the first byte that is gone, with what was moved before it;
  memory that came back works again.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma.testing import ScriptedEndpoint, strict_engine
from tests.unit.system import connection

PAGE = 4096
PAGES = 64
SIZE = PAGES * PAGE
#: RAM that stays, beside the VMM's.
OWN = 1 << 32


class Shared:
    """An engine, and memory in a file of somebody else's."""

    def __init__(self, path: Path) -> None:
        self.fd = os.memfd_create("vmm")
        os.ftruncate(self.fd, SIZE)
        self.engine = strict_engine()
        self.ram = iodma.Ram.from_fd(self.fd)
        self.own = iodma.Ram(SIZE)
        self.memory = iodma.Memory({0: self.ram, OWN: self.own})
        self.port = self.engine.port(self.memory)
        self.swapped = self.engine.port(iodma.ByteLanes(self.memory, 4))
        path.write_bytes(random.Random(4).randbytes(SIZE))
        self.file = iodma.File(path)
        try:
            self.direct = iodma.File(path, direct=True)
        except OSError:
            self.direct = iodma.File(path)
        self.buffer = iodma.Buffer(SIZE)
        self.disk = ScriptedEndpoint(bytes(SIZE))
        near, self.far = connection("unix")
        with near:
            self.wire = iodma.Socket(near)
        self.null = iodma.Null()

    def cut(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        self.engine.close()
        for each in (self.ram, self.own, self.file, self.direct, self.buffer, self.disk, self.wire):
            each.close()
        self.far.close()
        os.close(self.fd)
        vars(self).clear()


@pytest.fixture(name="shared")
def shared_fixture(tmp_path: Path) -> Iterator[Shared]:
    made = Shared(tmp_path / "file")
    yield made
    made.close()


#: What devices do with memory: (name, what submits it for these segments).
WORK: dict[str, Callable[[Shared, Any], Any]] = {
    "file to memory": lambda s, at: s.port.to_memory(at, source=s.file),
    "memory to file": lambda s, at: s.port.from_memory(at, to=s.file),
    "file to memory, direct": lambda s, at: s.port.to_memory(at, source=s.direct),
    "memory to file, direct": lambda s, at: s.port.from_memory(at, to=s.direct),
    "file to memory, swapped": lambda s, at: s.swapped.to_memory(at, source=s.file),
    "memory to file, swapped": lambda s, at: s.swapped.from_memory(at, to=s.file),
    "buffer to memory": lambda s, at: s.port.to_memory(at, source=s.buffer),
    "memory to buffer": lambda s, at: s.port.from_memory(at, to=s.buffer),
    "memory to buffer, swapped": lambda s, at: s.swapped.from_memory(at, to=s.buffer),
    "zeroes to memory": lambda s, at: s.port.to_memory(at, source=s.null),
    "script to memory": lambda s, at: s.port.to_memory(at, source=s.disk),
    "memory to script": lambda s, at: s.port.from_memory(at, to=s.disk),
    "memory to memory": lambda s, at: s.port.copy(at, (OWN, sum(n for _, n in at))),
    "memory to itself": lambda s, at: s.port.copy((OWN, sum(n for _, n in at)), at),
}


@pytest.mark.parametrize("what", WORK)
def test_memory_that_is_gone_is_a_fault_at_its_first_byte(shared: Shared, what: str) -> None:
    """Whole pages, two of them before the cut; then all of it again."""
    at = [(i * PAGE, PAGE) for i in range(8)]

    async def main() -> None:
        shared.cut(2 * PAGE)
        done = await WORK[what](shared, at)
        assert done.status is Status.FAULT and done.fault is not None, done
        assert "gone" in done.fault.reason
        assert done.fault.offset == done.moved <= 2 * PAGE
        assert done.fault.address == done.moved
        assert (await WORK[what](shared, at[:2])).ok, "what is there can be used"
        done = await WORK[what](shared, at[2:4])
        assert done.status is Status.FAULT and done.moved == 0
        assert done.fault.address == 2 * PAGE
        shared.cut(SIZE)
        done = await WORK[what](shared, at)
        assert (done.status, done.moved) == (Status.OK, 8 * PAGE), done

    shared.engine.run(main())
    assert shared.ram.leases == 0


@pytest.mark.parametrize("what", WORK)
def test_small_pieces_of_what_is_gone(shared: Shared, what: str) -> None:
    """Lists that are gathered by a copy: the copy is guarded too."""
    at = [(i * 1000 // 8 * 8, 64) for i in range(40)]

    async def main() -> None:
        shared.cut(2 * PAGE)
        done = await WORK[what](shared, at)
        assert done.status is Status.FAULT and done.fault is not None, done
        assert "gone" in done.fault.reason
        shared.cut(SIZE)
        assert (await WORK[what](shared, at)).ok

    shared.engine.run(main())


def test_load_and_store_of_what_is_gone(shared: Shared) -> None:
    port = shared.port

    async def main() -> None:
        await port.store("<I", 2 * PAGE, 5)
        shared.cut(2 * PAGE)
        for access in (
            lambda: port.load("<I", 2 * PAGE),
            lambda: port.store("<I", 2 * PAGE, 6),
            lambda: port.load_bytes(PAGE, 2 * PAGE),
            lambda: port.store_bytes(PAGE, bytes(2 * PAGE)),
            lambda: port.load_segments(2 * PAGE, 4),
            lambda: shared.swapped.load("<I", 2 * PAGE),
            lambda: shared.swapped.store("<I", 2 * PAGE, 6),
        ):
            with pytest.raises(iodma.DmaFault, match="the memory behind it is gone") as caught:
                await access()
            fault = caught.value.completion.fault
            assert fault is not None and fault.address >= PAGE
        assert await port.load("<I", PAGE) == (0,)
        shared.cut(SIZE)
        assert await port.load("<I", 2 * PAGE) == (0,), "a file that was cut comes back empty"

    shared.engine.run(main())


def test_sends_and_receives_of_what_is_gone(shared: Shared) -> None:
    async def main() -> None:
        shared.cut(2 * PAGE)
        done = await shared.port.from_memory([(PAGE, PAGE), (2 * PAGE, PAGE)], to=shared.wire)
        assert done.status is Status.FAULT and done.moved <= PAGE
        shared.far.setblocking(False)
        try:
            assert len(shared.far.recv(SIZE)) == done.moved
        except BlockingIOError:
            assert done.moved == 0
        shared.far.send(b"x" * 64)
        done = await shared.port.to_memory((2 * PAGE, 64), source=shared.wire)
        assert done.status is Status.FAULT and done.fault is not None
        assert done.fault.address == 2 * PAGE

    shared.engine.run(main())


@pytest.mark.limit(120)
def test_a_file_that_is_cut_off_and_grows_again_under_load(
    shared: Shared, rng: random.Random
) -> None:
    """Everything at once, while another thread (the VMM's processor) cuts the file at random."""
    over = False
    cuts = 0

    def vmm() -> None:
        nonlocal cuts
        dice = random.Random(rng.random())
        while not over:
            shared.cut(dice.randrange(PAGES) * PAGE)
            shared.cut(SIZE)
            cuts += 1

    def drain() -> None:
        while shared.far.recv(1 << 20):
            pass

    ends = dict.fromkeys(Status, 0)

    async def worker(what: str) -> None:
        for _ in range(60):
            first = rng.randrange(PAGES - 8) * PAGE
            size = rng.choice([64, 512, PAGE])
            at = [(first + i * PAGE, size) for i in range(rng.randrange(1, 8))]
            done = await WORK[what](shared, at)
            ends[done.status] += 1
            total = sum(length for _, length in at)
            if done.status is Status.OK:
                assert done.moved == total
            else:
                assert done.status is Status.FAULT, (what, done)
                assert done.moved < total and "gone" in done.fault.reason

    async def control() -> None:
        for _ in range(500):
            address = rng.randrange(SIZE // 8) * 8
            try:
                await shared.port.store("<Q", address, 1)
                await shared.port.load("<QQ", min(address, SIZE - 16))
                ends[Status.OK] += 1
            except iodma.DmaFault as error:
                assert "gone" in str(error)
                ends[Status.FAULT] += 1

    async def sender() -> None:
        for _ in range(100):
            done = await shared.port.from_memory(
                (rng.randrange(PAGES) * PAGE, PAGE), to=shared.wire
            )
            assert done.status in (Status.OK, Status.FAULT)
            ends[done.status] += 1

    async def main() -> None:
        tasks = [shared.engine.start(worker(what)) for what in WORK for _ in range(2)]
        tasks += [shared.engine.start(control()), shared.engine.start(sender())]
        for task in tasks:
            await task

    threads = [threading.Thread(target=vmm), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    try:
        shared.engine.run(main())
    finally:
        over = True
        shared.far.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    assert cuts > 10 and ends[Status.OK] and ends[Status.FAULT], ends
    assert shared.ram.leases == 0 and shared.engine.stats().arena[1] == 0


def test_the_fault_is_told_in_the_devices_own_addresses(shared: Shared) -> None:
    """Which side of a copy is gone, and where, seen from above an IOMMU."""
    iommu = iodma.Iommu(shared.memory, name="iommu0")
    iommu.map(0x8000_0000, 0, SIZE)
    iommu.map(0x9000_0000, OWN, SIZE)
    port = shared.engine.port(iommu)

    async def main() -> None:
        shared.cut(2 * PAGE)
        gone, there = (0x8000_0000 + PAGE, 2 * PAGE), (0x9000_0000, 2 * PAGE)
        for transfer, access in (
            (port.copy(gone, there), iodma.Access.READ),
            (port.copy(there, gone), iodma.Access.WRITE),
            (port.to_memory(gone, source=shared.file), iodma.Access.WRITE),
            (port.from_memory(gone, to=shared.buffer), iodma.Access.READ),
        ):
            fault = (await transfer).fault
            assert fault is not None
            assert (fault.stage, fault.access) == ("iommu0", access)
            assert (fault.offset, fault.address) == (PAGE, 0x8000_0000 + 2 * PAGE)
        with pytest.raises(iodma.DmaFault, match="iommu0: WRITE of address 0x80002000"):
            await port.store("<I", 0x8000_0000 + 2 * PAGE, 1)

    shared.engine.run(main())


def test_the_size_is_checked_against_the_file_as_it_is_now(shared: Shared) -> None:
    shared.cut(PAGE)
    with pytest.raises(iodma.AddressRangeError, match=r"8192 bytes at offset 0 .* 4096 bytes"):
        iodma.Ram.from_fd(shared.fd, 0, 2 * PAGE)
    with iodma.Ram.from_fd(shared.fd) as ram:
        assert ram.size == PAGE
