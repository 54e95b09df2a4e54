"""`iodma.Nbd` where there is no libnbd, no server, or something else than a URI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import ArgumentError, ArgumentTypeError, UnsupportedError
from iodma.cli import main
from iodma.endpoints import nbd

URI = "nbd+unix:///?socket=/nowhere/at-all"
ABSENT = "libnbd is not installed: apt install libnbd0"


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "LIBRARY", "libnbd-that-is-not-there.so.0")


@pytest.mark.usefixtures("absent")
def test_without_libnbd_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        iodma.Nbd(URI)
    assert str(caught.value) == ABSENT
    with pytest.raises(UnsupportedError, match="apt install libnbd0"):
        nbd.library_version()
    assert main(["serve", "blk", f"--blk-file={URI}", "--socket-path=none"]) == 1
    assert capsys.readouterr().err == f"iodma: error: {ABSENT}\n"


def test_a_library_that_lacks_something_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "LIBRARY", "libc.so.6")
    with pytest.raises(UnsupportedError, match="too old: it has no nbd_create"):
        iodma.Nbd(URI)


def test_nothing_is_loaded_before_it_is_needed() -> None:
    program = "import iodma; print('libnbd' in open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        (Path("disk.img"), ArgumentTypeError, "a File takes a path"),
        (7, ArgumentTypeError, "7 is not the URI"),
        ("disk.img", ArgumentError, "would be right"),
        ("http://host/disk", ArgumentError, "would be right"),
        ("nbd://host/a\0b", ArgumentError, "would be right"),
        ("nbds://host/disk", UnsupportedError, "tunnel"),
        ("nbds+unix:///?socket=x", UnsupportedError, "tunnel"),
    ],
)
def test_what_is_no_uri(uri: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        iodma.Nbd(uri)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 0},
        {"depth": 1025},
        {"small": -1},
        {"small": (1 << 20) + 1},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ArgumentError, match=name):
        iodma.Nbd(URI, **options)


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        nbd.library_version()
    except UnsupportedError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    with pytest.raises(FileNotFoundError, match="/nowhere/at-all"):
        iodma.Nbd(URI)
    assert main(["serve", "blk", f"--blk-file={URI}", "--socket-path=none"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "/nowhere/at-all" in said


def test_the_page_cache_is_the_server_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "blk", f"--blk-file={URI}", "--direct", "--socket-path=none"]) == 1
    assert "leave out --direct" in capsys.readouterr().err
