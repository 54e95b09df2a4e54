"""Any scatter list, anywhere on an NBD server's disk, is that part of an array of bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iodma import Status
from tests.peers.nbdkit import Machine, Nbdkit, nbdkit_fixture  # noqa: F401

DISK = 64 << 10
lists = st.lists(st.tuples(st.integers(0, DISK), st.integers(1, 6000)), min_size=1, max_size=6)
steps = st.tuples(
    st.sampled_from(["read", "write", "zero", "trim"]), st.integers(0, DISK + 5000), lists
)


@pytest.fixture(scope="module", params=[1, 512, 4096])
def block_server(request: pytest.FixtureRequest) -> Iterator[tuple[Nbdkit, int]]:
    words = ["memory", str(DISK)]
    if request.param > 1:
        words += [
            f"blocksize-minimum={request.param}",
            "blocksize-preferred=4096",
            "blocksize-maximum=8192",
            "blocksize-error-policy=error",
        ]
    with Nbdkit(*words, filters=["blocksize-policy"]) as server:
        yield server, request.param


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(script=st.lists(steps, max_size=12), small=st.sampled_from([0, 1000, 16384]))
@pytest.mark.parametrize("kind", ["uring", "threads"])
def test_a_disk_is_an_array_of_bytes(
    block_server: tuple[Nbdkit, int], kind: str, script: list[Any], small: int
) -> None:
    server, block = block_server
    start = bytes(at * 7 % 251 for at in range(DISK))
    model, guest = bytearray(start), bytearray(os.urandom(2 * DISK))
    with ExitStack() as stack:
        machine = Machine(stack, server, kind, small=small)
        port, disk = machine.port, machine.disk
        machine.write(2 * DISK, start)
        machine.write(0, guest)

        async def main() -> None:
            assert (await port.from_memory((2 * DISK, DISK), to=disk)).ok
            for what, offset, pieces in script:
                total = sum(length for _, length in pieces)
                room = max(0, min(total, DISK - offset))
                if what == "read":
                    done = await port.to_memory(pieces, source=disk, offset=offset)
                    assert (done.status, done.moved) == (Status.OK, room)
                    here = [*spread(pieces, room)]
                    if overlap(here):  # in any order
                        guest[:] = machine.read(0, len(guest))
                    else:
                        at = offset
                        for address, length in here:
                            guest[address : address + length] = model[at : at + length]
                            at += length
                elif what == "write":
                    data = b"".join(bytes(guest[a : a + n]) for a, n in spread(pieces, total))
                    done = await port.from_memory(pieces, to=disk, offset=offset)
                    if room == total:
                        assert done.ok and done.moved == total
                        model[offset : offset + room] = data
                    else:
                        assert done.status is Status.IO_ERROR
                        got = done.moved
                        assert got <= room
                        model[offset : offset + got] = data[:got]
                        # Where a block of the server's is written in part, all or nothing.
                        assert (await port.to_memory((2 * DISK, DISK), source=disk)).ok
                        model[:] = machine.read(2 * DISK, DISK)
                elif what == "zero":
                    offset, total = offset // block * block, total // block * block
                    done = await port.write_zeroes(disk, offset, total)
                    if not total:
                        assert done.ok
                    elif offset + total <= DISK:
                        assert done.ok
                        model[offset : offset + total] = bytes(total)
                    else:
                        assert done.error == errno.ENOSPC
                else:
                    offset, total = offset // block * block, total // block * block
                    assert (await port.discard(disk, offset, total)).ok
                    end = min(DISK, offset + total)
                    model[offset:end] = bytes(max(0, end - offset))
                assert machine.read(0, len(guest)) == guest, "no byte outside a list is touched"
            assert (await port.to_memory((2 * DISK, DISK), source=disk)).ok

        machine.run(main())
        assert machine.read(2 * DISK, DISK) == model


def overlap(pieces: list[tuple[int, int]]) -> bool:
    ordered = sorted(pieces)
    return any(a + n > b for (a, n), (b, _) in pairwise(ordered))


def spread(pieces: list[tuple[int, int]], total: int) -> Iterator[tuple[int, int]]:
    """The pieces of the list's first so many bytes."""
    for address, length in pieces:
        taken = min(length, total)
        if taken:
            yield address, taken
        total -= taken
