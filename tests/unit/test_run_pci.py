"""`iodma run FILE.py --socket-path=S` from outside: the ladder's devices, driven by a client over a
socket, and what the command prints, holds, and ends with.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from iodma.cli import main
from tests.unit.vfio_client import CONFIG, INTX, MSIX, Client, SharedMemory

IODMA = (sys.executable, "-m", "iodma")
EXAMPLES = Path(__file__).parents[2] / "examples"
PIECE = bytes(range(256)) * 16


@contextmanager
def served(
    name: str, *words: str, fds: Sequence[int] = ()
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An example's device, and the line that says that it can be connected to."""
    with subprocess.Popen(
        [*IODMA, "run", str(EXAMPLES / name), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "is served at" in line, line + process.stderr.read()
            yield process, line
        finally:
            process.kill()


@contextmanager
def driven(path: Path) -> Iterator[tuple[Client, SharedMemory]]:
    """A client with a megabyte of memory at 0, and a function that may master the bus."""
    with Client(path) as client, SharedMemory(1 << 20) as memory:
        client.negotiate()
        client.map(0, memory.size, memory.fd)
        client.bus_master()
        yield client, memory


def ended(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=20)


# --- the ladder -----------------------------------------------------------------------------------


def test_rung_1_registers_over_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        served("rung1_registers.py", f"--socket-path={path}") as (process, line),
        driven(path) as (client, _),
    ):
        assert line.startswith(f"iodma: Pins (f1da:0001) is served at {path}, by ")
        assert struct.unpack("<HH", client.read(CONFIG, 0, 4)) == (0xF1DA, 1)
        client.write(0, 1, b"\x0f\xf5")
        assert client.read(0, 0, 4) == b"\x8d\x0f\xf5\x05"
        process.terminate()
        assert ended(process) == 0
    assert not path.exists()


def test_rung_2_a_block_of_a_file_and_intx(tmp_path: Path) -> None:
    disk, path = tmp_path / "disk.img", tmp_path / "s"
    disk.write_bytes(b"".join(b"block %d." % number * 64 for number in range(8)))
    with (
        served("rung2_doorbell.py", f"--socket-path={path}", f"disk={disk}"),
        driven(path) as (client, memory),
    ):
        pin = client.eventfd(INTX)
        client.write(0, 0, struct.pack("<Q", 0x2000))
        client.write32(0, 8, 3)
        assert client.interrupted(pin) == 1
        assert memory.bytes[0x2000 : 0x2000 + 512] == b"block 3." * 64
        assert client.read32(0, 12) == 0
        os.close(pin)


def describe(memory: SharedMemory, index: int, *words: int) -> None:
    struct.pack_into("<QQIIQ", memory.bytes, 0x1000 + 32 * index, *words, 0)


def test_rung_3_a_ring_with_two_vectors_and_a_reset(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        served("rung3_copy_engine.py", f"--socket-path={path}"),
        driven(path) as (client, memory),
    ):
        done, error = (client.eventfd(MSIX, vector) for vector in range(2))
        memory.bytes[0x8000:0x9000] = PIECE
        for _ in range(2):
            client.write(0, 0x00, struct.pack("<QI", 0x1000, 8))
            client.write32(0, 0x20, 7)
            describe(memory, 0, 0x8000, 0x10000, 4096, 1)
            describe(memory, 1, 0x8000, 0xDEAD_0000, 4096, 1)
            client.write32(0, 0x18, 1)
            assert client.interrupted(done) == 1
            assert memory.bytes[0x10000:0x11000] == PIECE
            assert struct.unpack_from("<II", memory.bytes, 0x1018) == (1 << 31, 4096)
            client.write32(0, 0x18, 2)
            assert client.interrupted(error) == 1
            assert client.read(0, 0x28, 8) == struct.pack("<Q", 0xDEAD_0000)
            assert not select.select([done], [], [], 0)[0]
            memory.bytes[0x10000:0x11000] = bytes(4096)
            client.reset()
            client.bus_master()
            assert client.read(0, 0x00, 8) == bytes(8)
        os.close(done)
        os.close(error)


def test_rung_4_a_fault_as_its_plan_says(tmp_path: Path) -> None:
    path = tmp_path / "s"
    words = ("faults=write fault nth=2 offset=100", f"--socket-path={path}", "-v")
    with served("rung4_faulty_engine.py", *words) as (process, _):
        with driven(path) as (client, memory):
            done, error = (client.eventfd(MSIX, vector) for vector in range(2))
            client.write(0, 0x00, struct.pack("<QI", 0x1000, 8))
            client.write32(0, 0x20, 7)
            for index in range(3):
                describe(memory, index, 0x8000, 0x10000, 4096, 1)
                client.write32(0, 0x18, index + 1)
                assert client.interrupted(error if index == 1 else done) == 1
                client.write32(0, 0x1C, 7)
            results = [memory.bytes[0x1018 + 32 * index] for index in range(3)]
            assert results == [0, 1, 0]  # iodma.Status
            assert client.read(0, 0x28, 8) == struct.pack("<Q", 0x10000 + 100)
            assert client.read32(0, 0x30) == 1
            os.close(done)
            os.close(error)
        process.terminate()
        assert ended(process) == 0
        assert process.stderr is not None
        assert "write fault" in process.stderr.read()


# --- how long it serves ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_it_ends_soon_after_a_signal(tmp_path: Path, number: signal.Signals, engine: str) -> None:
    path = tmp_path / "s"
    words = (f"--socket-path={path}", f"--engine={engine}")
    with served("rung3_copy_engine.py", *words) as (process, _):
        with driven(path) as (client, _):
            client.write(0, 0x00, struct.pack("<QI", 0x1000, 8))
            process.send_signal(number)
            assert ended(process) == 0
            assert client.gone()
        assert not path.exists()
        assert process.stdout is not None and process.stdout.read() == ""


def test_one_machine_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with served("rung3_copy_engine.py", f"--socket-path={path}"):
        for _ in range(3):
            with driven(path) as (client, _):
                assert client.read(0, 0x08, 4) == bytes(4)
                client.write32(0, 0x08, 8)


def test_a_connection_that_was_given_is_served_until_it_ends() -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        served("rung1_registers.py", f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as (
            process,
            line,
        ),
    ):
        assert f"is served at descriptor {theirs.fileno()}" in line
        theirs.close()
        with Client(ours) as client:
            client.negotiate()
            assert client.read(0, 0, 1) == b"\x8d"
        assert ended(process) == 0


def test_a_trace_and_statistics(tmp_path: Path) -> None:
    path, trace = tmp_path / "s", tmp_path / "trace.json"
    words = (f"--socket-path={path}", f"--trace={trace}")
    with served("rung3_copy_engine.py", *words) as (process, _):
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("iodma: copyengine (")
        process.terminate()
        assert ended(process) == 0
    assert "traceEvents" in json.loads(trace.read_text())


# --- a command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_a_command_gives_the_status(command: str, status: int) -> None:
    done = subprocess.run(
        [*IODMA, "run", str(EXAMPLES / "rung1_registers.py"), "--run", command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_command_finds_the_socket() -> None:
    script = (
        'test -S "$IODMA_SOCKET" && echo "$IODMA_SOCKET" && for w in $IODMA_QEMU; do echo $w; done'
    )
    done = subprocess.run(
        [*IODMA, "run", str(EXAMPLES / "rung3_copy_engine.py"), "--run", script],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    path, *words = done.stdout.splitlines()
    assert words[:2] == ["-m", "512M"]
    assert json.loads(words[-1])["socket"] == {"type": "unix", "path": path}
    assert not Path(path).parent.exists()


def test_a_signal_goes_to_the_command(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    command = f"trap 'exit 5' TERM; echo > {ready}; while :; do sleep 0.01; done"
    with subprocess.Popen(
        [*IODMA, "run", str(EXAMPLES / "rung1_registers.py"), "--run", command]
    ) as process:
        ready.read_text()
        process.send_signal(signal.SIGINT)  # which a terminal sends to the command by itself
        process.terminate()
        assert process.wait(timeout=20) == 5


# --- what cannot be served ------------------------------------------------------------------------

PLAIN = "import iodma\nclass D(iodma.Device):\n    ident = iodma.Register(0x0)\n"
LINE = "    pci = iodma.Pci(vendor=0x1234, device=1, bars={0: 4096})\n"


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        (
            PLAIN,
            ["--socket-path=s"],
            "other.py: D does not say what it is on a PCI bus; a line in it would: pci ="
            " iodma.Pci(vendor=0xF1DA, device=0x0001, bars={0: 4096})",
        ),
        (
            PLAIN + LINE + "    far = iodma.Register(0x1000)\n",
            ["--socket-path=s"],
            "other.py: D.far at 0x1000..0x1004 is behind none of the BARs, which show",
        ),
        (
            PLAIN + LINE + "    def __init__(self, port):\n"
            "        super().__init__(port.engine.port(iodma.Memory({})))\n",
            ["--socket-path=s"],
            "leads to no PciSlot",
        ),
        (
            PLAIN + LINE + "    def reset(self): 1 / 0\n",
            ["--socket-path=s"],
            "other.py:5: D cannot be made: ZeroDivisionError",
        ),
        (PLAIN + LINE, ["--socket-path=other.py"], "other.py is there and is no socket"),
        (PLAIN + LINE, ["--socket-path=none/s"], "none/s: No such file or directory"),
        (PLAIN + LINE, ["--socket-path=" + "x" * 200], "1 to 107 bytes would be right"),
        (PLAIN + LINE, ["--fd=99"], "descriptor 99 is not open"),
        (PLAIN + LINE, ["--socket-path=s", "disk=x"], "D has no endpoint disk"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    text: str,
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.py").write_text(text)
    assert main(["run", "other.py", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and told in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not Path("s").exists()


def test_a_path_where_another_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    again = ["run", str(EXAMPLES / "rung1_registers.py"), f"--socket-path={path}"]
    with served("rung1_registers.py", f"--socket-path={path}"):
        assert main(again) == 1
        assert capsys.readouterr().err == f"iodma: error: another server listens at {path}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--socket-path=s", "--fd=3"], "not allowed with argument"),
        (["--fd=x"], "invalid whole number value: 'x'"),
        (["--socket-path=s", "--ram=8"], "--ram is for the driver in the file, and not for"),
        (["--run=true", "--json"], "--json is for the driver in the file, and not for --run"),
    ],
)
def test_a_wrong_command_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "file.py", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err.splitlines()[-1]
