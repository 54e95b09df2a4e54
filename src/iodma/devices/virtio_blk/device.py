# SPDX-License-Identifier: Apache-2.0
"""The block device: what comes from its queues goes to a disk.

Reads and writes go to the disk and come back by a route that each queue is given once; everything
else is answered by a coroutine of its own, so that it holds up no other request.

Invariants
 - Every chain is answered once: OK, IOERR, or UNSUPP for a type or flag that the device does not
   know.
 - No request reaches past `size`, which a resize alone changes.
 - A write is stable when it completes unless the driver has accepted a write-back cache (virtio
   1.2, section 5.2.6.2): then a flush makes it so.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import ClassVar

from iodma.devices.virtio_blk.layout import CONFIG, SECTOR, BlkFeature
from iodma.devices.virtio_blk.requests import (
    RANGE_BYTES,
    REQUESTS,
    BlkStatus,
    BlkType,
    Refused,
    parse_ranges,
)
from iodma.endpoints import Buffer, Endpoint, File, Nbd
from iodma.endpoints.flushes import Flushes
from iodma.errors import ArgumentError, ArgumentTypeError, DmaFault
from iodma.log import GuestLog
from iodma.port import Port
from iodma.types import Status
from iodma.virtio import ConfigField, Queue, QueueLayout, VirtioDevice

__all__ = ["VirtioBlk"]

log = GuestLog("iodma.devices.virtio_blk")

_IN = 1 << BlkType.IN
_OUT = 1 << BlkType.OUT
#: Of the string that GET_ID gives.
ID_BYTES = 20
#: Of one discard or write-zeroes request.
MAX_RANGES = 32
MAX_RANGE_SECTORS = (1 << 30) // SECTOR

Segments = list[tuple[int, int]]


class VirtioBlk(VirtioDevice):
    """A disk for a driver, on a file, block device, NBD export or memory endpoint.

    Args:
        disk: where the bytes are: a `File`, an `Nbd`, a `Buffer`, or any endpoint with a `size`.
            It stays the caller's. Its `write_through`, where it has that, is set as the driver
            chooses.
        read_only: every write ends with IOERR; None: as the file was opened.
        serial: what GET_ID gives, at most 20 bytes.
        queues: request queues, 1 to 256.
        block_size: bytes of a logical block, a power of two from 512 to 65536.
        physical_block_size: bytes, a multiple of it that drivers had better align to.
        seg_max: most data segments of a request, as the driver is told; None: it is not told.
        size_max: most bytes of one of them, as the driver is told; None: it is not told.
        write_cache: begin in write-back mode; False: in write-through, which only a driver that
            can set the mode can leave.
        name: for messages.

    Attributes:
        disk: as given.
        flushes: `Flushes` of the disk: whether one has failed.

    Raises:
        ArgumentError: a number that is not one of those above.
    """

    device_id: ClassVar[int] = 2
    queue_max: ClassVar[int] = 1024
    layout: ClassVar[QueueLayout] = QueueLayout(header=16, trailer=1, position_at=8)
    config_layout = CONFIG

    disk: File | Nbd | Buffer

    def __init__(
        self,
        disk: Endpoint,
        *,
        read_only: bool | None = None,
        serial: str | bytes = b"",
        queues: int = 1,
        block_size: int = SECTOR,
        physical_block_size: int = 4096,
        seg_max: int | None = 126,
        size_max: int | None = None,
        write_cache: bool = True,
        name: str | None = None,
    ) -> None:
        if not isinstance(disk, Endpoint) or not hasattr(disk, "size"):
            raise ArgumentTypeError(f"{disk!r} has no size: a File or a Buffer would be right")
        super().__init__(name=name, disk=disk)
        self.serial = _serial(serial)
        self.queue_count = _between("queues", queues, 1, 256)
        self.block_size = _power("block_size", block_size, SECTOR)
        physical = max(_power("physical_block_size", physical_block_size, SECTOR), block_size)
        self.write_cache = bool(write_cache)
        opened_so = bool(getattr(disk, "read_only", False))
        self.read_only = opened_so if read_only is None else bool(read_only) or opened_so
        self.flushes = Flushes(disk)
        self._end = 0

        own = BlkFeature.BLK_SIZE | BlkFeature.TOPOLOGY | BlkFeature.FLUSH | BlkFeature.CONFIG_WCE
        config = self.config
        config["blk_size"] = block_size
        config["physical_block_exp"] = (physical // block_size).bit_length() - 1
        config["min_io_size"] = physical // block_size
        config["num_queues"] = self.queue_count
        if self.queue_count > 1:
            own |= BlkFeature.MQ
        if seg_max is not None:
            own |= BlkFeature.SEG_MAX
            config["seg_max"] = _between("seg_max", seg_max, 1, 1024)
        if size_max is not None:
            own |= BlkFeature.SIZE_MAX
            config["size_max"] = _between("size_max", size_max, 4096, (1 << 32) - 1)
        if self.read_only:
            own |= BlkFeature.RO
        else:
            own |= BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
            config["max_discard_sectors"] = MAX_RANGE_SECTORS
            config["max_discard_seg"] = MAX_RANGES
            config["discard_sector_alignment"] = physical // SECTOR
            config["max_write_zeroes_sectors"] = MAX_RANGE_SECTORS
            config["max_write_zeroes_seg"] = MAX_RANGES
            config["write_zeroes_may_unmap"] = 1
        self._features = super().features | int(own)
        self._read_size()
        self.reset()

    # --- the disk ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes that the driver can reach: whole logical blocks."""
        return self._end

    def resize(self) -> bool:
        """Looks at the disk's size again; the driver is told if it has changed.

        Returns:
            Whether it has.
        """
        before = self._end
        self._read_size()
        if self._end == before:
            return False
        log.info("%s: %d bytes now, %d before", self.name, self._end, before)
        for queue in self.queues.values():
            self._route(queue)
        self.config_changed()
        return True

    def _read_size(self) -> None:
        self._end = self.disk.size // self.block_size * self.block_size
        self.config["capacity"] = self._end // SECTOR

    # --- features and the cache -------------------------------------------------------------------

    @property
    def features(self) -> int:
        return self._features

    @property
    def write_back(self) -> bool:
        """Whether a write may complete before it is stable, as the driver has it now."""
        if self.negotiated & BlkFeature.CONFIG_WCE:
            return bool(self.config["writeback"])
        return self.write_cache and bool(self.negotiated & BlkFeature.FLUSH)

    def reset(self) -> None:
        self.config["writeback"] = self.write_cache
        self._set_mode()

    def features_chosen(self) -> None:
        if self.negotiated & BlkFeature.CONFIG_WCE and not self.negotiated & BlkFeature.FLUSH:
            self.config["writeback"] = 0  # section 5.2.5.2
        self._set_mode()

    def config_written(self, field: ConfigField, value: int) -> None:
        if field.name != "writeback" or not self.negotiated & BlkFeature.CONFIG_WCE:
            super().config_written(field, value)
        self.config["writeback"] = int(value != 0)
        self._set_mode()

    def _set_mode(self) -> None:
        if not self.disk.closed and hasattr(self.disk, "write_through"):
            self.disk.write_through = not self.write_back

    # --- requests ---------------------------------------------------------------------------------

    async def serve(self, queue: Queue) -> None:
        self._route(queue)
        async for chains in queue.batches(16):
            opcode, readable, writable = chains.opcode, chains.readable, chains.writable
            for row, type in enumerate(opcode.tolist()):
                self.start(
                    self._answer(
                        queue,
                        int(chains.id[row]),
                        type,
                        int(chains.position[row]),
                        int(readable[row]),
                        int(writable[row]),
                        chains.segments(row),
                    )
                )

    async def complete(self, queue: Queue) -> None:
        """Nothing: what goes by the route is answered by it."""

    def _route(self, queue: Queue) -> None:
        """Plain reads and writes need nobody to decide about them one by one."""
        queue.route(
            self.disk,
            to_memory=_IN,
            from_memory=0 if self.read_only else _OUT,
            unit=SECTOR,
            end=self._end,
            ok=BlkStatus.OK,
            error=BlkStatus.IOERR,
        )

    async def _answer(
        self,
        queue: Queue,
        id: int,
        type: int,
        sector: int,
        readable: int,
        writable: int,
        segments: Segments,
    ) -> None:
        """One request that is no plain read or write: does it, and gives the chain back."""
        written = 0
        try:
            kind = REQUESTS.get(type)
            if kind is None or kind.needs & ~self._features:
                raise Refused(BlkStatus.UNSUPP)
            if not kind.fits(readable, writable) or (kind.writes and self.read_only):
                raise Refused(BlkStatus.IOERR)
            if kind.type is BlkType.FLUSH:
                if not await self.flushes.flush(self.engine, queue.port):
                    raise Refused(BlkStatus.IOERR)
            elif kind.type is BlkType.GET_ID:
                written = await store(queue.port, segments, self.serial)
            elif kind.type in (BlkType.IN, BlkType.OUT):  # without data
                if sector > self._end // SECTOR:
                    raise Refused(BlkStatus.IOERR)
            else:
                await self._ranges(queue.port, kind.type, readable, segments)
            status = BlkStatus.OK
        except Refused as refused:
            status = refused.status
        except DmaFault:
            status = BlkStatus.IOERR
        queue.finish(id, written, bytes((status,)))

    async def _ranges(self, port: Port, type: BlkType, readable: int, segments: Segments) -> None:
        """Discard and write zeroes."""
        if readable > MAX_RANGES * RANGE_BYTES:
            raise Refused(BlkStatus.IOERR)
        zeroes = type is BlkType.WRITE_ZEROES
        ranges = parse_ranges(
            await load(port, segments),
            zeroes=zeroes,
            most=MAX_RANGES,
            most_sectors=MAX_RANGE_SECTORS,
            capacity=self._end // SECTOR,
        )
        for offset, length, unmap in ranges:
            if not zeroes:
                done = await port.discard(self.disk, offset, length)
                # A device may leave the range as it is.
                if not done.ok and (done.status, done.error) != (Status.IO_ERROR, EOPNOTSUPP):
                    raise Refused(BlkStatus.IOERR)
                continue
            # Given back to the host, a range is zero at once, and on the medium with a flush.
            if unmap and self.write_back:
                done = await port.discard(self.disk, offset, length)
                if done.ok:
                    continue
            done = await port.write_zeroes(self.disk, offset, length)
            if not done.ok:
                raise Refused(BlkStatus.IOERR)


async def load(port: Port, segments: Segments) -> bytes:
    """The bytes of a short list. Raises DmaFault."""
    parts = [await port.load_bytes(address, length) for address, length in segments]
    return b"".join(parts)


async def store(port: Port, segments: Segments, data: bytes) -> int:
    """Puts `data` where the list is, as far as it goes. How many bytes. Raises DmaFault."""
    at = 0
    for address, length in segments:
        part = data[at : at + length]
        if part:
            await port.store_bytes(address, part)
        at += len(part)
    return at


def _serial(serial: str | bytes) -> bytes:
    data = serial.encode("ascii", "replace") if isinstance(serial, str) else bytes(serial)
    if len(data) > ID_BYTES:
        raise ArgumentError(f"serial is {data!r}, {len(data)} bytes; {ID_BYTES} are the most")
    return data.ljust(ID_BYTES, b"\0")


def _between(what: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ArgumentError(f"{what} is {value}; {low} to {high} would be right")
    return value


def _power(what: str, value: int, low: int) -> int:
    if not low <= value <= 1 << 16 or value & (value - 1):
        raise ArgumentError(f"{what} is {value}; a power of two, {low} to 65536, would be right")
    return value
