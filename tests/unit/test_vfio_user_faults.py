"""What faults is reported to the client: by one byte asked for, which nobody waits for."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iodma import Device, DmaFault, Doorbell, Engine, PciSlot, Register, Status
from iodma.pci import Pci
from iodma.transports.vfio_user import VfioUserServer, faults
from tests.unit import vfio_kit
from tests.unit.vfio_client import CONFIG, DMA_READ, DMA_UNMAP, Client, SharedMemory
from tests.unit.vfio_kit import pump, serving, settle

#: What QEMU says of itself, as far as it matters here.
QEMU: dict[str, Any] = {"pgsizes": 4096, "max_dma_maps": 65535}
FROM, TO, STORE, COUNT = 0x00, 0x08, 0x10, 0x18
HERE = 0x10000


class Mover(Device):
    """Copies a page; or stores a word, which is done or refused in the call that asks for it."""

    pci = Pci(vendor=0xF1DA, device=2, bars={0: 4096})
    source = Register(FROM, 8)
    target = Doorbell(TO, 8, run="copy")
    address = Doorbell(STORE, 8, run="store")
    faults = Register(COUNT, access="ro")

    async def copy(self, target: int) -> None:
        done = await self.port.copy((self.source, 4096), (target, 4096))
        self.faults += done.status == Status.FAULT

    async def store(self, address: int) -> None:
        try:
            await self.port.store("<Q", address, 1)
        except DmaFault:
            self.faults += 1


engine = vfio_kit.engine


@contextmanager
def faulting(
    engine: Engine, path: Path, **how: Any
) -> Iterator[tuple[VfioUserServer, Client, SharedMemory]]:
    """A client with memory at `HERE`, which leaves unanswered what it is asked."""
    device = Mover(engine.port(PciSlot()))
    with serving(engine, path, device, **how) as (server, client), SharedMemory(1 << 16) as memory:
        client.map(HERE, memory.size, memory.fd)
        client.bus_master()
        yield server, client, memory


def wide(client: Client, offset: int, value: int) -> None:
    client.write(0, offset, value.to_bytes(8, "little"))


def copy(client: Client, source: int, target: int, fail: int) -> None:
    """A copy, and `fail` have failed when it is over."""
    wide(client, FROM, source)
    wide(client, TO, target)
    client.wait(lambda: client.read32(0, COUNT) == fail)


def asked(client: Client) -> list[tuple[int, int, int]]:
    """What the client was asked until now: command, address, count."""
    alive(client)
    return [(one.command, *struct.unpack("=QQ", one.payload)) for one in client.asked]


def alive(client: Client) -> None:
    assert client.read(CONFIG, 0, 2) == b"\xda\xf1"


def answer(client: Client, what: bytes | int = errno.ENODEV) -> None:
    client.serve = lambda command, address, count: what
    client.answer(client.asked.pop(0))
    client.serve = None


def test_a_byte_is_asked_for_where_it_has_faulted(engine: Engine, tmp_path: Path) -> None:
    """Of reads and of writes, the right address, whatever is answered; the next one after that."""
    with faulting(engine, tmp_path, **QEMU) as (server, client, memory):
        memory.bytes[:4096] = b"a" * 4096
        copy(client, HERE + 0xF800, HERE, 1)  # half of it is there
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x20000, 1)]
        answer(client)
        wide(client, STORE, 0xDEAD_BEEF)
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0xDEAD_BEEF, 1)]
        answer(client)
        outcomes: list[bytes | int] = [errno.EFAULT, errno.EPERM, b"x"]
        for place, outcome in enumerate(outcomes, 3):
            at = 0xDEAD_0000_0000 + 4096 * place
            copy(client, HERE, at, place)
            client.wait(lambda: client.asked)
            assert asked(client) == [(DMA_READ, at, 1)]
            answer(client, outcome)
        assert memory.bytes[:4096] == b"a" * 4096
        session = server.session
        assert session is not None and session.faults is not None
        assert session.faults.reported == 5


def test_one_at_a_time(engine: Engine, tmp_path: Path) -> None:
    """Of a client that does not answer nothing more is asked, and nothing waits for it; the first
    fault meanwhile is the next that is reported, and all others are not."""
    with faulting(engine, tmp_path, **QEMU) as (_, client, _memory):
        for count in range(1, 101):
            copy(client, HERE, 0x100000 * count, count)
        assert asked(client) == [(DMA_READ, 0x100000, 1)]
        answer(client)
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x200000, 1)]
        client.unmap(HERE, 1 << 16)


def test_time_between_two(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "INTERVAL_S", 3600)
    with faulting(engine, tmp_path, **QEMU) as (_, client, _memory):
        copy(client, HERE, 0x100000, 1)
        answer(client)
        for count in range(2, 10):
            copy(client, HERE, 0x100000, count)
        assert asked(client) == []


def test_answers_that_nobody_waits_for(engine: Engine, tmp_path: Path) -> None:
    """A second one for the same question, one that is too long: refused, as for any other."""
    with faulting(engine, tmp_path, **QEMU) as (_, client, _memory):
        copy(client, HERE, 0x100000, 1)
        assert asked(client) == [(DMA_READ, 0x100000, 1)]
        first = client.asked[0]
        answer(client, b"too long")
        for _ in range(2):
            client.asked.append(first)
            answer(client)
            assert client.reply(first.id).errno == errno.EINVAL
        copy(client, HERE, 0x200000, 2)
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x200000, 1)]


def test_permissions(engine: Engine, tmp_path: Path) -> None:
    """What may not be read is reported; what may be read but not written a read would not meet."""
    with faulting(engine, tmp_path, **QEMU) as (_, client, memory):
        client.map(0x40000, 4096, memory.fd, flags=1)
        client.map(0x50000, 4096, memory.fd, flags=2)
        copy(client, HERE, 0x40000, 1)
        assert asked(client) == []
        copy(client, 0x50000, HERE, 2)
        assert asked(client) == [(DMA_READ, 0x50000, 1)]


def test_no_report_while_a_command_waits(engine: Engine, tmp_path: Path) -> None:
    with faulting(engine, tmp_path, **QEMU) as (server, client, memory):
        session, device = server.session, server.function.device
        assert session is not None and session.faults is not None and isinstance(device, Mover)
        client.map(0x200000, 4096)  # its own, by messages
        wide(client, FROM, HERE)
        wide(client, TO, 0x200000)
        client.wait(lambda: client.asked)
        unmap = client.post(DMA_UNMAP, struct.pack("=IIQQ", 24, 0, HERE, memory.size))
        pump(engine, lambda: session._pending)
        server.function.bar_write(0, STORE, (0x300000).to_bytes(8, "little"))
        pump(engine, lambda: device.faults == 1)
        settle(engine)
        assert session.faults.reported == 0
        answer(client, b"")
        assert client.reply(unmap).errno == 0
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x300000, 1)]


@pytest.mark.parametrize("how", [{}, {"pgsizes": 4096}, {"write_multiple": True}])
def test_a_client_that_may_take_no_commands_hears_nothing(
    engine: Engine, tmp_path: Path, how: dict[str, Any]
) -> None:
    with faulting(engine, tmp_path, **how) as (_, client, _memory):
        copy(client, HERE, 0x100000, 1)
        copy(client, 0x100000, HERE, 2)
        assert asked(client) == []


def test_a_client_with_a_twin_socket_hears_it_there(engine: Engine, tmp_path: Path) -> None:
    with faulting(engine, tmp_path, minor=1, twin_socket={"supported": True}) as (_, client, _m):
        copy(client, HERE, 0x100000, 1)
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x100000, 1)]
        answer(client)
        alive(client)


def test_a_reset_forgets_and_an_end_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    with faulting(engine, tmp_path, **QEMU) as (server, client, memory):
        copy(client, HERE, 0x100000, 1)
        copy(client, HERE, 0x200000, 2)
        client.reset()
        answer(client)
        alive(client)
        client.bus_master()
        copy(client, HERE, 0x300000, 1)
        client.wait(lambda: client.asked)
        assert asked(client) == [(DMA_READ, 0x300000, 1)]
        copy(client, HERE, 0x400000, 2)
        session = server.session
        client.close()  # with one unanswered, and one to come
        with Client(tmp_path / "s", engine) as second:
            second.negotiate(**QEMU)
            assert session is not None and session.faults is not None
            assert session.faults.reported == 2
            second.map(HERE, memory.size, memory.fd)
            second.bus_master()
            copy(second, HERE, 0x500000, 1)
            second.wait(lambda: second.asked)
            assert asked(second) == [(DMA_READ, 0x500000, 1)]
