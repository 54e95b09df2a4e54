"""The command line: what is wrong ends in one line and the right exit status, never a traceback."""

import json
import logging
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from iodma._version import __version__
from iodma.cli import commands, main
from iodma.cli.parser import build
from iodma.errors import ArgumentError
from iodma.tools.bench import NAMES

Command = Callable[[Namespace], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Command], None]:
    """Puts a function in the place of `iodma doctor`."""

    def put(function: Command) -> None:
        monkeypatch.setitem(commands.COMMANDS, "doctor", function)

    return put


def raising(error: BaseException) -> Command:
    def function(args: Namespace) -> int:
        raise error

    return function


# --- arguments ----------------------------------------------------------------------------------


def test_version_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"iodma {__version__}\n", "")


@pytest.mark.parametrize("name", ["demo", "doctor", "check", "run", "bench", "serve", "qemu-args"])
def test_every_command_has_help_with_its_exit_status(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: iodma {name}" in out
    assert "exit status" in out
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["doctor", "extra"],
        ["demo", "--engine", "fast"],
        ["demo", "--swap", "3"],
        ["check"],
        ["run", "file.py", "disk"],
        ["run", "file.py", "=file"],
        ["run", "file.py", "disk="],
        ["run", "file.py", "--ram", "0"],
        ["bench"],
        ["bench", "nonsense"],
        ["bench", "core", "--pairs", "0"],
        ["bench", "core", "--seconds", "-1"],
        ["bench", "core", "--sample", "nan"],
    ],
)
def test_a_wrong_command_line_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error:" in err.splitlines()[-1]


def test_the_demo_gets_what_it_is_documented_to_get() -> None:
    args = build().parse_args(
        ["demo", "F", "--engine", "threads", "--direct", "--swap", "4", "--trace", "T", "--json"]
    )
    assert (args.file, args.engine, args.direct) == (Path("F"), "threads", True)
    assert (args.swap, args.trace, args.json) == (4, Path("T"), True)
    plain = build().parse_args(["demo"])
    assert (plain.file, plain.engine, plain.direct) == (None, "auto", False)
    assert (plain.swap, plain.trace, plain.json, plain.verbose) == (None, None, False, False)


def test_endpoints_are_given_by_name() -> None:
    args = build().parse_args(["run", "f.py:Disk", "disk=a=b.img", "log=/tmp/x", "--ram", "8"])
    assert args.target == "f.py:Disk"
    assert dict(args.given) == {"disk": "a=b.img", "log": "/tmp/x"}
    assert args.ram == 8


@pytest.mark.parametrize("arguments", [["-v", "doctor"], ["doctor", "-v"], ["doctor", "--verbose"]])
def test_verbose_goes_before_or_after_the_command(arguments: list[str]) -> None:
    assert build().parse_args(arguments).verbose


def test_every_benchmark_can_be_named() -> None:
    for name in NAMES:
        assert build().parse_args(["bench", name]).name == name


def test_every_command_is_there() -> None:
    for name, more in (("demo", []), ("doctor", []), ("check", ["f"]), ("run", ["f"])):
        assert build().parse_args([name, *more]).command in commands.COMMANDS


# --- the ways out -------------------------------------------------------------------------------


def test_the_status_of_the_command_is_ours(command: Callable[[Command], None]) -> None:
    command(lambda args: 0)
    assert main(["doctor"]) == 0
    command(lambda args: 1)
    assert main(["doctor"]) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ArgumentError("length is -1, must be positive"), "length is -1, must be positive"),
        (FileNotFoundError(2, "No such file or directory", "x.img"), "x.img: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ImportError("core is 0.2, package 0.1", name="iodma._core"), "core is 0.2, package 0.1"),
    ],
)
def test_an_expected_error_is_one_line(
    command: Callable[[Command], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    command(raising(error))
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"iodma: error: {line}")
    assert "Traceback" not in err


def test_verbose_shows_the_traceback(
    command: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ArgumentError("wrong")))
    assert main(["doctor", "--verbose"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "iodma: error: wrong"


def test_a_mistake_of_ours_is_not_hidden(command: Callable[[Command], None]) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_ctrl_c_is_status_130(
    command: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_unwinds_and_is_status_143(command: Callable[[Command], None]) -> None:
    unwound = []

    def function(args: Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    command(function)
    assert main(["doctor"]) == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigusr1_ends_no_command_however_early() -> None:
    program = """
import signal, sys
from iodma.cli import commands, main
commands.COMMANDS["doctor"] = lambda args: signal.raise_signal(signal.SIGUSR1) or 0
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "iodma: no engine is open\n")


def test_warnings_go_to_standard_error_and_no_further(
    command: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("iodma.test")

    def function(args: Namespace) -> int:
        logger.warning("something odd")
        logger.info("a detail")
        return 0

    command(function)
    before = list(logging.getLogger("iodma").handlers)
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == ("", "iodma.test: WARNING: something odd\n")
    assert main(["-v", "doctor"]) == 0
    assert "a detail" in capsys.readouterr().err
    assert logging.getLogger("iodma").handlers == before


def test_a_logged_traceback_is_for_those_who_ask(
    command: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def function(args: Namespace) -> int:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logging.getLogger("iodma.test").exception("a device failed")
        return 0

    command(function)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "iodma.test: ERROR: a device failed\n"
    assert main(["doctor", "-v"]) == 0
    assert "Traceback" in capsys.readouterr().err


def iodma(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "iodma", *arguments], text=True, timeout=60, check=False, **more
    )


def buffered() -> dict[str, str]:
    """An environment in which output is buffered: argparse does not look at what a write says."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_nobody_reading_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = iodma("doctor", "--json", stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "blk", "--help"], ["--version"]])
def test_nobody_reading_the_help_is_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = iodma(*arguments, stdout=write, stderr=subprocess.PIPE, env=buffered())
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["doctor"], ["--help"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = iodma(*arguments, stdout=full, stderr=subprocess.PIPE, env=buffered())
    assert (done.returncode, done.stderr) == (1, "iodma: error: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_leads_nowhere(closed: str, tmp_path: Path) -> None:
    script = f'"$0" -m iodma "$@" {closed}'
    command = ["sh", "-c", script, sys.executable]
    done = subprocess.run([*command, "doctor"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.split())
    # Nor is anything of it in a file that was opened meanwhile.
    path = tmp_path / "missing"
    done = subprocess.run([*command, "demo", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert bool(done.stderr) == ("2>&-" not in closed.split())


def test_help_does_not_break_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in range(60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        for command in ("run", "qemu-args"):
            assert main([command, "--help"]) == 0
            words = set(capsys.readouterr().out.split())
            assert not {word for word in words if word.endswith("-") and word.strip("-")}


def test_doctor_prints_json() -> None:
    done = iodma("doctor", "--json", capture_output=True)
    data = json.loads(done.stdout)
    assert {"ok", "engine", "checks"} <= set(data)
    assert done.returncode == (0 if data["ok"] else 1)
    assert done.stderr == ""


WITHOUT_CORE = """
import sys
sys.modules["iodma._core"] = None        # importing it raises ImportError
from iodma.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_core(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_CORE, *arguments],
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_version_and_doctor_work_without_the_core() -> None:
    assert without_core("--version").stdout == f"iodma {__version__}\n"
    done = without_core("doctor")
    assert done.returncode == 1
    assert "cannot be imported" in done.stdout
    assert "to do:" in done.stdout
    assert done.stderr == ""


def test_other_commands_say_that_the_core_is_missing(tmp_path: Path) -> None:
    done = without_core("check", str(tmp_path / "x.py"))
    assert done.returncode == 1
    assert done.stderr.startswith("iodma: error: ")
    assert "doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_command_at_all_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out and "demo " in said.err and "doctor " in said.err


@pytest.mark.parametrize("command", ["serve blk --socket-path=", "serve sun4m --qtest="])
def test_an_empty_path_is_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert "the path is empty" in capsys.readouterr().err
