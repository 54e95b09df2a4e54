# SPDX-License-Identifier: Apache-2.0
"""A SPARCstation 5: the DMA side of a sun4m machine.

    with iodma.Engine() as engine, Sun4m(engine, network=iodma.Datagram(sock)) as board:
        board.store(0x1000_0000, 4, 1)          # as its processor would: the IOMMU is on

| file | its one concept |
|---|---|
| `places` | where everything is, which line it has, what QEMU calls it: data |
| `board` | the machine |
"""

from iodma.boards.sun4m.board import Sun4m
from iodma.boards.sun4m.places import MOST_RAM, PLACES, QOM, WIRES, Place

__all__ = ["MOST_RAM", "PLACES", "QOM", "WIRES", "Place", "Sun4m"]
