# SPDX-License-Identifier: Apache-2.0
"""Many programs on both sides: the differential test's runner.

    .venv/bin/python -m tests.peers.sun4m.campaign --programs 1000 --seed 7 --processes 2
    .venv/bin/python -m tests.peers.sun4m.campaign --replay FILE

Invariants:

- Program N of a campaign depends on the campaign's seed and N only, not on how many processes
  there are.
- A side that is gone is restarted. An oracle that ended gives no verdict, which is counted, told
  and saved; our own machine that ended is a failure of the program.
- A failing program is shrunk, and saved in a file that replays it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.sun4m.compare import Divergence, Verdict, compare, describe
from tests.peers.sun4m.divergences import DIVERGENCES
from tests.peers.sun4m.generators import GENERATORS
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.session import Gone, Observation, Session
from tests.peers.sun4m.shrink import shrink
from tests.peers.sun4m.sides import SIDES, Make

#: Failing programs that are shrunk and told in one campaign; more only count.
SHOWN = 5
FAILURES = Path(".differential")


@dataclass
class Tally:
    """How a campaign went."""

    programs: int = 0
    agreed: int = 0
    failed: int = 0
    no_verdict: int = 0
    moments: int = 0
    used: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)
    reports: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.programs += other.programs
        self.agreed += other.agreed
        self.failed += other.failed
        self.no_verdict += other.no_verdict
        self.moments += other.moments
        self.used += other.used
        self.ended += other.ended
        self.gone += other.gone
        self.reports += other.reports

    def summary(self) -> str:
        said = (
            f"{self.programs} programs: {self.agreed} agreed at {self.moments} checks, "
            f"{self.failed} failed, {self.no_verdict} without a verdict"
        )
        for why, count in self.gone.most_common():
            said += f"\n  {count} times without a verdict: {why}"
        for name, count in self.used.most_common():
            ended = f", which ended {self.ended[name]} programs" if self.ended[name] else ""
            said += f"\n  {count} times: {name}{ended}"
        return said


class Pair:
    """Both sides, started when they are needed first and again after they ended."""

    def __init__(self, folder: Path, make_ours: Make, make_theirs: Make) -> None:
        self.folder = folder
        self._make = {"ours": make_ours, "theirs": make_theirs}
        self._running: dict[str, Session] = {}
        self._made = 0
        #: Why there was no verdict last.
        self.why = ""

    def close(self) -> None:
        while self._running:
            self._running.popitem()[1].close()

    def side(self, which: str) -> Session:
        if which not in self._running:
            self._made += 1
            folder = self.folder / f"{which}{self._made}"
            folder.mkdir()
            self._running[which] = self._make[which](folder)
        return self._running[which]

    def run(self, which: str, program: Program) -> list[Observation]:
        try:
            return self.side(which).run(program)
        except Gone:
            self._running.pop(which).close()
            raise

    def judge(self, program: Program, divergences: Sequence[Divergence]) -> Verdict | str | None:
        """None: no verdict, for the oracle has ended; a text: our side has."""
        try:
            theirs = self.run("theirs", program)
        except Gone as gone:
            self.why = str(gone)
            return None
        try:
            ours = self.run("ours", program)
        except Gone as gone:
            return str(gone)
        return compare(program, ours, theirs, divergences)


def make_program(seed: int, number: int, kinds: Sequence[str] = ()) -> Program:
    """Program `number` of the campaign with this seed."""
    rng = random.Random(f"{seed}/{number}")
    weights = dict.fromkeys(kinds, 1.0) or {name: share for name, (_, share) in GENERATORS.items()}
    (kind,) = rng.choices(list(weights), list(weights.values()))
    return GENERATORS[kind][0](rng.getrandbits(32))


def failed(outcome: Verdict | str | None) -> bool:
    return isinstance(outcome, str) or bool(outcome and outcome.failure)


def likeness(outcome: Verdict | str | None) -> frozenset[tuple[str, int]]:
    """What a failure is known by while it is shrunk: what differs, and in which bits."""
    if isinstance(outcome, str):
        return frozenset({("gone", 0)})
    if outcome is None or outcome.failure is None:
        return frozenset()
    moment = outcome.failure
    memory = {("memory", 0)} if moment.memory else set()
    return frozenset(memory | set(moment.differs.items()))


def campaign(
    pair: Pair,
    programs: Iterator[Program],
    divergences: Sequence[Divergence] = DIVERGENCES,
    *,
    failures: Path = FAILURES,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    tally = Tally()
    for program in programs:
        outcome = pair.judge(program, divergences)
        tally.programs += 1
        if outcome is None:
            tally.no_verdict += 1
            tally.gone[pair.why.splitlines()[-1]] += 1
            program.save(failures / f"gone-{program.kind}-{program.seed:08x}.json")
        elif failed(outcome):
            tally.failed += 1
            if len(tally.reports) < SHOWN:
                tally.reports.append(report(pair, program, outcome, divergences, failures))
        elif isinstance(outcome, Verdict):
            tally.agreed += 1
            tally.moments += outcome.compared
            tally.used += outcome.used
            tally.ended[outcome.ended] += bool(outcome.ended)
        progress(tally)
    return tally


def report(
    pair: Pair,
    program: Program,
    outcome: Verdict | str | None,
    divergences: Sequence[Divergence],
    failures: Path,
) -> str:
    """Shrinks a failing program, saves it, and tells about it."""

    def same(shorter: Program) -> bool:
        return likeness(pair.judge(shorter, divergences)) == likeness(outcome)

    short = shrink(program, same)
    last = pair.judge(short, divergences)
    path = failures / f"{program.kind}-{program.seed:08x}.json"
    short.save(path)
    program.save(path.with_suffix(".whole.json"))
    if isinstance(last, str):
        said = last
    elif last is not None and last.failure is not None:
        said = describe(last.failure)
    else:
        said = "it did not fail when it was run again"
    return f"--- {program.kind}, seed {program.seed:#x}: {path}\n{short}\n{said}"


def worker(
    number: int, of: int, arguments: argparse.Namespace, results: multiprocessing.SimpleQueue[Tally]
) -> None:
    with tempfile.TemporaryDirectory(prefix="iodma-") as folder, ExitStack() as stack:
        pair = Pair(Path(folder), SIDES[arguments.ours], SIDES[arguments.oracle])
        stack.callback(pair.close)
        numbers = range(arguments.first + number, arguments.first + arguments.programs, of)
        programs = (make_program(arguments.seed, at, arguments.kind) for at in numbers)
        divergences = DIVERGENCES if arguments.ours == "board" else ()
        sent = Tally()
        for program in programs:
            sent = campaign(pair, iter([program]), divergences, failures=arguments.failures)
            results.put(sent)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs differential programs.")
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kind", action="append", choices=list(GENERATORS), default=[])
    parser.add_argument("--ours", choices=list(SIDES), default="board")
    parser.add_argument("--oracle", choices=list(SIDES), default="qemu11")
    parser.add_argument("--failures", type=Path, default=FAILURES, help="where they are saved")
    parser.add_argument("--replay", type=Path, help="a saved program, instead of a campaign")
    parser.add_argument("--observations", action="store_true", help="with --replay: print all")
    parser.add_argument("--divergences", action="store_true", help="list the deliberate ones")
    arguments = parser.parse_args()
    if arguments.divergences:
        for each in DIVERGENCES:
            end = " (ends the comparison)" if each.ends else ""
            print(f"{each.name}{end}\n    {each.differs}\n    {each.source}")
        return 0
    if arguments.replay:
        return replay(arguments)
    print(f"seed {arguments.seed}", flush=True)
    results: multiprocessing.SimpleQueue[Tally] = multiprocessing.SimpleQueue()
    workers = [
        multiprocessing.Process(target=worker, args=(at, arguments.processes, arguments, results))
        for at in range(arguments.processes)
    ]
    for process in workers:
        process.start()
    total, begin, told = Tally(), time.monotonic(), 0.0
    while total.programs < arguments.programs:
        if results.empty():
            if not any(process.is_alive() for process in workers) and results.empty():
                break
            workers[0].join(0.05)
            continue
        part = results.get()
        shown = len(total.reports)
        total.add(part)
        if part.reports and shown < SHOWN:
            print(*part.reports, sep="\n", flush=True)
        now = time.monotonic() - begin
        if now - told >= 10:
            told = now
            print(f"  {now:.0f} s: {total.summary().splitlines()[0]}", flush=True)
    for process in workers:
        process.join()
    print(total.summary(), f"in {time.monotonic() - begin:.0f} s", flush=True)
    complete = total.programs == arguments.programs
    return 0 if complete and not total.failed and total.no_verdict * 100 < total.programs else 1


def replay(arguments: argparse.Namespace) -> int:
    program = Program.load(arguments.replay)
    with tempfile.TemporaryDirectory(prefix="iodma-") as folder, ExitStack() as stack:
        pair = Pair(Path(folder), SIDES[arguments.ours], SIDES[arguments.oracle])
        stack.callback(pair.close)
        print(program)
        if arguments.observations:
            for which in ("theirs", "ours"):
                for seen in pair.run(which, program):
                    print(which, seen.step, seen.what, _shown(seen.value))
        outcome = pair.judge(program, DIVERGENCES)
    if isinstance(outcome, Verdict):
        print(describe(outcome.failure) if outcome.failure else f"agreed {dict(outcome.used)}")
    else:
        print(outcome or "no verdict")
    return int(failed(outcome))


def _shown(value: int | bytes | tuple[bytes, ...]) -> str:
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return ", ".join(f"{len(frame)} bytes {frame[:16].hex()}" for frame in value) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
