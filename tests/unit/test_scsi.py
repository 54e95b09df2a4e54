"""The target layer and the disk, under an initiator that the test writes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from iodma.scsi import State
from tests.unit.scsikit import CHECK, GOOD, on_disk

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(SIZE))
    return path


def test_what_is_first_heard_is_the_power_on(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            request, data = await it.command("120000002400")
            assert request.status is GOOD and len(data) == 36
            request, _ = await it.command("000000000000")
            assert request.status is CHECK and str(request.sense) == "UNIT_ATTENTION 29/00"
            _, data = await it.command("030000001200")  # kept: it is not delivered with the status
            assert (data[0], data[2], data[12], data[13]) == (0x70, 6, 0x29, 0)
            _, data = await it.command("030000001200")
            assert (data[2], data[12]) == (0, 0)
            assert (await it.command("000000000000"))[0].status is GOOD

        it.engine.run(main())


@pytest.mark.parametrize("pieces", [[65536], [4096, 512], [1, 2, 3, 777]])
def test_reads_and_writes(path: Path, pieces: list[int], rng: random.Random) -> None:
    before = path.read_bytes()
    out = rng.randbytes(8 * 512)
    with on_disk(path) as it:

        async def main() -> None:
            await it.settle()
            for cdb in (
                "080000030800",
                "28000000000300000800",
                "a80000000003000000080000",
                "88000000000000000003000000080000",
            ):
                request, data = await it.command(cdb, pieces=pieces)
                assert request.status is GOOD and data == before[1536 : 1536 + 4096]
            request, _ = await it.command("2a000000000500000800", out, pieces)
            assert request.status is GOOD and request.left == 0
            # READ (6) of 0 blocks is one of 256.
            _, data = await it.command("080000000000")
            assert data == before[:2560] + out + before[2560 + len(out) : 256 * 512]

        it.engine.run(main())
    assert path.read_bytes() == before[:2560] + out + before[2560 + len(out) :]


def test_a_read_of_scattered_pages_copies_nothing(path: Path) -> None:
    before = path.read_bytes()
    with on_disk(path) as it:

        async def main() -> None:
            await it.settle()
            counted = it.engine.stats()
            request = it.send("28000000000000008000")
            await request.ready
            pages = [(8192 * page, 4096) for page in range(16)]
            assert (await request.transfer(it.port, pages)).ok
            assert await request.finished is GOOD
            after = it.engine.stats()
            assert after.copied == counted.copied
            assert after.python_bytes == counted.python_bytes
            assert b"".join(it.ram.view(*page) for page in pages) == before[:65536]

        it.engine.run(main())


def test_a_cancel_in_the_data_phase_moves_nothing_more(path: Path) -> None:
    with on_disk(path) as it:

        async def main() -> None:
            await it.settle()
            request = it.send("28000000000000008000")
            await request.ready
            assert request.cancel() and await request.finished is None
            assert request.state is State.CANCELLED and not request.cancel()
            assert (await request.transfer(it.port, (0, 4096))).moved == 0

        it.engine.run(main())
