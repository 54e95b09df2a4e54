# SPDX-License-Identifier: Apache-2.0
"""The way in and the ways out: logging, signals, errors, exit codes.

| how it ends | exit status |
|---|---|
| the command did what it was asked | 0 |
| it could not, or found that something is broken | 1, with one line on standard error |
| the command line is wrong | 2 |
| Ctrl-C | 130 |
| SIGTERM | 143 |

Invariants
 - Whatever ends a command, its context managers are left first: no process or file remains.
 - A traceback is for errors of iodma itself, and for those who ask with --verbose.
 - A standard stream that was closed leads nowhere: nothing that is opened later takes its number.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from types import FrameType

from iodma.cli import parser
from iodma.cli.commands import COMMANDS

__all__ = ["main"]

LOG_FORMAT = "%(name)s: %(levelname)s: %(message)s"
FAILED, USAGE = 1, 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; default: the one this process was started with."""
    open_what_is_closed()
    made = parser.build()
    if not (sys.argv[1:] if arguments is None else arguments):
        made.print_help(sys.stderr)  # whoever knows no command yet
        print("\niodma: error: one of these commands is required", file=sys.stderr)
        return USAGE
    try:
        args = made.parse_args(arguments)
    except SystemExit as ended:  # --help and --version, too
        return finish_parsing(ended.code if isinstance(ended.code, int) else FAILED)
    with logging_to_stderr(args.verbose), telling(), terminating():
        try:
            return finish(COMMANDS[args.command](args))
        except KeyboardInterrupt:
            print("\niodma: interrupted", file=sys.stderr)
            return INTERRUPTED
        except Terminated:
            print("iodma: terminated", file=sys.stderr)
            return TERMINATED
        except BrokenPipeError:  # nobody reads on
            forget_output()
            return FAILED
        except Exception as error:
            if not expected(error):
                raise
            complain(error, args)
            forget_output()
            return FAILED


@contextmanager
def telling() -> Iterator[None]:
    """SIGUSR1 tells what is in flight, from the first moment on: it ends no command.

    Not where somebody else has a use for it, nor without the core, which `doctor` can do without.
    """
    try:
        from iodma.engine.dump import dump_on_signal
    except ImportError:
        yield
        return
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
        yield
        return
    dump_on_signal()
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


class Terminated(BaseException):
    """SIGTERM came: unwinds like a Ctrl-C."""


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM unwinds the command, so that it leaves its context managers."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class OneLine(logging.Formatter):
    """Leaves out the traceback of what is logged: it is for those who ask."""

    def format(self, record: logging.LogRecord) -> str:
        if not record.exc_info:
            return super().format(record)
        short = copy(record)
        short.exc_info = short.exc_text = None
        return super().format(short)


@contextmanager
def logging_to_stderr(verbose: bool) -> Iterator[None]:
    """Everything under "iodma" from warnings on, or all of it, to standard error."""
    logger = logging.getLogger("iodma")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((logging.Formatter if verbose else OneLine)(LOG_FORMAT))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def finish(status: int) -> int:
    """Flushes here, where a reader that is gone is still an error we handle."""
    sys.stdout.flush()
    return status


def finish_parsing(status: int) -> int:
    """The same for what the parser has printed."""
    try:
        return finish(status)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"iodma: error: {error.strerror}", file=sys.stderr)
        forget_output()
        return FAILED


def open_what_is_closed() -> None:
    """Standard streams that this process was started without."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def forget_output() -> None:
    """What cannot be written, the interpreter must not try to write again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def expected(error: Exception) -> bool:
    """Whether it is about what the user gave or what the host has, and not a mistake of ours."""
    if isinstance(error, OSError):
        return True
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0] in ("iodma", "numpy")
    try:
        from iodma.errors import Error
    except ImportError:
        return False
    return isinstance(error, Error)


def complain(error: Exception, args: argparse.Namespace) -> None:
    """One line, or all there is."""
    if args.verbose:
        traceback.print_exception(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"iodma: error: {text or type(error).__name__}", file=sys.stderr)
    if isinstance(error, ImportError):
        print("iodma: `iodma doctor` says what is wrong and what to do", file=sys.stderr)
