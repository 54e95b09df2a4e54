"""The tables of commands: their layouts, and every command's edges."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.scsi import Disk, Request
from iodma.scsi.cdb import LENGTHS, Command, Commands, Field
from iodma.scsi.power import MOVES, Medium
from tests.unit.scsikit import CHECK, COMMANDS, GOOD, Initiator, cdb, cdb_of, on_disk

BLOCKS = 64
each_command = pytest.mark.parametrize("command", Disk.commands.all, ids=lambda each: each.name)
with_lba = pytest.mark.parametrize(
    "command",
    [each for each in Disk.commands.all if "LOGICAL BLOCK ADDRESS" in each.places],
    ids=lambda each: each.name,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(BLOCKS * 512))
    return path


def refusal(request: Request) -> tuple[str, tuple[int, int | None, bool] | None]:
    """The sense data of a CHECK CONDITION, and where it points."""
    assert request.status is CHECK and request.sense is not None, request
    return str(request.sense), request.sense.field


# --- layouts --------------------------------------------------------------------------------------


@each_command
def test_a_layout_fits_its_cdb(command: Command) -> None:
    assert command.length == LENGTHS[command.opcode >> 5]
    taken = 0xFF << (command.length - 1) * 8 | 0xFF  # opcode and CONTROL
    if command.service_action is not None:
        taken |= 0x1F << (command.length - 2) * 8
    for field in command.fields:
        shift = command.length * 8 - (field.byte * 8 + 7 - field.bit) - field.bits
        mask = (1 << field.bits) - 1 << shift
        assert shift >= 0 and not taken & mask, f"{field.name} overlaps"
        taken |= mask
    assert inspect.iscoroutinefunction(getattr(Disk, command.handler))
    assert command.section.split()[0] in ("SPC-4", "SBC-3", "SCSI-2")


def test_names_are_told_apart() -> None:
    assert len(COMMANDS) == len(Disk.commands.all)
    one = Command("ONE", "", 0x00, (), "read")
    for other in (one, Command("TWO", "", 0x00, (), "read", service_action=3)):
        with pytest.raises(ValueError, match="taken"):
            Commands(one, other)
    with pytest.raises(ValueError, match="length"):
        Command("VARIABLE", "", 0x7F, (Field("X", 1),), "read")


@given(st.sampled_from(Disk.commands.all), st.data())
def test_what_is_put_into_a_cdb_comes_out(command: Command, data: st.DataObject) -> None:
    values = {
        field.name: data.draw(st.integers(0, (1 << field.bits) - 1), field.name)
        for field in command.fields
    }
    raw = cdb_of(command, **{name.replace(" ", "_"): each for name, each in values.items()})
    assert Disk.commands.find(raw) is command
    assert command.parse(raw + b"\xff").values == values, "what is behind it does not matter"
    usage = int.from_bytes(command.usage()[1:-1], "big")
    assert int.from_bytes(raw[1:-1], "big") & ~usage == 0


# --- every command's edges ------------------------------------------------------------------------


@each_command
def test_a_cdb_that_is_cut_points_at_its_end(path: Path, command: Command) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            for length in range(1, command.length):
                request, _ = await it.command(cdb_of(command)[:length])
                at: tuple[int, int | None, bool] = (length, None, True)
                if command.service_action is not None and length == 1:
                    at = (1, 4, True)
                assert refusal(request) == ("ILLEGAL_REQUEST 24/00", at)

        it.run(main)


@each_command
def test_naca_and_linked_commands_are_refused(path: Path, command: Command) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            for control, bit in ((0x04, 2), (0x01, 0)):
                request, _ = await it.command(cdb_of(command)[:-1] + bytes((control,)))
                assert refusal(request) == (
                    "ILLEGAL_REQUEST 24/00",
                    (command.length - 1, bit, True),
                )

        it.run(main)


def test_opcodes_and_service_actions_that_are_not_there(path: Path) -> None:
    opcodes = {each.opcode for each in Disk.commands.all}
    with on_disk(path) as it:

        async def main() -> None:
            for opcode in set(range(256)) - opcodes:
                request, _ = await it.command(bytes((opcode,)).ljust(16, b"\0"))
                assert refusal(request) == ("ILLEGAL_REQUEST 20/00", (0, None, True))
            for opcode in {each.opcode for each in Disk.commands.all if each.service_action}:
                for action in range(32):
                    if Disk.commands.lookup(opcode, action) is None:
                        request, _ = await it.command(bytes((opcode, action)).ljust(16, b"\0"))
                        assert refusal(request) == ("ILLEGAL_REQUEST 24/00", (1, 4, True))
            request, _ = await it.command(b"")
            assert refusal(request) == ("ILLEGAL_REQUEST 20/00", None)

        it.run(main)


def length_name(command: Command) -> str:
    names = ("TRANSFER LENGTH", "NUMBER OF LOGICAL BLOCKS", "VERIFICATION LENGTH")
    return next(n for n in (*names, "PREFETCH LENGTH") if n in command.places).replace(" ", "_")


@with_lba
def test_lbas_at_the_end_of_the_medium(path: Path, command: Command) -> None:
    name = length_name(command)
    lba_bits = command.places["LOGICAL BLOCK ADDRESS"].bits
    length_bits = command.places[name.replace("_", " ")].bits
    most_lba, most = (1 << lba_bits) - 1, (1 << length_bits) - 1
    none_is_256 = command.length == 6
    with on_disk(path) as it:

        async def main() -> None:
            good = [(0, 1), (BLOCKS - 1, 1)]
            wrong = [(BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 1), (most_lba, 1), (0, most)]
            wrong += [(most_lba, most), (BLOCKS + 1, 0), (most_lba, 0)]
            (wrong if none_is_256 else good).append((BLOCKS, 0))
            for lba, count in good + wrong:
                fields = {"LOGICAL_BLOCK_ADDRESS": lba, name: count}
                request, _ = await it.command(cdb_of(command, **fields), bytes(1 << 12))
                if (lba, count) in good:
                    assert request.status is GOOD, (lba, count, request.sense)
                elif command.handler == "compare_and_write" and count > 255:
                    assert refusal(request)[0] == "ILLEGAL_REQUEST 24/00"
                else:
                    assert refusal(request)[0] == "ILLEGAL_REQUEST 21/00", (lba, count)
                    place = command.places["LOGICAL BLOCK ADDRESS"]
                    assert request.sense is not None and request.sense.field is not None
                    assert request.sense.field[0] == place.byte

        it.run(main)


@each_command
def test_protection_information_is_refused(path: Path, command: Command) -> None:
    names = {"RDPROTECT", "WRPROTECT", "VRPROTECT"} & set(command.places)
    with on_disk(path) as it:

        async def main() -> None:
            for name in names:
                for value in range(1, 8):
                    request, _ = await it.command(cdb_of(command, **{name: value}))
                    assert refusal(request) == ("ILLEGAL_REQUEST 24/00", (1, 7, True))

        it.run(main)


@each_command
def test_what_a_medium_that_is_not_there_refuses(path: Path, command: Command) -> None:
    with on_disk(path, removable=True) as it:

        async def main() -> None:
            for stop, sense in ((0, "NOT_READY 04/02"), (2, "NOT_READY 3A/00")):
                await it.command(bytes((0x1B, 0, 0, 0, stop, 0)))
                request, _ = await it.command(cdb_of(command), bytes(512))
                if command.medium:
                    assert str(request.sense) == sense
                else:
                    assert request.sense is None or request.sense.key.name == "ILLEGAL_REQUEST"
                await it.command("1b0000000300")
                await it.settle()

        it.run(main)


@each_command
@pytest.mark.parametrize("software", [False, True])
def test_what_a_protected_medium_refuses(path: Path, command: Command, software: bool) -> None:
    with on_disk(path, read_only=not software) as it:

        async def main() -> None:
            if software:  # SWP of the control mode page
                page = bytes.fromhex("000000000a0a0010080000 00ffff0000".replace(" ", ""))
                select = cdb("MODE SELECT (6)", PF=1, PARAMETER_LIST_LENGTH=len(page))
                request, _ = await it.command(select, page)
                assert request.status is GOOD, request.sense
            request, _ = await it.command(cdb_of(command), bytes(512))
            ascq = "02" if software else "00"
            assert (str(request.sense) == f"DATA_PROTECT 27/{ascq}") == command.writes

        it.run(main)


def test_the_medium_goes_as_the_table_says(path: Path) -> None:
    assert set(MOVES) == {
        (state, start, loej) for state in Medium for start in (0, 1) for loej in (0, 1)
    }
    ways = {Medium.READY: 3, Medium.STOPPED: 0, Medium.EJECTED: 2}
    with on_disk(path, removable=True) as it:
        disk = it.target.units[0]
        assert isinstance(disk, Disk)

        async def main() -> None:
            for (state, start, loej), after in MOVES.items():
                for bits in (3, ways[state]):
                    await it.command(bytes((0x1B, 0, 0, 0, bits, 0)))
                assert disk.state is state
                request, _ = await it.command(bytes((0x1B, 0, 0, 0, start | loej << 1, 0)))
                assert request.status is GOOD and disk.state is after

        it.run(main)


# --- what is said of them -------------------------------------------------------------------------


async def opcodes(it: Initiator, **fields: int) -> bytes | str:
    name = "REPORT SUPPORTED OPERATION CODES"
    request, data = await it.command(cdb(name, ALLOCATION_LENGTH=1 << 16, **fields))
    return str(request.sense) if request.sense else data


def test_what_is_supported_is_what_is_there(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            data = await opcodes(it)
            assert isinstance(data, bytes) and len(data) == 4 + 8 * len(Disk.commands.all)
            longer = await opcodes(it, RCTD=1)
            assert isinstance(longer, bytes) and len(longer) == 4 + 20 * len(Disk.commands.all)
            for command in Disk.commands.all:
                action = command.service_action or 0
                asked = {
                    "REQUESTED_OPERATION_CODE": command.opcode,
                    "REQUESTED_SERVICE_ACTION": action,
                }
                plain = await opcodes(it, REPORTING_OPTIONS=1, **asked)
                acted = await opcodes(it, REPORTING_OPTIONS=2, **asked)
                either = await opcodes(it, REPORTING_OPTIONS=3, **asked)
                right = bytes((0, 3)) + command.length.to_bytes(2, "big") + command.usage()
                assert either == right
                wrong = "ILLEGAL_REQUEST 24/00"
                told = (wrong, right) if command.service_action is not None else (right, wrong)
                assert (plain, acted) == told
            none = await opcodes(it, REPORTING_OPTIONS=1, REQUESTED_OPERATION_CODE=0xC0)
            assert none == bytes((0, 1, 0, 0))
            assert await opcodes(it, REPORTING_OPTIONS=4) == "ILLEGAL_REQUEST 24/00"

        it.run(main)


def test_the_vpd_pages_say_their_length(path: Path) -> None:
    with on_disk(path, serial="a serial") as it:

        async def main() -> None:
            for page in range(256):
                request, data = await it.command(
                    cdb("INQUIRY", EVPD=1, PAGE_CODE=page, ALLOCATION_LENGTH=0xFFFF)
                )
                if page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2):
                    assert data[:2] == bytes((0, page))
                    assert len(data) == 4 + int.from_bytes(data[2:4], "big")
                else:
                    assert refusal(request) == ("ILLEGAL_REQUEST 24/00", (2, None, True))
            _, pages = await it.command(cdb("INQUIRY", EVPD=1, ALLOCATION_LENGTH=255))
            assert pages[4:] == bytes((0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2))
            _, serial = await it.command(
                cdb("INQUIRY", EVPD=1, PAGE_CODE=0x80, ALLOCATION_LENGTH=255)
            )
            assert serial[4:] == b"a serial"
            request, _ = await it.command(cdb("INQUIRY", PAGE_CODE=1, ALLOCATION_LENGTH=255))
            assert refusal(request)[0] == "ILLEGAL_REQUEST 24/00"
            for length in range(40):
                _, data = await it.command(cdb("INQUIRY", ALLOCATION_LENGTH=length))
                assert len(data) == length

        it.run(main)


def test_a_lun_where_nothing_is(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            request, data = await it.command(cdb("INQUIRY", ALLOCATION_LENGTH=255), lun=3)
            assert request.status is GOOD and data[0] == 0x7F
            request, _ = await it.command(cdb("TEST UNIT READY"), lun=3)
            assert str(request.sense) == "ILLEGAL_REQUEST 25/00"
            _, data = await it.command(cdb("REQUEST SENSE", ALLOCATION_LENGTH=18), lun=3)
            assert (data[2], data[12]) == (5, 0x25)
            _, data = await it.command(cdb("REPORT LUNS", ALLOCATION_LENGTH=256), lun=3)
            assert data == (8).to_bytes(4, "big") + bytes(12)

        it.run(main)
