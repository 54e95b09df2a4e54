# SPDX-License-Identifier: Apache-2.0
"""`iodma run FILE.py`: the device on an in-process bus, and the file's own driver.

The driver is a coroutine of the file, and stands for the guest's:

    async def driver(bus, device):
        bus.write32(BASE + 0x10, 0x1000)          # BASE is 0x1000_0000
        ...

It is given what its parameters ask for by name: ``bus``, ``device``, ``base`` (where the device is
on the bus), ``ram`` (guest RAM, from address 0), ``memory``, ``engine``. What it returns is shown.

Invariants
 - A device or driver that fails ends the run with the file and the line; nothing is left running.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import iodma
from iodma.engine.dump import waits_at
from iodma.tools.load import Loaded, LoadError, load, made, told
from iodma.trace import attach

__all__ = ["BASE", "Options", "Result", "render", "run"]

log = logging.getLogger("iodma.run")

#: Where the device is on the bus.
BASE = 0x1000_0000

Driver = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Options:
    """How a device is run.

    Attributes:
        target: FILE.py or FILE.py:Class.
        engine: "auto", "uring" or "threads".
        ram_mib: of guest RAM.
        given: endpoint -> file, and setting -> value.
        trace: the file to write a trace to; None: no trace.
    """

    target: str
    engine: str = "auto"
    ram_mib: int = 64
    given: Mapping[str, str | Path] = field(default_factory=dict)
    trace: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How it went.

    Attributes:
        device: the device's class.
        engine: the engine that was chosen.
        seconds: that the driver ran.
        returned: by the driver.
        interrupts: that the device raised.
        counts: what the device refused and how often it was reset; zeroes are left out.
    """

    device: str
    engine: str
    seconds: float
    returned: Any
    interrupts: int
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def run(options: Options) -> Result:
    """Runs the file's driver against its device.

    Raises:
        LoadError: there is no device or driver that can be used, or one of them failed.
    """
    loaded = load(options.target)
    driver = driver_of(loaded)
    with (
        iodma.Engine(options.engine, name="run", strict=True) as engine,
        iodma.Ram(options.ram_mib << 20) as ram,
    ):
        memory = iodma.Memory({0: ram})
        with made(loaded, engine, memory, options.given) as device:
            bus = iodma.Bus()
            bus.attach(device, BASE)
            there = {
                "bus": bus,
                "device": device,
                "base": BASE,
                "ram": ram,
                "memory": memory,
                "engine": engine,
            }
            wanted = inspect.signature(driver).parameters
            if missing := [name for name in wanted if name not in there]:
                raise LoadError(
                    f"{loaded.path}: driver asks for {missing[0]}; there are {', '.join(there)}"
                )
            if options.trace is not None:
                attach(engine, options.trace)  # until the engine is closed, whatever ends it
            running = driver(**{name: there[name] for name in wanted})
            begin = perf_counter()
            try:
                returned = engine.run(running)
            except Exception as error:
                raise LoadError(told(error, loaded.path)) from error
            except BaseException:  # a Ctrl-C, as a rule because it does not end by itself
                if place := waits_at(running):
                    log.warning("the driver still waits, at %s", place)
                raise
            return Result(
                device=loaded.device.__name__,
                engine=engine.kind,
                seconds=perf_counter() - begin,
                returned=returned,
                interrupts=device.interrupt.count,
                counts={key: value for key, value in device.counts.as_dict().items() if value},
            )


def driver_of(loaded: Loaded) -> Driver:
    """The file's driver.

    Raises:
        LoadError: it has none.
    """
    driver = getattr(loaded.module, "driver", None)
    if not inspect.iscoroutinefunction(driver):
        raise LoadError(
            f"{loaded.path}: defines no `async def driver(bus, device)` to run against"
            f" {loaded.device.__name__}; `iodma check` needs none, nor does --socket-path"
        )
    return driver


def render(result: Result) -> str:
    """The result as text for a terminal."""
    lines = [
        f"{result.device}: driver ended after {result.seconds * 1000:.1f} ms"
        f" on the {result.engine} engine",
        f"interrupts: {result.interrupts}",
    ]
    if result.counts:
        counts = ", ".join(f"{key} {value}" for key, value in result.counts.items())
        lines.append(f"counts: {counts}")
    if result.returned is not None:
        lines.append(f"returned: {result.returned!r}")
    return "\n".join(lines)
