"""scripts/watchdog.py: a hang ends, says where it was, and nothing is left behind."""

import subprocess
import sys
import time
from pathlib import Path

WATCHDOG = Path(__file__).parents[2] / "scripts" / "watchdog.py"


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WATCHDOG), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_ends_by_itself_keeps_its_output_and_exit_status() -> None:
    done = watch("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\nerr\n")


def test_a_hang_is_ended_with_its_stack() -> None:
    code = """
import faulthandler, signal, subprocess, time
faulthandler.register(signal.SIGUSR2)
child = subprocess.Popen(["sleep", "100"], start_new_session=True)
print("child", child.pid, flush=True)
def waits_for_ever():
    time.sleep(100)
waits_for_ever()
"""
    begin = time.monotonic()
    done = watch("--silence", "1", "--", sys.executable, "-c", code)
    assert done.returncode == 124
    assert time.monotonic() - begin < 45
    assert "HANG: nothing heard for 1 s" in done.stdout
    assert "in waits_for_ever" in done.stdout
    assert not is_alive(int(done.stdout.split()[1]))


def test_a_process_that_is_left_behind_is_a_failure() -> None:
    done = watch("--grace", "0.3", "--", "sh", "-c", "setsid sleep 101 >/dev/null 2>&1 & echo $!")
    assert done.returncode == 125
    assert "left behind" in done.stdout
    assert "sleep 101" in done.stdout
    assert not is_alive(int(done.stdout.split()[0]))


def test_of_tests_side_by_side_each_has_its_own_limit() -> None:
    code = """
import os, time
name = os.environ["IODMA_WATCHDOG_FILE"]
with open(name + ".gw0", "w") as file:
    file.write("1 test_that_hangs")
for number in range(400):
    with open(name + ".gw1", "w") as file:
        file.write(f"30 test_{number}")
    time.sleep(0.1)
"""
    done = watch("--silence", "30", "--", sys.executable, "-c", code)
    assert done.returncode == 124
    assert "HANG: test_that_hangs still runs after 1 s" in done.stdout
