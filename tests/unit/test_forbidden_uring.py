"""io_uring forbidden, as containers forbid it: through seccomp.

Invariants:

- The filter is installed in a child process, because it can never be taken off again; it answers
  the three system calls of io_uring with EPERM, as the default profile of container engines does.
- What runs there is the same code and the same tests, on the threads engine.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Installs the filter; run before anything else in the child.
FORBID = """
import ctypes, struct

def forbid(error):
    LD, JEQ, RET = 0x20, 0x15, 0x06                       # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    setup, enter, register = 425, 426, 427                # the same numbers on every architecture
    code = [
        (LD, 0, 0, 0),                                    # seccomp_data.nr
        (JEQ, 3, 0, setup), (JEQ, 2, 0, enter), (JEQ, 1, 0, register),
        (RET, 0, 0, 0x7FFF0000),                          # SECCOMP_RET_ALLOW
        (RET, 0, 0, 0x00050000 | error),                  # SECCOMP_RET_ERRNO
    ]
    packed = b"".join(struct.pack("HBBI", *each) for each in code)
    block = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(block))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((38, 1, 0, 0, 0), (22, 2, program, 0, 0)):  # NO_NEW_PRIVS, SECCOMP
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")

"""


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if k != "IODMA_ENGINE"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", FORBID + textwrap.dedent(code)],
        cwd=ROOT,
        env={**given, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


USE = """
    import iodma
    from pathlib import Path
    for _ in range(3):
        with iodma.Engine() as engine, iodma.Ram(1 << 20) as ram, iodma.File(__FILE__) as file:
            assert engine.kind == "threads", engine.kind
            port = engine.port(iodma.Memory({0: ram}))
            async def main():
                return await port.to_memory([(4096, 1000), (0, 1000)], source=file)
            done = engine.run(main())
            assert done.ok, done
            with ram.view(4096, min(done.moved, 1000)) as view:
                assert bytes(view) == Path(__FILE__).read_bytes()[:1000]
            kind = engine.stats().kind
    print("worked on", kind)
"""


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_auto_falls_back_to_threads_and_works(error: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    run = child(f"    forbid({error})\n" + USE.replace("__FILE__", repr(str(path))))
    assert (run.returncode, run.stdout) == (0, "worked on threads\n"), run.stderr


@pytest.mark.parametrize("how", ["kind", "environment"])
def test_uring_is_refused_with_the_reason(how: str) -> None:
    run = child(
        f"""
        forbid({errno.EPERM})
        import iodma
        try:
            iodma.Engine({'"uring"' if how == "kind" else ""})
        except iodma.UnsupportedError as error:
            print(error)
        """,
        **({"IODMA_ENGINE": "uring"} if how == "environment" else {}),
    )
    assert run.returncode == 0, run.stderr
    assert "EPERM" in run.stdout and "threads engine" in run.stdout


def test_an_engine_whose_ring_is_refused_later_leaves_nothing_behind() -> None:
    """The probe went well, and the filter came afterwards: an error, and no descriptor."""
    run = child(
        f"""
        import os, iodma
        from iodma.testing import no_leaks
        try:
            iodma.Engine("uring").close()
        except iodma.UnsupportedError:
            raise SystemExit(0)  # this host has none
        forbid({errno.EPERM})
        with no_leaks():
            for _ in range(5):
                try:
                    iodma.Engine("uring")
                except (OSError, iodma.UnsupportedError):
                    continue
                raise SystemExit("it was made")
        """
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.limit(120)
def test_the_contract_holds_there_too() -> None:
    run = child(
        f"""
        forbid({errno.EPERM})
        import sys, pytest
        files = ["tests/unit/test_contract.py", "tests/unit/test_states.py"]
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *files]))
        """
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout
