"""SET_IRQS in all its forms, and what a client hears of a device's interrupts."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from iodma import Device, Engine, Register
from iodma.pci import Pci
from tests.unit import vfio_client as vc
from tests.unit import vfio_kit
from tests.unit.vfio_client import (
    BOOL,
    CONFIG,
    ERR,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    MSIX,
    NONE,
    REQ,
    TRIGGER,
    UNMASK,
    Client,
)
from tests.unit.vfio_kit import Copier, run, serving

#: The registers of `Copier` that drive its first line, and pulse its first or second.
LINE, PULSE = 0x18, 0x24


engine = vfio_kit.engine


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[Client]:
    with serving(engine, tmp_path) as (_, client):
        client.bus_master()
        yield client


@pytest.fixture
def fds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def heard(client: Client, fd: int) -> int:
    """How often an eventfd was signalled by what was done before."""
    client.read(CONFIG, 0, 1)  # commands are done in their order
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


def assign(client: Client, index: int, fds: list[int], start: int = 0) -> None:
    client.set_irqs(index, EVENTFD | TRIGGER, start, len(fds), fds=fds)


# --- INTx -----------------------------------------------------------------------------------------


def test_intx_masks_itself_and_comes_again_while_it_is_asserted(
    client: Client, fds: list[int]
) -> None:
    assign(client, INTX, fds[:1])
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 1
    client.write32(0, LINE, 0)
    client.write32(0, LINE, 1)  # once more, before the guest has looked
    assert heard(client, fds[0]) == 0
    client.set_irqs(INTX, NONE | UNMASK, 0, 1)
    assert heard(client, fds[0]) == 1
    client.set_irqs(INTX, NONE | UNMASK, 0, 1)
    assert heard(client, fds[0]) == 1  # the line is still up
    client.write32(0, LINE, 0)
    client.set_irqs(INTX, NONE | UNMASK, 0, 1)
    assert heard(client, fds[0]) == 0
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 1


def test_a_pulse_while_intx_is_masked_is_told_at_the_unmask(client: Client, fds: list[int]) -> None:
    assign(client, INTX, fds[:1])
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 1
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 0
    client.set_irqs(INTX, BOOL | UNMASK, 0, 1, b"\1")
    assert heard(client, fds[0]) == 1
    client.set_irqs(INTX, NONE | UNMASK, 0, 1)
    assert heard(client, fds[0]) == 0


def test_intx_that_the_client_masks(client: Client, fds: list[int]) -> None:
    assign(client, INTX, fds[:1])
    client.set_irqs(INTX, NONE | MASK, 0, 1)
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 0
    client.set_irqs(INTX, BOOL | UNMASK, 0, 1, b"\0")
    assert heard(client, fds[0]) == 0
    client.set_irqs(INTX, BOOL | UNMASK, 0, 1, b"\1")
    assert heard(client, fds[0]) == 1


def test_intx_that_rose_before_there_was_an_eventfd(client: Client, fds: list[int]) -> None:
    client.write32(0, LINE, 1)
    assign(client, INTX, fds[:1])
    assert heard(client, fds[0]) == 1


def test_intx_is_unmasked_by_an_eventfd(client: Client, fds: list[int]) -> None:
    """As KVM does it, at the end of the interrupt in its own interrupt controller."""
    assign(client, INTX, fds[:1])
    client.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, fds=fds[1:2])
    client.set_irqs(INTX, EVENTFD | MASK, 0, 1, fds=fds[2:3])
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 1
    os.eventfd_write(fds[1], 1)
    assert client.interrupted(fds[0]) == 1
    os.eventfd_write(fds[1], 1)
    assert client.interrupted(fds[0]) == 1
    client.set_irqs(INTX, EVENTFD | UNMASK, 0, 1)  # not any more
    os.eventfd_write(fds[1], 1)
    for _ in range(3):
        assert heard(client, fds[0]) == 0
    os.eventfd_write(fds[2], 1)
    client.wait(lambda: not select.select([fds[2]], [], [], 0)[0])
    client.write32(0, LINE, 0)
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 0


def test_intx_that_the_driver_disables(client: Client, fds: list[int]) -> None:
    assign(client, INTX, fds[:1])
    client.write(CONFIG, 4, struct.pack("<H", 0x406))
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 0
    assert client.read(CONFIG, 6, 1)[0] & 8  # Interrupt Status
    client.write(CONFIG, 4, struct.pack("<H", 0x006))
    assert heard(client, fds[0]) == 1


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_messages(client: Client, fds: list[int], index: int) -> None:
    assign(client, index, fds[:2])
    client.write32(0, PULSE, 0)
    client.write32(0, PULSE, 0)
    client.write32(0, PULSE, 1)
    assert [heard(client, fd) for fd in fds[:2]] == [2, 1]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_messages_that_the_client_masks_are_pending(
    client: Client, fds: list[int], index: int
) -> None:
    assign(client, index, fds[:2])
    client.set_irqs(index, NONE | MASK, 0, 2)
    for _ in range(3):
        client.write32(0, PULSE, 0)
    client.write32(0, PULSE, 1)
    assert [heard(client, fd) for fd in fds[:2]] == [0, 0]
    if index == MSIX:
        info = client.region_info(1)  # the table and, behind it, the pending bits
        assert info.size == 4096
        assert any(client.read(1, place, 1)[0] == 3 for place in range(0, 4096, 8))
    client.set_irqs(index, BOOL | UNMASK, 0, 2, b"\0\1")
    assert [heard(client, fd) for fd in fds[:2]] == [0, 1]
    client.set_irqs(index, NONE | UNMASK, 0, 1)
    assert [heard(client, fd) for fd in fds[:2]] == [1, 0]
    client.set_irqs(index, NONE | UNMASK, 0, 2)
    assert [heard(client, fd) for fd in fds[:2]] == [0, 0]


def test_a_message_without_an_eventfd_is_pending(client: Client, fds: list[int]) -> None:
    assign(client, MSIX, fds[:1])
    client.write32(0, PULSE, 1)
    assign(client, MSIX, fds[1:2], 1)
    assert heard(client, fds[1]) == 1 and heard(client, fds[0]) == 0


def test_one_vector_of_several_is_taken_away(client: Client, fds: list[int]) -> None:
    assign(client, MSIX, fds[:3])
    client.set_irqs(MSIX, EVENTFD | TRIGGER, 1, 1)
    client.write32(0, PULSE, 0)
    client.write32(0, PULSE, 1)
    assert [heard(client, fd) for fd in fds[:3]] == [1, 0, 0]
    assign(client, MSIX, fds[3:], 1)
    assert heard(client, fds[3]) == 1


def test_messages_wait_for_bus_master_enable(client: Client, fds: list[int]) -> None:
    assign(client, MSIX, fds[:1])
    client.bus_master(False)
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 0
    client.bus_master()
    assert heard(client, fds[0]) == 1


def test_all_of_an_index_are_disabled(client: Client, fds: list[int]) -> None:
    assign(client, MSIX, fds[:3])
    client.set_irqs(MSIX, NONE | MASK, 0, 3)
    client.set_irqs(MSIX, NONE | TRIGGER, 0, 0)
    client.write32(0, PULSE, 0)
    assert [heard(client, fd) for fd in fds[:3]] == [0, 0, 0]
    # It is INTx by now: of what the configuration space says.
    assign(client, INTX, fds[3:])
    assert heard(client, fds[3]) == 1
    assign(client, MSIX, fds[:1])  # and what was masked is not any more
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 1


def test_an_index_of_one_kind_and_then_of_another(client: Client, fds: list[int]) -> None:
    for index in (INTX, MSI, MSIX, INTX, MSIX, MSI):
        assign(client, index, fds[:1])
        client.write32(0, PULSE, 0)
        assert heard(client, fds[0]) == 1
        client.set_irqs(index, NONE | TRIGGER, 0, 0)


# --- what a client triggers -----------------------------------------------------------------------


@pytest.mark.parametrize("index", [INTX, MSI, MSIX, ERR, REQ])
def test_a_client_triggers(client: Client, fds: list[int], index: int) -> None:
    count = min(client.irq_info(index)[3], 3)
    client.set_irqs(index, NONE | TRIGGER, 0, count)  # nobody is there to be told
    assign(client, index, fds[:count])
    client.set_irqs(index, NONE | TRIGGER, 0, count)
    assert [heard(client, fd) for fd in fds[:count]] == [1] * count
    client.set_irqs(index, BOOL | TRIGGER, count - 1, 1, b"\1")
    client.set_irqs(index, BOOL | TRIGGER, 0, 1, b"\0")
    assert heard(client, fds[count - 1]) == 1


def test_an_eventfd_that_is_full_holds_nothing_up(client: Client, fds: list[int]) -> None:
    os.eventfd_write(fds[0], (1 << 64) - 2)
    os.set_blocking(fds[0], True)
    assign(client, MSIX, fds[:1])
    client.write32(0, PULSE, 0)
    client.set_irqs(MSIX, NONE | TRIGGER, 0, 1)
    assert os.eventfd_read(fds[0]) == (1 << 64) - 2
    assert os.get_blocking(fds[0])
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 1


# --- resets and ends ------------------------------------------------------------------------------


def test_a_reset_leaves_who_is_told(client: Client, fds: list[int]) -> None:
    assign(client, MSIX, fds[:1])
    client.reset()
    client.bus_master()
    client.write32(0, PULSE, 0)
    assert heard(client, fds[0]) == 1


def test_a_reset_lowers_intx(client: Client, fds: list[int]) -> None:
    assign(client, INTX, fds[:1])
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 1
    client.reset()
    client.set_irqs(INTX, NONE | UNMASK, 0, 1)
    assert heard(client, fds[0]) == 0
    client.write32(0, LINE, 1)
    assert heard(client, fds[0]) == 1


def test_eventfds_go_with_the_session(engine: Engine, tmp_path: Path, fds: list[int]) -> None:
    with serving(engine, tmp_path):
        pass  # the engine has now what it keeps
    before = len(os.listdir("/proc/self/fd"))
    with serving(engine, tmp_path) as (_, client):
        client.bus_master()
        assign(client, MSIX, fds[:3])
        assign(client, ERR, fds[3:])
        client.set_irqs(INTX, EVENTFD | UNMASK, 0, 1, fds=fds[:1])
        client.set_irqs(MSIX, NONE | MASK, 0, 3)
        client.close()
        with Client(tmp_path / "s", engine) as second:
            second.negotiate()
            second.bus_master()
            second.write32(0, PULSE, 0)  # tells nobody
            assert heard(second, fds[0]) == 0
            assign(second, MSIX, fds[:1])
            second.write32(0, PULSE, 0)
            assert heard(second, fds[0]) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_without_interrupts(engine: Engine, tmp_path: Path) -> None:
    class Quiet(Device):
        pci = Pci(vendor=1, device=1, bars={0: 16}, intx=False)
        word = Register(0)

    with serving(engine, tmp_path, Quiet()) as (_, client):
        assert [client.irq_info(index)[3] for index in range(5)] == [0, 0, 0, 1, 1]
        for index in (INTX, MSI, MSIX):
            with pytest.raises(vc.Refused):
                client.set_irqs(index, NONE | TRIGGER)
        client.reset()


def test_many_vectors(engine: Engine, tmp_path: Path) -> None:
    class Wide(Device):
        pci = Pci(vendor=1, device=1, bars={0: 4096}, msix=2048)
        last = Register(0, write="fire")

        def __init__(self) -> None:
            super().__init__()
            self.lines = [self.interrupt_line(str(each)) for each in range(1, 2048)]

        def fire(self, value: int) -> None:
            self.lines[value - 1].pulse()

    with serving(engine, tmp_path, Wide()) as (_, client):
        client.bus_master()
        with_fd = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(64)]
        for place in range(0, 64, 16):
            assign(client, MSIX, with_fd[place : place + 16], 1984 + place)
        for vector in (1984, 2000, 2047):
            client.write32(0, 0, vector)
            assert heard(client, with_fd[vector - 1984]) == 1
        for fd in with_fd:
            os.close(fd)


def test_a_failed_device_tells_nobody(tmp_path: Path, fds: list[int]) -> None:
    class Bad(Copier):
        def drive(self, value: int) -> None:
            raise ValueError("no")

    with Engine(slow_step=None) as engine:
        device = Bad()
        with serving(engine, tmp_path, device) as (_, client):
            assign(client, INTX, fds[:1])
            client.write32(0, LINE, 1)
            assert client.read32(0, 0) == 0xFFFF_FFFF
            client.reset()
            assert client.read32(0, 0) == 0
            run(engine, lambda: _nothing())


async def _nothing() -> None:
    pass
