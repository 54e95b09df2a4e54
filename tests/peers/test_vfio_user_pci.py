# SPDX-License-Identifier: Apache-2.0
"""What QEMU 11 makes of a function, access by access: BARs, messages, power, resets.

A message is a write to guest memory, where the test looks for it. What is needed comes as
test_vfio_user_qtest.py says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.vfio_user.machine import Served
from tests.peers.vfio_user.qtest import BAR0, COMMAND, Qtest

pytestmark = pytest.mark.limit(240)  # QEMU may have to be fetched

VALUE, PULSE, LEVEL = 0x10, 0x20, 0x24
#: Where the test puts the BARs, and the messages of vector n: MESSAGES + 4 n.
BARS = {0: 0xE000_0000, 1: 0xC100, 2: 0x1_0000_0000, 4: 0xE002_0000, 5: 0xE003_0000}
ROM_AT, MESSAGES = 0xE004_0000, 0x20_0000
POWER, MSI, EXPRESS, MSIX = 0x01, 0x05, 0x10, 0x11
ENABLED = 7


@pytest.fixture
def machine(work: Path, qemu11: Foreign) -> Iterator[Qtest]:
    with Served(work, "Shapes") as server:
        with Qtest(work, qemu11, server.function) as made:
            for index, base in BARS.items():
                made.config_write(BAR0 + 4 * index, base & 0xFFFF_FFFF)
            made.config_write(BAR0 + 12, BARS[2] >> 32)
            made.config_write(COMMAND, ENABLED, 2)
            yield made
        server.stop()


def capability(machine: Qtest, wanted: int) -> int:
    offset = machine.config_read(0x34, 1)
    while offset:
        if machine.config_read(offset, 1) == wanted:
            return offset
        offset = machine.config_read(offset + 1, 1)
    raise machine.failed(f"there is no capability {wanted:#x}")


def word(machine: Qtest, address: int) -> int:
    return int(machine("readl", address), 0)


def wait(machine: Qtest, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise machine.failed(f"{what} did not come")


def told(machine: Qtest, vector: int, data: int) -> None:
    """Waits for a message, and takes it away."""
    at = MESSAGES + 4 * vector
    wait(machine, f"message {vector}", lambda: word(machine, at) == data)
    machine.store(at, bytes(4))


def none_told(machine: Qtest) -> None:
    assert machine.load(MESSAGES, 16) == bytes(16)


def use_msix(machine: Qtest) -> None:
    for vector in range(3):
        entry = BARS[5] + 16 * vector
        machine("writel", entry, MESSAGES + 4 * vector)
        machine("writel", entry + 4, 0)
        machine("writel", entry + 8, 0x4000 + vector)
        machine("writel", entry + 12, 0)
    machine.config_write(capability(machine, MSIX) + 2, 0x8000, 2)


def pending(machine: Qtest) -> int:
    return word(machine, BARS[5] + 2048)


def test_bars_of_every_kind(machine: Qtest) -> None:
    for index, size, flags in ((0, 4096, 0), (1, 256, 1), (4, 8192, 0), (5, 4096, 0)):
        machine.config_write(COMMAND, 0, 2)
        machine.config_write(BAR0 + 4 * index, 0xFFFF_FFFF)
        found = machine.config_read(BAR0 + 4 * index)
        assert found == 0x1_0000_0000 - size | flags, f"BAR {index} is {found:#x}"
        machine.config_write(BAR0 + 4 * index, BARS[index])
    assert machine.config_read(BAR0 + 8) == 0xC  # 64 bits, prefetchable
    assert machine.config_read(BAR0 + 12) == BARS[2] >> 32
    machine.config_write(COMMAND, ENABLED, 2)
    machine("writel", BARS[0] + VALUE, 0x11223344)
    assert word(machine, BARS[0] + VALUE) == 0x11223344
    machine("outl", BARS[1] + 4, 0x55667788)
    assert int(machine("inl", BARS[1] + 4), 0) == 0x55667788
    machine("writeq", BARS[2] + 8, 0x1122334455667788)
    assert int(machine("readq", BARS[2] + 8), 0) == 0x1122334455667788
    machine.store(BARS[4] + 4094, b"RAM of the device")
    assert machine.load(BARS[4] + 4094, 17) == b"RAM of the device"
    machine.config_write(0x30, ROM_AT | 1)
    assert machine.load(ROM_AT, 8) == b"\x55\xaa\x04 what"


def test_messages_and_what_holds_them(machine: Qtest) -> None:
    use_msix(machine)
    for vector in (0, 2, 1, 1):
        machine("writel", BARS[0] + PULSE, vector)
        told(machine, vector, 0x4000 + vector)

    # Masked in the table, which is QEMU's: it does not tell the function, and holds them itself.
    machine("writel", BARS[5] + 16 + 12, 1)
    for vector in (1, 1, 1, 0):
        machine("writel", BARS[0] + PULSE, vector)
    told(machine, 0, 0x4000)
    none_told(machine)
    machine("writel", BARS[5] + 16 + 12, 0)
    told(machine, 1, 0x4001)
    none_told(machine)

    # No bus master.
    machine.config_write(COMMAND, ENABLED & ~4, 2)
    machine("writel", BARS[0] + PULSE, 2)
    wait(machine, "the pending bit", lambda: pending(machine) == 4)
    none_told(machine)
    machine.config_write(COMMAND, ENABLED, 2)
    told(machine, 2, 0x4002)

    # The function as a whole.
    control = capability(machine, MSIX) + 2
    machine.config_write(control, 0xC000, 2)
    machine("writel", BARS[0] + PULSE, 0)
    wait(machine, "the pending bit", lambda: pending(machine) == 1)
    machine.config_write(control, 0x8000, 2)
    told(machine, 0, 0x4000)
    none_told(machine)


def test_msi(machine: Qtest) -> None:
    offset = capability(machine, MSI)
    machine.config_write(offset + 4, MESSAGES)
    machine.config_write(offset + 8, 0)
    machine.config_write(offset + 12, 0x4100, 2)
    machine.config_write(offset + 2, 0x21, 2)  # four vectors
    for vector in (0, 1, 2):
        machine("writel", BARS[0] + PULSE, vector)
        told(machine, 0, 0x4100 + vector)
    none_told(machine)


def test_intx_is_in_the_status_register(machine: Qtest) -> None:
    machine("writel", BARS[0] + LEVEL, 1)
    assert machine.config_read(0x06, 2) & 8
    machine.config_write(COMMAND, ENABLED | 0x400, 2)
    assert machine.config_read(0x06, 2) & 8
    machine("writel", BARS[0] + LEVEL, 0)
    assert not machine.config_read(0x06, 2) & 8


def test_d3hot_and_back(machine: Qtest) -> None:
    use_msix(machine)
    machine("writel", BARS[0] + VALUE, 7)
    power = capability(machine, POWER) + 4
    machine.config_write(power, 3, 2)
    assert machine.config_read(power, 2) & 3 == 3
    assert word(machine, BARS[0] + VALUE) != 7  # nobody answers; what is read is QEMU's
    machine("writel", BARS[0] + VALUE, 8)
    machine.config_write(power, 0, 2)
    assert word(machine, BARS[0] + VALUE) == 7
    machine("writel", BARS[0] + PULSE, 0)
    told(machine, 0, 0x4000)


def test_a_function_level_reset(machine: Qtest) -> None:
    control = capability(machine, EXPRESS) + 8
    assert machine.config_read(capability(machine, EXPRESS) + 4) & 1 << 28
    machine("writel", BARS[0] + VALUE, 7)
    machine.config_write(control, 0x8000, 2)
    assert machine.config_read(control, 2) == 0x2810
    machine.config_write(COMMAND, ENABLED, 2)
    wait(machine, "the reset", lambda: word(machine, BARS[0] + VALUE) == 0)
    use_msix(machine)
    machine("writel", BARS[0] + PULSE, 1)
    told(machine, 1, 0x4001)
