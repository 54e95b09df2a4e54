# SPDX-License-Identifier: Apache-2.0
"""The SBus IOMMU: what stands between SBus masters and the memory of a sun4m machine.

Source: Sun-4M System Architecture (950-1373-01), the I/O MMU's chapter; STP1012 (microSPARC-II) has
the same registers. Offsets are from the machine's IOMMU base, 0x10000000 of an SS-5.

Registers are one word each; only whole words are accessed.

- **Control**: RNGE says how much of the top of the 32-bit bus has entries; ENAB switches
  translation on. While it is clear, bus addresses are physical ones; an address below the range is
  an error while it is set.
- **Base**: bits 35:14 of the table's physical address.
- **Flush**: any write to the one empties the IOTLB, an address written to the other its page. What
  is in flight through it is *revoked*: `busy` until it has ended. So do changes of control and
  base.
- **Slot configuration** is kept, and changes nothing: no master is in slots 0 to 3, so that none
  can bypass.
- **AFSR, AFAR**: of the first walk that faults: LE, RD for a read, and the bus address of the page.
  Further ones set ME and change nothing else, until either register is read or written, which also
  lowers the interrupt.

Where this and QEMU's model differ, for programs that compare the two:

- ENAB: QEMU translates whether or not it is set.
- Flush: QEMU keeps no IOTLB. Here an entry may go on being used until it is flushed.
- Range: QEMU drops the bits of an address above the range, here it is a fault; and from reset to
  the first write of control QEMU has no range, here it is that of RNGE 0.
- IOPTE: QEMU loses bits 35:32 of the page's address, and bits 35:31 of the table's.
- ME: QEMU never sets it, and describes the last fault.
- An invalid page faults the transfer, as a whole; QEMU tells the device that it succeeded.
- Slot configuration: BA16 is kept.
- Words that are no register read as ones; QEMU has plain memory there. The mask ID is read-only.

Invariants
 - The stage always has the range, table and mode that the registers say.
 - What a register write took away is in use by nobody once `busy` is false.
"""

from __future__ import annotations

from iodma._core import Space
from iodma.devices.base import Device
from iodma.devices.registers import Register
from iodma.devices.sbus_iommu.layout import (
    AFSR_RESV,
    ARBITER_MASK,
    IOPTE,
    MASK_ID,
    MID,
    PAGE_BYTES,
    RANGE_BYTES,
    SBAE_MASK,
    SLOT_MASK,
    Afsr,
    Arbiter,
    Control,
    page_frame,
)
from iodma.errors import ArgumentError, integer
from iodma.lease import Revocation, revoke
from iodma.stages import PageEntry, PageTable, TableFault, TableMode
from iodma.types import Access

__all__ = ["SbusIommu"]

_AFSR = 0xFF0F_FFFF
_END = 1 << 32
#: Those that are waited for one by one.
_REVOCATIONS = 64


class SbusIommu(Device):
    """The IOMMU of the SBus.

        iommu = SbusIommu(memory)
        port = engine.port(iommu.stage)

    Args:
        memory: physical memory, in which the page table is, too.
        version: IMPL and VERS of the control register, as they stand there.
        physical_bits: how many a physical address has: 36, or 31 in a microSPARC-II.
        name: for messages.

    Attributes:
        stage: what the DMA of SBus masters goes through.

    Raises:
        ArgumentError: a number of address bits that cannot be.
    """

    control = Register(0x0000, mask=Control.RNGE | Control.ENAB, write="_control_written")
    base = Register(0x0004, write="_base_written", doc="the table's address >> 4")
    flush_all = Register(0x0014, write="_flush_all", doc="flush the IOTLB")
    flush_page = Register(0x0018, write="_flush_page", doc="flush the page of an address")
    afsr = Register(0x1000, reset=AFSR_RESV, mask=_AFSR, read="_read_afsr", write="_clear_latch")
    afar = Register(0x1004, read="_read_afar", write="_clear_latch")
    arbiter = Register(
        0x1008, reset=Arbiter.P0 | Arbiter.P1, mask=ARBITER_MASK & ~Arbiter.P0, doc="arbiter enable"
    )
    sbcfg0 = Register(0x1010, mask=SLOT_MASK, doc="slot 0 configuration")
    sbcfg1 = Register(0x1014, mask=SLOT_MASK, doc="slot 1 configuration")
    sbcfg2 = Register(0x1018, mask=SLOT_MASK, doc="slot 2 configuration")
    sbcfg3 = Register(0x101C, mask=SLOT_MASK, doc="slot 3 configuration")
    mfsr = Register(0x1020, doc="memory fault status")
    mfar = Register(0x1024, doc="memory fault address")
    mid = Register(0x2000, reset=MID, mask=SBAE_MASK, doc="module ID, SBus arbitration enable")
    mask_id = Register(0x3018, access="ro", reset=MASK_ID, doc="mask ID")

    stage: PageTable

    def __init__(
        self,
        memory: Space,
        *,
        version: int = 0x0500_0000,
        physical_bits: int = 36,
        name: str | None = None,
    ) -> None:
        version = integer(version, "version")
        if not 0 <= version < _END or version & ~(Control.IMPL | Control.VERS):
            raise ArgumentError(f"version is {version:#x}; IMPL and VERS, bits 31:24, are right")
        if not 31 <= integer(physical_bits, "physical_bits", "bits") <= 36:
            raise ArgumentError(f"{physical_bits} bits of a physical address; 31 to 36 are right")
        super().__init__(None, name=name)
        self._version = version
        self._base_mask = ((1 << physical_bits) - 1) >> 4 & 0xFFFF_FC00
        self._revoking: list[Revocation] = []
        self._more_to_revoke = False
        self._latched = False
        self.stage = PageTable(
            memory,
            PageEntry(
                width=IOPTE.width,
                byteorder=IOPTE.byteorder,
                valid=IOPTE.valid,
                write=IOPTE.write,
                frame=page_frame(physical_bits),
                shift=IOPTE.shift,
                cacheable=IOPTE.cacheable,
            ),
            page=PAGE_BYTES,
            first=_END - RANGE_BYTES[0],
            length=RANGE_BYTES[0],
            mode=TableMode.PASS,
            on_fault=self._fault,
            name=self.name,
        )
        self.control = version

    @property
    def busy(self) -> bool:
        """Whether DMA that a flush, or a change of the table, took away has yet to end."""
        self._revoking = [each for each in self._revoking if not each.done]
        if not self._revoking and self._more_to_revoke:
            self._more_to_revoke = False
            self._take_back(0, 0)
        return bool(self._revoking)

    async def settled(self) -> None:
        """Waits until it is not busy."""
        while self.busy:
            await self._revoking[0]

    def reset(self) -> None:
        self.control = self._version
        self._latched = False
        self._apply()

    # --- registers --------------------------------------------------------------------------------

    def _control_written(self, value: int, old: int) -> None:
        if self.control != old:
            self._apply()

    def _base_written(self, value: int, old: int) -> None:
        self.base = value & self._base_mask
        if self.base != old:
            self._apply()

    def _apply(self) -> None:
        """The stage as the registers say."""
        length = RANGE_BYTES[(self.control & Control.RNGE) >> 2]
        on = self.control & Control.ENAB
        self.stage._set(
            table=self.base << 4,
            first=_END - length,
            length=length,
            mode=TableMode.TRANSLATE if on else TableMode.PASS,
            outside=TableMode.REFUSE,
        )
        self._take_back(0, 0)

    def _flush_all(self, value: int) -> None:
        self._take_back(*self.stage._forget())

    def _flush_page(self, value: int) -> None:
        self._take_back(*self.stage._forget(value))

    def _take_back(self, start: int, size: int) -> None:
        """What is in flight through a range (size 0: to the end) that has just changed.

        However often a guest does that, few revocations are waited for: when they are done, the
        rest is one of everything.
        """
        if len(self._revoking) >= _REVOCATIONS and self.busy:
            self._more_to_revoke = True
            return
        revocation = revoke(self.stage, start, size, cancel=False, deadline=None)
        if not revocation.done:
            self._revoking.append(revocation)

    # --- faults -----------------------------------------------------------------------------------

    def _fault(self, fault: TableFault) -> None:
        if self._latched:
            self.afsr |= Afsr.ME
            return
        self._latched = True
        read = Afsr.RD if fault.access is Access.READ else 0
        self.afsr = Afsr.ERR | Afsr.LE | Afsr.FAV | AFSR_RESV | read
        self.afar = fault.address - fault.address % PAGE_BYTES & _END - 1
        self.interrupt.set(True)

    def _clear_latch(self, value: int | None = None) -> None:
        self._latched = False
        self.interrupt.set(False)

    def _read_afsr(self) -> int:
        self._clear_latch()
        return self.afsr

    def _read_afar(self) -> int:
        self._clear_latch()
        return self.afar
