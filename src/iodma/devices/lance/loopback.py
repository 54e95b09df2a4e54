# SPDX-License-Identifier: Apache-2.0
"""Loopback (MODE bits LOOP, INTL, COLL, DTCR; section "Loopback").

The transmitter sends to the receiver of the same chip, internally or by way of the network. The
whole packet has to fit into the chip's FIFO before any of it is sent: 32 bytes, which with the FCS
come back as 36.

- With DTCR clear the transmitter makes the FCS, which the receiver stores behind the data and does
  not check. With DTCR set the driver has made it, and the receiver checks it: a wrong one is CRC.
- The CRC logic is one: while it makes the FCS, the logical address filter does not work.
- COLL, in internal loopback: every attempt collides, and after 16 (one with DRTY) it is RTRY.
- What is longer than the FIFO takes ends in UFLO: the transmitter is emptied before it is filled.
- In internal loopback nothing is taken from the network; in external loopback other stations are
  heard, too.

Invariants
 - A packet that is looped back has been received, or missed, before its descriptors are given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from iodma.devices.lance.csr import RXON, TXON
from iodma.devices.lance.descriptors import ENTRY, RMD1
from iodma.devices.lance.initblock import Mode
from iodma.devices.lance.transmit import LOST_CARRIER, RETRY, SENT, UNDERFLOW, Ending, Packet
from iodma.errors import DmaFault
from iodma.types import Status

if TYPE_CHECKING:
    from iodma.devices.lance.device import Lance

__all__ = ["Loopback"]

#: Bytes of the longest packet that can be looped back, with its FCS.
LONGEST = 36
FCS = 4
_CRC_ERROR = int(RMD1.ERR | RMD1.CRC)


class Loopback:
    """What MODE says of loopback.

    Attributes:
        on: LOOP: packets come back.
        deaf: the network is not listened to.
    """

    __slots__ = ("_chip", "_collides", "_driver_fcs", "_internal", "deaf", "on")

    def __init__(self, chip: Lance) -> None:
        self._chip = chip
        mode = Mode(chip.mode)
        self.on = Mode.LOOP in mode
        self._internal = self.on and Mode.INTL in mode
        self.deaf = self._internal
        self._collides = self._internal and Mode.COLL in mode
        self._driver_fcs = Mode.DTCR in mode

    async def send(self, found: list[Packet], run: bytes) -> None:
        """Packets of the transmit ring, one after the other."""
        chip = self._chip
        for packet in found:
            if not chip.flags & TXON:
                return
            ending = packet.ending or await self._send(packet)
            if not chip.flags & TXON:  # it was stopped meanwhile
                return
            await chip.transmitter.give_back(run[: packet.entries * ENTRY], ending, packet.length)
            run = run[packet.entries * ENTRY :]

    async def _send(self, packet: Packet) -> Ending:
        chip = self._chip
        if packet.length + (0 if self._driver_fcs else FCS) > LONGEST:
            return UNDERFLOW
        data = b""
        for address, length in packet.list:
            data += await chip.payload.load_bytes(address, length)
        if self._collides:
            return RETRY
        if not self._internal:
            network = chip.link
            if network is None:
                return LOST_CARRIER
            done = await chip.payload.from_memory(packet.list, to=network)
            if done.fault is not None:
                raise DmaFault(done)
            if done.status is not Status.OK:
                return LOST_CARRIER
        await self._receive(data)
        return SENT

    async def _receive(self, data: bytes) -> None:
        chip, receiver = self._chip, self._chip.receiver
        if not chip.flags & RXON or not chip.filter.accepts(data, logical=self._driver_fcs):
            return
        status = 0
        if self._driver_fcs:
            if crc32(data[:-FCS]).to_bytes(FCS, "little") != data[-FCS:]:
                status = _CRC_ERROR
        else:
            data += crc32(data).to_bytes(FCS, "little")
        room = await receiver.room(len(data))
        if room is not None:
            await receiver.fill(room, 0, data)
            await receiver.give_back(room, len(data), status)
