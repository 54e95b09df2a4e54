"""A one-level page table in guest memory, walked by the core: `iodma.stages.PageTable`."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import iodma
from iodma import Access, AddressRangeError, ArgumentError, ArgumentTypeError, Status
from iodma.stages import PageEntry, PageTable, TableFault, TableMode
from tests.unit.engines import Held

READ, WRITE = Access.READ, Access.WRITE
PAGE = 4096
TABLE, FIRST, PAGES = 0x1_0000, 0xFF00_0000, 4096
#: Entries as the SBus IOMMU has them.
SUN = PageEntry(valid=2, write=4, frame=0xFFFF_FF00, shift=4, cacheable=0x80)
VALID, WRITABLE = 2, 4


class Guest:
    """1 MiB of RAM with a table in it, and what goes through that."""

    def __init__(self, **options: Any) -> None:
        self.engine = iodma.Engine(strict=True, slow_step=None)
        self.ram = iodma.Ram(1 << 20)
        self.memory = iodma.Memory({0: self.ram})
        self.view = self.ram.view()
        self.faults: list[TableFault] = []
        options = {
            "entry": SUN,
            "table": TABLE,
            "first": FIRST,
            "length": PAGES * PAGE,
            "on_fault": self.faults.append,
            **options,
        }
        self.stage = PageTable(self.memory, **options)
        self.port = self.engine.port(self.stage)

    def put(self, page: int, target: int, flags: int = VALID | WRITABLE) -> None:
        struct.pack_into(">I", self.view, TABLE + 4 * page, target >> 4 & 0xFFFF_FF00 | flags)

    def where(self, *segments: tuple[int, int], access: Access = READ) -> Any:
        """Offsets in RAM, or the fault."""
        got = self.stage.translate(list(segments), access)
        return got if isinstance(got, iodma.Fault) else [piece[2:0:-1] for piece in got]

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return self.engine.run(main)

    def close(self) -> None:
        self.engine.close()
        self.view.release()
        self.ram.close()


def pieces(stage: PageTable, *segments: tuple[int, int]) -> list[Any]:
    got = stage.translate(list(segments), READ)
    assert isinstance(got, list), got
    return got


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    one.close()


# --- what the entries say -------------------------------------------------------------------------


def test_pages_go_where_their_entries_say(guest: Guest) -> None:
    guest.put(0, 0x5000)
    guest.put(1, 0x9000, VALID)
    guest.put(2, 0xA000)
    assert guest.where((FIRST + 0x10, 16)) == [(0x5010, 16)]
    assert guest.where((FIRST + 0xFF0, 32)) == [(0x5FF0, 16), (0x9000, 16)]
    assert guest.where((FIRST + 0x1FF0, 32)) == [(0x9FF0, 32)]  # one piece again
    assert guest.where((FIRST + 8, 8), (FIRST + 16, 8)) == [(0x5008, 16)]
    assert guest.where((FIRST, 0), (FIRST + 1, 1)) == [(0x5001, 1)]


def test_what_is_refused_and_why(guest: Guest) -> None:
    guest.put(0, 0x5000)
    guest.put(1, 0x9000, VALID)
    guest.put(PAGES - 1, 0x5000)
    cases = [
        ((FIRST + 0xFF0, 32), WRITE, 16, FIRST + 0x1000, "does not permit"),
        ((FIRST + 0x1FFF, 2), READ, 1, FIRST + 0x2000, "nothing is mapped"),
        ((FIRST - 1, 4), READ, 0, FIRST - 1, "beyond the limit"),
        ((0xFFFF_FFFC, 8), READ, 4, 1 << 32, "beyond the limit"),
        (((1 << 64) - 1, 2), READ, 0, (1 << 64) - 1, "beyond the limit"),
    ]
    for segment, access, offset, address, why in cases:
        fault = guest.where(segment, access=access)
        assert (fault.offset, fault.address, fault.access) == (offset, address, access), segment
        assert why in fault.reason and fault.stage == "page table"
    assert guest.faults == [] and guest.stage.counts.faults == 0  # nobody has asked for DMA


@pytest.mark.parametrize("above", ["nothing", "lanes"])
def test_each_transfer_that_faults_is_told_of_once(guest: Guest, above: str) -> None:
    guest.put(0, 0x5000)
    guest.put(1, 0x6000, VALID)
    lanes = iodma.ByteLanes(guest.stage, 2)
    port = guest.port if above == "nothing" else guest.engine.port(lanes)
    good, bad, read_only = FIRST, FIRST + 8 * PAGE, FIRST + PAGE
    far, near = _pair()
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with (
        tempfile.TemporaryFile() as file,
        iodma.Null() as null,
        iodma.Socket(near) as stream,
        iodma.Datagram(here) as packets,
    ):
        file.write(bytes(PAGE))
        file.flush()
        with iodma.File(file.fileno()) as disk:
            cases: list[tuple[Callable[[], Any], int, Access]] = [
                (lambda: port.load("<I", bad), bad, READ),
                (lambda: port.load("<4I", bad - 8), bad - 8, READ),
                (lambda: port.store("<I", read_only, 1), read_only, WRITE),
                (lambda: port.to_memory((read_only, 16), source=null), read_only, WRITE),
                (lambda: port.to_memory((bad, 16), source=disk), bad, WRITE),
                (lambda: port.from_memory([(good, 16), (bad, 16)], to=disk), bad, READ),
                (lambda: port.from_memory([(bad, 16), (bad + PAGE, 16)], to=stream), bad, READ),
                (lambda: port.copy((good, 16), (read_only, 16)), read_only, WRITE),
                (lambda: port.copy((bad, 16), (good, 16)), bad, READ),
            ]

            async def main() -> None:
                for make, address, access in cases:
                    try:
                        done = await make()
                    except iodma.DmaFault as error:
                        done = error.completion
                    assert done.status is Status.FAULT and done.fault is not None
                    assert guest.faults == [TableFault(address, access, done.fault.reason)]
                    guest.faults.clear()
                # Several that would share a request: each is told of when it is its turn.
                waiting = [port.from_memory((good, 16), to=stream)]
                waiting += [port.from_memory((bad, 16), to=stream) for _ in range(3)]
                assert [(await each).ok for each in waiting] == [True, False, False, False]
                assert len(guest.faults) == 3
                waiting = [
                    port.from_memory((bad if i % 3 == 1 else good, 16), to=packets)
                    for i in range(9)
                ]
                assert sum([(await each).ok for each in waiting]) == 6
                assert len(guest.faults) == 6

            guest.run(main())
    assert guest.stage.counts.faults == len(cases) + 6
    for each in (near, far, here, there):
        each.close()


def test_an_entry_of_a_hole_below_faults_below(guest: Guest) -> None:
    guest.put(0, 0x5000)
    guest.put(1, 1 << 20)
    fault = guest.where((FIRST, 2 * PAGE))
    assert (fault.stage, fault.address, fault.offset) == ("memory", 1 << 20, PAGE)
    guest.put(2, 0xF_FFFF_F000)  # of 36 bits
    assert guest.where((FIRST + 2 * PAGE, 1)).address == 0xF_FFFF_F000


@pytest.mark.parametrize("byteorder", ["big", "little"])
@pytest.mark.parametrize("width", [4, 8])
def test_formats_are_data(width: int, byteorder: Any) -> None:
    entry = PageEntry(
        width=width,
        byteorder=byteorder,
        valid=1 << 8 * width - 1,
        write=0,
        frame=0xFFFF,
        shift=13,
        cacheable=1 << 20,
    )
    guest = Guest(entry=entry, page=8192, first=0x40_0000, length=8192)
    try:
        put = (1 << 8 * width - 1) | 1 << 20 | 5
        guest.view[TABLE : TABLE + width] = put.to_bytes(width, byteorder)
        assert guest.where((0x40_0100, 8), access=WRITE) == [(5 * 8192 + 0x100, 8)]
        found = guest.stage.lookup(0x40_0001)
        assert found == (5 * 8192 + 1, Access.RW, True, put)
        assert guest.stage.lookup(0x40_0000 - 1) is None
    finally:
        guest.close()


# --- where the table is ---------------------------------------------------------------------------


def test_a_table_that_is_not_in_memory_is_a_fault_of_the_walk(guest: Guest) -> None:
    window = iodma.DeviceWindow(_Quiet(), PAGE)
    guest.memory.add(0x100_0000, window)
    for table in (0x100_0000, 0x200_0000, (1 << 20) - 4 * 8):
        guest.stage.set(table=table, length=PAGES * PAGE)
        fault = guest.where((FIRST + 8 * PAGE, 4))  # entry 8: the first behind the end of RAM
        assert "page table" in fault.reason, fault
        assert (fault.stage, fault.address, fault.offset) == ("page table", FIRST + 8 * PAGE, 0)
    struct.pack_into(">I", guest.view, (1 << 20) - 4, 0x500 | VALID)
    assert guest.where((FIRST + 7 * PAGE, 4)) == [(0x5000, 4)]  # entry 7: its last


class _Quiet:
    def read(self, offset: int, width: int) -> int | None:
        raise AssertionError("a page table is not read from registers")

    def write(self, offset: int, width: int, value: int) -> bool | None:
        raise AssertionError


def test_a_table_whose_file_was_truncated_is_a_fault(guest: Guest) -> None:
    fd = os.memfd_create("tables")
    try:
        os.ftruncate(fd, 2 * PAGE)
        with iodma.Ram.from_fd(fd, 0, 2 * PAGE) as tables:
            guest.memory.add(0x100_0000, tables)
            guest.stage.set(table=0x100_1000)
            with tables.view() as view:
                struct.pack_into(">II", view, 0x1000, 0x500 | VALID, 0x600 | VALID)
            assert guest.where((FIRST, 1)) == [(0x5000, 1)]
            os.ftruncate(fd, PAGE)
            assert guest.where((FIRST, 1)) == [(0x5000, 1)]  # it is cached
            fault = guest.where((FIRST + PAGE, 1))
            assert "page table" in fault.reason

            async def main() -> iodma.Completion:
                with iodma.Null() as null:
                    return await guest.port.to_memory((FIRST + PAGE, 4), source=null)

            assert guest.run(main()).status is Status.FAULT
            guest.memory.remove(0x100_0000)
    finally:
        os.close(fd)


# --- the cache ------------------------------------------------------------------------------------


def test_an_entry_is_cached_until_it_is_flushed(guest: Guest) -> None:
    guest.put(0, 0x5000)
    guest.put(1, 0x6000)
    assert guest.where((FIRST, 2 * PAGE)) == [(0x5000, 2 * PAGE)]
    reads = guest.stage.counts.reads
    guest.put(0, 0x7000)
    guest.put(1, 0x8000)
    assert guest.where((FIRST, 2 * PAGE)) == [(0x5000, 2 * PAGE)]
    assert guest.stage.counts.reads == reads
    guest.stage.flush(FIRST + PAGE - 1)
    assert guest.where((FIRST, 2 * PAGE)) == [(0x7000, PAGE), (0x6000, PAGE)]
    guest.stage.flush(FIRST + PAGE - 1, 2)
    assert guest.where((FIRST, 2 * PAGE)) == [(0x7000, 2 * PAGE)]
    guest.put(0, 0x9000)
    guest.stage.flush()
    assert guest.where((FIRST, PAGE)) == [(0x9000, PAGE)]
    assert guest.stage.lookup(FIRST) is not None


def test_what_is_not_valid_or_not_writable_is_asked_for_again(guest: Guest) -> None:
    assert "nothing" in guest.where((FIRST, 1)).reason
    guest.put(0, 0x5000, VALID)
    assert guest.where((FIRST, 1)) == [(0x5000, 1)]
    assert "permit" in guest.where((FIRST, 1), access=WRITE).reason
    guest.put(0, 0x5000)
    assert guest.where((FIRST, 1), access=WRITE) == [(0x5000, 1)]


def test_pages_that_share_a_place_of_the_cache(guest: Guest) -> None:
    small = PageTable(
        guest.memory, SUN, table=TABLE, first=FIRST, length=PAGES * PAGE, cached=2, name="small"
    )
    for page in range(8):
        guest.put(page, (16 + page * 2) * PAGE)
    for _ in range(2):
        for page in range(8):
            got = pieces(small, (FIRST + page * PAGE, 4))
            assert [piece[2] for piece in got] == [(16 + page * 2) * PAGE]
    small.flush(FIRST + 6 * PAGE)
    small.flush(FIRST, 8 * PAGE)
    assert len(pieces(small, (FIRST, 8 * PAGE))) == 8


def test_changes_of_the_memory_below_are_seen_through_the_cache(guest: Guest) -> None:
    guest.put(0, 0x100_0000)
    with iodma.Ram(PAGE) as first, iodma.Ram(PAGE) as second:
        guest.memory.add(0x100_0000, first)
        assert guest.where((FIRST, 8)) == [(0, 8)]
        guest.memory.remove(0x100_0000)
        assert guest.where((FIRST, 8)).stage == "memory"
        guest.memory.add(0x100_0000, second)
        got = pieces(guest.stage, (FIRST, 8))
        assert [piece[0] for piece in got] == [second._host]
        guest.memory.remove(0x100_0000)


# --- modes ----------------------------------------------------------------------------------------


def test_modes(guest: Guest) -> None:
    guest.put(0, 0x5000)
    guest.stage.set(mode=TableMode.PASS)
    assert guest.where((0x1230, 16), access=WRITE) == [(0x1230, 16)]
    assert guest.where((FIRST, 16)).stage == "memory"
    guest.stage.set(mode=TableMode.REFUSE)
    assert "off" in guest.where((FIRST, 16)).reason
    guest.stage.set(mode=TableMode.TRANSLATE, outside=TableMode.PASS)
    assert guest.where((FIRST, 16), (0x1230, 16)) == [(0x5000, 16), (0x1230, 16)]
    guest.stage.set(first=0x2000, length=PAGE)
    assert guest.where((0x1FF0, 0x1020)) == [(0x1FF0, 16), (0x5000, PAGE), (0x3000, 16)]
    assert (guest.stage.first, guest.stage.length, guest.stage.table) == (0x2000, PAGE, TABLE)
    assert (guest.stage.mode, guest.stage.outside) == (TableMode.TRANSLATE, TableMode.PASS)


# --- revocation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["page", "all", "table", "range", "mode"])
def test_what_is_in_flight_ends_before_a_change_is_acknowledged(guest: Guest, what: str) -> None:
    for page in range(3):
        guest.put(page, (16 + page) * PAGE)
    held = Held()

    async def main() -> None:
        await guest.engine.sleep(0)
        old = guest.port.from_memory([(FIRST + PAGE, 16), (FIRST + 2 * PAGE, 8)], to=held)
        other = guest.port.from_memory((FIRST, 16), to=held)
        await guest.engine.sleep(0)
        assert len(held.asked) == 2
        guest.put(1, 32 * PAGE)
        change = {
            "page": lambda: guest.stage.flush(FIRST + PAGE),
            "all": guest.stage.flush,
            "table": lambda: guest.stage.set(table=TABLE),
            "range": lambda: guest.stage.set(length=2 * PAGE),
            "mode": lambda: guest.stage.set(mode=TableMode.TRANSLATE),
        }[what]()
        await guest.engine.sleep(0)
        assert not change.done
        assert change.held_by == [old.ticket] if what == "page" else len(change.held_by) == 2
        assert guest.where((FIRST + PAGE, 16)) == [(32 * PAGE, 16)]  # new ones walk again
        assert guest.stage.flush(FIRST + 2 * PAGE).done is False
        assert guest.stage.flush(FIRST + 3 * PAGE).done is True  # nobody is there
        for ticket in list(held.asked):
            if ticket == old.ticket or what != "page":
                held._finish(ticket, held.asked.pop(ticket))
        assert await change and (await old).ok
        held.finish()
        assert (await other).ok

    guest.run(main())
    held.close()


def test_a_flush_in_haste_cancels(guest: Guest) -> None:
    guest.put(0, 16 * PAGE)
    ours, theirs = _pair()
    with iodma.Socket(ours) as stream:

        async def main() -> None:
            waiting = guest.port.to_memory((FIRST, 16), source=stream)
            await guest.engine.sleep(0.002)
            flushed = guest.stage.flush(cancel=True)
            assert await flushed
            assert (await waiting).status is Status.CANCELLED

        guest.run(main())
    ours.close()
    theirs.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"page": 100}, ArgumentError),
        ({"cached": 3}, ArgumentError),
        ({"cached": 1 << 21}, ArgumentError),
        ({"first": 1}, AddressRangeError),
        ({"length": 4097}, AddressRangeError),
        ({"length": 0}, AddressRangeError),
        ({"first": (1 << 64) - PAGE, "length": 2 * PAGE}, AddressRangeError),
        ({"table": 2}, AddressRangeError),
        ({"table": (1 << 64) - 4}, AddressRangeError),
        ({"table": 1 << 64}, AddressRangeError),
        ({"first": 0, "length": 1 << 44}, AddressRangeError),
        ({"entry": PageEntry(valid=0)}, AddressRangeError),
        ({"entry": PageEntry(frame=0xFFF)}, AddressRangeError),
        ({"entry": PageEntry(frame=0xFFFF_F000, shift=40)}, AddressRangeError),
        ({"entry": PageEntry(frame=1 << 32)}, ArgumentError),
        ({"entry": PageEntry(width=2)}, ArgumentError),
        ({"entry": PageEntry(shift=64)}, ArgumentError),
        ({"entry": 7}, ArgumentTypeError),
        ({"on_fault": 7}, ArgumentTypeError),
        ({"outside": TableMode.TRANSLATE}, ArgumentError),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with iodma.Ram(PAGE) as ram, pytest.raises(error):
        PageTable(iodma.Memory({0: ram}), **options)


def test_tables_are_read_from_a_memory(guest: Guest) -> None:
    with pytest.raises(ArgumentError, match="tables are read from a Memory"):
        PageTable(iodma.Window(guest.memory))
    with pytest.raises(ArgumentTypeError):
        PageTable(None)  # type: ignore[arg-type]
    slot = iodma.PciSlot(guest.memory)
    gated = PageTable(slot, SUN, table=TABLE, first=FIRST)
    guest.put(0, 0x5000)
    shut = gated.translate([(FIRST, 4)], READ)
    assert isinstance(shut, iodma.Fault) and "page table" in shut.reason
    slot.set_bus_master(True)
    assert [piece[2] for piece in pieces(gated, (FIRST, 4))] == [0x5000]


def test_a_change_that_cannot_be_changes_nothing(guest: Guest) -> None:
    guest.put(0, 0x5000)
    with pytest.raises(AddressRangeError):
        guest.stage.set(table=3)
    assert guest.stage.table == TABLE
    assert guest.where((FIRST, 1)) == [(0x5000, 1)]
    with pytest.raises(AddressRangeError):
        guest.stage.flush(FIRST, 0)
    with pytest.raises(AddressRangeError):
        guest.stage.flush(-1)
    assert guest.stage.flush((1 << 64) - 1, 1 << 64).done
    assert guest.stage.flush(0, 1 << 64).done
