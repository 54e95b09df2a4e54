"""Discard, write-zeroes, flush and grow: on files, block devices and memory endpoints."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import iodma
from iodma import Status

SIZE = 1 << 20


class System:
    def __init__(self) -> None:
        self.engine = iodma.Engine(strict=True)
        self.ram = iodma.Ram(SIZE)
        self.port = self.engine.port(iodma.Memory({0: self.ram}))

    def run(self, transfer: Any) -> Any:
        async def main() -> Any:
            return await transfer

        return self.engine.run(main())


@pytest.fixture
def system() -> Iterator[System]:
    made = System()
    yield made
    made.engine.close()
    made.ram.close()


@pytest.fixture(params=["here", "tmpfs"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file here, and one on a tmpfs, which knows no zero range."""
    if request.param == "here":
        yield tmp_path / "data"
        return
    there = Path(f"/dev/shm/iodma-test-{os.getpid()}")
    try:
        there.touch()
    except OSError as error:
        pytest.skip(f"no tmpfs here: {error}")
    yield there
    there.unlink()


def filled(path: Path, rng: random.Random, size: int = SIZE) -> bytearray:
    data = bytearray(rng.randbytes(size))
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("write_through", [False, True])
def test_random_zeroes_against_a_model(
    system: System, path: Path, rng: random.Random, direct: bool, write_through: bool
) -> None:
    model = filled(path, rng)
    try:
        file = iodma.File(path, direct=direct, write_through=write_through)
    except OSError as error:
        pytest.skip(f"cannot be opened so: {error}")
    with file:
        for _ in range(40):
            offset = rng.choice((0, rng.randrange(SIZE), rng.randrange(256) * 4096))
            length = rng.choice((1, 511, 4096, 65536, 65537, rng.randrange(1, 300_000)))
            done = system.run(system.port.write_zeroes(file, offset, length))
            assert (done.status, done.moved) == (Status.OK, length)
            model.extend(bytes(max(0, offset + length - len(model))))
            model[offset : offset + length] = bytes(length)
            assert path.read_bytes() == model


def test_many_mebibytes_of_zeroes_where_they_must_be_written(
    system: System, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "data"
    data = filled(path, rng, 40 << 20)
    with iodma.File(path, write_through=True) as file:
        requests = system.engine.stats().requests
        done = system.run(system.port.write_zeroes(file, 7, (40 << 20) - 20))
        assert done.moved == (40 << 20) - 20
        assert system.engine.stats().requests - requests < 10
    assert path.read_bytes() == data[:7] + bytes((40 << 20) - 20) + data[-13:]


def test_a_discard_reads_as_zeroes_and_gives_blocks_back(
    system: System, path: Path, rng: random.Random
) -> None:
    model = filled(path, rng)
    os.sync()
    before = path.stat().st_blocks
    with iodma.File(path) as file:
        for offset, length in ((4096, 65536), (300_001, 99), (SIZE - 4096, 8192), (SIZE, 4096)):
            done = system.run(system.port.discard(file, offset, length))
            if done.error == errno.EOPNOTSUPP:
                pytest.skip("this file system cannot")
            assert (done.status, done.moved) == (Status.OK, length)
            n = max(0, min(length, SIZE - offset))
            model[offset : offset + n] = bytes(n)
            assert path.read_bytes() == model  # and not longer
        assert file.size == SIZE
    assert path.stat().st_blocks < before


def test_nothing_at_all_is_done_at_once(system: System, path: Path, rng: random.Random) -> None:
    data = filled(path, rng)
    with iodma.File(path) as file:
        assert system.run(system.port.write_zeroes(file, 4096, 0)).ok
        assert system.run(system.port.discard(file, 4096, 0)).ok
        assert system.run(system.port.flush(file)).ok
    assert path.read_bytes() == data


def test_what_cannot_be_is_an_error_of_the_host(
    system: System, path: Path, rng: random.Random
) -> None:
    data = filled(path, rng)
    with iodma.File(path, read_only=True) as file:
        for act in (system.port.write_zeroes, system.port.discard):
            done = system.run(act(file, 0, 4096))
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EROFS)
    with iodma.File(path) as file:
        for offset, length in (((1 << 63) - 4096, 8192), (1 << 63, 1), (0, (1 << 64) - 1)):
            for act in (system.port.write_zeroes, system.port.discard):
                done = system.run(act(file, offset, length))
                assert (done.status, done.error) == (Status.IO_ERROR, errno.EFBIG)
    assert path.read_bytes() == data


def test_zeroes_and_unaligned_direct_writes_at_once(
    system: System, path: Path, rng: random.Random
) -> None:
    """Bytes that neither covers stay; where both do, one of them was last."""
    model = filled(path, rng)
    try:
        file = iodma.File(path, direct=True)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error}")
    system.ram.view()[:] = b"\xaa" * SIZE

    async def main() -> None:
        for _ in range(30):
            base = rng.randrange(200) * 4096
            spans = [(base + rng.randrange(9000), rng.randrange(1, 9000)) for _ in range(6)]
            going = []
            for i, (offset, length) in enumerate(spans):
                if i % 2:
                    going.append(system.port.write_zeroes(file, offset, length))
                else:
                    going.append(system.port.from_memory((0, length), to=file, offset=offset))
            for each in going:
                assert (await each).ok
            data = path.read_bytes()
            for at in range(base, base + 20_000):
                allowed = {
                    0 if i % 2 else 0xAA
                    for i, (offset, length) in enumerate(spans)
                    if offset <= at < offset + length
                }
                assert data[at] in (allowed or {model[at]})
            model[:] = data

    with file:
        system.engine.run(main())


def test_cancelled_zeroes_end(system: System, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\xff" * (64 << 20))

    async def main() -> None:
        with iodma.File(path, write_through=True) as file:
            going = system.port.write_zeroes(file, 0, 64 << 20)
            await system.engine.sleep(0.002)
            going.cancel()
            done = await going
            assert done.status in (Status.CANCELLED, Status.OK)
            data = path.read_bytes()
            assert data[: done.moved] == bytes(done.moved)

    system.engine.run(main())


# --- endpoints that are no file -------------------------------------------------------------------


def test_a_memory_endpoint(system: System, rng: random.Random) -> None:
    with iodma.Ram(SIZE) as memory, iodma.Buffer(memory) as buffer:
        memory.start_dirty_log()
        data = rng.randbytes(SIZE)
        memory.view()[:] = data
        assert system.run(system.port.flush(buffer)).ok
        assert system.run(system.port.write_zeroes(buffer, 5000, 100)).moved == 100
        assert system.run(system.port.discard(buffer, 9000, 1)).ok
        assert memory.view() == data[:5000] + bytes(100) + data[5100:9000] + b"\0" + data[9001:]
        assert memory.take_dirty_log()[0] == 0b110
        done = system.run(system.port.write_zeroes(buffer, SIZE - 10, 20))
        assert (done.status, done.error, done.moved) == (Status.IO_ERROR, errno.ENOSPC, 10)
        done = system.run(system.port.write_zeroes(buffer, 1 << 40, 20))
        assert (done.status, done.error, done.moved) == (Status.IO_ERROR, errno.ENOSPC, 0)


def test_null_takes_everything(system: System) -> None:
    with iodma.Null() as null:
        assert system.run(system.port.write_zeroes(null, 5000, 100)).ok
        assert system.run(system.port.discard(null, 0, 1 << 62)).ok
        assert system.run(system.port.flush(null)).ok


def test_a_socket_has_no_zeroes(system: System) -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs, iodma.Socket(ours) as endpoint:
        for transfer in (
            system.port.write_zeroes(endpoint, 0, 10),
            system.port.discard(endpoint, 0, 10),
            system.port.flush(endpoint),
        ):
            done = system.run(transfer)
            assert (done.status, done.error) == (Status.IO_ERROR, errno.EOPNOTSUPP)


# --- grow -----------------------------------------------------------------------------------------


def test_grow(system: System, path: Path, rng: random.Random) -> None:
    data = filled(path, rng)
    with iodma.File(path) as file:
        file.grow(SIZE // 2)  # never shorter
        assert file.size == SIZE
        file.grow(2 * SIZE)
        assert file.size == 2 * SIZE
        done = system.run(system.port.to_memory((0, 4096), source=file, offset=2 * SIZE - 4096))
        assert done.moved == 4096 and not any(system.ram.view(0, 4096))
    assert path.read_bytes() == data + bytes(SIZE)
    with (
        iodma.File(path, read_only=True) as file,
        pytest.raises(iodma.UnsupportedError, match="reading only"),
    ):
        file.grow(4 * SIZE)


# --- block devices --------------------------------------------------------------------------------


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 1 MiB; whoever is not root, or has none, does without."""
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no losetup here: {error}")
    if made.returncode:
        pytest.skip(f"no loop device to be had here: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize("direct", [False, True])
def test_a_block_device(
    system: System, block_device: str, rng: random.Random, direct: bool
) -> None:
    model = bytearray(rng.randbytes(SIZE))
    with iodma.File(block_device, direct=direct) as disk:
        assert disk.size == SIZE
        system.ram.view()[:] = model
        assert system.run(system.port.from_memory((0, SIZE), to=disk)).moved == SIZE
        # Whole blocks go to the device; parts of one are written.
        for offset, length in ((4096, 65536), (100_001, 7), (200_000, 70_000), (SIZE - 5, 5)):
            done = system.run(system.port.write_zeroes(disk, offset, length))
            assert (done.status, done.moved) == (Status.OK, length)
            model[offset : offset + length] = bytes(length)
        done = system.run(system.port.discard(disk, 512 * 1024, 65536))
        assert done.ok or done.error == errno.EOPNOTSUPP
        if done.ok:
            model[512 * 1024 : 512 * 1024 + 65536] = bytes(65536)
        assert system.run(system.port.flush(disk)).ok
        system.ram.view()[:] = bytes(SIZE)
        assert system.run(system.port.to_memory((0, SIZE), source=disk)).moved == SIZE
        assert system.ram.view() == model
        done = system.run(system.port.write_zeroes(disk, SIZE - 4096, 8192))
        assert done.status is Status.IO_ERROR and done.error in (errno.ENOSPC, errno.EINVAL)
        with pytest.raises(iodma.UnsupportedError, match="block device"):
            disk.grow(2 * SIZE)
