# SPDX-License-Identifier: Apache-2.0
"""`iodma run FILE.py --socket-path=S`: the file's device as a PCI function of a virtual machine.

Invariants
 - What cannot work fails before the socket is there, with one line.
 - A device that fails while it is served is told of once, and reads all-ones until it is reset; the
   server goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import iodma
from iodma.tools import qemu_args
from iodma.tools.describe_pci import described_by, function_of
from iodma.tools.load import load, made
from iodma.tools.service import Service, Where, socket_path
from iodma.trace import attach
from iodma.transports.vfio_user import VfioUserServer

__all__ = ["Options", "serve"]


@dataclass(frozen=True, slots=True)
class Options:
    """What is served, and how.

    Attributes:
        target: FILE.py or FILE.py:Class.
        where: where the virtual machine connects, and for how long.
        engine: "auto", "uring" or "threads".
        given: endpoint -> file, and setting -> value.
        trace: the file to write a trace to; None: no trace.
    """

    target: str
    where: Where
    engine: str = "auto"
    given: Mapping[str, str | Path] = field(default_factory=dict)
    trace: Path | None = None


def serve(options: Options, tell: Callable[[str], None]) -> int:
    """Serves until SIGTERM or SIGINT, the end of the command, or that of a connection given.

    Args:
        tell: is given a line when a virtual machine can connect.

    Returns:
        The exit status: the command's, or 0.

    Raises:
        LoadError: the file has no device that can be served; says where and why.
        ArgumentError, BusyError, OSError: it cannot be served there.
    """
    loaded = load(options.target)
    described_by(loaded)
    name = loaded.device.__name__
    with ExitStack() as stack:
        path = stack.enter_context(socket_path(options.where, name.lower()))
        engine = stack.enter_context(iodma.Engine(options.engine, name=name.lower(), strict=True))
        device = stack.enter_context(made(loaded, engine, iodma.PciSlot(), options.given))
        engine.strict = (
            False  # what fails from here on is the device's own trouble, and the guest's
        )
        function = function_of(loaded, device)
        if options.trace is not None:
            attach(engine, options.trace)  # until the engine is closed, whatever ends it

        def words(path: str) -> str:
            guest = qemu_args.Guest(path)
            return qemu_args.render(qemu_args.function(guest, qemu_args.id_of(loaded.device)))

        def banner(place: str) -> None:
            pci = function.description
            numbers = f"{pci.vendor:04x}:{pci.device:04x}"
            tell(f"iodma: {name} ({numbers}) is served at {place}, by {engine.kind}")

        def server() -> VfioUserServer:
            return VfioUserServer(engine, function, path, fd=options.where.fd)

        return Service(engine, options.where, words).serve(server, banner)
