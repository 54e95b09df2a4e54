# SPDX-License-Identifier: Apache-2.0
"""QEMU 11 is the client, and its machine is driven access by access: no processor, no boot.

QEMU is Debian's of trixie-backports, fetched once (scripts/foreign_debian.sh: mmdebstrap, half a
minute, no root) and kept in ~/.cache/iodma, as are the kernels and compilers of the tests beside
this one. Without network and cache they are skipped, and fail under CI. All of them by themselves:
`.venv/bin/python -m pytest tests/peers/test_vfio_user_*.py`.
"""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.vfio_user.machine import Served, program
from tests.peers.vfio_user.qtest import COMMAND, Qtest

pytestmark = pytest.mark.limit(240)  # QEMU may have to be fetched

#: Registers and bits of the copy engine; where its ring and what it copies are.
RING, ENTRIES, CONTROL, STATUS, HEAD, TAIL, FAULT = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x28
HALTED, RESETTING = 1, 2
DONE, REFUSED = 1 << 31, 1 << 31 | 1
GONE = 0xFFFF_FFFF
RING_AT, SOURCE, TARGET = 0x10_0000, 0x20_0000, 0x30_0000
SLOTS = 4096


def wait(machine: Qtest, offset: int, mask: int, value: int) -> int:
    """Until a register has these bits; gives all of it."""
    deadline = time.monotonic() + 20
    while (found := machine.read(offset)) & mask != value:
        if time.monotonic() > deadline:
            raise machine.failed(f"register {offset:#x} is {found:#x}, not {value:#x} & {mask:#x}")
    return found


def set_up(machine: Qtest) -> None:
    machine.write(RING, RING_AT, 8)
    machine.write(ENTRIES, SLOTS)


def describe(machine: Qtest, index: int, source: int, target: int, length: int) -> None:
    words = struct.pack("<QQIIII", source, target, length, 0, 0, 0)
    machine.store(RING_AT + 32 * index, words)


def fill(machine: Qtest, first: int) -> None:
    """The ring from there on: a megabyte each, some seconds of work."""
    one = struct.pack("<QQIIII", SOURCE, TARGET, 1 << 20, 0, 0, 0)
    machine.store(RING_AT + 32 * first, one * (SLOTS - first))
    machine.write(TAIL, SLOTS - 1)


def result(machine: Qtest, index: int) -> tuple[int, ...]:
    """RESULT and MOVED of a descriptor."""
    return struct.unpack("<II", machine.load(RING_AT + 32 * index + 0x18, 8))


def copy(machine: Qtest, index: int, data: bytes) -> None:
    machine.store(SOURCE, data)
    machine.store(TARGET, bytes(len(data)))
    describe(machine, index, SOURCE, TARGET, len(data))
    machine.write(TAIL, index + 1)
    wait(machine, HEAD, GONE, index + 1)
    assert result(machine, index) == (DONE, len(data))
    assert machine.load(TARGET, len(data)) == data


def test_the_device_is_in_this_qemu(qemu11: Foreign) -> None:
    command = [*program(qemu11, "qemu-system-x86_64"), "-device", "vfio-user-pci,help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "socket=<SocketAddress>" in told


@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_copies_faults_and_resets(work: Path, qemu11: Foreign, engine: str) -> None:
    """What goes wrong is told in the descriptor, and each reset leaves a device that works."""
    with Served(work, "AllKinds", engine=engine) as server:
        with Qtest(work, qemu11, server.function) as machine:
            assert machine.config_read(0) == 0x0003_F1DA
            machine.enable()
            set_up(machine)
            copy(machine, 0, bytes(range(256)) * 16)
            describe(machine, 1, SOURCE, 1 << 40, 4096)
            describe(machine, 2, SOURCE + 1, TARGET, 77)
            machine.write(TAIL, 3)
            wait(machine, HEAD, GONE, 3)
            assert result(machine, 1) == (REFUSED, 0) and result(machine, 2) == (DONE, 77)
            assert machine.read(FAULT, 8) == 1 << 40

            # It is no bus master: its ring is as far away as anything.
            command = machine.config_read(COMMAND, 2)
            machine.config_write(COMMAND, command & ~4, 2)
            machine.write(TAIL, 4)
            wait(machine, STATUS, HALTED, HALTED)
            assert machine.read(FAULT, 8) == RING_AT + 3 * 32
            machine.config_write(COMMAND, command, 2)

            machine.write(CONTROL, 1)
            wait(machine, STATUS, HALTED | RESETTING, 0)
            assert machine.read(RING, 8) == machine.read(HEAD) == 0
            set_up(machine)
            copy(machine, 0, b"\x5a" * 8192)
            fill(machine, 1)  # ... and while it works
            machine.write(CONTROL, 1)
            wait(machine, STATUS, RESETTING, 0)
            assert machine.read(HEAD) == 0
            set_up(machine)
            copy(machine, 0, b"\xa5" * 100)
        server.stop()


def test_machines_come_and_go(work: Path, qemu11: Foreign) -> None:
    """A QEMU that is killed while the device works leaves a device as at power-on."""
    with Served(work, "rung3_copy_engine.py") as server:
        for _ in range(3):
            with Qtest(work, qemu11, server.function) as machine:
                assert machine.config_read(COMMAND, 2) == 0
                machine.enable()
                assert machine.read(RING, 8) == machine.read(HEAD) == machine.read(STATUS) == 0
                set_up(machine)
                copy(machine, 0, b"as at power-on")
                fill(machine, 1)
                machine.kill()
        server.stop()


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_server_that_goes_under_load(work: Path, qemu11: Foreign, how: str) -> None:
    """Registers of a device that is gone read all-ones, at once; the machine goes on.

    No message is under way then: QEMU 11.1 aborts by itself when what it has sent was not read.
    """
    with (
        Served(work, "rung3_copy_engine.py") as server,
        Qtest(work, qemu11, server.function) as machine,
    ):
        machine.enable()
        set_up(machine)
        fill(machine, 0)
        machine.read(HEAD)  # the server has read all that was sent before
        if how == "killed":
            server.kill()
        else:
            server.stop()
        begin = time.monotonic()
        wait(machine, STATUS, GONE, GONE)
        machine.write(TAIL, 0)
        assert machine.read(HEAD) == GONE
        assert time.monotonic() - begin < 20
        machine.store(TARGET, b"the machine goes on")
        assert machine.load(TARGET, 19) == b"the machine goes on"


def test_memory_that_is_not_shared(work: Path, qemu11: Foreign) -> None:
    """What the machine writes is not in the file that it gives: DMA is messages to it, and the
    server says why."""
    with Served(work, "rung3_copy_engine.py") as server:
        with Qtest(work, qemu11, server.function, shared=False) as machine:
            machine.enable()
            set_up(machine)
            copy(machine, 0, b"not seen in the file" * 1000)
            server.wait_said("share=on")
        server.stop()


def test_memory_that_has_no_file(work: Path, qemu11: Foreign) -> None:
    """QEMU moves the bytes, asked by messages: the ring's, and those of the copies."""
    with Served(work, "AllKinds") as server:
        with Qtest(work, qemu11, server.function, shared=None) as machine:
            machine.enable()
            set_up(machine)
            copy(machine, 0, bytes(range(256)) * 16)
            copy(machine, 1, bytes(3) + bytes(range(1, 256)) * 4001)  # zeros first; nearly 1 MiB
            describe(machine, 2, SOURCE + 1, TARGET + 2, 77)
            describe(machine, 3, SOURCE, 1 << 40, 4096)
            machine.write(TAIL, 4)
            wait(machine, HEAD, GONE, 4)
            assert result(machine, 2) == (DONE, 77) and result(machine, 3) == (REFUSED, 0)
            assert machine.load(TARGET + 2, 77) == (bytes(3) + bytes(range(1, 256)))[1:78]
            command = machine.config_read(COMMAND, 2)
            machine.config_write(COMMAND, command & ~4, 2)
            machine.write(TAIL, 5)
            wait(machine, STATUS, HALTED, HALTED)
        server.stop()
