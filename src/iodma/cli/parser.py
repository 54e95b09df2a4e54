# SPDX-License-Identifier: Apache-2.0
"""What can be typed after `iodma`.

Invariants
 - Parsing imports no tool and touches nothing; what is wrong ends in exit status 2 with one line on
   standard error that names it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NoReturn, TypeAlias

from iodma._version import __version__

__all__ = ["EXIT_CODES", "build"]

ENGINES = ("auto", "uring", "threads")
EXIT_CODES = "exit status: 0 it worked, 1 it did not, 2 the command line is wrong"


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def image(text: str) -> Path | str:
    """A file; or the URI of an NBD export, which is none."""
    return text if text.startswith("nbd") and "://" in text else Path(text)


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def size(text: str) -> int:
    """Bytes, with K, M or G behind them if it is more."""
    value = text.strip()
    unit = {"K": 10, "M": 20, "G": 30}.get(value[-1:].upper(), 0)
    return positive_int(value[:-1] if unit else value) << unit


def given(text: str) -> tuple[str, str]:
    """NAME=FILE or NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=FILE or NAME=VALUE")
    return name, value


def socket_path(text: str) -> Path:
    """Where to listen."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


# What argparse calls them in "invalid ... value".
positive_int.__name__ = "positive whole number"
natural.__name__ = "whole number"
size.__name__ = "size"
positive_float.__name__ = "positive number"


Devices: TypeAlias = "argparse._SubParsersAction[Command]"
#: Ends the program with status 2 and a line.
Fail: TypeAlias = Callable[[str], NoReturn]


class Whole(argparse.HelpFormatter):
    """Breaks lines at spaces alone: `--socket-path` and `qemu-system-x86_64` stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = self._split_lines(text, width - len(indent))
        return "\n".join(indent + line for line in lines)


class Command(argparse.ArgumentParser):
    """A command's parser, and that of all.

    Attributes:
        check: is given what was found, and a function to end with if that does not go together.
        spread: the name of a list of NAME=VALUE that may also stand behind options.
    """

    check: Callable[[argparse.Namespace, Fail], None] | None = None
    spread: str | None = None

    def __init__(self, **how: Any) -> None:
        super().__init__(formatter_class=Whole, **how)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        if self.spread is not None and not any(word.startswith("-") for word in rest):
            there = list(getattr(found, self.spread))
            for word in rest:
                try:
                    there.append(given(word))
                except argparse.ArgumentTypeError as error:
                    self.error(str(error))
            setattr(found, self.spread, there)
            rest = []
        if self.check is not None:
            self.check(found, self.error)
        return found, rest


def build() -> argparse.ArgumentParser:
    """The parser. The namespace it gives has `command`, the function's name in `commands`."""
    parser = Command(
        prog="iodma",
        description="Zero-copy, asynchronous DMA from a device model's scatter lists to files and"
        " sockets.",
        epilog=EXIT_CODES,
    )
    add_verbose(parser, False)
    parser.add_argument("--version", action="version", version=f"iodma {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Command
    )

    def command(name: str, summary: str, description: str = "") -> Command:
        made = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {description}",
            epilog=EXIT_CODES,
        )
        made.set_defaults(command=name)
        add_verbose(made, argparse.SUPPRESS)  # leaves what was given before the command
        assert isinstance(made, Command)
        return made

    add_demo(command("demo", "move a real file from disk to guest pages to a TCP receiver"))
    add_doctor(command("doctor", "what this machine offers, and what to do about what is missing"))
    add_check(
        command(
            "check",
            "check a device and print its register map, and what it is on a PCI bus",
            "The file is imported, and the device is made with stand-ins for its endpoints and"
            " reset once. No virtual machine is needed.",
        )
    )
    add_run(
        command(
            "run",
            "run a device: against its file's own driver, or as a PCI function of a virtual"
            " machine",
            "Without --socket-path, --fd or --run the device is on an in-process bus, and the"
            " driver is an `async def driver(bus, device)` in the file, which is given what its"
            " parameters ask for by name: bus, device, base, ram, memory, engine. With one of"
            " them the device, which needs a line `pci = iodma.Pci(...)`, is served over"
            " vfio-user to one virtual machine at a time; QEMU 10.1 or later has it with what"
            " `iodma qemu-args` prints. It stays in the foreground; SIGTERM or Ctrl-C drains what"
            " is in flight and ends it with status 0. SIGUSR1 prints statistics.",
        )
    )
    add_bench(
        command(
            "bench",
            "measure iodma beside its peers, in pairs",
            "A row that misses what it must reach is a result: the exit status is 0 when"
            " everything ran.",
        )
    )
    add_serve(
        command(
            "serve",
            "serve a device to a virtual machine monitor, or a machine to a program",
            "It stays in the foreground; SIGTERM or Ctrl-C drains what is in flight and ends it"
            " with status 0. SIGUSR1 prints statistics.",
        )
    )
    add_qemu_args(
        command(
            "qemu-args",
            "print the QEMU options for what `iodma serve` or `iodma run` serves",
            "They are meant for qemu-system-x86_64 $(iodma qemu-args ...). On a terminal they are"
            " quoted, to be copied.",
        )
    )
    return parser


def add_verbose(parser: argparse.ArgumentParser, default: bool | str) -> None:
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="log more, and show the traceback of an error",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what talks to the kernel (default: io_uring where it is allowed, else threads)",
    )


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        metavar="OUT",
        type=Path,
        help="write every transfer's states to a file for https://ui.perfetto.dev",
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="FILE.py[:Class]",
        help="the file, and which of its devices if it defines several",
    )


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="the file to move (default: one that is on every machine); or sun4m: frames and blocks"
        " through a SPARCstation 5, with and without a swap of their bytes",
    )
    add_engine(parser)
    parser.add_argument("--direct", action="store_true", help="read past the page cache: O_DIRECT")
    parser.add_argument(
        "--swap",
        type=int,
        choices=(2, 4, 8),
        help="put a bus that swaps the bytes of this many lanes into the chain",
    )
    add_trace(parser)
    add_json(parser)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also measure, for a second, up to what segment size a copy beats a vector",
    )
    add_json(parser)


def add_check(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    add_json(parser)


def add_run(parser: Command) -> None:
    add_target(parser)
    parser.spread = "given"
    parser.check = check_run
    parser.add_argument(
        "given",
        metavar="NAME=VALUE",
        nargs="*",
        type=given,
        help="the file of an endpoint (default for each: a zeroed buffer of 1 MiB), or the value of"
        " a setting; `iodma check` lists both",
    )
    add_where(parser)
    add_engine(parser)
    parser.add_argument(
        "--ram",
        metavar="MIB",
        type=positive_int,
        help="guest RAM, from address 0 (default: 64); of a virtual machine it is its own",
    )
    add_trace(parser)
    add_json(parser)


def check_run(found: argparse.Namespace, fail: Fail) -> None:
    served = [
        f"--{name.replace('_', '-')}"
        for name in ("socket_path", "fd", "run")
        if getattr(found, name) is not None
    ]
    for name in ("ram", "json"):
        if served and getattr(found, name):
            fail(f"--{name} is for the driver in the file, and not for {served[0]}")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Where a server listens, and for how long it serves."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket-path",
        metavar="PATH",
        type=socket_path,
        help="serve a virtual machine: listen there",
    )
    where.add_argument(
        "--fd", metavar="N", type=natural, help="a unix socket that was opened for this process"
    )
    parser.add_argument(
        "--run",
        metavar="COMMAND",
        help="serve for the life of a shell command, and end with its status; it finds the socket"
        " in $IODMA_SOCKET and QEMU's options in $IODMA_QEMU",
    )


def check_blk(found: argparse.Namespace, fail: Fail) -> None:
    """What must be there depends on what else is."""
    if not found.print_capabilities:
        if found.blk_file is None:
            fail("the argument --blk-file is required")
        if found.socket_path is None and found.fd is None and found.run is None:
            fail("one of the arguments --socket-path --fd --run is required")


def add_serve(parser: argparse.ArgumentParser) -> None:
    devices = parser.add_subparsers(
        title="devices", metavar="DEVICE", required=True, parser_class=Command
    )
    blk = devices.add_parser(
        "blk",
        help="a disk: virtio-blk",
        description="Serve a file or block device as a virtio disk.",
        epilog=EXIT_CODES,
    )
    assert isinstance(blk, Command)
    blk.check = check_blk
    blk.set_defaults(device="blk")
    add_verbose(blk, argparse.SUPPRESS)
    add_where(blk)
    blk.add_argument(
        "--blk-file",
        metavar="FILE",
        type=image,
        help="the image, or block device, or the URI of an NBD export: nbd://HOST/EXPORT",
    )
    blk.add_argument("--read-only", action="store_true", help="the guest may not write")
    blk.add_argument("--direct", action="store_true", help="past the page cache: O_DIRECT")
    add_num_queues(blk)
    blk.add_argument(
        "--serial", metavar="TEXT", default="", help="the disk's, at most 20 characters"
    )
    blk.add_argument(
        "--block-size",
        metavar="BYTES",
        type=positive_int,
        default=512,
        help="of a logical block, a power of two (default: 512)",
    )
    blk.add_argument(
        "--no-lock",
        dest="lock",
        action="store_false",
        help="do not see that nobody else uses the image",
    )
    add_engine(blk)
    blk.add_argument(
        "--spin-us",
        metavar="US",
        type=natural,
        default=50,
        help="spin at most so long before a sleep (default: 50; 0: never)",
    )
    add_trace(blk)
    blk.add_argument(
        "--print-capabilities",
        action="store_true",
        help="print what this back-end can do, as JSON, and nothing else",
    )

    add_serve_sun4m(devices)


def add_serve_sun4m(devices: Devices) -> None:
    sun4m = devices.add_parser(
        "sun4m",
        help="a machine: the DMA side of a SPARCstation 5",
        description="Serve a SPARCstation 5 - IOMMU, LEDMA with its LANCE, ESPDMA with its ESP,"
        " interrupt controller, RAM - to programs that drive it over QEMU's qtest protocol, one at"
        " a time. Addresses and byte order are those of qemu-system-sparc -M SS-5 -accel qtest;"
        " time passes by clock_step alone. The machine stays as it is when a client goes;"
        " iodma_reset resets it.",
        epilog=EXIT_CODES,
    )
    assert isinstance(sun4m, Command)
    sun4m.check = check_sun4m
    sun4m.set_defaults(device="sun4m")
    add_verbose(sun4m, argparse.SUPPRESS)
    where = sun4m.add_mutually_exclusive_group()
    where.add_argument(
        "--qtest",
        metavar="SOCKET",
        type=socket_path,
        help="listen there, for clients of the protocol",
    )
    where.add_argument(
        "--fd", metavar="N", type=natural, help="a unix socket that was opened for this process"
    )
    cable = sun4m.add_mutually_exclusive_group()
    cable.add_argument(
        "--netdev",
        metavar="TEXT",
        help="what LANCE is connected to, as QEMU has it: dgram,local.type=unix,local.path=HERE,"
        "remote.type=unix,remote.path=THERE (or local.type=inet,local.host=...,local.port=... and"
        " so on); socket,udp=HOST:PORT,localaddr=HOST:PORT; socket,fd=N; tap,ifname=NAME. The other"
        " end has to be there (default: no cable)",
    )
    cable.add_argument("--tap", metavar="NAME", help="short for --netdev tap,ifname=NAME")
    sun4m.add_argument(
        "--drive",
        metavar="FILE",
        type=image,
        action="append",
        default=[],
        help="a disk on the SCSI bus: an image, a block device or the URI of an NBD export; the"
        " first is ID 0, the next ID 1, up to 6",
    )
    sun4m.add_argument(
        "--memory",
        metavar="SIZE",
        type=size,
        default=64 << 20,
        help="RAM: 64M, 1024K (default: 64M, at most 256M)",
    )
    sun4m.add_argument(
        "--run",
        metavar="COMMAND",
        help="serve for the life of a shell command, and end with its status; it finds the socket"
        " in $IODMA_SOCKET",
    )
    add_engine(sun4m)
    add_trace(sun4m)


def check_sun4m(found: argparse.Namespace, fail: Fail) -> None:
    if found.qtest is None and found.fd is None and found.run is None:
        fail("one of the arguments --qtest --fd --run is required")


def add_num_queues(parser: argparse.ArgumentParser, default: int | None = 1) -> None:
    parser.add_argument(
        "--num-queues",
        metavar="N",
        type=positive_int,
        default=default,
        help="queues of a disk (default: 1)",
    )


def served(text: str) -> str:
    """`blk`, or FILE.py with perhaps a class."""
    if text != "blk" and not text.partition(":")[0].endswith(".py"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither blk nor FILE.py")
    return text


def add_qemu_args(parser: Command) -> None:
    parser.check = check_qemu_args
    parser.add_argument(
        "device",
        metavar="DEVICE",
        type=served,
        help="blk: a disk that `iodma serve blk` serves; FILE.py or FILE.py:Class: a device that"
        " `iodma run` serves",
    )
    parser.add_argument(
        "--socket-path",
        metavar="PATH",
        type=socket_path,
        required=True,
        help="where the server listens",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", default="512M", help="guest memory (default: 512M)"
    )
    add_num_queues(parser, None)
    parser.add_argument(
        "--id", metavar="NAME", help="of FILE.py's device, in QEMU (default: after its class)"
    )
    parser.add_argument(
        "--iommu", action="store_true", help="with an IOMMU that the device's addresses go through"
    )


def check_qemu_args(found: argparse.Namespace, fail: Fail) -> None:
    if found.device == "blk" and found.id is not None:
        fail("--id is for FILE.py, and not for blk")
    if found.device != "blk" and found.num_queues is not None:
        fail("--num-queues is for blk, and not for FILE.py")


def add_bench(parser: argparse.ArgumentParser) -> None:
    names = ("core", "vhost-user-blk", "vfio-user", "sun4m")
    metavar = f"{{{','.join(names)}}}"  # also where it is missing
    parser.add_argument("name", metavar=metavar, choices=names, help="which benchmark")
    parser.add_argument(
        "--json", metavar="OUT", type=Path, help="write rows, peers and machine to this file"
    )
    add_trace(parser)
    parser.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        default=[],
        help="only rows whose name contains this; may be given several times",
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=positive_int,
        default=7,
        help="samples of each side (default: 7; fewer are for a quick look)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=positive_float,
        default=240.0,
        help="for everything; samples get shorter to fit (default: 240)",
    )
    parser.add_argument(
        "--sample",
        metavar="S",
        type=positive_float,
        default=0.4,
        help="seconds of a sample, if there is time (default: 0.4, at most 0.5)",
    )
    parser.add_argument(
        "--cpu",
        metavar="N",
        type=int,
        help="the processor for both sides, or for the client that loads them (default: the last)",
    )
    parser.add_argument(
        "--itself",
        action="store_true",
        help="put the peer on both sides: shows how far pairs differ by themselves",
    )
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=Path,
        help="where the file to read is made, on a disk (default: the first place that will do)",
    )
