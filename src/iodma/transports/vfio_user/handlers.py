# SPDX-License-Identifier: Apache-2.0
"""What each message does: a method for every handler that `messages.COMMANDS` names.

A handler gives the payload of the answer, with descriptors if some go with it; one that has to wait
gives a function whose coroutine gives the payload. It raises `Refusal` for what cannot be: the
answer is its errno, and nothing else has happened.

Invariants
 - A handler is called with at least as many bytes as its message has.
 - Descriptors that it does not take out of the list are closed by who called it.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from iodma.engine import Engine
from iodma.errors import Error
from iodma.pci import Function
from iodma.transports.descriptors import Descriptor
from iodma.transports.vfio_user import features
from iodma.transports.vfio_user.dma import DmaTable
from iodma.transports.vfio_user.doorbells import Doorbells
from iodma.transports.vfio_user.faults import Faults
from iodma.transports.vfio_user.irqs import Irqs
from iodma.transports.vfio_user.messages import (
    BITMAP,
    COMMANDS,
    COUNT,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    IO_FDS,
    MOST_TRANSFER,
    REGION_ACCESS,
    REGIONS,
    Command,
    Refusal,
)
from iodma.transports.vfio_user.regions import Regions
from iodma.transports.vfio_user.remote import Remote
from iodma.transports.vfio_user.version import Client

__all__ = ["Answer", "Handler", "Handlers", "Later"]

#: Of VFIO_USER_DMA_MAP: may be read, may be written; the two that say how come with a descriptor.
_READABLE, _WRITABLE, _MMAP, _FILE_IO = 1, 2, 4, 8
_GET_DIRTY, _ALL = 1, 2
_F_RESET, _F_PCI = 1, 2
_IRQ_INDEXES = 5


class Answer(NamedTuple):
    """A payload, and descriptors that go with it."""

    payload: bytes
    descriptors: list[Descriptor]


Later = Callable[[], Coroutine[Any, Any, bytes]]
Handler = Callable[[bytes, list[Descriptor]], bytes | Answer | Later]


class Handlers:
    """The state of a session, and what messages do to it.

    Attributes:
        function: what the client drives.
        client: what it has said of itself.
        remote: its memory, by messages.
        table: its memory.
        faults: what it is told of DMA elsewhere.
        regions: BARs, ROM, configuration space.
        irqs: where interrupts go.
    """

    def __init__(
        self,
        engine: Engine,
        function: Function,
        name: str,
        mapped: Callable[[int, int], bool] | None,
    ) -> None:
        self.engine = engine
        self.function = function
        self.name = name
        self.client = Client(0)
        self.remote = Remote(self._ask)
        memory = None if function.slot is None else function.slot.memory
        self.table = (
            None
            if memory is None
            else DmaTable(
                engine, memory, self.remote, name, private=self._is_private, mapped=mapped
            )
        )
        self.faults = (
            None if memory is None else Faults(engine, memory, self.remote, name, self._may_ask)
        )
        self.regions = Regions(function)
        self.irqs = Irqs(engine, function.interrupts)
        self._doorbells = Doorbells(engine, function)
        #: Command -> bytes of payload that it has at least, and who does it.
        self._handlers: dict[int, tuple[int, Handler]] = {
            int(command): (kind.least, getattr(self, f"_{kind.handler}"))
            for command, kind in COMMANDS.items()
            if command != Command.VERSION
        }

    def _is_private(self, file: tuple[int, int], fd: int) -> bool:
        """Whether what the client writes to a file of its memory is its own."""
        raise NotImplementedError

    def _ask(self, id: int, command: int, payload: bytes) -> None:
        raise NotImplementedError

    def _may_ask(self) -> bool:
        """Whether no command waits for transfers to end."""
        raise NotImplementedError

    # --- information ------------------------------------------------------------------------------

    def _get_info(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        argsz = DEVICE_INFO.unpack_from(payload)[0]
        if argsz < DEVICE_INFO.size:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {DEVICE_INFO.size} is the least")
        return DEVICE_INFO.pack(DEVICE_INFO.size, _F_RESET | _F_PCI, REGIONS, _IRQ_INDEXES)

    def _get_region_info(self, payload: bytes, descriptors: list[Descriptor]) -> bytes | Answer:
        info, descriptor = self.regions.info(payload)
        return info if descriptor is None else Answer(info, [descriptor])

    def _get_region_io_fds(self, payload: bytes, descriptors: list[Descriptor]) -> Answer:
        size = self.regions.check(IO_FDS.unpack_from(payload)[2])
        return Answer(*self._doorbells.info(payload, size, self.client.descriptors))

    def _get_irq_info(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        return self.irqs.info(payload)

    def _set_irqs(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        self.irqs.set(payload, descriptors)
        return b""

    # --- accesses ---------------------------------------------------------------------------------

    def _region_read(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        return self.regions.read(payload)

    def _region_write(self, payload: bytes, descriptors: list[Descriptor]) -> bytes | Later:
        wait = self.regions.write(payload)
        answer = payload[: REGION_ACCESS.size]
        return answer if wait is None else _after(wait, answer)

    def _region_write_multi(self, payload: bytes, descriptors: list[Descriptor]) -> Later:
        if not self.client.write_multiple:
            raise Refusal(errno.EINVAL, "write_multiple was not agreed on")
        writes = self.regions.writes(payload)
        answer = payload[: COUNT.size]

        async def write() -> bytes:
            await self.regions.write_all(writes)
            return answer

        return write

    def _reset(self, payload: bytes, descriptors: list[Descriptor]) -> Later:
        wait = _after(self.function.request_reset(), b"")
        if self.faults is not None:
            self.faults.reset()

        async def done() -> bytes:
            answer = await wait()
            self.irqs.reset()
            return answer

        return done

    # --- memory -----------------------------------------------------------------------------------

    def _dma(self) -> DmaTable:
        if self.table is None:
            raise Refusal(errno.EINVAL, "the device does no DMA")
        return self.table

    def _dma_map(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        argsz, flags, offset, address, size = DMA_MAP.unpack_from(payload)
        if argsz < DMA_MAP.size:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {DMA_MAP.size} is the least")
        if flags & ~(_READABLE | _WRITABLE | _MMAP):
            raise Refusal(errno.EINVAL, f"flags {flags:#x}")
        if flags & _MMAP and not descriptors:
            raise Refusal(errno.EINVAL, "a region to be mapped, and no descriptor")
        if self.table is not None:
            descriptor = descriptors[0] if descriptors else None
            self.table.map(address, size, flags & 3, descriptor, offset)
        return b""

    def _dma_unmap(self, payload: bytes, descriptors: list[Descriptor]) -> bytes | Later:
        argsz, flags, address, size = DMA_UNMAP.unpack_from(payload)
        answer, dirty = payload[: DMA_UNMAP.size], None
        needed = DMA_UNMAP.size
        if flags == _GET_DIRTY:
            needed += BITMAP.size
            if len(payload) < needed:
                raise Refusal(errno.EINVAL, f"{len(payload)} bytes; {needed} are the least")
            page, room = BITMAP.unpack_from(payload, DMA_UNMAP.size)
            if room < features.bitmap_bytes(size, page):
                raise Refusal(errno.EINVAL, f"a bitmap of {room} bytes for {size:#x}")
            answer, dirty = payload[:needed], (page, room)
            needed += room
        elif flags == _ALL:
            if address or size:
                raise Refusal(errno.EINVAL, "all regions, and an address or a size")
        elif flags:
            raise Refusal(errno.EINVAL, f"flags {flags:#x}")
        if not needed <= argsz <= MOST_TRANSFER:
            raise Refusal(errno.EINVAL, f"argsz {argsz}; {needed} is the least")
        if self.table is None:
            return answer
        wait = self.table.unmap(address, size, all=flags == _ALL, dirty=dirty)
        if wait is None:
            return answer
        if isinstance(wait, bytes):
            return answer + wait

        async def wait_for() -> bytes:
            return answer + (await wait or b"")

        return wait_for

    def _dirty_pages(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        return features.dirty_pages(self._dma(), payload)

    def _feature(self, payload: bytes, descriptors: list[Descriptor]) -> bytes:
        return features.feature(self._dma(), payload)


def _after(wait: Awaitable[object], answer: bytes) -> Later:
    async def done() -> bytes:
        try:
            await wait
        except Error as error:  # such as of a device that fails in its reset
            error.__traceback__ = None  # what was awaited keeps it, and it would keep that
            raise Refusal(errno.EIO, str(error)) from None
        return answer

    return done
