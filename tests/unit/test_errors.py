"""Bad input: a call that cannot be right raises, and says what is wrong and what would be right.

Invariants:

- What is raised is an `iodma.Error`, also where it is a `ValueError` or `TypeError` as well; the
  host kernel's own refusals stay `OSError`.
- A call that raised did nothing: no transfer was submitted, nothing was mapped, nothing leaked.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import iodma
from iodma import AddressRangeError, ArgumentError, ArgumentTypeError, ClosedError
from iodma.testing import FakeMemory, ScriptedEndpoint, strict_engine
from tests.unit.system import (  # noqa: F401
    Registers,
    System,
    file_fixture,
    system_fixture,
)

TOP = 1 << 64


class World:
    """One of everything that can be asked the wrong thing."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self.path = path
        self.engine = strict_engine(name="engine", slow_step=None)
        self.memory = FakeMemory(8192)
        self.ram = iodma.Ram(8192)
        self.port = self.engine.port(self.memory)
        self.file = iodma.File(path)
        self.window = iodma.Window(self.memory)
        self.iommu = iodma.Iommu(self.memory)
        self.batch = iodma.Batch(4)

    def rows(self, **columns: int) -> iodma.Batch:
        batch = iodma.Batch(4)
        batch.n = 2
        for name, value in columns.items():
            getattr(batch, name)[1] = value
        return batch

    def deep(self, count: int) -> iodma.Window:
        window = iodma.Window(self.memory)
        for _ in range(count):
            window = iodma.Window(window)
        return window

    def close(self) -> None:
        self.engine.close()
        self.file.close()
        self.ram.close()
        self.memory.close()
        vars(self).clear()


@pytest.fixture(name="world")
def world_fixture(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "file")
    yield made
    made.close()


class NoTarget:
    """No read and no write."""


Case = tuple[str, Callable[[World], object], type[iodma.Error], str]

CASES: list[Case] = [
    # memory
    ("ram of no bytes", lambda w: iodma.Ram(0), ArgumentError, "size is 0 .* 1 to 2"),
    ("ram of less", lambda w: iodma.Ram(-1), ArgumentError, "size is -1 .* 1 to 2"),
    ("ram of too much", lambda w: iodma.Ram(1 << 63), ArgumentError, "9223372036854775808.*2.63"),
    ("ram of a string", lambda w: iodma.Ram(cast(Any, "4")), ArgumentTypeError, "'4'.*integer"),
    ("ram of a float", lambda w: iodma.Ram(cast(Any, 4.0)), ArgumentTypeError, "4.0.*integer"),
    ("ram past its file", lambda w: iodma.Ram.from_fd(w.ram.fd, 0, 8193), AddressRangeError,
     "8193 bytes at offset 0 of a memory file of 8192"),
    ("ram from before its file", lambda w: iodma.Ram.from_fd(w.ram.fd, -4096, 4096),
     AddressRangeError, "offset -4096"),
    ("ram at half a page", lambda w: iodma.Ram.from_fd(w.ram.fd, 2048, 4096), ArgumentError,
     "0x800.*multiple of 4096"),
    ("ram from a string", lambda w: iodma.Ram.from_fd(cast(Any, "fd")), ArgumentTypeError, "'fd'"),
    ("view before", lambda w: w.ram.view(-1), AddressRangeError, "offset -1 .* 8192"),
    ("view of less", lambda w: w.ram.view(0, -1), AddressRangeError, "-1 bytes"),
    ("view past", lambda w: w.ram.view(8000, 193), AddressRangeError, "193 bytes at offset 8000"),
    ("view of a string", lambda w: w.ram.view(cast(Any, "a")), ArgumentTypeError, "offset is 'a'"),
    ("rom of nothing", lambda w: iodma.Rom(b""), ArgumentError, "at least one"),
    ("rom of text", lambda w: iodma.Rom(cast(Any, "abc")), ArgumentTypeError, "'abc'.*bytes"),
    ("window onto nothing", lambda w: iodma.DeviceWindow(cast(Any, NoTarget()), 8),
     ArgumentTypeError, "no method read"),
    ("window of no bytes", lambda w: iodma.DeviceWindow(Registers(), 0), ArgumentError,
     "size is 0"),
    ("region below 0", lambda w: w.memory.add(-1, w.ram), ArgumentError, "address is -1.*0 to 2"),
    ("region at 2^64", lambda w: w.memory.add(TOP, w.ram), ArgumentError, f"{TOP}.*2.64 - 1"),
    ("region past 2^64", lambda w: w.memory.add(TOP - 4096, w.ram), AddressRangeError,
     "0xfffffffffffff000 and length 8192 run past"),
    ("region over another", lambda w: w.memory.add(8191, w.ram), AddressRangeError,
     "8192 bytes at 0x1fff overlap"),
    ("region of bytes", lambda w: w.memory.add(0, cast(Any, b"abc")), ArgumentTypeError,
     "b'abc' is not a region; a Ram"),
    ("more of a region than it has", lambda w: w.memory.add(TOP >> 1, w.ram, 4096, 4097),
     AddressRangeError, "4097 bytes at offset 4096 of a region of 8192"),
    ("nothing of a region", lambda w: w.memory.add(TOP >> 1, w.ram, 0, 0), AddressRangeError,
     "length is 0; it must be at least 1"),
    ("memory of a list", lambda w: iodma.Memory(cast(Any, [w.ram])), ArgumentTypeError,
     "dictionary"),
    ("memory named 5", lambda w: iodma.Memory(name=cast(Any, 5)), ArgumentTypeError, "name is 5"),
    ("remove nothing", lambda w: w.memory.remove(77), AddressRangeError,
     "no region begins at 0x4d"),
    ("remove by then", lambda w: w.memory.remove(0, deadline=-1), ArgumentError, "deadline is -1"),
    # stages
    ("window below 0", lambda w: iodma.Window(w.memory, -1), AddressRangeError, "-0x1.*0 to 2"),
    ("window of nothing", lambda w: iodma.Window(w.memory, 0, 0), AddressRangeError, "0x0 bytes"),
    ("window past 2^64", lambda w: iodma.Window(w.memory, 5, TOP), AddressRangeError,
     "1 to 0xfffffffffffffffb fit"),
    ("window at a string", lambda w: iodma.Window(w.memory, cast(Any, "5")), ArgumentTypeError,
     "offset is '5'"),
    ("window onto 5", lambda w: iodma.Window(cast(Any, 5)), ArgumentTypeError,
     "5 is not an address"),
    ("too deep", lambda w: w.deep(31), ArgumentError, "chain of 33 stages; 32 is the most"),
    ("pages of 100", lambda w: iodma.Iommu(w.memory, 100), ArgumentError, "100.*power of two"),
    ("pages of x", lambda w: iodma.Iommu(w.memory, cast(Any, "x")), ArgumentTypeError, "'x'"),
    ("iommu onto None", lambda w: iodma.Iommu(cast(Any, None)), ArgumentTypeError, "None is not"),
    ("map half a page", lambda w: w.iommu.map(5, 0, 4096), AddressRangeError,
     "address 0x5.*0x1000"),
    ("map half a length", lambda w: w.iommu.map(0, 0, 5), AddressRangeError, "length 0x5.*0x1000"),
    ("map below 0", lambda w: w.iommu.map(-4096, 0, 4096), ArgumentError, "-4096"),
    ("map nothing", lambda w: w.iommu.map(0, 0, 0), AddressRangeError, "length is 0"),
    ("map past 2^64", lambda w: w.iommu.map(TOP - 4096, 0, 8192), AddressRangeError, "run past"),
    ("map to past 2^64", lambda w: w.iommu.map(0, TOP - 4096, 8192), AddressRangeError,
     "target 0xfffffffffffff000"),
    ("map for nothing", lambda w: w.iommu.map(0, 0, 4096, cast(Any, 0)), ArgumentError,
     "access is 0; READ, WRITE"),
    ("map for more", lambda w: w.iommu.map(0, 0, 4096, cast(Any, 8)), ArgumentError, "access is 8"),
    ("map for rw", lambda w: w.iommu.map(0, 0, 4096, cast(Any, "rw")), ArgumentError, "'rw'"),
    ("map a string", lambda w: w.iommu.map(cast(Any, "0"), 0, 4096), ArgumentTypeError, "'0'"),
    ("unmap nothing", lambda w: w.iommu.unmap(0, 0), AddressRangeError, "at least a page"),
    ("unmap less", lambda w: w.iommu.unmap(0, -4096), AddressRangeError, "-4096"),
    ("unmap past 2^64", lambda w: w.iommu.unmap(TOP - 4096, 8192), AddressRangeError, "run past"),
    ("invalidate below 0", lambda w: w.iommu.invalidate(-4096, 4096), ArgumentError, "-4096"),
    ("invalidate less", lambda w: w.iommu.invalidate(0, -5), AddressRangeError, "-5"),
    ("walk by 5", lambda w: iodma.Iommu(w.memory, walk=cast(Any, 5)), ArgumentTypeError,
     "5 cannot"),
    ("lanes of 3", lambda w: iodma.ByteLanes(w.memory, 3), ArgumentError, "3; 2, 4 or 8"),
    ("lanes onto 5", lambda w: iodma.ByteLanes(cast(Any, 5)), ArgumentTypeError, "5 is not an"),
    # lists and batches
    ("length below 0", lambda w: iodma.ScatterList([(0, -1)]), ArgumentError,
     "length is -1.*0 to 2"),
    ("address below 0", lambda w: iodma.ScatterList([(-1, 1)]), ArgumentError, "address is -1"),
    ("address of 2^64", lambda w: iodma.ScatterList([(TOP, 1)]), ArgumentError, str(TOP)),
    ("address of a string", lambda w: iodma.ScatterList([cast(Any, ("0", 1))]), ArgumentTypeError,
     "'0'.*integer"),
    ("address of a float", lambda w: iodma.ScatterList([cast(Any, (0.0, 1))]), ArgumentTypeError,
     "0.0.*integer"),
    ("three of a kind", lambda w: iodma.ScatterList([cast(Any, (0, 1, 2))]), ArgumentTypeError,
     r"\(0, 1, 2\) is not a segment; \(address, length\)"),
    ("no list", lambda w: iodma.ScatterList(cast(Any, 5)), ArgumentTypeError, "5 is not a scatter"),
    ("slice past", lambda w: iodma.ScatterList([(0, 10)]).slice(5, 6), AddressRangeError,
     "6 bytes at 5 of a list of 10"),
    ("batch of none", lambda w: iodma.Batch(0), ArgumentError, "0 requests.*1 to 2.20"),
    ("batch of x", lambda w: iodma.Batch(cast(Any, "x")), ArgumentTypeError, "requests is 'x'"),
    ("more rows than there are", lambda w: setattr(w.batch, "n", 5), ArgumentError, "5.*holds 4"),
    ("fewer rows than none", lambda w: setattr(w.batch, "n", -1), ArgumentError, "n is -1"),
    # transfers
    ("move less", lambda w: w.port.to_memory((0, -5), source=w.file), ArgumentError, "-5.*0 to 2"),
    ("move from 5", lambda w: w.port.to_memory((0, 5), source=cast(Any, 5)), ArgumentTypeError,
     "5 is not an endpoint; a File"),
    ("move a text", lambda w: w.port.to_memory(cast(Any, "abc"), source=w.file), ArgumentTypeError,
     "'a' is not a segment"),
    ("offset below 0", lambda w: w.port.from_memory((0, 5), to=w.file, offset=-1), ArgumentError,
     "offset is -1"),
    ("offset of 2^64", lambda w: w.port.to_memory((0, 5), source=w.file, offset=TOP), ArgumentError,
     f"offset is {TOP}"),
    ("offset of x", lambda w: w.port.to_memory((0, 5), source=w.file, offset=cast(Any, "x")),
     ArgumentTypeError, "offset is 'x'"),
    ("minimum below 0", lambda w: w.port.to_memory((0, 5), source=w.file, minimum=-1),
     ArgumentError, "minimum is -1"),
    ("copy to less", lambda w: w.port.copy((0, 5), (8, 6)), ArgumentError, "5 bytes and .* 6"),
    ("discard from below 0", lambda w: w.port.discard(w.file, -1, 5), ArgumentError,
     "offset is -1"),
    ("discard less", lambda w: w.port.discard(w.file, 0, -5), ArgumentError, "length is -5"),
    ("zeroes at a", lambda w: w.port.write_zeroes(w.file, cast(Any, "a"), 5), ArgumentTypeError,
     "'a'"),
    ("flush 5", lambda w: w.port.flush(cast(Any, 5)), ArgumentTypeError, "5 is not an endpoint"),
    # load and store
    ("load zz", lambda w: w.port.load("zz", 0), ArgumentError, "'zz' is not a format"),
    ("load 5", lambda w: w.port.load(cast(Any, 5), 0), ArgumentError, "5 is not a format"),
    ("load a list", lambda w: w.port.load(cast(Any, []), 0), ArgumentError, "is not a format"),
    ("load below 0", lambda w: w.port.load("<I", -1), ArgumentError, "address is -1"),
    ("load at x", lambda w: w.port.load("<I", cast(Any, "x")), ArgumentTypeError, "'x'"),
    ("load less", lambda w: w.port.load_bytes(0, -1), ArgumentError, "size is -1"),
    ("load too much", lambda w: w.port.load_bytes(0, 1 << 25), ArgumentError, "2.24 is the most"),
    ("store what does not fit", lambda w: w.port.store("<I", 0, -1), ArgumentError,
     r"\(-1,\) do not"),
    ("store too few", lambda w: w.port.store("<II", 0, 1), ArgumentError, "expected 2"),
    ("store 5", lambda w: w.port.store_bytes(0, cast(Any, 5)), ArgumentTypeError, "data is 5"),
    ("store text", lambda w: w.port.store_bytes(0, cast(Any, "abc")), ArgumentTypeError, "'abc'"),
    # batches
    ("segments past the end", lambda w: w.port.submit(w.rows(first=3, count=2), w.file),
     ArgumentError, "request 1: first 3, count 2.*4 segments"),
    ("segments far past", lambda w: w.port.submit(w.rows(first=0xFFFF_FFFF, count=2), w.file),
     ArgumentError, "first 4294967295"),
    ("no direction", lambda w: w.port.submit(w.rows(direction=7), w.file), ArgumentError,
     "direction 7.*0 or 1"),
    ("no batch", lambda w: w.port.submit(cast(Any, 5), w.file), ArgumentTypeError,
     "5 is not a Batch"),
    ("no endpoint", lambda w: w.port.submit(w.rows(), cast(Any, 5)), ArgumentTypeError,
     "5 is not an endpoint"),
    ("unit below 0", lambda w: w.port.submit(w.rows(), w.file, unit=-1), ArgumentError,
     "unit is -1"),
    ("positions in a list", lambda w: w.port.submit(w.rows(), w.file, cast(Any, [1, 2])),
     ArgumentTypeError, r"position is \[1, 2\]"),
    ("narrow positions", lambda w: w.port.submit(w.rows(), w.file, cast(Any, np.zeros(2,
     np.uint32))),
     ArgumentTypeError, "2 64-bit integers"),
    ("too few positions", lambda w: w.port.submit(w.rows(), w.file, np.zeros(1, np.uint64)),
     ArgumentTypeError, "2 64-bit integers"),
    ("no completions", lambda w: w.port.completions(0), ArgumentError, "limit is 0"),
    ("less completions", lambda w: w.port.completions(-1), ArgumentError, "limit is -1"),
    ("at least too many", lambda w: w.port.completions(4, at_least=5), ArgumentError, "at_least 5"),
    ("completions of x", lambda w: w.port.completions(cast(Any, "x")), ArgumentTypeError, "'x'"),
    ("cancel x", lambda w: w.port.cancel(cast(Any, "x")), ArgumentTypeError, "ticket is 'x'"),
    ("cancel below 0", lambda w: w.port.cancel(-1), ArgumentError, "ticket is -1"),
    # engine and ports
    ("fast engine", lambda w: iodma.Engine("fast"), ArgumentError,
     "'fast'; auto, uring or threads"),
    ("no depth", lambda w: iodma.Engine(depth=0), ArgumentError, "depth is 0; 1 to 32768"),
    ("depth x", lambda w: iodma.Engine(depth=cast(Any, "x")), ArgumentTypeError, "depth is 'x'"),
    ("spin less", lambda w: iodma.Engine(spin_us=-1), ArgumentError, "spin_us is -1"),
    ("bounce less", lambda w: iodma.Engine(bounce_bytes=-1), ArgumentError, "bounce_bytes is -1"),
    ("no workers", lambda w: iodma.Engine(workers=0), ArgumentError, "workers is 0; 1 to 256"),
    ("small 5", lambda w: iodma.Engine(small=cast(Any, 5)), ArgumentTypeError, "small is 5"),
    ("clock 5", lambda w: iodma.Engine(clock=cast(Any, 5)), ArgumentTypeError, "clock is 5"),
    ("port onto 5", lambda w: w.engine.port(cast(Any, 5)), ArgumentTypeError,
     "5 is not an address"),
    ("port of no depth", lambda w: w.engine.port(w.memory, depth=0), ArgumentError, "depth is 0"),
    ("port of less", lambda w: w.engine.port(w.memory, depth=-1), ArgumentError, "depth is -1"),
    ("port named 5", lambda w: w.engine.port(w.memory, cast(Any, 5)), ArgumentTypeError,
     "name is 5"),
    ("timer before", lambda w: w.engine.call_later(-1, print), ArgumentError, "seconds is -1"),
    ("timer at nan", lambda w: w.engine.sleep(float("nan")), ArgumentError, "seconds is nan"),
    ("timer at x", lambda w: w.engine.sleep(cast(Any, "x")), ArgumentError, "seconds is 'x'"),
    ("start 5", lambda w: w.engine.start(cast(Any, 5)), ArgumentTypeError, "5 is not a coroutine"),
    ("attach 5", lambda w: w.engine.attach(cast(Any, 5)), ArgumentTypeError, "5 is not a Device"),
    # endpoints
    ("directory", lambda w: iodma.File("/tmp", read_only=True), ArgumentError, "/tmp is neither"),
    ("character device", lambda w: iodma.File("/dev/null"), ArgumentError, "/dev/null is neither"),
    ("file 5.0", lambda w: iodma.File(cast(Any, 5.0)), ArgumentTypeError, "5.0 is not a path"),
    ("socket x", lambda w: iodma.Socket(cast(Any, "x")), ArgumentTypeError, "'x' is not a socket"),
    ("buffer of none", lambda w: iodma.Buffer(0), ArgumentError, "size is 0"),
    ("buffer of bytes", lambda w: iodma.Buffer(cast(Any, b"abc")), ArgumentTypeError, "b'abc'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "says"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input(
    world: World, call: Callable[[World], object], kind: type[iodma.Error], says: str
) -> None:
    submitted = world.engine.stats().submitted
    maps = world.memory._ranges(), world.iommu._ranges()
    with pytest.raises(kind, match=says) as caught:
        call(world)
    assert isinstance(caught.value, iodma.Error)
    if kind in (ArgumentError, AddressRangeError):
        assert isinstance(caught.value, ValueError)
    if kind is ArgumentTypeError:
        assert isinstance(caught.value, TypeError)
    assert world.engine.stats().submitted == submitted
    assert (world.memory._ranges(), world.iommu._ranges()) == maps


def test_the_hosts_refusals_stay_its_own(world: World, tmp_path: Path) -> None:
    for call, error in (
        (lambda: iodma.File(tmp_path / "missing"), errno.ENOENT),
        (lambda: iodma.File(9999, read_only=True), errno.EBADF),
        (lambda: iodma.Socket(9999), errno.EBADF),
        (lambda: iodma.Ram.from_fd(9999), errno.EBADF),
        (lambda: iodma.Socket(world.file._fd), errno.ENOTSOCK),
        (lambda: iodma.Ram.from_file(tmp_path / "missing"), errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == error


def test_the_wrong_kind_of_socket() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as packets, socket.socket() as stream:
        with pytest.raises(ArgumentError, match="is not a stream socket"):
            iodma.Socket(packets)
        with pytest.raises(ArgumentError, match="is not a packet socket"):
            iodma.Datagram(stream)


# -- what is closed, or another's ----------------------------------------------


def test_a_closed_endpoint(world: World) -> None:
    file = iodma.File(world.path)
    file.close()
    file.close()
    for call in (
        lambda: world.port.to_memory((0, 8), source=file),
        lambda: world.port.from_memory((0, 8), to=file),
        lambda: world.port.flush(file),
        lambda: world.port.submit(world.rows(), file),
    ):
        with pytest.raises(ClosedError, match=r"File .*file closed> is closed"):
            call()


def test_an_endpoint_closed_after_the_submit(world: World) -> None:
    """What was submitted and has not begun ends with an error; what has begun ends by itself."""

    async def main() -> None:
        file = iodma.File(world.path)
        transfer = world.port.to_memory((0, 8), source=file)
        file.close()
        done = await transfer
        assert (done.status, done.error) == (iodma.Status.IO_ERROR, errno.EBADF)
        left, right = socket.socketpair()
        with left, right:
            wire = iodma.Socket(left)
            transfer = world.port.to_memory((0, 8), source=wire)
            await world.engine.sleep(0)
            await world.engine.sleep(0)
            wire.close()
            assert wire.in_flight == 1
            right.send(b"12345678")
            assert (await transfer).ok
            assert wire.in_flight == 0 and wire._fd == -1

    world.engine.run(main())


def test_a_closed_port(world: World) -> None:
    with world.engine.port(world.memory, "gone") as port:
        pass
    port.close()
    for call in (
        lambda: port.copy((0, 8), (8, 8)),
        lambda: port.to_memory((0, 8), source=world.file),
        lambda: port.load("<I", 0),
        lambda: port.store("<I", 0, 1),
        lambda: port.flush(world.file),
        lambda: port.submit(world.rows(), world.file),
    ):
        with pytest.raises(ClosedError, match="port gone is closed"):
            call()


def test_a_port_within_and_after_a_reset(world: World) -> None:
    port = world.port

    async def main() -> None:
        reset = port.reset()
        for call in (
            lambda: port.copy((0, 8), (8, 8)),
            lambda: port.load("<I", 0),
            lambda: port.store_bytes(0, b"x"),
            lambda: port.submit(world.rows(), world.file),
        ):
            with pytest.raises(iodma.StaleError, match=r"submit when the reset is done"):
                call()
        assert port.reset() is reset, "it joins the one under way"
        await reset
        assert await port.load("<I", 0) == (0,)

    world.engine.run(main())


def test_a_port_at_its_depth(world: World) -> None:
    port = world.engine.port(world.memory, "narrow", depth=2)
    with ScriptedEndpoint(bytes(8), on_cancel="honour") as disk:

        async def main() -> None:
            transfers = [port.to_memory((0, 8), source=disk) for _ in range(2)]
            with pytest.raises(iodma.BusyError, match=r"narrow has 2 transfers.*depth is 2"):
                port.to_memory((0, 8), source=disk)
            with pytest.raises(iodma.BusyError, match=r"cannot take 2 more: its depth is 2"):
                port.submit(world.rows(), disk)
            for transfer in transfers:
                await transfer
            assert (await port.to_memory((0, 8), source=disk)).ok

        world.engine.run(main())


def test_a_closed_engine(world: World) -> None:
    engine = iodma.Engine(name="gone")
    port = engine.port(iodma.Memory())
    transfer = port.copy((0, 0), (0, 0))
    engine.close()
    engine.close()

    async def never() -> None: ...

    for call in (
        lambda: engine.port(world.memory),
        lambda: engine.run(),
        lambda: engine.pump(),
        lambda: engine.fileno(),
        lambda: engine.sleep(1),
        lambda: engine.call_later(1, print),
        lambda: engine.add_reader(0, print),
        lambda: engine.__enter__(),
        lambda: port.load("<I", 0),
        lambda: port.reset(),
        lambda: port.cancel(1),
        lambda: transfer.cancel(),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
    coroutine = never()
    with pytest.raises(ClosedError):
        engine.start(coroutine)
    coroutine.close()
    assert engine.transfers() == [] and engine.stats().in_flight == 0


def test_closed_memory(world: World) -> None:
    ram = iodma.Ram(4096)
    memory = iodma.Memory({0: ram})
    port = world.engine.port(memory)
    ram.close()
    ram.close()
    with pytest.raises(ClosedError, match="the region is closed"):
        ram.view()
    with pytest.raises(ClosedError, match="no descriptor"):
        _ = ram.fd
    with pytest.raises(ClosedError, match=r"Ram of 4096 bytes closed> is closed"):
        memory.add(8192, ram)

    async def main() -> None:
        done = await port.copy((0, 8), (8, 8))
        assert done.status is iodma.Status.FAULT, "what a device does to it is a fault, no error"
        with pytest.raises(iodma.DmaFault, match="nothing is mapped"):
            await port.load("<I", 0)

    world.engine.run(main())


def test_what_is_another_engines(world: World) -> None:
    with strict_engine(name="other") as other:
        with pytest.raises(iodma.Error, match=r"memory is in use by another engine"):
            other.port(world.memory)
        memory = iodma.Memory()
        port = other.port(memory)
        world.engine.run(_read(world.port, world.file))
        with pytest.raises(iodma.Error, match="in use by another engine; open it once for each"):
            port.to_memory((0, 8), source=world.file)
        with iodma.File(world.path) as again:
            transfer = port.to_memory((0, 0), source=again)
            assert other.run(_wait(transfer)).ok
        assert other.transfers() == []


async def _read(port: iodma.Port, file: iodma.File) -> None:
    assert (await port.to_memory((0, 8), source=file)).ok


async def _wait(transfer: Any) -> Any:
    return await transfer


# -- what a guest says is a value, not an error ---------------------------------


def test_what_a_guest_may_say_is_never_an_exception(system: System, file: iodma.File) -> None:
    port, most = system.port, TOP - 1

    async def main() -> None:
        for segments in (
            (most, 2),
            (0, most),
            [(0, most), (0, most)],
            [(0, 8), (most - 7, 8)],
            [(0, 1 << 63)],
            [(1 << 63, 1 << 63)],
        ):
            done = await port.to_memory(segments, source=file)
            assert done.status is iodma.Status.FAULT and done.moved == 0, segments
        for offset in (1 << 62, 1 << 63, most):
            done = await port.to_memory((0, 8), source=file, offset=offset)
            assert done.moved == 0 and done.status in (iodma.Status.OK, iodma.Status.IO_ERROR)
            done = await port.from_memory((0, 8), to=file, offset=offset)
            assert done.status is iodma.Status.IO_ERROR and done.error == errno.EFBIG
        for control in (port.discard, port.write_zeroes):
            done = await control(file, most, most)
            assert done.status is iodma.Status.IO_ERROR and done.error in (
                errno.EINVAL,
                errno.EFBIG,
            )

    system.run(main())


def test_positions_that_wrap_around_are_refused_one_by_one(
    system: System, file: iodma.File
) -> None:
    """`position * unit` is checked arithmetic: 2^55 sectors of 512 bytes are not sector 0."""
    batch = iodma.Batch(3)
    batch.n = 3
    batch.count[:] = 1
    batch.first[:] = np.arange(3)
    batch.length[:] = 512
    batch.address[:] = np.arange(3) * 512
    batch.direction[:] = iodma.Direction.FROM_MEMORY
    batch.position[:] = [1, 1 << 55, TOP - 1]
    before = os.pread(file._fd, 512, 0)
    system.memory.fill(b"guest")

    async def main() -> dict[int, tuple[int, int]]:
        tickets = system.port.submit(batch, file, unit=512).tolist()
        ends = {}
        async for done in system.port.completions():
            for ticket, status, error in zip(
                done.ticket.tolist(), done.status.tolist(), done.error.tolist(), strict=True
            ):
                ends[tickets.index(ticket)] = status, error
        return ends

    bad = (iodma.Status.IO_ERROR, errno.EFBIG)
    assert system.run(main()) == {0: (iodma.Status.OK, 0), 1: bad, 2: bad}
    assert os.pread(file._fd, 512, 0) == before
