"""What software does to a function while DMA is in flight: nothing gets past a gate that is shut.

Each schedule is drawn from one number (`run_schedule(seed)` replays it). Transfers wait at an
endpoint that answers when the schedule says, so that they are in flight across everything.

What is checked, after every step:

- The gate is open when Bus Master Enable is set and the function in D0, and only then.
- A write that leaves it shut is acknowledged when nothing is in flight any more that came through,
  not before; from then on no byte of memory changes until it is opened.
- After a reset the configuration space is as at power-on, at once.
- A message comes while the gate is open only. Every edge ends in one, or in a pending bit, or is
  forgotten by a reset.
- In the end everything that was waited for has come, and the function works.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

import iodma
from iodma.pci import Function
from iodma.testing import Answer, FakeMemory, Request, ScriptedEndpoint, strict_engine
from tests.unit.pcikit import COMMAND, Noted, capability, put, word
from tests.unit.schedules import run_many

PAGE, PAGES = 4096, 4
DONE = b"done" * (PAGE // 4)

STEPS = {
    "ring": 30,
    "turn": 30,
    "answer": 20,
    "bus_master": 12,
    "pulse": 8,
    "power": 6,
    "mask": 6,
    "enable": 4,
    "reset": 2,
    "function_level_reset": 2,
}


class Filler(iodma.Device):
    """Fills pages of memory from a disk, as many at once as it is asked to."""

    pci: Any = None
    fill = iodma.Doorbell(0x00, run="work", concurrent=True)
    disk: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lines = [self.interrupt, self.interrupt_line("second")]
        self.ended: list[iodma.Status] = []

    async def work(self, page: int) -> None:
        done = await self.port.to_memory((page * PAGE, PAGE), source=self.disk)
        self.ended.append(iodma.Status(done.status))


class Waited:
    """Something to be acknowledged, and what was in flight when it was asked for."""

    def __init__(self, held: list[Request]) -> None:
        self.held = held
        self.over = False

    async def wait(self, waits: Any) -> None:
        await waits
        self.over = True


class Schedule:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.engine = strict_engine()
        self.memory = FakeMemory(PAGE * PAGES)
        on_cancel: Any = self.rng.choice(("ignore", "honour"))
        self.disk = ScriptedEndpoint(DONE, script=lambda _: Answer.hold(), on_cancel=on_cancel)
        self.slot = iodma.PciSlot(self.memory)
        pci = iodma.Pci(
            vendor=0xF1DA, device=4, bars={0: 16}, msix=2, soft_reset=self.rng.random() < 0.5
        )
        kind = type("Filler", (Filler,), {"pci": pci})
        self.device = kind(self.engine.port(self.slot), disk=self.disk)
        self.engine.attach(self.device)
        self.function = Function(self.device)
        self.noted = Noted()
        self.function.interrupts.connect(self.noted)
        self.power_at = capability(self.function, 0x01) + 4
        self.waited: list[Waited] = []
        self.owed: set[int] = set()
        self.quiet = False
        self.enable()

    # --- steps ------------------------------------------------------------------------------------

    def ring(self) -> None:
        self.function.bar_write(0, 0, self.rng.randrange(PAGES).to_bytes(4, "little"))

    def turn(self) -> None:
        self.engine.pump(self.rng.choice((1, 10)))

    def answer(self) -> None:
        if self.disk.waiting:
            self.disk.answer(self.rng.choice(self.disk.waiting))

    def bus_master(self) -> None:
        self.acknowledge(put(self.function, COMMAND, self.rng.choice((0, 4, 4))))

    def power(self) -> None:
        self.set_power(self.rng.choice((0, 0, 1, 3)))

    def set_power(self, state: int) -> None:
        before = self.state
        waits = put(self.function, self.power_at, state)
        if before and state == 0 and self.function.description.soft_reset:
            self.was_reset()
        self.acknowledge(waits)

    def pulse(self) -> None:
        vector = self.rng.randrange(2)
        self.device.lines[vector].pulse()
        if self.function.interrupts.mode == "msix":
            self.owed.add(vector)

    def mask(self) -> None:
        self.mask_vector(self.rng.randrange(2), self.rng.randrange(2))

    def enable(self) -> None:
        """MSI-X, as a driver does that has just been loaded."""
        put(self.function, capability(self.function, 0x11) + 2, 0x8000)
        for vector in range(2):
            self.mask_vector(vector, 0)

    def reset(self) -> None:
        waits = self.function.request_reset()
        self.was_reset()
        self.acknowledge(waits)

    def function_level_reset(self) -> None:
        waits = put(self.function, capability(self.function, 0x10) + 8, 0x8000)
        self.was_reset()
        self.acknowledge(waits)

    # --- what they share --------------------------------------------------------------------------

    @property
    def state(self) -> int:
        return word(self.function, self.power_at) & 3

    def mask_vector(self, vector: int, value: int) -> None:
        place = self.function.description.placement.msix
        assert place is not None
        entry = place.table + 16 * vector
        self.function.bar_write(place.bar, entry + 12, value.to_bytes(4, "little"))

    def was_reset(self) -> None:
        config = self.function.config
        assert all(config[name] == field.value for name, field in config.fields.items())
        self.owed.clear()

    def acknowledge(self, waits: Any) -> None:
        """What a write has returned: now, or later."""
        if self.slot.bus_master:
            self.quiet = False
        waited = Waited([*self.disk.waiting])
        if waits is not None:
            self.waited.append(waited)
            self.engine.start(waited.wait(waits))
        elif not self.slot.bus_master:
            assert not self.disk.waiting
            self.hush()

    def hush(self) -> None:
        """It was acknowledged that nothing is in flight: the guest uses its memory otherwise."""
        self.quiet = True
        self.memory.write(0, bytes(PAGE * PAGES))

    def check(self) -> None:
        on = word(self.function, COMMAND) & 4 != 0 and self.state == 0
        assert self.slot.bus_master == on
        for told in self.noted.take():
            if not isinstance(told, bool):
                assert on
                self.owed.remove(told)
        assert set(self.function.interrupts.pending("msix")) == self.owed
        for waited in self.waited:
            if waited.over:
                assert not set(waited.held) & set(self.disk.waiting)
        before = len(self.waited)
        self.waited = [each for each in self.waited if not each.over]
        if before and not self.waited and not on:
            self.hush()
        if self.quiet:
            assert self.memory.read(0, PAGE * PAGES) == bytes(PAGE * PAGES)

    def settle(self) -> None:
        while self.engine.pump() or self.disk.waiting:
            self.answer()
            self.check()
        self.check()

    def run(self, steps: int) -> None:
        for name in self.rng.choices([*STEPS], [*STEPS.values()], k=steps):
            getattr(self, name)()
            self.check()
        self.settle()
        assert not self.waited and self.device.port.in_flight == 0
        self.set_power(0)
        self.settle()
        self.acknowledge(put(self.function, COMMAND, 4))
        self.enable()
        self.check()
        assert not self.owed and not self.waited
        self.ring()
        self.settle()
        assert self.device.ended[-1] == iodma.Status.OK and DONE in self.memory.read(
            0, PAGE * PAGES
        )

    def close(self) -> None:
        self.function.close()
        self.device.port.close()
        self.disk.close()
        self.engine.close()
        self.memory.close()


def run_schedule(seed: int, steps: int = 80) -> None:
    schedule = Schedule(seed)
    try:
        schedule.run(steps)
    finally:
        schedule.close()


@pytest.mark.parametrize("part", range(4))
def test_schedules(part: int, rng: random.Random) -> None:
    run_many(run_schedule, rng, 60)


@pytest.mark.soak
def test_ten_thousand_schedules(rng: random.Random) -> None:
    run_many(run_schedule, rng, 10_000)
