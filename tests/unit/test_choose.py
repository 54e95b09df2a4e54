"""Which backend an engine gets, and what it does when a ring cannot be had after all."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

import iodma
from iodma import _core

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
    monkeypatch.delenv("IODMA_ENGINE", raising=False)


@pytest.mark.usefixtures("no_ring")
def test_auto_takes_threads_when_there_is_no_room_for_a_ring() -> None:
    with iodma.Engine() as engine:
        assert engine.kind == "threads"


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


ECHO = """
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
import iodma
with iodma.Engine() as engine, iodma.Ram(4096) as ram, iodma.Buffer(b := 4096) as buffer:
    port = engine.port(iodma.Memory({0: ram}))
    async def main():
        return await port.from_memory((0, b), to=buffer)
    assert engine.run(main()).ok
print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up CAP_IPC_LOCK")
def test_a_low_limit_on_locked_memory_stops_nobody() -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("this machine has no setpriv")
    environment = {k: v for k, v in os.environ.items() if k != "IODMA_ENGINE"}
    done = subprocess.run(
        [setpriv, "--bounding-set=-ipc_lock,-sys_resource", sys.executable, "-c", ECHO],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
