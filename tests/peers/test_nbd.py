"""`iodma.Nbd` against nbdkit: data, constraints, errors, and servers that go away.

nbdkit's filters make what a network makes: `delay` answers late and out of order, `error` fails
requests at random, `blocksize-policy` insists on its blocks, `log` tells what arrived.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from iodma._peer import VhostBlk
from iodma.testing import strict_engine
from tests.peers.nbdkit import RAM, Machine, Nbdkit, nbdkit_fixture  # noqa: F401

SIZE = 1 << 20
#: Memory that a test takes away.
LENT = 1 << 32
IN, FLUSH = 0, 4  # virtio-blk's

Make = Callable[..., Machine]


@pytest.fixture(params=["uring", "threads"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """`make("memory", "1M", filters=[...], **options of Nbd)`."""
    with ExitStack() as stack:

        def make(
            *words: str, filters: list[str] | None = None, tcp: bool = False, **options: Any
        ) -> Machine:
            server = stack.enter_context(Nbdkit(*words, filters=filters, tcp=tcp))
            return Machine(stack, server, request.param, **options)

        yield make


def test_what_is_written_is_read(make: Make) -> None:
    machine = make("memory", "1M")
    port, disk = machine.port, machine.disk
    data = os.urandom(70_000)

    async def main() -> None:
        machine.write(100, data)
        assert (await port.from_memory((100, len(data)), to=disk, offset=777)).ok
        assert (await port.flush(disk)).ok
        pieces = [(RAM - 40_000, 40_000), (1 << 20, 20_000), (2 << 20, 10_000)]
        done = await port.to_memory(pieces, source=disk, offset=777)
        assert done.ok and done.moved == len(data)
        assert b"".join(machine.read(*piece) for piece in pieces) == data

    machine.run(main())
    assert disk.size == SIZE and not disk.read_only and disk.gone == ""
    assert machine.engine.stats().python_bytes == 0, "payload went through Python"


def test_a_file_is_served_and_the_bytes_are_in_it(make: Make, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    machine = make("file", str(image))
    port, disk = machine.port, machine.disk
    data = os.urandom(SIZE)

    async def main() -> None:
        machine.write(0, data)
        assert (await port.from_memory((0, SIZE), to=disk)).ok
        assert (await port.flush(disk)).ok
        assert (await port.discard(disk, 65536, 65536)).ok
        assert (await port.write_zeroes(disk, 4096, 512)).ok

    machine.run(main())
    expected = bytearray(data)
    expected[65536:131072] = bytes(65536)
    expected[4096:4608] = bytes(512)
    assert image.read_bytes() == expected


def test_the_end_of_the_disk(make: Make) -> None:
    machine = make("pattern", "1M", filters=["cow"])
    port, disk = machine.port, machine.disk

    async def main() -> None:
        done = await port.to_memory((0, 8192), source=disk, offset=SIZE - 4096)
        assert (done.status, done.moved) == (Status.OK, 4096), "a read ends at the end"
        done = await port.to_memory((0, 8192), source=disk, offset=SIZE + 4096)
        assert (done.status, done.moved) == (Status.OK, 0)
        done = await port.from_memory((0, 8192), to=disk, offset=SIZE - 4096)
        assert (done.status, done.moved, done.error) == (Status.IO_ERROR, 4096, errno.ENOSPC)
        done = await port.write_zeroes(disk, SIZE - 512, 1024)
        assert (done.status, done.error) == (Status.IO_ERROR, errno.ENOSPC)
        assert (await port.discard(disk, SIZE - 512, 1024)).ok

    machine.run(main())


@pytest.mark.parametrize("small", [16384, 0])
def test_a_list_is_a_request_a_piece_and_small_ones_are_one(make: Make, small: int) -> None:
    machine = make("memory", "1M", filters=["log"], small=small)
    pieces = [(at * 8192, 4096) for at in range(8)]

    async def main() -> None:
        assert (await machine.port.to_memory(pieces, source=machine.disk)).ok

    machine.run(main())
    assert count(machine.server, " Read id=") == (1 if small else 8)
    assert machine.engine.stats().bounced.small == (8 * 4096 if small else 0)


def count(server: Nbdkit, words: str) -> int:
    return sum(words in line for line in server.log())


def test_no_more_requests_at_the_server_than_depth(make: Make) -> None:
    machine = make("memory", "1M", "delay-read=20ms", filters=["log", "delay"], depth=3)
    port, disk = machine.port, machine.disk

    async def main() -> None:
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(40)]
        assert all([(await read).ok for read in reads])

    machine.run(main())
    there = most = 0
    for line in machine.server.log():
        there += bool(re.search(r" Read id=\d+ offset", line))
        most = max(most, there)
        there -= bool(re.search(r"\.\.\.Read id=\d+ return", line))
    assert most == 3


@pytest.mark.parametrize("fua", ["none", "native", "emulate"])
def test_write_through(make: Make, fua: str) -> None:
    mode = [] if fua == "none" else [f"fuamode={fua}"]  # which is the default
    machine = make("memory", "1M", *mode, filters=["fua", "log"], write_through=True)
    port, disk = machine.port, machine.disk
    assert disk.can_fua == (fua != "none")

    async def main() -> None:
        assert (await port.from_memory((0, 4096), to=disk)).ok
        assert (await port.write_zeroes(disk, 0, 4096)).ok
        disk.write_through = False
        assert (await port.from_memory((0, 4096), to=disk)).ok

    machine.run(main())
    log = machine.server.log()
    assert sum(" Write id=" in line for line in log) == 2
    assert sum(" Zero id=" in line for line in log) == 1
    flushed = sum(" Flush id=" in line for line in log)
    with_flag = sum("fua=1" in line for line in log)
    assert (flushed, with_flag) == ((0, 2) if fua == "native" else (2, 0))


def test_a_server_that_cannot_zero_is_written_zeroes(make: Make) -> None:
    machine = make("memory", "1M", filters=["nozero"])
    port, disk = machine.port, machine.disk
    assert not disk.can_zero

    async def main() -> None:
        machine.write(0, b"\xff" * SIZE)
        assert (await port.from_memory((0, SIZE), to=disk)).ok
        assert (await port.write_zeroes(disk, 1000, SIZE - 2000)).ok
        assert (await port.to_memory((0, SIZE), source=disk)).ok

    machine.run(main())
    assert machine.read(0, SIZE) == b"\xff" * 1000 + bytes(SIZE - 2000) + b"\xff" * 1000


def test_a_server_of_few_words(make: Make) -> None:
    """It can neither write, flush, trim nor zero."""
    machine = make("eval", "get_size=echo 4096", "pread=head -c $3 /dev/zero | tr '\\0' x")
    port, disk = machine.port, machine.disk
    assert disk.read_only and not disk.can_flush and not disk.can_trim

    async def main() -> None:
        assert (await port.to_memory((0, 512), source=disk, offset=512)).ok
        assert machine.read(0, 512) == b"x" * 512
        assert (await port.flush(disk)).ok
        for done in (
            await port.from_memory((0, 512), to=disk),
            await port.discard(disk, 0, 512),
            await port.write_zeroes(disk, 0, 512),
        ):
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EROFS)

    machine.run(main())
    with pytest.raises(iodma.UnsupportedError, match="can neither flush nor write through"):
        iodma.Nbd(machine.server.uri, write_through=True)


def test_blocks_and_longest_requests_that_a_server_insists_on(make: Make) -> None:
    machine = make(
        "memory",
        "1M",
        "blocksize-minimum=4096",
        "blocksize-maximum=65536",
        "blocksize-preferred=65536",
        "blocksize-error-policy=error",
        filters=["blocksize-policy", "log"],
        small=0,
    )
    port, disk = machine.port, machine.disk
    assert (disk.minimum_block, disk.preferred_block, disk.maximum_request) == (4096, 65536, 65536)
    data = os.urandom(300_000)

    async def main() -> None:
        machine.write(3, data)
        assert (await port.from_memory((3, len(data)), to=disk, offset=1001)).ok
        pieces = [(1 << 20, 100_001), (2 << 20, 199_999)]
        assert (await port.to_memory(pieces, source=disk, offset=1001)).ok
        assert b"".join(machine.read(*piece) for piece in pieces) == data
        assert (await port.write_zeroes(disk, 4096, 8192)).ok
        done = await port.discard(disk, 1, 10_000)  # the whole block in it
        assert done.ok

    machine.run(main())
    assert machine.engine.stats().bounced.alignment > 0


def test_errors_are_of_their_transfers_alone(make: Make) -> None:
    machine = make("memory", "1M", "error=EIO", "error-pread-rate=30%", filters=["error"])
    port, disk = machine.port, machine.disk
    data = os.urandom(SIZE)

    async def main() -> list[Any]:
        machine.write(0, data)
        assert (await port.from_memory((0, SIZE), to=disk)).ok
        machine.write(0, bytes(SIZE))
        reads = [port.to_memory((at, 4096), source=disk, offset=at) for at in range(0, SIZE, 4096)]
        return [await read for read in reads]

    ends = machine.run(main())
    for at, done in zip(range(0, SIZE, 4096), ends, strict=True):
        if done.ok:
            assert machine.read(at, 4096) == data[at : at + 4096]
        else:
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EIO)
    assert {done.status for done in ends} == {Status.OK, Status.IO_ERROR}
    assert disk.gone == ""


def test_what_failed_leaves_the_prefix(make: Make) -> None:
    """Writes of 512 bytes fail from the second block on; the list's first piece is in the first."""
    machine = make(
        "eval",
        "get_size=echo 1048576",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null; test $4 -lt 65536 || { echo ENOSPC >&2; exit 1; }",
        "can_write=exit 0",
        small=0,
    )
    port, disk = machine.port, machine.disk

    async def main() -> Any:
        pieces = [(at * 65536, 32768) for at in range(4)]
        return await port.from_memory(pieces, to=disk)

    done = machine.run(main())
    assert (done.status, done.moved, done.error) == (Status.IO_ERROR, 65536, errno.ENOSPC)


def test_a_cancelled_transfer_holds_its_memory_until_the_server_answered(make: Make) -> None:
    machine = make("pattern", "1M", "delay-read=200ms", filters=["delay"], depth=1, small=0)
    port, disk = machine.port, machine.disk

    async def main() -> Any:
        pieces = [(at * 8192, 4096) for at in range(4)]
        transfer = port.to_memory(pieces, source=disk)
        control = port.to_memory((65536, 4096), source=disk)
        await machine.states("IN_FLIGHT", "WAITING")
        transfer.cancel()
        assert (await control).ok, "it waited for the first one's request"
        return await transfer

    done = machine.run(main())
    assert (done.status, done.moved) == (Status.CANCELLED, 4096), "what was at the server was read"
    assert machine.read(0, 4096) == machine.read(65536, 4096)
    assert machine.read(8192, 4096) == bytes(4096)


def test_those_that_wait_for_room_can_be_cancelled(make: Make) -> None:
    machine = make("memory", "1M", "delay-read=100ms", filters=["delay"], depth=1)
    port, disk = machine.port, machine.disk

    async def main() -> list[Status]:
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(6)]
        await machine.states("IN_FLIGHT", "WAITING")
        for read in reads[1:5]:
            read.cancel()
        return [(await read).status for read in reads]

    assert machine.run(main()) == [Status.OK, *[Status.CANCELLED] * 4, Status.OK]


def test_no_byte_lands_after_a_reset_or_a_revocation(make: Make) -> None:
    machine = make("pattern", "1M", "delay-read=50ms", filters=["delay"])
    port, disk = machine.port, machine.disk

    async def main() -> None:
        for at in range(40):
            port.to_memory((at * 4096, 4096), source=disk, offset=4096)
        await machine.states("IN_FLIGHT")
        await port.reset()
        assert disk.in_flight == 0
        machine.write(0, bytes(RAM))
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(40)]
        await machine.states("IN_FLIGHT")
        assert await machine.memory.remove(0, cancel=True)
        assert disk.in_flight == 0
        machine.write(0, b"\xff" * RAM)
        assert {(await read).status for read in reads} <= {Status.OK, Status.CANCELLED}
        assert (await port.to_memory((0, 4096), source=disk)).status is Status.FAULT

    machine.run(main())
    assert machine.read(0, RAM) == b"\xff" * RAM


def test_through_byte_lanes_and_to_registers(make: Make) -> None:
    machine = make("memory", "1M")
    swapped = machine.engine.port(iodma.ByteLanes(machine.memory, width=2))
    disk = machine.disk

    async def main() -> None:
        machine.write(0, bytes(range(256)) * 64)
        assert (await swapped.from_memory((0, 16384), to=disk)).ok
        assert (await machine.port.to_memory((65536, 16384), source=disk)).ok

    machine.run(main())
    there = machine.read(65536, 16384)
    assert there[::2] == machine.read(0, 16384)[1::2] and there[1::2] == machine.read(0, 16384)[::2]
    assert machine.engine.stats().bounced.lanes == 16384


def test_more_than_the_arena_holds(make: Make) -> None:
    machine = make("pattern", "1M", "delay-read=1ms", filters=["delay"])
    port, disk = machine.port, machine.disk

    async def main() -> None:
        reads = [
            port.to_memory([(at * 65536 + piece * 8192, 4096) for piece in range(8)], source=disk)
            for at in range(64)
        ]
        reads += [port.to_memory((at * 65536, 4096), source=disk) for at in range(64)]
        for read in reads:
            assert (await read).ok

    machine.run(main())
    assert machine.read(8192, 4096) == machine.read(63 * 65536 + 8192, 4096)


def test_a_fork_s_child_leaves_the_connection_alone(make: Make) -> None:
    machine = make("memory", "1M")
    machine.run(once(machine.port.to_memory((0, 512), source=machine.disk)))
    child = os.fork()
    if child == 0:
        try:
            machine.disk.close()
            del machine.disk
            gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert machine.run(once(machine.port.to_memory((0, 512), source=machine.disk))).ok


def test_a_server_that_is_killed_under_load(make: Make) -> None:
    machine = make("memory", "1M", "delay-read=5ms", filters=["delay"])
    port, disk = machine.port, machine.disk

    async def main() -> list[Any]:
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(300)]
        assert (await reads[0]).ok
        machine.server.kill()
        return [await read for read in reads]

    ends = machine.run(main())
    assert {done.status for done in ends} == {Status.OK, Status.PEER_GONE}
    assert machine.run(once(port.to_memory((0, 512), source=disk))).status is Status.PEER_GONE
    assert machine.run(once(port.flush(disk))).status is Status.PEER_GONE
    assert disk.gone
    assert disk.in_flight == 0


async def once(transfer: Any) -> Any:
    return await transfer


def test_a_server_that_does_not_answer_is_given_up(make: Make) -> None:
    machine = make("memory", "1M")
    port, disk = machine.port, machine.disk

    async def main() -> list[Any]:
        assert (await port.to_memory((0, 4096), source=disk)).ok
        machine.server.pause()
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(100)]
        writes = [port.from_memory((0, SIZE), to=disk) for _ in range(100)]
        await machine.states("IN_FLIGHT", "WAITING")
        machine.engine.call_soon(disk.abort)
        return [await each for each in reads + writes]

    assert {done.status for done in machine.run(main())} == {Status.PEER_GONE}
    assert disk.gone == "the connection was given up"


def test_an_engine_that_is_closed_gives_up_what_does_not_answer(make: Make) -> None:
    machine = make("memory", "1M")
    machine.run(once(machine.port.to_memory((0, 4096), source=machine.disk)))
    machine.server.pause()

    async def main() -> None:
        for _ in range(10):
            machine.port.to_memory((0, 4096), source=machine.disk)
        await machine.states("IN_FLIGHT")

    machine.run(main())
    machine.engine.close(deadline=0.05)
    assert machine.engine.closed and machine.disk.gone


def test_memory_that_is_gone_is_a_fault(make: Make) -> None:
    """The kernel cannot receive into it, or send from it: libnbd then gives the connection up."""
    for reads in (True, False):
        machine = make("memory", "1M")
        fd = os.memfd_create("vmm")
        try:
            os.ftruncate(fd, 65536)
            with iodma.Ram.from_fd(fd) as lent:
                machine.memory.add(LENT, lent)
                os.ftruncate(fd, 4096)

                async def main(machine: Machine, reads: bool) -> Any:
                    port, disk = machine.port, machine.disk
                    if reads:
                        return await port.to_memory((LENT, 65536), source=disk)
                    return await port.from_memory((LENT, 65536), to=disk)

                assert machine.run(main(machine, reads)).status is Status.FAULT
                assert machine.disk.gone
                machine.run(once(machine.memory.remove(LENT)))
        finally:
            os.close(fd)


def test_as_a_guest_in_another_loop(make: Make) -> None:
    machine = make("memory", "1M", "delay-read=5ms", filters=["delay"])
    engine, port, disk = machine.engine, machine.port, machine.disk

    async def main() -> int:
        reads = [port.to_memory((at * 4096, 4096), source=disk) for at in range(100)]
        return sum([(await read).moved for read in reads])

    task = engine.start(main())
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    while not task.done:
        assert poll.poll(20_000), "nothing would ever wake this loop"
        engine.pump(8)
    assert task.result == 100 * 4096


def test_a_second_engine_after_the_first_was_closed(make: Make) -> None:
    machine = make("memory", "1M")
    machine.run(once(machine.port.to_memory((0, 512), source=machine.disk)))
    machine.engine.close()
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        assert engine.run(once(port.to_memory((0, 512), source=machine.disk))).ok


# --- connecting ---------------------------------------------------------------------------------


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        iodma.Nbd(f"nbd+unix:///?socket={tmp_path}/none")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            iodma.Nbd(f"nbd://127.0.0.1:{sock.getsockname()[1]}/")


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(1)
        with pytest.raises(TimeoutError, match="does not answer in time"):
            iodma.Nbd(f"nbd+unix:///?socket={tmp_path}/s", timeout=0.05)


def test_a_uri_without_a_socket() -> None:
    with pytest.raises(iodma.ArgumentError):
        iodma.Nbd("nbd+unix:///disk")


def test_over_tcp(make: Make) -> None:
    machine = make("memory", "1M", tcp=True)
    assert machine.server.uri.startswith("nbd://127.0.0.1:")
    machine.write(0, b"there" * 100_000)

    async def main() -> None:
        assert (await machine.port.from_memory((0, 500_000), to=machine.disk)).ok
        assert (await machine.port.to_memory((1 << 20, 500_000), source=machine.disk)).ok

    machine.run(main())
    assert machine.read(1 << 20, 500_000) == machine.read(0, 500_000)


# --- for a guest --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_a_virtual_machine_s_disk(engine: str, tmp_path: Path) -> None:
    """A front-end writes all of it and reads it back, through both servers."""
    path = tmp_path / "blk"
    words = ["memory", "4M", "delay-read=1ms", "delay-write=2ms"]
    with (
        Nbdkit(*words, filters=["delay"]) as server,
        subprocess.Popen(
            [sys.executable, "-m", "iodma", "serve", "blk", f"--blk-file={server.uri}",
             f"--socket-path={path}", f"--engine={engine}"],
            stderr=subprocess.PIPE, text=True,
        ) as serving,
    ):  # fmt: skip
        try:
            assert serving.stderr is not None
            assert "(4194304 bytes) is served at" in serving.stderr.readline()
            with VhostBlk(path, depth=16, segments=4) as front:
                assert front.capacity == 4 << 20
                whole = front.run(write=True, random=False, verify=True, requests=256, seconds=30)
                assert (whole["requests"], whole["errors"]) == (256, 0)
                assert front.request(FLUSH)[0] == 0
                for size in (512, 16384):
                    read = front.run(bytes=size, verify=True, requests=300, seconds=30)
                    assert (read["errors"], read["mismatches"]) == (0, 0)
                server.kill()
                assert front.request(IN, in_bytes=512)[0] == 1, "an error status, and no stall"
                assert front.request(FLUSH)[0] == 1
        finally:
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(20) == 0


# --- any list, anywhere -------------------------------------------------------------------------
