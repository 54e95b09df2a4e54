# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison: a machine behind the qtest protocol, and the wire of its network card.

Invariants:

- Every command is answered before what follows from it is looked at; commands between two looks
  are sent together, so a program costs few round trips.
- The wire is emptied while answers are waited for: no side is held up by a full socket of ours.
- A frame is in the machine before the next step: its socket is empty, and two answers came since.
- The machine's memory is shared: it is filled and looked at where it is, at times when the machine
  is at rest. What a program stores goes over the protocol, between its other commands.
- Each wait is bounded. A machine that is gone raises `Gone`; what it did until then is lost.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import mmap
import os
import random
import select
import socket
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.peers.sun4m.machine import (
    BLOCK_BYTES,
    BLOCKS,
    COMPARED,
    COMPARED_BYTES,
    ESP,
    ESP_COMMAND,
    OBSERVED,
    PAGE,
    RAM_BYTES,
    RAP,
    RDP,
    register_name,
)
from tests.peers.sun4m.program import Program, Step

LETTER = {1: "b", 2: "w", 4: "l", 8: "q"}
#: ESP's command after which the bus is free, and the disk at rest.
ACCEPT = 0x12
#: How often a machine says something while a frame waits in its socket: then its receiver is off.
#: One looks at its socket at least once for two answers.
PATIENCE_ANSWERS = 12
#: Frames that our socket holds though nobody takes them (a host's net.unix.max_dgram_qlen is 10).
ROOM_FRAMES = 8


class Gone(Exception):
    """The machine has ended, or does not answer: no verdict."""


class Refused(AssertionError):
    """The machine does not know a command; a mistake of the harness."""


class Observation(NamedTuple):
    """What one side said: at a step, of what, and the value.

    `what` is a register's name, "memory" (all of COMPARED), "wire" (the frames that went out) or
    "disk" (all of it, where no command is under way).
    """

    step: int
    what: str
    value: int | bytes | tuple[bytes, ...]


class Look(NamedTuple):
    """An answer that is observed: of which line, at which step, of what, and which bits."""

    line: int
    step: int
    what: str
    mask: int


@functools.lru_cache(maxsize=4)
def filling(seed: int) -> bytes:
    """What COMPARED is filled with before a program."""
    return random.Random(seed).randbytes(COMPARED_BYTES)


def fill_disk(path: Path, seed: int = 0) -> None:
    """Makes the disk, or overwrites it in place."""
    content = random.Random(seed).randbytes(BLOCKS * BLOCK_BYTES)
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(content)


class SharedRam:
    """The RAM of a machine that is another process.

    Attributes:
        fd: a memory file, for the machine.
        bytes: what is in it.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("sun4m-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, RAM_BYTES)
        self.bytes = mmap.mmap(self.fd, RAM_BYTES)

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


@dataclass
class Wire:
    """The harness's end of `-netdev dgram`: a bound socket, and the path of the machine's."""

    socket: socket.socket
    path: Path
    machine: Path

    @classmethod
    def at(cls, folder: Path, name: str) -> Wire:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        path = folder / f"{name}.wire"
        ours.bind(str(path))
        return cls(ours, path, folder / f"{name}.net")

    def close(self) -> None:
        """The paths go, too."""
        self.socket.close()
        for path in (self.path, self.machine):
            path.unlink(missing_ok=True)

    def taken(self) -> bool:
        """Has the machine taken every frame out of its socket (SIOCOUTQ)?"""
        left = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        return bool(struct.unpack("i", left)[0] == 0)


class Session:
    """A machine that runs programs, one after another.

    Args:
        stream: connected to its qtest server.
        wire: of its network card.
        disk: the file behind its disk, filled anew for each program that uses it.
        ram: its RAM.
    """

    name = "machine"
    #: What it prints: the end of that is part of a `Gone`.
    log: Path | None = None
    #: It has to say something within one of these waits. A wait in which this process, or the
    #: machine, was stopped is one, however long it was.
    answer_waits, answer_seconds = 30, 1.0

    def __init__(self, stream: socket.socket, wire: Wire, disk: Path, ram: SharedRam) -> None:
        self._stream, self.wire, self.disk, self.ram = stream, wire, disk, ram
        stream.setblocking(False)
        self._received = b""
        self._frames: list[bytes] = []
        #: A frame was not wanted when it came: the machine may take it at any time.
        self._held = False
        self.raised: list[str] = []

    def close(self) -> None:
        self._stream.close()
        self.wire.close()
        self.ram.close()

    def reset(self) -> None:
        """As at power-on, but for memory. Raises `Gone`."""
        raise NotImplementedError

    def run(self, program: Program) -> list[Observation]:
        """Resets the machine, fills its memory, and runs the program.

        Raises:
            Gone: The machine has ended meanwhile.
        """
        self.reset()
        self._drain()
        self._frames.clear()
        self.ram.bytes[COMPARED : COMPARED + COMPARED_BYTES] = filling(program.seed)
        uses_disk = any(ESP <= step.address < ESP + PAGE for step in program.steps)
        if uses_disk:
            fill_disk(self.disk, program.seed)
        found: list[Observation] = []
        lines: list[str] = []
        names: list[Look] = []
        csr, idle = 0, False
        for place, step in enumerate(program.steps):
            match step.op:
                case "frame":
                    self._observe(found, lines, names)
                    self.inject(step.data)
                case "check":
                    if uses_disk:
                        self._observe(found, lines, names)
                        self.rest()
                    for line, name, mask in looks():
                        if name:
                            names.append(Look(len(lines), place, name, mask))
                        lines.append(line)
                    self._observe(found, lines, names)
                    csr = 0
                    self._settle()
                    found.append(Observation(place, "memory", self.memory()))
                    found.append(Observation(place, "wire", tuple(self._frames)))
                    self._frames.clear()
                    if idle:
                        found.append(Observation(place, "disk", self.disk.read_bytes()))
                case "read":
                    name = f"LANCE CSR{csr}" if step.address == RDP else register_name(step.address)
                    names.append(Look(len(lines), place, name, (1 << 8 * step.size) - 1))
                    lines.append(command(step))
                case "clock":
                    self._observe(found, lines, names)
                    self.advance(step.value)
                case _:
                    csr = step.value if step.op == "write" and step.address == RAP else csr
                    if step.op == "write" and step.address == ESP_COMMAND:
                        idle = step.value == ACCEPT
                    lines.append(command(step))
        self._observe(found, lines, names)
        return found

    def rest(self) -> None:
        """Waits until the disk has done what it was asked to; a machine may do so anyway."""

    def advance(self, nanoseconds: int) -> None:
        """Lets the machine's time pass."""
        self.commands([f"clock_step {nanoseconds}"])

    def memory(self) -> bytes:
        """What is in COMPARED now."""
        return self.ram.bytes[COMPARED : COMPARED + COMPARED_BYTES]

    def inject(self, frame: bytes) -> None:
        """A frame comes in; returns when the machine has it, or does not want it."""
        try:
            self.wire.socket.sendto(frame, str(self.wire.machine))
        except BlockingIOError:
            return  # its socket is full: lost, as on a wire
        except OSError as error:
            raise Gone(f"{self.name} has no wire: {error}") from error
        answers = 0
        while not self.wire.taken() and answers < PATIENCE_ANSWERS:
            self.commands(["readl 0x10000000"])
            answers += 1
        self.commands(["readl 0x10000000"])
        self.commands(["readl 0x10000000"])
        self._held |= not self.wire.taken()

    def commands(self, lines: list[str]) -> list[str]:
        """Sends lines together; gives what is behind OK in each answer.

        Raises:
            Gone: The machine has ended, or did not answer in time.
            Refused: It does not know a command.
        """
        try:
            return self._commands(lines)
        except Gone as gone:
            said = self.log.read_text(errors="replace")[-2000:] if self.log else ""
            raise Gone(f"{gone}\n{said}".strip()) from gone

    def _commands(self, lines: list[str]) -> list[str]:
        out = memoryview("".join(f"{line}\n" for line in lines).encode())
        answers: list[str] = []
        waits = self.answer_waits
        while len(answers) < len(lines):
            wanted = [self._stream] if out else []
            readable, writable, _ = select.select(
                [self._stream, self.wire.socket], wanted, [], self.answer_seconds
            )
            if not readable and not writable:
                waits -= 1
                if waits < 0:
                    raise Gone(f"{self.name} did not answer {lines[len(answers)][:80]!r} in time")
            try:
                if writable:
                    out = out[self._stream.send(out[: 1 << 18]) :]
                if self.wire.socket in readable:
                    self._drain()
                if self._stream in readable:
                    data = self._stream.recv(1 << 20)
                    if not data:
                        raise ConnectionError("closed")
                    answers += self._answers(data)
            except OSError as error:
                at = lines[len(answers)][:80]
                raise Gone(f"{self.name} is gone, at or after {at!r}: {error}") from error
        return answers

    def _answers(self, data: bytes) -> Iterator[str]:
        *whole, self._received = (self._received + data).split(b"\n")
        for line in whole:
            outcome, _, rest = line.decode().partition(" ")
            if outcome == "OK":
                yield rest
            elif outcome == "IRQ":
                self.raised.append(rest)
            else:
                raise Refused(f"{self.name}: {line.decode()[:200]}")

    def _observe(
        self,
        found: list[Observation],
        lines: list[str],
        names: list[Look],
    ) -> None:
        """Sends what has gathered; `lines` and `names` are empty then."""
        if lines:
            answers = self.commands(lines)
            for line, place, name, mask in names:
                found.append(Observation(place, name, int(answers[line], 0) & mask))
        lines.clear()
        names.clear()

    def _drain(self) -> bool:
        """Takes the frames that wait; were there any?"""
        any_came = False
        while True:
            try:
                self._frames.append(self.wire.socket.recv(1 << 16))
                any_came = True
            except BlockingIOError:
                return any_came

    def _settle(self) -> None:
        """A side that had to wait goes on now: for room in our socket, or to want a frame."""
        self._drain()
        if not self._held and len(self._frames) < ROOM_FRAMES:
            return  # it did not have to
        quiet = 0
        while quiet < 3:
            quiet = 0 if self._drain() else quiet + 1
            self.commands(["readl 0x10000000"])
        self._held = not self.wire.taken()


def csr(number: int, value: int) -> list[str]:
    """The lines that write a register of LANCE; RAP is 0 afterwards."""
    return [f"writew {RAP:#x} {number}", f"writew {RDP:#x} {value:#x}", f"writew {RAP:#x} 0"]


def command(step: Step) -> str:
    """A step that is one line."""
    match step.op:
        case "write":
            return f"write{LETTER[step.size]} {step.address:#x} {step.value:#x}"
        case "read":
            return f"read{LETTER[step.size]} {step.address:#x}"
        case "store":
            said = base64.b64encode(step.data).decode()
            return f"b64write {step.address:#x} {len(step.data):#x} {said}"
        case "fill":
            return f"memset {step.address:#x} {step.size:#x} {step.value:#x}"
    raise AssertionError(step)


def looks() -> Iterator[tuple[str, str, int]]:
    """The lines of a checkpoint, each with what it observes ("": nothing) and the bits that count.

    CSR0 is read through RAP, which is 0 from then on; so it is read last.
    """
    for register in OBSERVED:
        yield f"read{LETTER[register.size]} {register.address:#x}", register.name, register.mask
    yield f"writew {RAP:#x} 0", "", 0
    yield f"readw {RDP:#x}", "LANCE CSR0", 0xFFFF
