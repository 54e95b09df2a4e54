# SPDX-License-Identifier: Apache-2.0
"""The qtest server says what QEMU's says: the same lines to QEMU 11's SS-5 and to ours.

Lines are such that QEMU understands them (it aborts where one is not), and that reach what both
have alike: RAM, what is nowhere, the interrupt controller, LANCE's registers while it is stopped.
"""

from __future__ import annotations

import base64
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.peers.conftest import needed
from tests.peers.guests.process import mortal
from tests.peers.sun4m.qemu import qemu11_sparc
from tests.qtest import Qtest

pytestmark = pytest.mark.limit(240)  # QEMU may have to be fetched

RAM_BYTES = 16 << 20
INTCTL, SYSTEM, RDP, RAP = 0x71E0_0000, 0x71E1_0000, 0x78C0_0000, 0x78C0_0002
MEMORY, CONTROLLER = "/machine/unattached/device[1]", "/machine/unattached/device[4]"
#: What is nowhere on either: between the parts, and beyond what anybody has.
NOWHERE = (0x3000_0000, 0x7210_0000, 0xF_FFFF_FFF0, 0xFFFF_FFFF_FFFF_FFF0)


IODMA = (sys.executable, "-m", "iodma", "serve", "sun4m")


@contextmanager
def started(command: Callable[[int], list[str]]) -> Iterator[Qtest]:
    """A server with one end of a connection, and a client at the other."""
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        process = subprocess.Popen(mortal(command(fd)), pass_fds=[fd], stdin=subprocess.DEVNULL)
    client = Qtest(ours)
    try:
        yield client
    finally:
        process.kill()
        process.wait()
        client.close()


@pytest.fixture
def both() -> Iterator[tuple[Qtest, Qtest]]:
    with needed():
        qemu = [*qemu11_sparc(), "-M", "SS-5", "-m", "16M", "-nodefaults", "-display", "none"]
    qemu += [
        "-no-user-config",
        "-vga",
        "none",
        "-qtest-log",
        "/dev/null",
        "-net",
        "nic,model=lance",
    ]

    def oracle(fd: int) -> list[str]:
        return [*qemu, "-chardev", f"socket,id=q,fd={fd}", "-qtest", "chardev:q"]

    def board(fd: int) -> list[str]:
        return [*IODMA, "--memory=16M", f"--fd={fd}"]

    with ExitStack() as stack:
        yield stack.enter_context(started(oracle)), stack.enter_context(started(board))


def agree(both: tuple[Qtest, Qtest], lines: list[str]) -> None:
    """Sends all of them together, and compares each answer."""
    for client in both:
        client.irqs.clear()
    data = "".join(f"{line}\n" for line in lines).encode()
    answers = []
    for client in both:
        first = client.ask(data)
        answers.append([first, *(client.answer() for _ in lines[1:])])
    for line, theirs, ours in zip(lines, *answers, strict=True):
        assert ours == theirs, line
    assert both[1].irqs == both[0].irqs


def test_accesses_of_every_kind(both: tuple[Qtest, Qtest]) -> None:
    rng = random.Random(5)
    places = [0, 1, 2, 5, 0xFFF, 0x1_0000, RAM_BYTES - 16, *NOWHERE]
    lines = ["endianness", "memset 0 0x20000 0xa5", f"memset {RAM_BYTES - 64:#x} 64 0x5a"]
    for _ in range(400):
        at = rng.choice(places) + rng.randrange(9)
        size, value = rng.choice("bwlq"), rng.getrandbits(64)
        data = rng.randbytes(rng.randrange(1, 40))
        told = max(1, len(data) + rng.randrange(-3, 4))
        encoded = base64.b64encode(data).decode()
        lines += rng.choice(
            [
                [f"write{size} {at:#x} {value:#x}", f"read{size} {at:#x}"],
                [f"write{size} {at} -{value >> 1}", f"read{size} 0{at:o}"],
                [f"write {at:#x} {told} 0x{data.hex()}", f"read {at:#x} {told + 2}"],
                [f"b64write {at:#x} {len(data)} {encoded}", f"b64read {at:#x} {len(data) + 3}"],
                [f"memset {at:#x} {rng.randrange(20)} {value & 0xFFF}", f"b64read {at:#x} 24"],
                [f"in{rng.choice('bwl')} {at & 0xFFFF}", f"out{rng.choice('bwl')} 0x70 {value:#x}"],
                ["write 0 1 0x", "b64write 0 1 ab", "nothing", "module_load no no", "b64read 0 0"],
            ]
        )
    agree(both, lines)
    agree(both, [f"b64read 0 {0x20020}", f"b64read {RAM_BYTES - 64} 64"])


def test_registers_of_every_width(both: tuple[Qtest, Qtest]) -> None:
    rng, high = random.Random(6), set[int]()
    lines = ["irq_intercept_out /nowhere", f"irq_intercept_in {CONTROLLER} named"]
    lines += [f"irq_intercept_in {CONTROLLER}", f"irq_intercept_in {CONTROLLER}"]
    lines += [f"irq_intercept_out {MEMORY[:-3]}[7]"]
    for _ in range(400):
        at = rng.choice([INTCTL, INTCTL + 4, INTCTL + 8, *range(SYSTEM, SYSTEM + 0x14, 4)])
        value = rng.choice([rng.getrandbits(32), 1 << rng.randrange(32), 0xFFFF_FFFF])
        line = rng.choice([7, 13, 14, 16, 18, 30])
        lines += rng.choice(
            [
                [f"writel {at:#x} {value:#x}"],
                [f"writeq {INTCTL + rng.choice([0, 8]):#x} {rng.getrandbits(64):#x}"],
                [f"write{rng.choice('bw')} {at + rng.randrange(4):#x} 0xffff"],
                [f"read{rng.choice('bwlq')} {at + rng.choice([0, 0, 1, 2, 4]):#x}"],
                [f"read {INTCTL - 3:#x} 40", f"b64read {SYSTEM - 5:#x} 33"],
                [f"set_irq_in {CONTROLLER} unnamed-gpio-in {line} {int(line not in high)}"],
                [f"writew {RAP:#x} {rng.randrange(4)}", f"readl {RDP:#x}", f"readb {RAP:#x}"],
                [
                    f"writew {RAP:#x} 1",
                    f"writel {RDP:#x} {value & 0xFFFE0003:#x}",
                    f"readw {RDP:#x}",
                ],
            ]
        )
        if lines[-1].startswith("set"):  # a line that is raised again is an edge only in QEMU
            high ^= {line}
        lines += [f"read {INTCTL:#x} 16", f"read {SYSTEM:#x} 20"]
    agree(both, lines)
    assert both[0].irqs


def test_time_that_a_client_moves(both: tuple[Qtest, Qtest]) -> None:
    theirs, ours = both
    for client in both:
        now = int(client("clock_step", "5"))
        assert int(client("clock_set", str(now + 7))) == now + 7
        assert client.ask(b"clock_step 0\n") == "FAIL could not advance time"
        assert client.ask(b"clock_set 1\n") == f"FAIL {now + 7}"
        assert int(client("clock_step", "0x10")) == now + 23
    assert theirs("endianness") == ours("endianness") == "big"
