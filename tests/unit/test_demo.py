"""`iodma demo`: what it moves arrives as it was, and what goes wrong is one line."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import iodma
from iodma.cli import main
from iodma.cli.progress import Bar
from iodma.tools.demo import DemoError, Options, guest, peer, render, run
from iodma.tools.demo import run as demo
from iodma.tools.demo.device import PAGE_BYTES, Streamer

WINDOW = guest.PAGES * PAGE_BYTES
SIZES = [1, 7, 511, PAGE_BYTES, PAGE_BYTES + 1, WINDOW - 1, WINDOW, WINDOW + 513]


@pytest.fixture
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[demo.__module__], "ROUNDS", 1)


def source(folder: Path, rng: random.Random, size: int) -> Path:
    path = folder / "source.bin"
    path.write_bytes(rng.randbytes(size))
    return path


# --- what is moved --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "threads"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("one_pass")
def test_every_size_arrives_as_it_was(
    tmp_path: Path, rng: random.Random, size: int, engine: str
) -> None:
    path = source(tmp_path, rng, size)
    result = run(Options(path, engine))
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (result.bytes, result.python_bytes) == (size, 0)
    assert (result.bytes_to_memory, result.bytes_from_memory) == (size, size)
    assert not any(result.bounced.values())
    assert result.segments == -(-min(size, WINDOW) // PAGE_BYTES)
    assert result.requests >= 2 * -(-size // WINDOW)
    assert result.translate_ns > 0
    assert min(result.bytes_per_second, result.plain_bytes_per_second) > 0


@pytest.mark.parametrize("swap", [2, 4, 8])
@pytest.mark.usefixtures("one_pass")
def test_swapped_lanes_arrive_swapped_and_every_byte_is_counted(
    tmp_path: Path, rng: random.Random, swap: int
) -> None:
    size = 3 * PAGE_BYTES + 8 + 5
    path = source(tmp_path, rng, size)
    data = path.read_bytes()
    whole = size // swap * swap
    expected = np.frombuffer(data[:whole], f">u{swap}").astype(f"<u{swap}").tobytes() + data[whole:]
    result = run(Options(path, swap=swap))
    assert result.sha256 == hashlib.sha256(expected).hexdigest()
    assert result.bounced == {
        "lanes": size,
        "alignment": 0,
        "not_ram": 0,
        "small": 0,
        "remote": 0,
        "peeked": 0,
        "framed": 0,
    }
    assert result.python_bytes == 0


@pytest.mark.usefixtures("one_pass")
def test_past_the_page_cache_only_the_tail_is_copied(tmp_path: Path, rng: random.Random) -> None:
    path = source(tmp_path, rng, WINDOW + 4096 + 100)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    result = run(Options(path, direct=True))
    assert result.direct
    assert 0 < result.bounced["alignment"] < 4096 + 100
    assert result.python_bytes == 0


@pytest.mark.usefixtures("one_pass")
def test_without_a_file_it_moves_one_that_is_on_every_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["file"] == str(demo_file())
    assert data["bytes"] > 0
    assert data["sha256"] == hashlib.sha256(demo_file().read_bytes()).hexdigest()
    assert data["ratio"] > 0
    assert err == ""


def demo_file() -> Path:
    return sys.modules[demo.__module__].default_file()  # type: ignore[no-any-return]


@pytest.mark.usefixtures("one_pass")
def test_the_table(tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]) -> None:
    path = source(tmp_path, rng, 5000)
    assert main(["demo", str(path), "--swap", "2"]) == 0
    out, err = capsys.readouterr()
    for words in (
        str(path),
        "5,000 bytes in, 5,000 bytes out",
        "through Python  0 bytes",
        "5,000 bytes (lanes 5,000)",
        "ns a segment, 2 segments",
        "plain copy",
        "swapped in units of 2",
    ):
        assert words in out
    assert err == ""


@pytest.mark.usefixtures("one_pass")
def test_a_trace_of_it(tmp_path: Path, rng: random.Random) -> None:
    out = tmp_path / "trace.json"
    run(Options(source(tmp_path, rng, 2 * WINDOW), trace=out))
    events = json.loads(out.read_text())["traceEvents"]
    names = {
        each["args"]["name"] for each in events if each["ph"] == "M" and "name" in each["args"]
    }
    assert any("disk" in name for name in names), names
    assert len(events) > 8  # two reads, two sends, with their states


def test_a_trace_that_cannot_be_written(
    tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    path, nowhere = str(source(tmp_path, rng, 5000)), f"{tmp_path}/none/trace.json"
    assert complaint(capsys, path, "--trace", nowhere) == f"{nowhere}: No such file or directory"
    assert complaint(capsys, path, "--trace", "/dev/full") == "No space left on device"


@pytest.mark.usefixtures("one_pass")
def test_a_name_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    Path(path).write_bytes(b"abc")
    assert main(["demo", path]) == 0
    assert r"/\xff\xfe" in capsys.readouterr().out


def test_small_files_are_moved_several_times(tmp_path: Path, rng: random.Random) -> None:
    result = run(Options(source(tmp_path, rng, 100_000)))
    assert result.passes > 1
    assert result.bytes_to_memory == 100_000
    assert "100,000 bytes in" in render(result)


@pytest.mark.usefixtures("one_pass")
def test_progress_comes_to_its_end(tmp_path: Path, rng: random.Random) -> None:
    size = 2 * WINDOW + 1
    seen: dict[str, list[int]] = {}
    run(
        Options(source(tmp_path, rng, size)),
        lambda what, done, total: seen.setdefault(what, []).append(done),
    )
    assert seen["moving"] == [WINDOW, 2 * WINDOW, size]
    assert all(each[-1] == size and each == sorted(each) for each in seen.values())
    assert len(seen) == 3


# --- what goes wrong ------------------------------------------------------------------------------


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error; nothing on standard output, exit status 1."""
    assert main(["demo", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    line = err.strip()
    assert line.startswith("iodma: error: ")
    return line.removeprefix("iodma: error: ")


def test_a_file_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, empty, pipe = tmp_path / "missing", tmp_path / "empty", tmp_path / "pipe"
    empty.touch()
    os.mkfifo(pipe)
    assert complaint(capsys, str(missing)) == f"{missing}: No such file or directory"
    assert complaint(capsys, str(tmp_path)) == f"{tmp_path} is a directory; a file is wanted"
    assert complaint(capsys, str(empty)) == f"{empty} is empty; there is nothing to move"
    assert "neither a regular file nor a block device" in complaint(capsys, str(pipe))
    empty.write_text("x")
    empty.chmod(0)
    if os.geteuid() != 0:
        assert complaint(capsys, str(empty)) == f"{empty}: Permission denied"


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "iodma", "demo", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "iodma: error: No space left on device\n"


RECEIVERS = {
    "takes some and is killed": (
        "c.recv(100000); os.kill(os.getpid(), signal.SIGKILL)",
        "the receiver has died: SIGKILL",
    ),
    "takes some and ends": ("c.recv(100000); sys.exit(3)", "ended too early (exit status 3)"),
    "ends at once": ("sys.exit(0)", "ended too early (exit status 0)"),
    "stops listening": (
        "c.recv(1000); c.close(); time.sleep(30)",
        "the receiver has closed the connection",
    ),
    "takes all and is killed": (
        "\nwhile c.recv(1 << 20): pass\nos.kill(os.getpid(), signal.SIGKILL)",
        "the receiver has died: SIGKILL",
    ),
    "hears something else": (
        "n = 0\nwhile p := c.recv(1 << 20): n += len(p)\n"
        "print(json.dumps({'bytes': n, 'sha256': 'f00'}))",
        "SHA-256 of what was received is f00",
    ),
    "loses something": (
        "n = 0\nwhile p := c.recv(1 << 20): n += len(p)\n"
        "print(json.dumps({'bytes': n - 1, 'sha256': 'f00'}))",
        "the receiver got",
    ),
}


def program(body: str) -> list[str]:
    head = (
        "import json, os, signal, socket, sys, time\nc = socket.socket(fileno=int(sys.argv[1]))\n"
    )
    return [sys.executable, "-I", "-S", "-c", head + body]


@pytest.mark.parametrize("engine", ["auto", "threads"])
@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_that_fails_is_one_line(
    name: str,
    engine: str,
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body, words = RECEIVERS[name]
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*args: object, **more: object) -> subprocess.Popen[bytes]:
        started.append(real(*args, **more))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(peer, "command", lambda fd: [*program(body), str(fd)])
    monkeypatch.setattr(subprocess, "Popen", popen)
    path = source(tmp_path, rng, 20_000_000)
    assert words in complaint(capsys, str(path), "--engine", engine)
    assert started
    assert all(each.returncode is not None for each in started)


def test_a_receiver_that_takes_nothing_is_given_up(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "STALL_S", 0.3)
    monkeypatch.setattr(peer, "command", lambda fd: [*program("time.sleep(30)"), str(fd)])
    with pytest.raises(DemoError, match="nothing has moved for"):
        run(Options(source(tmp_path, rng, 20_000_000)))


def test_a_receiver_of_the_plain_copy_that_takes_nothing_is_given_up(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[demo.__module__]
    monkeypatch.setattr(module, "STALL_S", 0.3)
    monkeypatch.setattr(peer, "command", lambda fd: [*program("time.sleep(30)"), str(fd)])
    path = source(tmp_path, rng, 20_000_000)
    with pytest.raises(DemoError, match="the receiver has taken nothing for"):
        module.without_device(path, 20_000_000, False, lambda *how_far: None)


def test_a_file_that_becomes_shorter(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, rng, 2 * WINDOW)

    def cut(what: str, done: int, total: int) -> None:
        if what == "moving":
            os.truncate(path, WINDOW + 1000)

    with pytest.raises(DemoError, match=f"the file ends at byte {WINDOW + 1000}, earlier"):
        run(Options(path), cut)


def test_a_byte_in_the_wrong_place_is_seen() -> None:
    with guest.Guest(None) as there:
        there.check()
        used = set(there._used)
        wrong = next(number for number in range(4 * guest.PAGES) if number not in used)
        with there.ram.view(wrong * PAGE_BYTES + 17, 1) as view:
            view[0] = 1
        with pytest.raises(DemoError, match=f"page {wrong} of guest RAM was written"):
            there.check()


SLOW = """
import sys
from iodma.tools.demo import peer
peer.command = lambda fd: [sys.executable, "-I", "-S", "-c", sys.argv[1], str(fd)]
from iodma.cli import main
sys.exit(main(["demo", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("engine", ["auto", "threads"])
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_it_and_the_receiver(
    number: signal.Signals, status: int, word: str, engine: str, tmp_path: Path, rng: random.Random
) -> None:
    path = source(tmp_path, rng, 20_000_000)
    told = tmp_path / "pid"
    body = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(50)"
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, body, str(path), "--engine", engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not (told.exists() and told.read_text()) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.2)  # it is sending by now, and waits
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out) == (status, "")
    assert err.strip() == f"iodma: {word}"
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


# --- the bar --------------------------------------------------------------------------------------


def test_the_bar_is_for_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar() as bar:
        bar._next = 0
        bar("moving", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar() as bar:
        bar("moving", 1, 2)
        assert capsys.readouterr().err == ""  # too early
        bar._next = 0
        bar("moving", 1, 2)
        assert "[###############...............]  50%" in capsys.readouterr().err
    assert capsys.readouterr().err.endswith("\x1b[K")


# --- the device -----------------------------------------------------------------------------------


def test_the_device_says_of_a_bad_page_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE_BYTES))
    with (
        guest.Guest(None) as there,
        iodma.Engine(strict=True) as engine,
        iodma.File(path, read_only=True) as disk,
        iodma.Null() as network,
    ):
        port = engine.port(there.bus)
        device = Streamer(port, out=port, disk=disk, network=network)
        bus = iodma.Bus()
        bus.attach(device, guest.BASE)
        pages = [*there.pages[:2], 0xBAD000]
        with pytest.raises(DemoError, match="reading the file ended with FAULT at byte 0"):
            engine.run(guest.drive(bus, device, pages, 3 * PAGE_BYTES, lambda done: None))
        assert device.interrupt.count == 1
