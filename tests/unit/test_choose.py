"""Which backend an engine gets, and what it does when a ring cannot be had after all."""

import errno
import logging
import os
import shutil
import subprocess
import sys

import pytest

import iodma
from iodma import _core
from iodma.ratelimit import RateLimit

NO_RING = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.fixture
def no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """io_uring says that it is there, and then makes no ring."""
    real = _core.Engine._open

    def refuse(self: iodma.Engine, kind: int, *sizes: int) -> None:
        if kind == 0:
            raise NO_RING
        real(self, kind, *sizes)

    monkeypatch.setattr(iodma.Engine, "_open", refuse, raising=False)
    monkeypatch.setattr("iodma.engine.choose.uring_probe", lambda: {"error": 0})
    told = RateLimit(logging.getLogger("iodma.engine"), burst=1)
    monkeypatch.setattr("iodma.engine.choose._told", told)
    monkeypatch.delenv("IODMA_ENGINE", raising=False)


@pytest.mark.usefixtures("no_ring")
@pytest.mark.parametrize("probe", [0, errno.ENOMEM])
def test_auto_takes_threads_when_there_is_no_room_for_a_ring_and_says_so_once(
    probe: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("iodma.engine.choose.uring_probe", lambda: {"error": probe})
    for _ in range(2):
        with iodma.Engine() as engine:
            assert engine.kind == "threads"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "ENOMEM" in record.message and "ulimit -l" in record.message


@pytest.mark.usefixtures("no_ring")
def test_who_asks_for_a_ring_is_told_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(iodma.UnsupportedError, match=r"ENOMEM.*`ulimit -l`"):
        iodma.Engine("uring")
    monkeypatch.setenv("IODMA_ENGINE", "uring")
    with pytest.raises(iodma.UnsupportedError, match="a ring of io_uring could not be made"):
        iodma.Engine()


def test_an_error_of_the_threads_engine_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: iodma.Engine, *sizes: int) -> None:
        raise NO_RING

    monkeypatch.setattr(iodma.Engine, "_open", refuse, raising=False)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        iodma.Engine("threads")


#: A setpriv that takes the right to lock more than the limit away; nobody but root has it.
SETPRIV = shutil.which("setpriv")


def limited(limit_bytes: int, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that may lock so much memory."""
    if os.geteuid() != 0:
        command = []
    elif SETPRIV is not None:
        command = [SETPRIV, "--bounding-set=-ipc_lock,-sys_resource"]
    else:
        pytest.skip("this machine has no setpriv")
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_MEMLOCK, ({limit_bytes}, {limit_bytes}))"
    return subprocess.run(
        [*command, sys.executable, "-W", "error", "-c", f"{limit}\n{code}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "IODMA_ENGINE"},
    )


ECHO = """
import iodma
with iodma.Engine() as engine, iodma.Ram(4096) as ram, iodma.Buffer(b := 4096) as buffer:
    port = engine.port(iodma.Memory({0: ram}))
    async def main():
        return await port.from_memory((0, b), to=buffer)
    assert engine.run(main()).ok
print("done")
"""


def test_a_low_limit_on_locked_memory_stops_nobody() -> None:
    done = limited(1 << 16, ECHO)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


ONE_AFTER_THE_OTHER = """
import iodma
from iodma import _core
kinds = []
for _ in range(150):  # of which a dozen fit into the limit
    with iodma.Engine(bounce_bytes=4096) as engine:
        kinds.append(engine.kind)
print(*sorted(set(kinds)) if not _core.uring_probe()["error"] else ["uring"])
"""


def test_the_memory_of_a_ring_that_was_closed_is_waited_for() -> None:
    """The kernel gives it back some time after the close."""
    done = limited(2 << 20, ONE_AFTER_THE_OTHER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "uring\n", "")
