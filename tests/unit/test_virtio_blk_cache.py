"""The block device's write cache: its modes, flushes, and what outlives a power failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import ArgumentError, Buffer, File
from iodma._core import Wait, completion
from iodma.devices.virtio_blk import BlkFeature, BlkType, VirtioBlk
from iodma.endpoints.flushes import Flushes
from iodma.testing import Answer, LossyDisk, ScriptedEndpoint
from iodma.virtio import Feature
from tests.unit.guestdisk import (  # noqa: F401
    IOERR,
    OK,
    SECTORS,
    SIZE,
    Guest,
    disk_fixture,
    path_fixture,
    ranges,
)

# --- the write cache ------------------------------------------------------------------------------

FLUSH, WCE = BlkFeature.FLUSH, BlkFeature.CONFIG_WCE


@pytest.mark.parametrize(
    ("features", "write_cache", "through"),
    [
        (0, True, True),  # neither accepted, flush offered
        (FLUSH, True, False),
        (FLUSH, False, True),
        (FLUSH | WCE, True, False),
        (FLUSH | WCE, False, True),
        (WCE, True, True),
    ],
)
def test_the_mode_that_the_features_say(
    disk: File, features: int, write_cache: bool, through: bool
) -> None:
    device = VirtioBlk(disk, write_cache=write_cache)
    assert disk.write_through, "until the driver has said what it can do"
    device.set_features(Feature.VERSION_1 | features)
    assert disk.write_through is through
    if features & WCE:
        assert device.read_config(32, 1) == bytes((not through,))
        for value in (0, 1, 0):
            device.write_config(32, bytes((value,)))
            assert disk.write_through is (value == 0)
    else:
        with pytest.raises(ArgumentError, match="read-only"):
            device.write_config(32, b"\0")
    with pytest.raises(ArgumentError, match="capacity of the configuration space is read-only"):
        device.write_config(0, bytes(8))


def test_a_reset_forgets_the_mode(disk: File) -> None:
    with Guest(disk, features=FLUSH | WCE) as guest:
        guest.device.write_config(32, b"\0")

        async def main() -> None:
            await guest.device.set_status(0)

        guest.run(main())
        assert guest.device.config["writeback"] == 1 and disk.write_through
        guest.device.set_features(Feature.VERSION_1 | FLUSH | WCE)
        assert not disk.write_through


@pytest.mark.parametrize("through", [False, True])
def test_zeroes_and_writes_in_either_mode(path: Path, disk: File, through: bool) -> None:
    with Guest(disk, features=FLUSH | WCE) as guest:
        guest.device.write_config(32, bytes((not through,)))

        async def main() -> None:
            for flags in (0, 1):
                out = ranges((8 + 16 * flags, 8, flags))
                assert (await guest.request(BlkType.WRITE_ZEROES, out=out))[0] == OK
            assert (await guest.request(BlkType.OUT, 0, out=b"\x22" * 512))[0] == OK
            assert (await guest.request(BlkType.FLUSH))[0] == OK

        guest.run(main())
    content = path.read_bytes()
    assert content[:512] == b"\x22" * 512
    assert content[4096:8192] == content[12288:16384] == bytes(4096)
    assert content[8192:12288] != bytes(4096)


def test_after_a_flush_that_failed_all_fail() -> None:
    # The disk says so once: the next flush of a file, say, would find nothing left to write.
    with ScriptedEndpoint(SIZE, script=[Answer.fail(5)]) as disk, Guest(disk) as guest:

        async def main() -> None:
            for _ in range(3):
                assert (await guest.request(BlkType.FLUSH))[0] == IOERR
                assert (await guest.request(BlkType.OUT, 1, out=bytes(512)))[0] == OK
            await guest.device.set_status(0)

        guest.run(main())
        assert guest.device.flushes.lost, "also after a reset"


class FlushPort:
    """Flushes end when the test says so."""

    def __init__(self, engine: iodma.Engine) -> None:
        self.engine = engine
        self.asked: list[Wait[Any]] = []

    def flush(self, disk: Any) -> Wait[Any]:
        self.asked.append(Wait(self.engine))
        return self.asked[-1]

    def end(self, error: int = 0) -> None:
        self.asked[-1]._resolve(completion(2 if error else 0, 0, error))


def flushing(steps: Callable[[Any], Any]) -> None:
    with iodma.Engine(strict=True) as engine, Buffer(512) as disk:
        port: Any = FlushPort(engine)
        flushes = Flushes(disk)

        async def main() -> None:
            async def rest() -> None:
                for _ in range(5):
                    await engine.sleep(0)

            def ask() -> Any:
                return engine.start(flushes.flush(engine, port))

            await steps((flushes, port, ask, rest))

        engine.run(main())


def test_flushes_go_one_at_a_time_and_share_the_next() -> None:
    async def steps(have: Any) -> None:
        _, port, ask, rest = have
        first = ask()
        await rest()
        others = [ask() for _ in range(3)]
        await rest()
        assert len(port.asked) == 1
        port.end()
        assert await first
        await rest()
        assert len(port.asked) == 2 and not any(each.done for each in others)
        port.end()
        assert [await each for each in others] == [True] * 3
        assert len(port.asked) == 2

    flushing(steps)


def test_a_flush_that_fails_fails_those_that_wait_for_it() -> None:
    async def steps(have: Any) -> None:
        flushes, port, ask, rest = have
        first = ask()
        await rest()
        second = ask()
        await rest()
        port.end(error=5)
        assert [await first, await second, await ask()] == [False] * 3
        assert (len(port.asked), flushes.lost) == (1, 5)

    flushing(steps)


def test_a_flush_whose_request_was_reset_is_remembered() -> None:
    async def steps(have: Any) -> None:
        flushes, port, ask, rest = have
        first = ask()
        await rest()
        first.cancel()
        await rest()
        assert first.done
        port.end(error=28)
        assert flushes.lost == 28 and not await ask()

    flushing(steps)


# --- a disk that loses what was not flushed -------------------------------------------------------


class Sector:
    """What may be on the medium: the last value known to be durable, or any written since."""

    def __init__(self) -> None:
        self.values: list[bytes] = [bytes(512)]
        self.floor = 0  # the first of them that may be there

    def may_be(self, data: bytes) -> bool:
        return data in self.values[self.floor :]


@pytest.mark.parametrize("mode", ["flush", "through", "neither"])
def test_what_was_flushed_outlives_a_power_failure(rng: random.Random, mode: str) -> None:
    """Writers, flushes that take their time, and a power failure at any moment."""

    def later(request: Any) -> Answer:
        return Answer.all().after(rng.choice((0, 0, 0.0002, 0.001)))

    features = {"flush": FLUSH, "through": FLUSH | WCE, "neither": 0}[mode]
    with LossyDisk(SIZE, script=later) as disk, Guest(disk, features=features) as guest:
        if mode == "through":
            guest.device.write_config(32, b"\0")
        sectors = [Sector() for _ in range(SECTORS)]
        stop = [False]
        flushed = [0]

        async def writer(mine: range) -> None:
            while not stop[0]:
                at = rng.choice(mine)
                count = rng.randrange(1, min(4, mine.stop - at) + 1)
                data = rng.randbytes(512 * count)
                covered = sectors[at : at + count]
                for k, sector in enumerate(covered):
                    sector.values.append(data[512 * k : 512 * k + 512])
                if stop[0] or (await guest.request(BlkType.OUT, at, data))[0] != OK:
                    return
                if mode != "flush":
                    for sector in covered:
                        sector.floor = len(sector.values) - 1
                else:
                    for sector in covered:
                        complete[sector] = len(sector.values) - 1

        complete: dict[Sector, int] = {}

        async def flusher() -> None:
            while not stop[0]:
                covers = dict(complete)
                if (await guest.request(BlkType.FLUSH))[0] == OK:
                    flushed[0] += 1
                    for sector, floor in covers.items():
                        sector.floor = max(sector.floor, floor)
                await guest.engine.sleep(0.0005)

        async def main() -> None:
            for _ in range(6):
                stop[0] = False
                tasks = [
                    guest.engine.start(writer(range(first, first + 64)))
                    for first in range(0, SECTORS, 64)
                ]
                tasks.append(guest.engine.start(flusher()))
                await guest.engine.sleep(0.01)
                disk.fail(rng)
                for at, sector in enumerate(sectors):
                    kept = bytes(disk.medium[at * 512 : at * 512 + 512])
                    assert sector.may_be(kept), f"sector {at} lost what was durable"
                # What is under way goes on into the disk that came back; then all is quiet.
                stop[0] = True
                for task in tasks:
                    await task
                assert (await guest.request(BlkType.FLUSH))[0] == OK
                complete.clear()
                for at, sector in enumerate(sectors):
                    sector.values = [bytes(disk.medium[at * 512 : at * 512 + 512])]
                    sector.floor = 0

        guest.run(main())
        assert disk.failures == 6 and flushed[0] > 0


def test_the_disk_that_loses_loses() -> None:
    """What is not flushed is gone, so the test above can fail."""
    with LossyDisk(SIZE) as disk, Guest(disk, features=FLUSH) as guest:

        async def main() -> None:
            await guest.request(BlkType.OUT, 0, b"\1" * 512)
            await guest.request(BlkType.FLUSH)
            await guest.request(BlkType.OUT, 1, b"\2" * 512)
            zeroes = ranges((0, 1, 0))
            assert (await guest.request(BlkType.WRITE_ZEROES, out=zeroes))[0] == OK
            disk.fail()
            data = b"\1" * 512 + bytes(512)
            assert (await guest.request(BlkType.IN, 0, into=1024))[1] == data

        guest.run(main())


def test_a_failed_flush_is_never_made_good() -> None:
    def script(request: Any) -> Answer:
        flushes = sum(each.kind == "flush" for each in lossy.requests)
        return Answer.fail(5) if request.kind == "flush" and flushes == 2 else Answer.all()

    lossy = LossyDisk(SIZE, script=script)
    with lossy, Guest(lossy, features=FLUSH) as guest:

        async def main() -> None:
            statuses = [(await guest.request(BlkType.FLUSH))[0] for _ in range(4)]
            assert statuses == [OK, IOERR, IOERR, IOERR]

        guest.run(main())
        assert sum(each.kind == "flush" for each in lossy.requests) == 2
