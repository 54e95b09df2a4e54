# SPDX-License-Identifier: Apache-2.0
"""One function a command: it calls the tool and prints what that gives.

Invariants
 - Each tool is imported by its own command alone.
 - What a function returns is the exit status.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["COMMANDS"]


def show(text: str, data: dict[str, Any], as_json: bool) -> None:
    """The result, on standard output."""
    print(json.dumps(data, indent=2, default=str) if as_json else text)


def tell(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def demo(args: argparse.Namespace) -> int:
    if str(args.file) == "sun4m":
        return demo_sun4m(args)
    from iodma.cli.progress import Bar
    from iodma.tools.demo import Options, render, run

    with Bar() as progress:
        options = Options(args.file, args.engine, args.direct, args.swap, args.trace)
        result = run(options, progress)
    show(render(result), result.as_dict(), args.json)
    return 0


def demo_sun4m(args: argparse.Namespace) -> int:
    from iodma.errors import ArgumentError
    from iodma.tools.demo.sun4m import render, run

    if args.direct or args.swap:
        raise ArgumentError("the demo of sun4m has neither --direct nor --swap")
    result = run(args.engine, args.trace)
    show(render(result), result.as_dict(), args.json)
    return 0


def doctor(args: argparse.Namespace) -> int:
    from iodma.tools.doctor import diagnose, render, with_crossover

    diagnosis = diagnose()
    if args.measure and diagnosis.ok:
        diagnosis = with_crossover(diagnosis)
    show(render(diagnosis), diagnosis.as_dict(), args.json)
    return 0 if diagnosis.ok else 1


def check(args: argparse.Namespace) -> int:
    from iodma.tools.check import check, render

    result = check(args.target)
    show(render(result), result.as_dict(), args.json)
    return 0


def run(args: argparse.Namespace) -> int:
    from iodma.tools.run import Options, render, run

    if args.socket_path is not None or args.fd is not None or args.run is not None:
        return run_served(args)
    result = run(Options(args.target, args.engine, args.ram or 64, dict(args.given), args.trace))
    show(render(result), result.as_dict(), args.json)
    return 0


def run_served(args: argparse.Namespace) -> int:
    from iodma.tools.serve_pci import Options, serve
    from iodma.tools.service import Where

    where = Where(args.socket_path, args.fd, args.run)
    return serve(Options(args.target, where, args.engine, dict(args.given), args.trace), tell)


def bench(args: argparse.Namespace) -> int:
    from iodma.tools.bench.harness import table
    from iodma.tools.bench.options import Options

    if args.name == "core":
        from iodma.tools.bench.run import run
    elif args.name == "vfio-user":
        from iodma.tools.bench.vfio_user import run
    elif args.name == "sun4m":
        from iodma.tools.bench.sun4m import run
    else:
        from iodma.tools.bench.vhost_user_blk import run
    options = Options(
        name=args.name,
        pairs=args.pairs,
        seconds=args.seconds,
        sample_s=args.sample,
        cpu=args.cpu,
        directory=args.dir,
        only=args.only,
        output=args.json,
        trace=args.trace,
        itself=args.itself,
    )
    report = run(options, tell)
    print(table(report.rows))
    for name, text in report.extra.items():
        if name.endswith(", table") and text:
            print(f"\n{text}")
    if failing := report.failing:
        print(f"\n{len(failing)} of {len(report.rows)} rows miss what they must reach")
    return 0


def serve(args: argparse.Namespace) -> int:
    return serve_sun4m(args) if args.device == "sun4m" else serve_blk(args)


def serve_sun4m(args: argparse.Namespace) -> int:
    from iodma.tools.serve_sun4m import Options, serve
    from iodma.tools.service import Where

    where = Where(args.qtest, args.fd, args.run)
    netdev = args.netdev if args.tap is None else f"tap,ifname={args.tap}"
    options = Options(where, args.memory, netdev, args.drive, args.engine, args.trace)
    return serve(options, tell)


def serve_blk(args: argparse.Namespace) -> int:
    from iodma.tools.serve import CAPABILITIES, Options, serve

    if args.print_capabilities:
        print(json.dumps(CAPABILITIES))
        return 0
    options = Options(
        blk_file=args.blk_file,
        socket_path=args.socket_path,
        fd=args.fd,
        read_only=args.read_only,
        direct=args.direct,
        num_queues=args.num_queues,
        serial=args.serial,
        block_size=args.block_size,
        lock=args.lock,
        engine=args.engine,
        spin_us=args.spin_us,
        trace=args.trace,
        command=args.run,
    )
    return serve(options, tell)


def qemu_args(args: argparse.Namespace) -> int:
    from iodma.tools.qemu_args import Guest, disk, function, id_of, render

    guest = Guest(str(args.socket_path), args.memory, args.iommu)
    if args.device == "blk":
        words = disk(guest, args.num_queues or 1)
    else:
        from iodma.tools.describe_pci import described_by
        from iodma.tools.load import load

        loaded = load(args.device)
        described_by(loaded)
        words = function(guest, args.id or id_of(loaded.device))
    print(render(words, sys.stdout.isatty()))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": demo,
    "doctor": doctor,
    "check": check,
    "run": run,
    "bench": bench,
    "serve": serve,
    "qemu-args": qemu_args,
}
