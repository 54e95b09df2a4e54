"""`iodma serve blk` and `iodma qemu-args blk` from outside: what they print, hold, and end with.

What a front-end does with the disk is tested elsewhere; here one says a few messages at most.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import iodma
from iodma import ArgumentError, BusyError, File
from iodma.cli import main
from iodma.tools.qemu_args import Guest, disk, function, render

MIB = 1 << 20
IODMA = (sys.executable, "-m", "iodma")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@contextmanager
def server(image: Path, *options: str, fds: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """A server whose socket can be connected to."""
    with subprocess.Popen(
        [*IODMA, "serve", "blk", f"--blk-file={image}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while "is served at" not in said:
                line = process.stderr.readline()
                assert line, f"ended with {process.wait()}: {said}"
                said += line
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=20)


def config(sock: socket.socket) -> bytes:
    """What a front-end is told of the configuration space."""
    offered = ask(sock, 1)
    assert offered & 1 << 30
    sock.sendall(struct.pack("<IIIQ", 2, 1, 8, offered & (1 << 32 | 1 << 30)))
    protocol = ask(sock, 15)
    sock.sendall(struct.pack("<IIIQ", 16, 1, 8, protocol & 1 << 9))  # CONFIG
    sock.sendall(struct.pack("<IIIIII", 24, 1, 12 + 60, 0, 60, 0) + bytes(60))
    _, _, size = struct.unpack("<III", receive(sock, 12))
    return receive(sock, size)[12:]


def ask(sock: socket.socket, request: int) -> int:
    sock.sendall(struct.pack("<III", request, 1, 0))
    return int(struct.unpack("<IIIQ", receive(sock, 20))[3])


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "the server hung up"
        data += more
    return data


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        yield sock


# --- what it prints -------------------------------------------------------------------------------


def test_capabilities_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "blk", "--print-capabilities"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"type": "block", "features": ["blk-file", "read-only"]}
    assert err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        ["serve", "net"],
        ["serve", "blk"],
        ["serve", "blk", "--blk-file=x"],
        ["serve", "blk", "--socket-path=x"],
        ["serve", "blk", "--blk-file=x", "--socket-path=x", "--fd=3"],
        ["serve", "blk", "--blk-file=x", "--fd=-1"],
        ["serve", "blk", "--blk-file=x", "--socket-path=x", "--num-queues=0"],
        ["qemu-args"],
        ["qemu-args", "blk"],
        ["qemu-args", "net", "--socket-path=x"],
    ],
)
def test_a_wrong_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error:" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "options", "text"),
    [
        ("none.img", [], "none.img: No such file or directory"),
        (".", [], "Is a directory"),
        ("/dev/null", [], "neither a regular file nor a block device"),
        ("empty", [], "has 0 bytes: less than one block of 512"),
        ("disk.img", ["--block-size=1000"], "block_size is 1000; a power of two"),
        ("disk.img", ["--num-queues=1000"], "queues is 1000; 1 to 256"),
        ("disk.img", ["--serial=" + "x" * 21], "21 bytes; 20 are the most"),
        ("disk.img", ["--socket-path=" + "x" * 200], "1 to 107 bytes would be right"),
        ("disk.img", ["--socket-path=none/s"], "none/s: No such file or directory"),
        ("disk.img", ["--socket-path=disk.img"], "disk.img is there and is no socket"),
        ("disk.img", ["--fd=0"], "descriptor 0 is no socket"),
        ("disk.img", ["--fd=99"], "descriptor 99 is not open"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    image: Path,
    file: str,
    options: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(image.parent)
    Path("empty").touch()
    before = sorted(Path().iterdir())
    where = [] if any("socket" in each or "fd" in each for each in options) else ["--socket-path=s"]
    with open(os.devnull) as null:
        saved = os.dup(0)
        os.dup2(null.fileno(), 0)
        try:
            assert main(["serve", "blk", f"--blk-file={file}", *where, *options]) == 1
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    out, err = capsys.readouterr()
    assert out == "" and text in err
    assert len(err.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_a_file_that_is_not_whole_sectors(image: Path) -> None:
    os.truncate(image, 1000)
    done = subprocess.run(
        [*IODMA, "serve", "blk", f"--blk-file={image}", "--run", "true"],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stderr == (
        f"iodma: {image} has 1000 bytes, which is not a multiple of 512: the last 488 are not"
        " served\n"
    )


# --- how long it serves ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_it_ends_soon_after_a_signal(
    image: Path, tmp_path: Path, number: signal.Signals, engine: str
) -> None:
    path = tmp_path / "s"
    with server(image, f"--socket-path={path}", f"--engine={engine}") as process:
        with connected(path) as sock:
            assert struct.unpack_from("<Q", config(sock)) == (MIB // 512,)
            process.send_signal(number)
            assert ended(process) == 0
        assert not path.exists()
        assert process.stdout is not None and process.stdout.read() == ""


def test_a_signal_as_soon_as_the_socket_is_there(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with subprocess.Popen(
        [*IODMA, "serve", "blk", f"--blk-file={image}", f"--socket-path={path}"],
        stderr=subprocess.DEVNULL,
    ) as process:
        while not path.exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert not path.exists()


def test_a_trace_and_statistics(image: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with server(image, f"--socket-path={tmp_path / 's'}", f"--trace={trace}") as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"iodma: {image.name} (")
        process.terminate()
        assert ended(process) == 0
    assert "traceEvents" in json.loads(trace.read_text())


def test_one_front_end_after_the_other_and_a_resize(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with server(image, f"--socket-path={path}") as process:
        for size in (MIB, MIB, 2 * MIB):
            if size != MIB:
                os.truncate(image, size)
                process.send_signal(signal.SIGHUP)
            with connected(path) as sock:
                assert struct.unpack_from("<Q", config(sock)) == (size // 512,)
        process.terminate()
        assert ended(process) == 0


def test_a_connection_that_was_given_is_served_until_it_ends(image: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, server(image, f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(20)
        assert struct.unpack_from("<Q", config(ours)) == (MIB // 512,)
        ours.close()
        assert ended(process) == 0


def test_a_socket_that_listens_can_be_given(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with server(image, f"--fd={listening.fileno()}", fds=[listening.fileno()]) as process:
            for _ in range(2):
                with connected(path) as sock:
                    config(sock)
            process.terminate()
            assert ended(process) == 0
    assert path.exists(), "it is not the server's"


@pytest.mark.parametrize(
    ("command", "status"), [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("exit 300", 44)]
)
def test_a_command_gives_the_status(image: Path, command: str, status: int) -> None:
    done = subprocess.run(
        [*IODMA, "serve", "blk", f"--blk-file={image}", "--run", command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")


def test_a_command_finds_the_socket(image: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(*IODMA, "serve", "blk", f"--blk-file={image}", "--num-queues=2"),
            *("--run", 'test -S "$IODMA_SOCKET" && echo "$IODMA_SOCKET" && echo "$IODMA_QEMU"'),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    path, words = done.stdout.splitlines()
    assert shlex.split(words) == disk(Guest(path), num_queues=2)
    assert not Path(path).parent.exists()


def test_a_signal_goes_to_the_command(image: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    command = f"trap 'exit 5' TERM; echo > {ready}; while :; do sleep 0.01; done"
    with subprocess.Popen(
        [*IODMA, "serve", "blk", f"--blk-file={image}", "--run", command]
    ) as process:
        ready.read_text()
        process.send_signal(signal.SIGINT)  # which a terminal sends to the command by itself
        process.terminate()
        assert process.wait(timeout=20) == 5


# --- the lock -------------------------------------------------------------------------------------


def test_an_image_has_one_server(
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iodma.tools.serve.LOCK_WAIT_S", 0.2)
    path = tmp_path / "s"
    again = ["serve", "blk", f"--blk-file={image}", "--run", "true"]
    with server(image, f"--socket-path={path}") as process:
        assert main(again) == 1
        assert main([*again, "--read-only"]) == 1
        err = capsys.readouterr().err
        assert err == f"iodma: error: {image} is in use: another program has locked it\n" * 2
        assert main([*again, "--no-lock"]) == 0
        process.kill()
        process.wait()
        assert main(again) == 0, "it went with the one that had it"
    with server(image, f"--socket-path={path}", "--read-only"):
        assert main([*again, "--read-only"]) == 0
        assert main(again) == 1


@pytest.mark.parametrize("direct", [False, True])
def test_locks_exclude_each_other(image: Path, direct: bool) -> None:
    try:
        first = File(image, direct=direct)
    except OSError as error:
        pytest.skip(f"cannot be opened so: {error}")
    with first, File(image) as second, File(image, read_only=True) as reader:
        first.lock()
        first.lock()
        with pytest.raises(BusyError, match="another program has locked it"):
            second.lock()
        with pytest.raises(BusyError):
            reader.lock(shared=True)
        with pytest.raises(ArgumentError, match="shared=True"):
            reader.lock()
        first.close()
        reader.lock(shared=True)
        with File(image, read_only=True, direct=direct) as other:
            other.lock(shared=True)
        with pytest.raises(BusyError):
            second.lock()
        reader.close()
        second.lock()
    assert iodma.Error in BusyError.__mro__


# --- QEMU's options -------------------------------------------------------------------------------


def test_the_options_for_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qemu-args", "blk", "--socket-path=/run/disk,1.sock", "--num-queues=4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert shlex.split(out) == [
        *("-m", "512M", "-object", "memory-backend-memfd,id=mem0,size=512M,share=on"),
        *("-M", "q35,memory-backend=mem0"),
        *("-chardev", "socket,id=disk0,path=/run/disk,,1.sock"),
        *("-device", "vhost-user-blk-pci,chardev=disk0,num-queues=4"),
    ]
    words = disk(Guest("s", memory="2G", iommu=True))
    assert words.index("intel-iommu,device-iotlb=on,caching-mode=on,intremap=off") < len(words) - 1
    assert words[-1].endswith(",iommu_platform=on,ats=on,disable-legacy=on")
    assert "memory-backend-memfd,id=mem0,size=2G,share=on" in words
    for memory in ("", "512M,share=off", "M512", "-1", "512", "0M", "512m "):
        with pytest.raises(ArgumentError, match="512M or 4G would be right"):
            disk(Guest("s", memory=memory))


DEVICE = """
import iodma
class Two_Pages(iodma.Device):
    pci = iodma.Pci(vendor=0xF1DA, device=0x10, bars={0: 8192})
    ident = iodma.Register(0x1000)
class Small(Two_Pages):
    pci = iodma.Pci(vendor=0xF1DA, device=0x10, bars={0: 4096})
class Off(iodma.Device):
    ident = iodma.Register(0x1000)
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("device.py").write_text(DEVICE)
    return "device.py:Two_Pages"


def test_the_options_for_qemu_and_a_device_of_ones_own(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["qemu-args", device, "--socket-path=/run/my dev[1],a.sock", "--memory=1G", "--iommu"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    # What a shell makes of $(...): it splits at white space, and takes quotes as they are.
    *others, shown = out.split()
    assert others == [
        *("-m", "1G", "-object", "memory-backend-memfd,id=mem0,size=1G,share=on"),
        *("-M", "q35,memory-backend=mem0", "-device", "intel-iommu,caching-mode=on", "-device"),
    ]
    assert json.loads(shown) == {
        "driver": "vfio-user-pci",
        "id": "twopages",
        "socket": {"type": "unix", "path": "/run/my dev[1],a.sock"},
    }
    script = f"for word in $({sys.executable} -m iodma {shlex.join(words)}); do echo $word; done"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.splitlines() == [*others, shown]


def test_options_that_are_copied_from_a_terminal_are_quoted() -> None:
    words = function(Guest("/run/s"), "dev0")
    assert shlex.split(render(words, terminal=True)) == words
    with pytest.raises(ArgumentError, match="id is '0dev'; a letter, then"):
        function(Guest("/run/s"), "0dev")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["device.py:Two_Pages", "--num-queues=2"], 2, "--num-queues is for blk"),
        (["blk", "--id=x"], 2, "--id is for FILE.py, and not for blk"),
        (["device.txt"], 2, "'device.txt' is neither blk nor FILE.py"),
        (["device.py"], 1, "device.py: defines Two_Pages, Small, Off: say which, as device.py:Two"),
        (["none.py"], 1, "none.py: there is no such file"),
        (
            ["device.py:Off"],
            1,
            "device.py: Off does not say what it is on a PCI bus; a line in it would: pci ="
            " iodma.Pci(vendor=0xF1DA, device=0x0001, bars={0: 8192})",
        ),
        (
            ["device.py:Small"],
            1,
            "device.py: Small.ident at 0x1000..0x1004 is behind none of the BARs, which show"
            " 0x0..0x1000 (BAR 0)",
        ),
    ],
)
def test_options_that_nobody_could_use(
    device: str, words: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qemu-args", *words, "--socket-path=s"]) == status
    out, err = capsys.readouterr()
    assert out == "" and text in err.splitlines()[-1]
