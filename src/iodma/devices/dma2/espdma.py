# SPDX-License-Identifier: Apache-2.0
"""ESPDMA: the SCSI half of the DMA2 (NCR89C100/STP2001, "DMA2", SCSI channel).

    0x0  D_CSR      control and status
    0x4  D_ADDR     the next byte's bus address: a counter of 32 bits, which wraps
    0x8  D_BCNT     bytes left, 24 bits; counts while EN_CNT is set, 0 stands for 2^24
    0xc  D_TST_CSR  test: only stored

The SCSI chip asks for DMA by what this offers it: `answers`, `segments`, `advance`, `memory_error`,
`port` and `on_ready`. It keeps nothing of a transfer under way: the chip describes it anew from
here each time.

    state        counts  left by
    loaded       yes     the byte counter expires: loaded, from the next registers, or expired
    expired      no      D_ADDR or D_BCNT is written; INVALIDATE; RESET

A chip that asks in the other direction than D_WRITE says is not answered, until D_WRITE is changed:
the manual does not say what would move.

Invariants
 - D_ADDR moves, and D_BCNT falls, by the bytes that have reached memory or come from it.
 - With EN_CNT no byte beyond the counter is offered, nor beyond the next one's.
 - After a memory error nothing is answered until INVALIDATE or RESET.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iodma.devices import Register
from iodma.devices.dma2.csr import (
    BURST_SIZE,
    D_A_LOADED,
    D_DIAG,
    D_DMA_ON,
    D_DSBL_CSR_DRN,
    D_DSBL_SCSI_DRN,
    D_EN_CNT,
    D_EN_DMA,
    D_EN_NEXT,
    D_FASTER,
    D_NA_LOADED,
    D_TC,
    D_TCI_DIS,
    D_TWO_CYCLE,
    D_WRITE,
    ERR_PEND,
    INT_EN,
    RESET,
)
from iodma.devices.dma2.half import Half

if TYPE_CHECKING:
    from iodma.port import Port

__all__ = ["EspDma"]

_ADDRESSES = 1 << 32
_COUNTS = 1 << 24


class EspDma(Half):
    """The SCSI half.

    Args:
        port: what its DMA goes through: of the IOMMU.
        name: for messages.

    Attributes:
        on_ready: called when requests that were not answered may be now.
    """

    KEPT = (
        INT_EN
        | RESET
        | D_WRITE
        | D_EN_DMA
        | D_EN_CNT
        | D_DSBL_CSR_DRN
        | D_DSBL_SCSI_DRN
        | BURST_SIZE
        | D_DIAG
        | D_TWO_CYCLE
        | D_FASTER
        | D_TCI_DIS
        | D_EN_NEXT
    )

    on_ready: Callable[[], object] | None = None

    addr = Register(0x4, write="write_addr", doc="D_ADDR")
    bcnt = Register(0x8, mask=_COUNTS - 1, write="write_bcnt", doc="D_BCNT")
    tst_csr = Register(0xC, doc="D_TST_CSR")

    def __init__(self, port: Port, *, name: str | None = None) -> None:
        self._forget()
        super().__init__(port, name=name)

    def reset(self) -> None:
        self._forget()
        super().reset()

    def _forget(self) -> None:
        self._terminal = False  # D_TC
        self._expired = False
        self._loaded = 0  # D_A_LOADED, D_NA_LOADED
        self._next_address = self._next_count = 0

    # --- for the SCSI chip ------------------------------------------------------------------------

    def answers(self, to_memory: bool) -> bool:
        """Whether a request of the chip, to memory or from there, is answered now."""
        return self._on() and bool(self._values["csr"] & D_WRITE) is to_memory

    def segments(self, length: int) -> list[tuple[int, int]]:
        """The next `length` bytes, in bus addresses; fewer where the byte counter expires first."""
        values = self._values
        counts = values["csr"] & D_EN_CNT
        pieces: list[tuple[int, int]] = []
        here = min(length, values["bcnt"] or _COUNTS) if counts else length
        _add(pieces, values["addr"], here)
        if here < length and self._loaded & D_NA_LOADED:
            _add(pieces, self._next_address, min(length - here, self._next_count or _COUNTS))
        return pieces

    def advance(self, moved: int) -> None:
        """So many bytes of `segments` were moved."""
        values = self._values
        if not values["csr"] & D_EN_CNT:
            values["addr"] = (values["addr"] + moved) % _ADDRESSES
            return
        while moved and not self._expired:
            left = values["bcnt"] or _COUNTS
            step = min(moved, left)
            values["addr"] = (values["addr"] + step) % _ADDRESSES
            values["bcnt"] = left - step
            moved -= step
            if step == left:
                self._terminal_count()
        self._update()

    def _terminal_count(self) -> None:
        self._terminal = True
        if self._loaded & D_NA_LOADED:
            self._values.update(addr=self._next_address, bcnt=self._next_count)
            self._loaded = D_A_LOADED
        else:
            self._loaded = 0
            self._expired = True

    # --- registers --------------------------------------------------------------------------------

    def pending(self) -> bool:
        return self._line or (self._terminal and not self._values["csr"] & D_TCI_DIS)

    def state_bits(self) -> int:
        on = D_DMA_ON if self._on() else 0
        return self._loaded | on | (D_TC if self._terminal else 0)

    def write_csr(self, value: int) -> None:
        super().write_csr(value)
        self._tell()

    def write_addr(self, value: int, old: int) -> None:
        if self._chains() and self._loaded:
            self.addr = old
            self._next_address = value
            self._loaded |= D_NA_LOADED
        else:
            self._loaded |= D_A_LOADED
            self._expired = False
        self._tell()

    def write_bcnt(self, value: int, old: int) -> None:
        if self._chains() and self._loaded:
            self._next_count = value & _COUNTS - 1
            self.bcnt = old
        else:
            self._terminal = self._expired = False
            self._update()
        self._tell()

    def invalidate(self) -> None:
        super().invalidate()
        self._forget()

    def _chains(self) -> bool:
        return bool(self.csr & D_EN_NEXT and self.csr & D_EN_CNT)

    def _on(self) -> bool:
        on = self._values["csr"] & (D_EN_DMA | RESET) == D_EN_DMA
        return on and not self._sticky & ERR_PEND and not self._expired

    def _tell(self) -> None:
        if self.on_ready is not None and self._on():
            self.on_ready()


def _add(pieces: list[tuple[int, int]], address: int, length: int) -> None:
    """A piece, in two where the counter wraps."""
    first = min(length, _ADDRESSES - address)
    pieces.append((address, first))
    if first < length:
        pieces.append((0, length - first))
