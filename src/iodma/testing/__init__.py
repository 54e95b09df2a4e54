# SPDX-License-Identifier: Apache-2.0
"""What it takes to test a device of one's own: memory, endpoints, stages, time and an engine that a
test controls.

    with strict_engine() as engine, FakeMemory(1 << 20) as memory, ScriptedEndpoint(bytes(512)) as
    disk:
        device = MyDevice(engine.port(memory), disk=disk)

Invariants
 - What is here uses the same core as what it stands in for: a transfer cannot tell.
 - Nothing here waits for real time.

`iodma.testing.leaks` is a pytest plugin as well: ``pytest -p iodma.testing.leaks`` fails each test
that leaks.
"""

from iodma.testing.clock import Clock
from iodma.testing.endpoint import Answer, Request, ScriptedEndpoint
from iodma.testing.inject import Inject, Rule
from iodma.testing.leaks import LeakError, no_leaks
from iodma.testing.lossy import LossyDisk
from iodma.testing.memory import FakeMemory
from iodma.testing.pci import PciDriver
from iodma.testing.strict import strict_engine

__all__ = [
    "Answer",
    "Clock",
    "FakeMemory",
    "Inject",
    "LeakError",
    "LossyDisk",
    "PciDriver",
    "Request",
    "Rule",
    "ScriptedEndpoint",
    "no_leaks",
    "strict_engine",
]
