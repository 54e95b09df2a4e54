# SPDX-License-Identifier: Apache-2.0
"""Rung 4: the copy engine made faulty on purpose, for those who test its driver.

It is rung 3 with an injection stage between it and memory, and a plan of what goes wrong.  A plan
has one fault a line (or between semicolons), and comments after `#`:

    STEP ACTION [nth=N | every=N | chance=P] [offset=BYTES] [seconds=S]

    STEP    ACTION
    fetch   fault, delay, hang    the descriptor is read
    read    fault, delay, hang    the source is read
    write   fault, delay, hang    the target is written
    report  fault, delay, hang    RESULT and MOVED are written back
    done    lose, delay, repeat   the interrupt of a descriptor that is done
    error   lose, delay, repeat   the interrupt of one that has failed, or of a halt
    reset   delay, hang           STATUS goes on to say that a reset is under way

`nth` is counted from power-on and from 1, `every` and `chance` (0 to 1) go on for ever, and without
any of them it is always.  `offset` is where in the access it faults or stays.  What is random comes
from `seed`: the same accesses give the same faults.  A `hang` lasts until a reset.  What is lost is
the message: the cause is in IRQ, and no other comes for it until the driver acknowledges it.

iodma run examples/rung4_faulty_engine.py
iodma run examples/rung4_faulty_engine.py seed=7 'faults=write fault chance=0.2; done lose every=3'
iodma run examples/rung4_faulty_engine.py --socket-path=S faults=plan.txt

The last one is for a driver in a virtual machine: docs/how-to-test-a-driver.md.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rung3_copy_engine import DONE, Cause, CopyEngine, Guest, State

import iodma
from iodma.testing import Clock, Inject, strict_engine

logger = logging.getLogger("iodma.examples.rung4")

ACCESS = ("fault", "delay", "hang")
ACTIONS = {
    **dict.fromkeys(("fetch", "read", "write", "report"), ACCESS),
    **dict.fromkeys(("done", "error"), ("lose", "delay", "repeat")),
    "reset": ("delay", "hang"),
}
NUMBERS = {"nth": int, "every": int, "chance": float, "offset": int, "seconds": float}


@dataclass
class Fault:
    """One line of a plan."""

    step: str
    action: str
    nth: int = 0
    every: int = 0
    chance: float | None = None
    offset: int = 0
    seconds: float = 0.01
    seen: int = 0
    dice: random.Random = field(default_factory=random.Random, repr=False)

    def strikes(self) -> bool:
        """The step is done once more: does it go wrong?"""
        self.seen += 1
        if self.chance is not None:
            return self.dice.random() < self.chance
        if self.every:
            return self.seen % self.every == 0
        return self.seen == self.nth or not self.nth


def planned(text: str, seed: int) -> list[Fault]:
    """The faults of a plan.  Raises ValueError: says which line, and what would be right."""
    faults = []
    for line in text.replace(";", "\n").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        step, action, options = words[0], words[1] if words[1:] else "", words[2:]
        if step not in ACTIONS:
            raise ValueError(f"{line.strip()!r}: no step {step!r}; there are {', '.join(ACTIONS)}")
        if action not in ACTIONS[step]:
            raise ValueError(f"{line.strip()!r}: of {step} there is {', '.join(ACTIONS[step])}")
        fault = Fault(step, action, dice=random.Random(f"{seed} {len(faults)}"))
        for name, _, value in (option.partition("=") for option in options):
            try:
                number = NUMBERS[name](value)
            except (KeyError, ValueError):
                wanted = ", ".join(f"{each}=NUMBER" for each in NUMBERS)
                raise ValueError(f"{line.strip()!r}: {name}={value} is none of {wanted}") from None
            if number < 0:
                raise ValueError(f"{line.strip()!r}: {name} is {value}; 0 or more would be right")
            setattr(fault, name, number)
        faults.append(fault)
    return faults


class FaultyEngine(CopyEngine):
    """A copy engine with which things go wrong, as a plan says."""

    faults: str = "write fault nth=3 offset=100; report delay every=4; done lose every=5"
    seed: int = 1

    injected = iodma.Register(0x30, access="ro", read="tally", always=True, doc="faults so far")

    def __init__(self, port: iodma.Port, **more) -> None:
        self.inject = Inject(port.space)
        super().__init__(port.engine.port(self.inject, port.name), **more)
        in_a_file = len(self.faults.split()) == 1
        text = Path(self.faults).read_text() if in_a_file else self.faults
        self.plan = planned(text, self.seed)
        self.past: Counter[str] = Counter()
        self.silent = 0  # causes that nobody is told of
        self.settling = self.powered = False

    def strike(self, step: str) -> Fault | None:
        """Counts one more of this step for each fault of the plan; the first that strikes."""
        struck = [fault for fault in self.plan if fault.step == step and fault.strikes()]
        if not struck:
            return None
        self.past[f"{step} {struck[0].action}"] += 1
        logger.info("%s: %s %s", self.name, step, struck[0].action)
        return struck[0]

    def tally(self) -> int:
        return self.past.total()

    # --- accesses -----------------------------------------------------------------------------

    @contextmanager
    def armed(self, step: str, address: int, length: int, access: iodma.Access) -> Iterator[None]:
        """For one access the stage does to it what the plan says."""
        fault = self.strike(step)
        at = address + fault.offset if fault else 0
        if fault is None or fault.offset >= length or at >> 64:
            yield
            return
        if fault.action == "fault":
            rule = self.inject.fault(at, 1, access)
        elif fault.action == "delay":
            rule = self.inject.delay(fault.seconds, at, 1, access)
        else:
            rule = self.inject.hold(at, 1, access)
        try:
            yield
        finally:
            rule.remove()

    async def fetch(self, descriptor: int) -> tuple[int, int, int, int]:
        with self.armed("fetch", descriptor, 24, iodma.Access.READ):
            return await super().fetch(descriptor)

    async def move(self, source: int, target: int, length: int) -> iodma.Completion:
        with (
            self.armed("read", source, length, iodma.Access.READ),
            self.armed("write", target, length, iodma.Access.WRITE),
        ):
            return await super().move(source, target, length)

    async def report(self, descriptor: int, done: iodma.Completion) -> None:
        with self.armed("report", descriptor + 0x18, 8, iodma.Access.WRITE):
            await super().report(descriptor, done)

    # --- interrupts ---------------------------------------------------------------------------

    def cause(self, cause: Cause) -> None:
        fault = self.strike("done" if cause == Cause.DONE else "error")
        if fault is not None and fault.action in ("lose", "delay"):
            self.silent |= cause
            if fault.action == "delay":
                self.start(self.late(cause, fault.seconds))
        super().cause(cause)
        if fault is not None and fault.action == "repeat":
            self.interrupt.set(False)
            self.error.set(False)
            self.signal()

    async def late(self, cause: Cause, seconds: float) -> None:
        await self.engine.sleep(seconds)
        self.silent &= ~cause
        self.signal()

    def signal(self, hidden: int = 0) -> None:
        self.silent &= self.irq  # what was acknowledged can be told again
        super().signal(hidden | self.silent)

    # --- reset --------------------------------------------------------------------------------

    def reset(self) -> None:
        self.silent = 0
        fault = self.strike("reset") if self.powered else None
        self.powered = True
        self.settling = fault is not None
        if fault is not None and fault.action == "delay":
            self.start(self.settle(fault.seconds))

    async def settle(self, seconds: float) -> None:
        await self.engine.sleep(seconds)
        self.settling = False

    def tell(self) -> int:
        return super().tell() | (State.RESETTING if self.settling else 0)

    async def work(self, tail: int) -> None:
        if not self.settling:
            await super().work(tail)


# --- a driver that comes through --------------------------------------------------------------


class Patient(Guest):
    """Gives the engine a time for each copy, and resets it when that is over."""

    SECONDS = 0.2

    async def copy(self, source: int, target: int, length: int) -> str:
        """One copy, and how it ended: "done", "failed", "hung" (which a reset has ended), or
        "untold": it is done, and no interrupt said so."""
        index, engine = self.bus.read32(self.base + 0x14), self.device.engine
        self.describe(index, source, target, length, flags=1)
        self.late = False
        timer = engine.call_later(self.SECONDS, self.give_up)
        self.bus.write32(self.base + 0x18, (index + 1) % self.ENTRIES)
        causes = Cause(0)
        while not (self.late or causes & Cause.HALTED or self.result(index)[0] & DONE):
            self.raised.clear()
            await self.raised.wait()  # which may be that of a copy before this one
            causes |= self.acknowledge()
        timer.cancel()
        result, moved = self.result(index)
        if causes & Cause.HALTED or not result & DONE:
            await self.restart()
            return "hung"
        if (result, moved) != (DONE | iodma.Status.OK, length):
            return "failed"
        return "untold" if self.late else "done"

    def give_up(self) -> None:
        self.late = True
        self.raised.set()

    async def restart(self) -> None:
        self.bus.write32(self.base + 0x0C, 1)
        while self.bus.read32(self.base + 0x10) & State.RESETTING:
            await self.device.engine.sleep(0.001)
        self.set_up()


async def driver(bus, base, device, engine, ram):
    guest = Patient(bus, base, device, engine, ram)
    guest.set_up()
    ended = Counter()
    for number in range(24):
        with ram.view(0x8000, 4096) as view:
            view[:] = bytes([number]) * 4096
        how = await guest.copy(0x8000, 0x10000, 4096)
        ended[how] += 1
        assert how not in ("done", "untold") or ram.view(0x10000, 4096) == bytes([number]) * 4096
    return {"copies": dict(ended), "faults": dict(device.past)}


# --- its tests --------------------------------------------------------------------------------


def tried(faults: str, test, **more):
    """Runs test(guest) with a plan; delays take no real time."""
    with strict_engine(clock=Clock()) as engine, iodma.Ram(1 << 20) as ram:
        port = engine.port(iodma.Memory({0: ram}))
        device, bus = FaultyEngine(port, faults=faults, **more), iodma.Bus()
        bus.attach(device, 0)
        guest = Patient(bus, 0, device, engine, ram)
        guest.set_up()
        return engine.run(test(guest))


async def five(guest: Patient) -> list[str]:
    return [await guest.copy(0x8000, 0x9000, 4096) for _ in range(5)]


def test_the_nth_access_goes_wrong_and_the_driver_is_told() -> None:
    async def test(guest):
        ends = [await guest.copy(0x8000, 0x9000, 4096) for _ in range(3)]
        assert guest.bus.read64(0x28) == 0x9000 + 100
        assert guest.bus.read32(0x30) == 1
        return ends

    assert tried("write fault nth=2 offset=100", test) == ["done", "failed", "done"]
    assert tried("read fault every=2", five) == ["done", "failed", "done", "failed", "done"]


def test_a_ring_that_cannot_be_read_halts_and_a_reset_helps() -> None:
    for plan in ("fetch fault nth=2", "report fault nth=2", "write hang nth=2"):
        assert tried(plan, five) == ["done", "hung", "done", "done", "done"], plan


def test_what_comes_late_is_not_what_comes_never() -> None:
    for step in ("fetch", "read", "write", "report", "done"):
        assert tried(f"{step} delay nth=1 seconds=0.1", five) == ["done"] * 5, step
        assert tried(f"{step} delay nth=1 seconds=0.3", five)[0] in ("hung", "untold"), step


def test_an_interrupt_that_is_lost_is_lost_until_it_is_acknowledged() -> None:
    assert tried("done lose nth=1", five) == ["untold", "done", "done", "done", "done"]
    assert tried("done repeat", five) == ["done"] * 5
    assert tried("read fault nth=1; error lose nth=1", five)[0] == "failed"


def test_a_reset_that_takes_its_time() -> None:
    async def test(guest):
        engine = guest.device.engine
        ends, before = [await guest.copy(0x8000, 0x9000, 4096) for _ in range(2)], engine.clock.now
        return [*ends, before >= 1 + Patient.SECONDS]

    assert tried("fetch hang nth=1; reset delay seconds=1", test) == ["hung", "done", True]


def test_a_seed_says_what_happens() -> None:
    async def many(guest):
        ends = [await guest.copy(0x8000, 0x9000, 64) for _ in range(60)]
        return ends, guest.device.past

    plan = "write fault chance=0.2; done lose chance=0.1; fetch hang chance=0.05"
    first = tried(plan, many, seed=3)
    assert first == tried(plan, many, seed=3) != tried(plan, many, seed=4)
    assert {"done", "failed", "untold", "hung"} == set(first[0])


def test_a_plan_that_makes_no_sense_is_refused() -> None:
    for text, words in (
        ("fetsh fault", "no step 'fetsh'; there are fetch, read"),
        ("fetch lose", "of fetch there is fault, delay, hang"),
        ("reset", "of reset there is delay, hang"),
        ("read fault nth=x", "nth=x is none of nth=NUMBER"),
        ("read fault often", "often= is none of"),
        ("read delay seconds=-1", "seconds is -1; 0 or more"),
    ):
        try:
            planned(f"# a plan\n{text}", 1)
        except ValueError as error:
            assert words in str(error)
        else:
            raise AssertionError(text)
