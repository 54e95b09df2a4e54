"""DMA that hits a device window: messages in order, faults where refused, no re-entrancy."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status
from tests.unit.system import Registers

RAM, WINDOW = 0x0, 0x1000_0000
SIZE = 0x1000


class System:
    """RAM and a window on one bus."""

    def __init__(self, *, strict: bool = True) -> None:
        self.engine = iodma.Engine(strict=strict)
        self.ram = iodma.Ram(1 << 16)
        self.registers = Registers()
        self.window = iodma.DeviceWindow(self.registers, SIZE)
        self.memory = iodma.Memory({RAM: self.ram, WINDOW: self.window})
        self.port = self.engine.port(self.memory)

    def run(self, transfer: Any) -> Any:
        async def main() -> Any:
            return await transfer

        return self.engine.run(main())

    def close(self) -> None:
        self.engine.close()
        self.ram.close()


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    made.close()


def widths(offset: int, length: int) -> list[tuple[int, int]]:
    """The accesses that a run of bytes becomes: ascending, naturally aligned, at most 8 wide."""
    accesses = []
    while length:
        width = next(w for w in (8, 4, 2, 1) if offset % w == 0 and w <= length)
        accesses.append((offset, width))
        offset, length = offset + width, length - width
    return accesses


@pytest.mark.parametrize("end", ["buffer", "file", "copy", "store"])
def test_bytes_become_aligned_ascending_accesses(
    system: System, tmp_path: Path, rng: random.Random, end: str
) -> None:
    port, registers = system.port, system.registers
    for _ in range(20):
        offset, length = rng.randrange(64), rng.randrange(1, 64)
        data = rng.randbytes(length)
        registers.log.clear()
        where = (WINDOW + offset, length)
        (tmp_path / "data").write_bytes(data)
        with iodma.Buffer(64) as buffer, iodma.File(tmp_path / "data") as file:
            buffer.view()[:length] = data
            system.ram.view()[:length] = data
            transfer: Any
            if end == "buffer":
                transfer = port.to_memory(where, source=buffer)
            elif end == "file":
                transfer = port.to_memory(where, source=file)
            elif end == "copy":
                transfer = port.copy((RAM, length), where)
            else:
                transfer = port.store_bytes(WINDOW + offset, data)
            done = system.run(transfer)
            assert (done.status, done.moved) == (Status.OK, length)
            assert registers.log == [("w", *each) for each in widths(offset, length)]
            assert registers.data[offset : offset + length] == data
            # ... and back
            registers.log.clear()
            if end == "buffer":
                transfer = port.from_memory(where, to=buffer)
            elif end == "file":
                transfer = port.from_memory(where, to=file)
            elif end == "copy":
                transfer = port.copy(where, (RAM + 4096, length))
            else:
                transfer = port.load_bytes(WINDOW + offset, length)
            back = system.run(transfer)
            assert registers.log == [("r", *each) for each in widths(offset, length)]
            if end == "store":
                assert back == data
            else:
                assert back.ok
            if end == "copy":
                assert system.ram.view(4096, length) == data
            elif end == "file":
                assert (tmp_path / "data").read_bytes() == data


@pytest.mark.parametrize("end", ["buffer", "file"])
def test_a_list_of_ram_and_window_keeps_its_order(system: System, tmp_path: Path, end: str) -> None:
    data = bytes(range(1, 49))
    seen: list[bytes] = []

    class Doorbell(Registers):
        def write(self, offset: int, width: int, value: int) -> bool | None:
            # What stands before it in the list is there; what stands after it is not.
            seen.append(bytes(system.ram.view(0, 40)))
            return super().write(offset, width, value)

    bell = Doorbell()
    system.memory.add(0x2000_0000, iodma.DeviceWindow(bell, 16))
    path = tmp_path / "data"
    path.write_bytes(data)
    with iodma.Buffer(48) as buffer, iodma.File(path) as file:
        buffer.view()[:] = data
        source = buffer if end == "buffer" else file
        done = system.run(
            system.port.to_memory(
                [(RAM, 16), (0x2000_0000, 4), (RAM + 16, 24), (0x2000_0004, 4)], source=source
            )
        )
    assert done.ok
    assert seen == [data[:16] + bytes(24), data[:16] + data[20:44]]
    assert bell.data[:8] == data[16:20] + data[44:48]
    if end == "file":
        assert system.engine.stats().bounced.not_ram == 8


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("end", ["buffer", "file", "copy"])
def test_a_refused_access_is_a_fault_at_its_offset(
    system: System, tmp_path: Path, write: bool, end: str
) -> None:
    system.registers.refused = {16}
    path = tmp_path / "data"
    path.write_bytes(bytes(64))
    where = [(RAM, 8), (WINDOW, 32)]
    with iodma.Buffer(64) as buffer, iodma.File(path) as file:
        endpoint = buffer if end == "buffer" else file
        if end == "copy":
            other = (RAM + 4096, 40)
            transfer = system.port.copy(other, where) if write else system.port.copy(where, other)
        elif write:
            transfer = system.port.to_memory(where, source=endpoint)
        else:
            transfer = system.port.from_memory(where, to=endpoint)
        done = system.run(transfer)
    assert done.status is Status.FAULT
    assert (done.fault.offset, done.fault.address) == (24, WINDOW + 16)
    assert done.fault.access == (iodma.Access.WRITE if write else iodma.Access.READ)
    assert done.fault.stage == "memory" and "bus error" in done.fault.reason
    # Nothing behind it was touched, and nothing was tried twice.
    accesses = [offset for _, offset, _ in system.registers.log]
    assert accesses == [0, 8, 16]
    assert done.moved == (24 if write or end != "file" else 8)


def test_load_and_store_raise_for_a_bus_error(system: System) -> None:
    system.registers.refused = {4}
    with pytest.raises(iodma.DmaFault, match="bus error"):
        system.run(system.port.load("<I", WINDOW + 4))
    with pytest.raises(iodma.DmaFault, match="bus error"):
        system.run(system.port.store("<I", WINDOW + 4, 1))


def test_a_rom_takes_no_writes(system: System) -> None:
    system.memory.add(0x3000_0000, iodma.Rom(b"firmware"))
    assert system.run(system.port.load_bytes(0x3000_0000, 8)) == b"firmware"
    done = system.run(system.port.copy((RAM, 8), (0x3000_0000, 8)))
    assert done.status is Status.FAULT and done.moved == 0
    assert "does not permit" in done.fault.reason
    assert system.run(system.port.load_bytes(0x3000_0000, 8)) == b"firmware"


@pytest.mark.parametrize("width", [2, 4, 8])
def test_byte_lanes_above_a_window(system: System, rng: random.Random, width: int) -> None:
    port = system.engine.port(iodma.ByteLanes(system.memory, width=width))
    for _ in range(20):
        offset = rng.randrange(4) * 8
        length = rng.randrange(1, 5) * 8
        data = rng.randbytes(length)
        with iodma.Buffer(64) as buffer:
            buffer.view()[:length] = data
            system.registers.log.clear()
            assert system.run(port.to_memory((WINDOW + offset, length), source=buffer)).ok
            swapped = bytearray(length)
            for at in range(length):
                swapped[at ^ (width - 1)] = data[at]
            assert system.registers.data[offset : offset + length] == swapped
            assert [w for _, _, w in system.registers.log] == [8] * (length // 8)
            buffer.view()[:] = bytes(64)
            assert system.run(port.from_memory((WINDOW + offset, length), to=buffer)).ok
            assert buffer.view(0, length) == data


def test_an_unmapped_window_waits_for_what_is_in_flight(system: System) -> None:
    states: list[Any] = []

    async def main() -> None:
        with iodma.Buffer(64) as buffer:
            going = system.port.to_memory((WINDOW, 64), source=buffer)
            await system.engine.sleep(0)  # it may be in flight or over
            revocation = system.memory.remove(WINDOW)
            after = system.port.to_memory((WINDOW, 8), source=buffer)
            assert await revocation
            states.extend([await going, await after])

    system.engine.run(main())
    assert states[0].ok
    assert states[1].status is Status.FAULT and "nothing is mapped" in states[1].fault.reason
    assert len(system.registers.log) == 8


@pytest.mark.parametrize("how", ["remove", "cancel", "reset"])
def test_a_handler_may_end_the_transfer_that_it_handles(system: System, how: str) -> None:
    transfers: list[Any] = []
    revocations: list[Any] = []

    class Ender(Registers):
        def write(self, offset: int, width: int, value: int) -> bool | None:
            super().write(offset, width, value)
            if offset == 8:
                if how == "remove":
                    revocations.append(system.memory.remove(0x2000_0000, cancel=True))
                elif how == "cancel":
                    transfers[0].cancel()
                else:
                    revocations.append(system.port.reset())
            return None

    ender = Ender()
    system.memory.add(0x2000_0000, iodma.DeviceWindow(ender, SIZE))

    async def main() -> None:
        with iodma.Buffer(64) as buffer:
            transfers.append(system.port.to_memory((0x2000_0000, 64), source=buffer))
            done = await transfers[0]
            assert done.status in (Status.OK, Status.CANCELLED)
            for each in revocations:
                await each
            count = len(ender.log)
            await system.engine.sleep(0.01)
            assert len(ender.log) == count  # nothing came after the end
            assert (await system.port.copy((RAM, 8), (RAM + 8, 8))).ok

    system.engine.run(main())


def test_a_message_may_unmap_another_transfers_window(system: System) -> None:
    other = Registers()
    system.memory.add(0x3000_0000, iodma.DeviceWindow(other, SIZE))

    class Remover(Registers):
        def write(self, offset: int, width: int, value: int) -> bool | None:
            if not self.log:
                system.memory.remove(0x3000_0000, cancel=True)
            return super().write(offset, width, value)

    system.memory.add(0x2000_0000, iodma.DeviceWindow(Remover(), SIZE))

    async def main() -> None:
        with iodma.Buffer(64) as buffer:
            first = system.port.to_memory((0x2000_0000, 16), source=buffer)
            second = system.port.to_memory((0x3000_0000, 16), source=buffer)
            assert (await first).ok
            assert (await second).status is Status.CANCELLED

    system.engine.run(main())
    assert other.log == []


# --- a handler that raises ------------------------------------------------------------------------


class Broken(Registers):
    def write(self, offset: int, width: int, value: int) -> bool | None:
        raise RuntimeError("no such register")


def test_a_handler_that_raises_is_a_bus_error(caplog: pytest.LogCaptureFixture) -> None:
    system = System(strict=False)
    try:
        system.memory.add(0x2000_0000, iodma.DeviceWindow(Broken(), SIZE))
        with caplog.at_level(logging.ERROR, "iodma"):
            done = system.run(system.port.copy((RAM, 8), (0x2000_0000, 8)))
        assert done.status is Status.FAULT and "bus error" in done.fault.reason
        assert "no such register" in caplog.text
    finally:
        system.close()


def test_a_handler_that_raises_leaves_run_of_a_strict_engine(system: System) -> None:
    system.memory.add(0x2000_0000, iodma.DeviceWindow(Broken(), SIZE))
    with pytest.raises(RuntimeError, match="no such register"):
        system.run(system.port.copy((RAM, 8), (0x2000_0000, 8)))


# --- re-entrancy ----------------------------------------------------------------------------------

BELL = 0x2000_0000


class Chained(iodma.Device):
    """DMA of this device writes its own doorbell, if that is where the guest points it."""

    go = iodma.Doorbell(0x0, run="move", concurrent=True)
    count = iodma.Register(0x4, access="ro")
    inside = False
    faults = 0

    async def move(self, value: int) -> None:
        self.count = int(self.count) + 1
        done = await self.port.copy((RAM, 4), (BELL, 4))
        if not done.ok:
            assert "bus error" in str(done.fault)
            self.faults += 1


class Serial(Chained):
    go = iodma.Doorbell(0x0, run="move")


def chained(system: System, kind: type[Chained]) -> tuple[iodma.Bus, Chained]:
    bus = iodma.Bus()
    device = kind(system.port)
    bus.attach(device, BELL)
    system.memory.add(BELL, iodma.DeviceWindow(bus.window(device), SIZE))
    return bus, device


def test_dma_into_its_own_doorbell_ends_at_the_depth_limit(system: System) -> None:
    bus, device = chained(system, Chained)

    async def main() -> None:
        bus.write32(BELL, 1)
        while device.tasks:
            await system.engine.sleep(0.001)

    system.engine.run(main())
    assert device.faults == 1
    assert int(device.count) == 9  # the guest's ring, and those of eight messages
    assert system.engine.stats().messages == 8


def test_a_serial_doorbell_ends_there_as_well(system: System) -> None:
    """Its runs begin one after the other, and each is as deep as the message that rang for it."""
    bus, device = chained(system, Serial)

    async def main() -> None:
        for _ in range(2):
            bus.write32(BELL, 1)
            while device.tasks:
                await system.engine.sleep(0)

    system.engine.run(main())
    assert device.faults == 2
    assert int(device.count) == 18
    assert system.engine.stats().messages == 16


def test_the_reset_register_is_reached_by_dma(system: System) -> None:
    """The classic: a device is told to write its own reset while its DMA is under way."""

    class Resetting(iodma.Device):
        go = iodma.Doorbell(0x0, run="move")
        reset_it = iodma.Register(0x8, access="wo", write="on_reset")
        ended: list[str] = []  # noqa: RUF012

        def on_reset(self, value: int) -> None:
            self.request_reset()

        async def move(self, value: int) -> None:
            try:
                await self.port.copy((RAM, 64), [(RAM + 4096, 8), (BELL + 8, 4), (RAM + 8192, 52)])
                self.ended.append("went on")
            finally:
                self.ended.append("ended")

    bus = iodma.Bus()
    device = Resetting(system.port)
    bus.attach(device, BELL)
    system.memory.add(BELL, iodma.DeviceWindow(bus.window(device), SIZE))

    async def main() -> None:
        bus.write32(BELL, 1)
        await system.engine.sleep(0.01)
        assert device.state.value == "running"
        assert device.counts.resets == 1
        bus.write32(BELL, 1)  # it works again
        await system.engine.sleep(0.01)
        assert device.counts.resets == 2

    system.engine.run(main())
    assert device.ended == ["ended", "ended"]


# --- message-signalled interrupts -----------------------------------------------------------------


def test_an_msi_is_an_interrupt_after_the_data_before_it(system: System, tmp_path: Path) -> None:
    seen: list[tuple[int, int, bytes]] = []
    msi = iodma.MsiWindow(
        lambda offset, message: seen.append((offset, message, bytes(system.ram.view(0, 8))))
    )
    system.memory.add(0xFEE0_0000, msi)
    path = tmp_path / "data"
    path.write_bytes(b"payload!" + (0x41).to_bytes(4, "little"))
    with iodma.File(path) as file:
        done = system.run(system.port.to_memory([(RAM, 8), (0xFEE0_1000, 4)], source=file))
    assert done.ok
    assert seen == [(0x1000, 0x41, b"payload!")]
    system.run(system.port.store("<I", 0xFEE0_0004, 0x42))
    assert seen[1][:2] == (4, 0x42)
    assert msi.count == 2 and msi.refused == 0


@pytest.mark.parametrize("format", ["<H", "<B", "<Q"])
def test_only_a_write_of_four_bytes_is_an_msi(system: System, format: str) -> None:
    msi = iodma.MsiWindow(lambda offset, message: pytest.fail("no interrupt"))
    system.memory.add(0xFEE0_0000, msi)
    with pytest.raises(iodma.DmaFault, match="bus error"):
        system.run(system.port.store(format, 0xFEE0_0000, 1))
    with pytest.raises(iodma.DmaFault, match="bus error"):
        system.run(system.port.load(format, 0xFEE0_0000))
    assert (msi.count, msi.refused) == (0, 2)


def test_an_msi_needs_something_to_call() -> None:
    with pytest.raises(iodma.ArgumentTypeError, match="cannot be called"):
        iodma.MsiWindow(7)  # type: ignore[arg-type]
