"""The disk: what is read is what was written, whatever the commands; and no CDB gets it to hang."""

from __future__ import annotations

import errno
import os
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import ArgumentError, ArgumentTypeError, Buffer, File, Null, Ram
from iodma.scsi import Disk, ScsiStatus, State, Target
from iodma.testing import Answer, LossyDisk, strict_engine
from tests.unit.scsikit import CHECK, COMMANDS, GOOD, Initiator, cdb, cdb_of, on_disk, on_unit

BLOCKS = 64
ENGINES = pytest.mark.parametrize("kind", ["auto", "threads"])


@pytest.fixture
def path(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(BLOCKS * 512))
    return path


# --- the content, against a model -----------------------------------------------------------------


class Model:
    """A disk of so many blocks, in plain Python."""

    def __init__(self, content: bytes, block: int) -> None:
        self.content = bytearray(content)
        self.block = block

    def do(self, name: str, lba: int, count: int, out: bytes, **flags: int) -> tuple[Any, bytes]:
        """The status and what is read."""
        block, kind = self.block, name.split(" (")[0]
        if lba + count > len(self.content) // block:
            return CHECK, b""
        at, end = lba * block, (lba + count) * block
        if kind == "READ":
            return GOOD, bytes(self.content[at:end])
        if kind in ("WRITE", "WRITE AND VERIFY"):
            self.content[at:end] = out
        elif kind == "WRITE SAME":
            end = end if count else len(self.content)
            self.content[at:end] = out * ((end - at) // block)
        elif kind == "UNMAP":
            self.content[at:end] = bytes(end - at)
        elif kind == "VERIFY":
            here = self.content[at:end]
            good = {0: True, 1: here == out, 3: here == out * count}[flags["BYTCHK"]]
            return (GOOD if good else CHECK), b""
        elif kind == "COMPARE AND WRITE":
            if self.content[at:end] != out[: end - at]:
                return CHECK, b""
            self.content[at:end] = out[end - at :]
        return GOOD, b""


LBA_COMMANDS = (
    *("READ (6)", "READ (10)", "READ (12)", "READ (16)"),
    *("WRITE (6)", "WRITE (10)", "WRITE (12)", "WRITE (16)"),
    *("WRITE AND VERIFY (10)", "WRITE AND VERIFY (12)", "WRITE AND VERIFY (16)"),
    *("VERIFY (10)", "VERIFY (12)", "VERIFY (16)", "WRITE SAME (10)", "WRITE SAME (16)"),
    *("COMPARE AND WRITE", "UNMAP"),
)


def length_field(name: str) -> str:
    places = COMMANDS[name].places
    wanted = ("TRANSFER LENGTH", "VERIFICATION LENGTH", "NUMBER OF LOGICAL BLOCKS")
    return next(each for each in wanted if each in places).replace(" ", "_")


@st.composite
def steps(draw: st.DrawFn, blocks: int) -> tuple[str, int, int, int, dict[str, int], list[int]]:
    name = draw(st.sampled_from(LBA_COMMANDS))
    lba = draw(st.integers(0, blocks + 1))
    count = draw(st.integers(1 if "(6)" in name else 0, 9))
    flags = {}
    if name.startswith("VERIFY"):
        flags["BYTCHK"] = draw(st.sampled_from((0, 1, 3)))
    if name.startswith("WRITE SAME"):
        flags["UNMAP"] = draw(st.integers(0, 1))
    if "FUA" in COMMANDS[name].places:
        flags["FUA"] = draw(st.integers(0, 1))
    pieces = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=4))
    return name, lba, count, draw(st.integers(0, 3)), flags, pieces


async def step(it: Initiator, model: Model, drawn: Any) -> None:
    name, lba, count, seed, flags, pieces = drawn
    block = model.block
    # Few contents, so that comparisons hit.
    out = bytes((seed,)) * (block * (count if "SAME" not in name else 1))
    if flags.get("BYTCHK") == 3:
        out = out[:block]
    if name == "COMPARE AND WRITE":
        out = bytes(model.content[lba * block : (lba + count) * block]) if seed & 1 else out
        out = out.ljust(count * block, b"\1") + bytes((seed,)) * (count * block)
    if name == "UNMAP":
        raw = cdb("UNMAP", PARAMETER_LIST_LENGTH=24)
        given = struct.pack(">HH4xQI4x", 22, 16, lba, count)
    else:
        fields = {"LOGICAL_BLOCK_ADDRESS": lba, length_field(name): count}
        raw, given = cdb(name, **fields, **flags), out
    request, data = await it.command(raw, given, pieces)
    status, expected = model.do(name, lba, count, out, **flags)
    assert (request.status, data) == (status, expected), (drawn, request.sense)


@ENGINES
@given(data=st.data())
def test_the_content_is_that_of_a_plain_file(kind: str, data: st.DataObject) -> None:
    block = data.draw(st.sampled_from((512, 4096)))
    many = data.draw(st.lists(steps(BLOCKS), max_size=12))
    content = bytes(index % 3 for index in range(BLOCKS)) * block
    with tempfile.TemporaryDirectory() as folder, strict_engine(kind) as engine:
        path = Path(folder) / "disk.img"
        path.write_bytes(content)
        model = Model(content, block)
        with on_disk(path, engine, block=block, write_cache=data.draw(st.booleans())) as it:

            async def main() -> None:
                for drawn in many:
                    await step(it, model, drawn)

            it.run(main)
        assert path.read_bytes() == bytes(model.content)


@ENGINES
def test_many_at_a_time(path: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    with strict_engine(kind) as engine, on_disk(path, engine) as it:

        async def one(index: int) -> None:
            data = rng.randbytes(512 * 4)
            content[index * 2048 : (index + 1) * 2048] = data
            fields = {"LOGICAL_BLOCK_ADDRESS": index * 4, "TRANSFER_LENGTH": 4}
            for name in ("WRITE (10)", "READ (10)"):
                request = it.send(cdb(name, **fields), tag=index)
                came = await it.move(request, data, (700,), at=index << 13)
                assert await request.finished is GOOD
            assert came == data

        async def main() -> None:
            for task in [it.engine.start(one(index)) for index in range(BLOCKS // 4)]:
                await task

        it.run(main)
    assert path.read_bytes() == content


# --- whatever a CDB says --------------------------------------------------------------------------


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """Bytes, mostly of commands that are there, with numbers that are often small."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=16))
    command = draw(st.sampled_from(Disk.commands.all))
    values = {}
    for field in command.fields:
        most = (1 << field.bits) - 1
        number = st.integers(0, min(most, 70)) | st.integers(max(0, most - 1), most)
        values[field.name.replace(" ", "_")] = draw(number if field.bits > 3 else st.integers(0, 1))
    return cdb_of(command, **values)


@given(st.lists(st.tuples(cdbs(), st.binary(max_size=64), st.booleans()), max_size=8))
def test_no_cdb_gets_it_to_hang_or_to_fail(many: list[tuple[bytes, bytes, bool]]) -> None:
    with Buffer(BLOCKS * 512) as disk, on_unit(Disk(disk, removable=True)) as it:

        async def main() -> None:
            for index, (raw, out, cancel) in enumerate(many):
                request = it.send(raw, tag=index)
                await request.ready
                assert 0 <= request.left == request.expected
                if cancel:
                    request.cancel()
                    assert await request.finished is None or request.over
                    continue
                await it.move(request, out, (1 << 20,))
                assert await request.finished in (GOOD, CHECK, ScsiStatus.CONDITION_MET)
                assert request.state is State.COMPLETED
                if request.sense is not None:
                    assert len(request.sense.fixed()) == 18
                    assert len(request.sense.descriptor()) in (8, 16, 20, 28)
                    assert request.sense.key.name != "HARDWARE_ERROR"

        it.run(main)


def test_unmap_lists_that_are_wrong(path: Path) -> None:
    before = path.read_bytes()
    header = struct.Struct(">HH4x")

    def ranges(*each: tuple[int, int]) -> bytes:
        body = b"".join(struct.pack(">QI4x", *one) for one in each)
        return header.pack(len(body) + 6, len(body)) + body

    wrong = [
        (ranges((0, 1))[:7], "1A/00"),
        (ranges((0, 1), (BLOCKS, 1)), "21/00"),
        (ranges((0, 1), ((1 << 64) - 1, 1)), "21/00"),
        (ranges((0, 1), (0, (1 << 32) - 1)), "26/00"),
        (ranges(*[(0, 0)] * 257), "26/00"),
    ]
    right = [b"", header.pack(6, 0), ranges((0, 0), (BLOCKS, 0)), ranges(*[(0, 0)] * 256)]
    with on_disk(path) as it:

        async def main() -> None:
            for data, sense in wrong:
                request, _ = await it.command(cdb("UNMAP", PARAMETER_LIST_LENGTH=len(data)), data)
                assert str(request.sense) == f"ILLEGAL_REQUEST {sense}"
            for data in right:
                request, _ = await it.command(cdb("UNMAP", PARAMETER_LIST_LENGTH=len(data)), data)
                assert request.status is GOOD
            request, _ = await it.command(cdb("UNMAP", ANCHOR=1, PARAMETER_LIST_LENGTH=8), bytes(8))
            assert str(request.sense) == "ILLEGAL_REQUEST 24/00"
            # A length that the data falls short of is cut.
            data = header.pack(0xFFFF, 0xFFFF) + ranges((0, 1))[8:] + b"\xff" * 15
            request, _ = await it.command(cdb("UNMAP", PARAMETER_LIST_LENGTH=len(data)), data)
            assert request.status is GOOD

        it.run(main)
    assert path.read_bytes() == bytes(512) + before[512:]


def test_a_miscompare_says_where(path: Path) -> None:
    before = path.read_bytes()
    wrong = bytearray(before[:2048])
    wrong[1540] ^= 1
    with on_disk(path) as it:

        async def main() -> None:
            for pieces in ([4096], [100], [511, 2], [300, 4096]):
                raw = cdb("VERIFY (10)", BYTCHK=1, VERIFICATION_LENGTH=4)
                request, _ = await it.command(raw, bytes(wrong), pieces)
                assert str(request.sense) == "MISCOMPARE 1D/00"
                assert request.sense is not None and request.sense.information == 3
            raw = cdb("COMPARE AND WRITE", NUMBER_OF_LOGICAL_BLOCKS=4)
            request, _ = await it.command(raw, bytes(wrong) + bytes(2048))
            assert request.sense is not None and request.sense.information == 1540

        it.run(main)
    assert path.read_bytes() == before


# --- mode pages and the cache ---------------------------------------------------------------------


def test_mode_pages_are_read_and_changed(path: Path) -> None:
    with on_disk(path) as it:

        async def sense(name: str = "MODE SENSE (6)", **fields: int) -> bytes:
            _, data = await it.command(cdb(name, ALLOCATION_LENGTH=255, **fields))
            return data

        async def select(data: bytes, name: str = "MODE SELECT (6)", **fields: int) -> str:
            fields = {"PF": 1, "PARAMETER_LIST_LENGTH": len(data), **fields}
            request, _ = await it.command(cdb(name, **fields), data)
            return str(request.sense)

        async def main() -> None:
            six = await sense(PAGE_CODE=0x3F)
            ten = await sense("MODE SENSE (10)", PAGE_CODE=0x3F)
            assert len(six) == six[0] + 1 and len(ten) == int.from_bytes(ten[:2], "big") + 2
            assert six[4:] == ten[8:] and six[4:12] == struct.pack(">II", BLOCKS, 512)
            assert (await sense(PAGE_CODE=0x3F, DBD=1))[4:] == six[12:]
            long_lba = await sense("MODE SENSE (10)", PAGE_CODE=0x3F, LLBAA=1)
            assert long_lba[8:24] == struct.pack(">Q4xI", BLOCKS, 512) and long_lba[24:] == six[12:]
            codes, at = [], 12
            while at < len(six):
                codes.append(six[at])
                one = await sense(PAGE_CODE=six[at], DBD=1)
                assert one[4:] == six[at : at + 2 + six[at + 1]]
                default = await sense(PAGE_CODE=six[at], DBD=1, PC=2)
                assert default == one
                at += 2 + six[at + 1]
            assert codes == [0x01, 0x03, 0x04, 0x08, 0x0A]
            request, _ = await it.command(cdb("MODE SENSE (6)", PAGE_CODE=8, PC=3))
            assert str(request.sense) == "ILLEGAL_REQUEST 39/00"
            for fields in ({"PAGE_CODE": 0x02}, {"PAGE_CODE": 0x08, "SUBPAGE_CODE": 1}):
                request, _ = await it.command(cdb("MODE SENSE (6)", **fields))
                assert str(request.sense) == "ILLEGAL_REQUEST 24/00"

            # What is changeable can be changed, and nothing else.
            mask = (await sense(PAGE_CODE=8, DBD=1, PC=1))[6:]
            assert any(mask)
            page = bytearray((await sense(PAGE_CODE=8, DBD=1))[4:])
            for index in range(len(mask) * 8):
                changed = bytearray(page)
                changed[2 + index // 8] ^= 0x80 >> index % 8
                allowed = mask[index // 8] & (0x80 >> index % 8)
                said = await select(bytes(4) + changed)
                assert said == ("None" if allowed else "ILLEGAL_REQUEST 26/00")
                assert await select(bytes(8) + page, "MODE SELECT (10)") == "None"
            descriptor = bytes((0, 0, 0, 8)) + struct.pack(">II", BLOCKS, 512)
            assert await select(descriptor + page) == "None"
            for wrong, sense_code in (
                (bytes(3), "1A/00"),
                (bytes(4) + page[:-1], "1A/00"),
                (bytes(4) + page[:1], "1A/00"),
                (bytes((0, 0, 0, 8)) + bytes(4), "1A/00"),
                (bytes((0, 0, 0, 8)) + struct.pack(">II", BLOCKS, 1024), "26/00"),
                (bytes((0, 0, 0, 8)) + struct.pack(">II", BLOCKS + 1, 512), "26/00"),
                (bytes((0, 1, 0, 0)), "26/00"),
                (bytes(4) + b"\x02\x02\0\0", "26/00"),
                (bytes(4) + b"\x08\x01\0", "26/00"),
                (bytes(4) + b"\x48\x12" + bytes(18), "26/00"),
            ):
                assert await select(wrong) == f"ILLEGAL_REQUEST {sense_code}", wrong
            assert await select(bytes(4), SP=1) == "ILLEGAL_REQUEST 24/00"
            assert await select(bytes(4), PF=0) == "ILLEGAL_REQUEST 24/00"
            assert await select(b"") == "None"

        it.run(main)


def test_sense_data_in_descriptor_format(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            page = bytes(4) + bytes.fromhex("0a0a04100000 0000ffff0000".replace(" ", ""))
            raw = cdb("MODE SELECT (6)", PF=1, PARAMETER_LIST_LENGTH=len(page))
            request, _ = await it.command(raw, page)
            assert request.status is GOOD, request.sense
            request, _ = await it.command(cdb("READ (10)", LOGICAL_BLOCK_ADDRESS=BLOCKS + 1))
            assert request.sense is not None
            assert request.sense.data == request.sense.descriptor()
            assert request.sense.data[:4] == bytes((0x72, 5, 0x21, 0))
            await it.target.reset_unit(0)
            request, _ = await it.command(cdb("TEST UNIT READY"))
            assert request.sense is not None and request.sense.data[0] == 0x70

        it.run(main)


@pytest.mark.parametrize("how", ["cached", "FUA", "flushed", "WCE off", "turned off"])
def test_what_is_on_the_medium_when_the_power_fails(how: str) -> None:
    disk = LossyDisk(BLOCKS * 512)
    with disk, on_unit(Disk(disk, write_cache=how != "WCE off")) as it:

        async def main() -> None:
            raw = cdb("WRITE (10)", FUA=int(how == "FUA"), TRANSFER_LENGTH=2)
            request, _ = await it.command(raw, b"\x11" * 1024)
            assert request.status is GOOD
            if how == "flushed":
                await it.command(cdb("SYNCHRONIZE CACHE (10)"))
            if how == "turned off":  # what it holds is written first
                page = bytes(4) + bytes((8, 0x12)) + bytes(18)
                await it.command(cdb("MODE SELECT (6)", PF=1, PARAMETER_LIST_LENGTH=24), page)
            disk.fail()
            request, data = await it.command(cdb("READ (10)", FUA=1, TRANSFER_LENGTH=2))
            assert data == (bytes(1024) if how == "cached" else b"\x11" * 1024)
            assert disk.write_through == (how in ("WCE off", "turned off"))

        it.run(main)


def test_a_write_through_write_that_fails_is_remembered_by_flushes() -> None:
    disk = LossyDisk(BLOCKS * 512, script=[Answer.fail(errno.EIO)])
    with disk, on_unit(Disk(disk)) as it:

        async def main() -> None:
            raw = cdb("WRITE (10)", FUA=1, TRANSFER_LENGTH=1)
            request, _ = await it.command(raw, bytes(512))
            assert str(request.sense) == "MEDIUM_ERROR 0C/00"
            request, _ = await it.command(cdb("SYNCHRONIZE CACHE (10)"))
            assert str(request.sense) == "MEDIUM_ERROR 0C/00"

        it.run(main)


def test_a_file_that_cannot_give_blocks_back() -> None:
    def script(request: Any) -> Answer:
        return Answer.fail(errno.EOPNOTSUPP) if request.kind == "discard" else Answer.all()

    disk = LossyDisk(BLOCKS * 512, script=script)
    disk.content[:] = b"\x11" * len(disk.content)
    with disk, on_unit(Disk(disk)) as it:

        async def main() -> None:
            data = struct.pack(">HH4xQI4x", 22, 16, 0, 4)
            request, _ = await it.command(cdb("UNMAP", PARAMETER_LIST_LENGTH=24), data)
            assert request.status is GOOD and disk.content[:2048] == b"\x11" * 2048
            raw = cdb("WRITE SAME (16)", UNMAP=1, NDOB=1, NUMBER_OF_LOGICAL_BLOCKS=4)
            request, _ = await it.command(raw)
            assert request.status is GOOD and disk.content[:2048] == bytes(2048)

        it.run(main)


def test_what_a_disk_is_made_of(path: Path) -> None:
    with File(path) as file, Null() as null, Ram(4096) as ram, strict_engine() as engine:
        many: tuple[dict[str, Any], ...] = (
            {"block": 100},
            {"block": 1 << 17},
            {"physical": 100},
            {"vendor": "x" * 9},
        )
        for wrong in many:
            with pytest.raises(ArgumentError):
                Disk(file, **wrong)
        with pytest.raises(ArgumentError):
            Disk(file, serial="\n")
        with pytest.raises(ArgumentTypeError):
            Disk(null)
        disk = Disk(file)
        with pytest.raises(ArgumentError):
            Target(engine, {1 << 14: disk})
        target = Target(engine, {5: disk})
        with pytest.raises(Exception, match="in a target"):
            Target(engine, disk)
        it = Initiator(engine, target, ram)
        _, data = engine.run(it.command(cdb("REPORT LUNS", ALLOCATION_LENGTH=64), lun=5))
        assert data == (8).to_bytes(4, "big") + bytes(4) + bytes((0, 5)) + bytes(6)
        target.close()
        it.port.close()
        os.truncate(path, 0)
        assert Disk(file).blocks == 0
