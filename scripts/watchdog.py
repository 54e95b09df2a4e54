"""Runs a command and ends it when it hangs, after printing where it hangs.

    scripts/watchdog.py [--silence S] [--total S] [--test S] [--grace S] -- COMMAND...

Invariants:

- A hang is one of three: nothing printed and no test begun or ended for `silence` seconds; one test
  running for longer than its limit; the whole for longer than `total`. It always ends in exit 124.
- Nothing that the command started outlives this process. Descendants that left the process group
  are found because orphans are handed to the watchdog (it is their "child subreaper"); one that is
  still there when the command has ended by itself is named, killed, and a failure (exit 125).
- No signal goes to a process that is not a descendant, and none that would merely kill a process
  that does not catch it: SIGUSR1 and SIGUSR2 (iodma's transfers in flight, faulthandler's stacks)
  are sent where /proc says that they are caught.

Which test runs is told by tests/conftest.py through the file that IODMA_WATCHDOG_FILE names: one
line "LIMIT NODE-ID" while a test runs, empty between tests; its time of change is the test's begin.
Tests that run side by side have a file each, whose names begin with that one's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HUNG = 124
LEFT_BEHIND = 125
PR_SET_CHILD_SUBREAPER = 36
#: For what a process below prints after a signal: at most, and when nothing more comes.
DUMP_SECONDS, QUIET_SECONDS = 1.5, 0.3


def say(text: str) -> None:
    print(f"\nwatchdog: {text}", flush=True)


def field(pid: int, name: str) -> str:
    """One line of /proc/PID/status, or "" when there is no such process any more."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def descendants() -> list[int]:
    """Every living process below this one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = field(int(entry.name), "PPid")
            if parent and not field(int(entry.name), "State").startswith("Z"):
                children.setdefault(int(parent), []).append(int(entry.name))
    found = [os.getpid()]
    for pid in found:
        found.extend(children.get(pid, []))
    return found[1:]


def describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        command = ""
    return f"{pid} {command.strip() or field(pid, 'Name')}"


def catches(pid: int, number: signal.Signals) -> bool:
    return bool(int(field(pid, "SigCgt") or "0", 16) >> (number - 1) & 1)


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Run:
    """One command under watch. `wait()` returns its exit status, HUNG or LEFT_BEHIND."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        silence: float,
        total: float,
        test: float,
        grace: float = 3,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.silence, self.total, self.test, self.grace = silence, total, test, grace
        self.begin = self.heard = time.monotonic()
        self.mark_file = tempfile.NamedTemporaryFile(prefix="watchdog-")  # noqa: SIM115
        #: File -> (its time of change, what it says, when that was seen).
        self.marks: dict[str, tuple[int, str, float]] = {}
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**(environment or os.environ), "IODMA_WATCHDOG_FILE": self.mark_file.name},
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.output, selectors.EVENT_READ)

    def relay(self, seconds: float) -> None:
        """Passes on what the command prints, for so long at most."""
        if not self.selector.get_map():
            time.sleep(seconds)
        elif self.selector.select(seconds):
            data = os.read(self.output, 1 << 16)
            if data:
                self.heard = time.monotonic()
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                self.selector.unregister(self.output)

    def why_hung(self) -> str | None:
        now = time.monotonic()
        running = []
        for name in self.mark_files():
            mark = (os.stat(name).st_mtime_ns, Path(name).read_text())
            if mark != self.marks.get(name, ())[:2]:
                self.marks[name] = (*mark, now)
                self.heard = now
            text, begin = self.marks[name][1:]
            limit, _, node = text.partition(" ")
            if node:
                running.append((node, float(limit) or self.test, now - begin))
        inside = f", in {', '.join(node for node, _, _ in running)}" if running else ""
        if now - self.begin > self.total:
            return f"not done after {self.total:g} s{inside}"
        for node, most, seconds in running:
            if seconds > most:
                return f"{node} still runs after {most:g} s"
        if not running and now - self.heard > self.silence:
            return f"nothing heard for {self.silence:g} s"
        return None

    def mark_files(self) -> list[str]:
        path = Path(self.mark_file.name)
        return sorted(str(each) for each in path.parent.glob(path.name + "*"))

    def wait(self) -> int:
        try:
            while self.process.returncode is None:
                self.relay(0.2)
                self.reap()
                why = self.why_hung()
                if why:
                    say(f"HANG: {why}")
                    self.dump()
                    return HUNG
            status = self.process.returncode
            left = self.settle()
            if left:
                say("left behind by the command: " + "; ".join(describe(pid) for pid in left))
            if status < 0:
                say(f"the command died of {signal.Signals(-status).name}")
            return (128 - status if status < 0 else status) or (LEFT_BEHIND if left else 0)
        finally:
            self.end()

    def reap(self) -> None:
        """Collects the command and the orphans that were handed to us."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid == self.process.pid:
                self.process.poll()
            else:
                os.waitpid(ended.si_pid, 0)

    def settle(self) -> list[int]:
        """Gives what the command started a moment to end, and its last words to arrive."""
        deadline = time.monotonic() + self.grace
        while True:
            self.reap()
            left = descendants()
            if (not left and not self.selector.get_map()) or time.monotonic() > deadline:
                return left
            self.relay(0.05)

    def dump(self) -> None:
        """Lets every process below say where it is, then asks the kernel and debuggers."""
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            told = [pid for pid in descendants() if catches(pid, number)]
            if not told:
                continue
            begin = now = time.monotonic()
            send(told, number)
            while now - begin < DUMP_SECONDS:
                self.relay(0.1)
                now = time.monotonic()
                if self.heard > begin and now - self.heard > QUIET_SECONDS:
                    break
        for pid in descendants():
            say(f"process {describe(pid)}")
            for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
                print_task(task)
            debuggers = (
                ["py-spy", "dump", "--pid", str(pid)],
                ["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all backtrace 30"],
            )
            for debugger in debuggers:
                if shutil.which(debugger[0]):
                    run_briefly(debugger)

    def end(self) -> None:
        """SIGTERM, then SIGKILL, to everything below; returns when nothing is left."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            send(descendants(), number)
            deadline = time.monotonic() + self.grace
            while descendants() and time.monotonic() < deadline:
                self.relay(0.05)
                self.reap()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.selector.close()
        for name in self.mark_files():
            if name != self.mark_file.name:
                os.unlink(name)
        self.mark_file.close()


def print_task(task: Path) -> None:
    """What the kernel says of one thread: its name, state, system call and kernel stack."""

    def read(name: str) -> str:
        try:
            return (task / name).read_text().strip()
        except OSError:
            return "?"

    state = next((line for line in read("status").splitlines() if line.startswith("State")), "?")
    print(f"  thread {task.name} {read('comm')}: {' '.join(state.split())}, wchan {read('wchan')},")
    print(f"    system call {read('syscall')}")
    for line in read("stack").splitlines():
        print(f"    {line}")
    sys.stdout.flush()


def run_briefly(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, timeout=20, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        say(f"{command[0]} gave no answer")


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a command and ends it when it hangs.")
    parser.add_argument("--silence", type=float, default=120, help="seconds without output")
    parser.add_argument("--total", type=float, default=1800, help="seconds for the whole")
    parser.add_argument("--test", type=float, default=60, help="seconds for one test")
    parser.add_argument("--grace", type=float, default=3, help="seconds to end when it is over")
    parser.add_argument("command", nargs="+")
    options = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return Run(options.pop("command"), **options).wait()


if __name__ == "__main__":
    sys.exit(main())
