# SPDX-License-Identifier: Apache-2.0
"""The demo itself: moves the file, compares, measures.

Invariants
 - The counters are those of one engine that did nothing but move the file once.
 - A figure is given for what was verified; anything else ends in an error.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

import iodma
from iodma.tools.demo.device import PAGE_BYTES, Streamer
from iodma.tools.demo.guest import BASE, PAGES, STALL_S, Guest, drive
from iodma.tools.demo.peer import DemoError, PeerGone, Receiver
from iodma.tools.demo.plain import digest, plain_copy
from iodma.trace import attach

__all__ = ["Options", "Result", "default_file", "render", "run"]

#: (what is done, bytes done, bytes in all)
Progress = Callable[[str, int, int], object]

#: Files up to this many bytes are moved several times, as one run of milliseconds says little.
SMALL_FILE = 64 << 20
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Options:
    """What is moved, and how.

    Attributes:
        file: None: one that is on every machine.
        engine: "auto", "uring" or "threads".
        direct: read past the page cache.
        swap: bytes in a unit that is reversed on the way in: 2, 4, 8 or None.
        trace: where the trace of the first pass is written, or None.
    """

    file: Path | None = None
    engine: str = "auto"
    direct: bool = False
    swap: int | None = None
    trace: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What was moved, and what it took. Counts are of one pass over the file.

    Attributes:
        file: its path.
        bytes: its size.
        engine: "uring" or "threads".
        direct, swap: as asked for.
        sha256: of what was received; equal to that of the source, its lanes swapped if asked for.
        bytes_to_memory: from the file into guest pages.
        bytes_from_memory: from guest pages to the receiver.
        python_bytes: payload that became a Python object on the way.
        bounced: bytes that were copied, by reason; see `Reason`.
        requests: that the kernel was given.
        segments: of the longest scatter list.
        translate_ns: to translate one segment of that list, nanoseconds.
        passes: that throughput is the median of.
        bytes_per_second: through the device, from the first doorbell to the receiver's answer.
        plain_bytes_per_second: of a plain read and send of the same file, measured the same way.
    """

    file: str
    bytes: int
    engine: str
    direct: bool
    swap: int | None
    sha256: str
    bytes_to_memory: int
    bytes_from_memory: int
    python_bytes: int
    bounced: dict[str, int]
    requests: int
    segments: int
    translate_ns: float
    passes: int
    bytes_per_second: float
    plain_bytes_per_second: float

    @property
    def ratio(self) -> float:
        """Throughput over that of the plain copy."""
        return self.bytes_per_second / self.plain_bytes_per_second

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the file through the device."""

    sha256: str
    seconds: float
    stats: iodma.Stats
    segments: int
    translate_ns: float


def default_file() -> Path:
    """A file that is on every machine that can run this: the interpreter, or what it is made of."""
    library = sysconfig.get_config_var("LDLIBRARY") or ""
    folder = sysconfig.get_config_var("LIBDIR") or ""
    numpy = importlib.util.find_spec("numpy._core._multiarray_umath")
    candidates = [Path(sys.executable).resolve(), Path(folder, library).resolve()]
    if numpy is not None and numpy.origin is not None:
        candidates.append(Path(numpy.origin))
    there = [each for each in candidates if each.is_file()]
    return next((each for each in there if each.stat().st_size >= 1 << 20), there[0])


def size_of(path: Path) -> int:
    """Bytes of a regular file or block device that can be read.

    Raises:
        DemoError: it is something else, or empty.
        OSError: it is not there, or may not be read.
    """
    info = os.stat(path)
    if stat.S_ISDIR(info.st_mode):
        raise DemoError(f"{path} is a directory; a file is wanted")
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
        raise DemoError(f"{path} is neither a regular file nor a block device")
    with iodma.File(path, read_only=True) as file:
        size = file.size
    if size == 0:
        raise DemoError(f"{path} is empty; there is nothing to move")
    return size


def run(options: Options, progress: Progress = lambda what, done, total: None) -> Result:
    """Moves the file through the device and without it, and compares.

    Raises:
        DemoError: the file did not arrive as it was, or cannot be used.
        OSError: the file, or what the demo needs of the host, is not to be had.
    """
    path = options.file or default_file()
    size = size_of(path)
    expected = digest(
        path, size, options.swap, lambda done: progress("reading the source", done, size)
    )
    rounds = ROUNDS if size <= SMALL_FILE else 1
    passes: list[Pass] = []
    plain: list[float] = []
    for number in range(rounds):
        trace = options.trace if number == 0 else None
        passes.append(through_device(path, size, options, trace, progress))
        if passes[-1].sha256 != expected:
            raise DemoError(
                f"SHA-256 of what was received is {passes[-1].sha256};"
                f" {expected} was expected of {path}"
            )
        plain.append(without_device(path, size, options.direct, progress))
    first = passes[0]
    bounced = asdict(first.stats.bounced)
    del bounced["requests"]
    if first.stats.python_bytes:
        raise DemoError(f"{first.stats.python_bytes} bytes passed through Python; 0 should have")
    return Result(
        file=str(path),
        bytes=size,
        engine=first.stats.kind,
        direct=options.direct,
        swap=options.swap,
        sha256=first.sha256,
        bytes_to_memory=first.stats.bytes_to_memory,
        bytes_from_memory=first.stats.bytes_from_memory,
        python_bytes=first.stats.python_bytes,
        bounced=bounced,
        requests=first.stats.requests,
        segments=first.segments,
        translate_ns=first.translate_ns,
        passes=rounds,
        bytes_per_second=size / median(each.seconds for each in passes),
        plain_bytes_per_second=size / median(plain),
    )


def through_device(
    path: Path, size: int, options: Options, trace: Path | None, progress: Progress
) -> Pass:
    """One pass: a fresh engine, guest and receiver."""
    with (
        Receiver() as receiver,
        Guest(options.swap) as guest,
        iodma.Engine(options.engine, name="demo", strict=True, slow_step=None) as engine,
        iodma.File(path, read_only=True, direct=options.direct) as disk,
        iodma.Socket(receiver.connection) as network,
    ):
        device = Streamer(
            engine.port(guest.swapped, "disk"),
            out=engine.port(guest.bus, "network"),
            disk=disk,
            network=network,
        )
        bus = iodma.Bus()
        bus.attach(device, BASE)
        if trace is not None:
            attach(engine, trace)  # until the engine is closed, whatever ends it
        driver = drive(bus, device, guest.pages, size, lambda done: progress("moving", done, size))
        begin = perf_counter()
        try:
            engine.run(driver)
        except PeerGone as error:
            raise DemoError(f"{receiver.died()}, {error}") from error
        sha256 = receiver.answer(size)
        seconds = perf_counter() - begin
        guest.check()
        stats = engine.stats()
        segments = device.pages.slice(0, min(size, PAGES * PAGE_BYTES))
        return Pass(sha256, seconds, stats, len(segments), translation_ns(guest, segments))


def translation_ns(guest: Guest, segments: iodma.ScatterList) -> float:
    """Nanoseconds a segment, to translate the list through the whole chain: the least of many."""
    least = float("inf")
    for _ in range(50):
        begin = perf_counter_ns()
        for _ in range(10):
            guest.swapped.walk(segments, iodma.Access.WRITE)
        least = min(least, (perf_counter_ns() - begin) / 10)
    return least / len(segments)


def without_device(path: Path, size: int, direct: bool, progress: Progress) -> float:
    """Seconds that a plain copy takes, the receiver's answer included."""
    with Receiver() as receiver:
        receiver.connection.settimeout(STALL_S)
        begin = perf_counter()
        try:
            plain_copy(
                path,
                size,
                direct,
                receiver.connection,
                lambda done: progress("plain copy", done, size),
            )
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DemoError(receiver.died()) from error
        except TimeoutError:
            raise DemoError(f"the receiver has taken nothing for {STALL_S:.0f} s") from None
        receiver.answer(size)
        return perf_counter() - begin


def render(result: Result) -> str:
    """The result as text for a terminal."""
    bounced = sum(result.bounced.values())
    reasons = ", ".join(f"{name} {n:,}" for name, n in result.bounced.items() if n)
    how = ", O_DIRECT" if result.direct else ""
    name = os.fsencode(result.file).decode(errors="backslashreplace")
    rows = [
        ("file", f"{name}{how}"),
        ("engine", result.engine),
        ("moved", f"{result.bytes_to_memory:,} bytes in, {result.bytes_from_memory:,} bytes out"),
        ("through Python", f"{result.python_bytes} bytes"),
        ("bounced", f"{bounced:,} bytes ({reasons})" if bounced else "0 bytes"),
        ("requests", f"{result.requests:,}"),
        ("translation", f"{result.translate_ns:.1f} ns a segment, {result.segments:,} segments"),
        (
            "throughput",
            f"{result.bytes_per_second / 1e6:.3g} MB/s;"
            f" plain copy {result.plain_bytes_per_second / 1e6:.3g} MB/s ({result.ratio:.2f}x)",
        ),
        ("SHA-256", f"{result.sha256}, as the source's{swapped(result.swap)}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def swapped(width: int | None) -> str:
    return f" with its bytes swapped in units of {width}" if width else ""
