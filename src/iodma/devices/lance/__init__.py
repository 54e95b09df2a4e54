# SPDX-License-Identifier: Apache-2.0
"""The Am7990 Local Area Network Controller for Ethernet (LANCE).

    lance = Lance(engine.port(lanes, "lance"), network=iodma.Datagram(sock))
    bus.attach(lance, 0x78C0_0000)

Sections named in these files are those of the Am7990 data sheet; where it is silent, of that of
its CMOS version, the Am79C90 (C-LANCE).

| file | its one concept |
|---|---|
| `csr` | the control and status registers: bits, what a write does, the chip's states as a table |
| `initblock` | the initialization block and the MODE register in it |
| `descriptors` | message descriptors, and the rings that they stand in |
| `transmit` | from the transmit ring to the network, a batch at a time |
| `receive` | from the network to the receive ring |
| `wire` | what is known of the host's end of the cable |
| `address_filter` | which frames are for this station |
| `loopback` | the transmitter connected to the receiver |
| `device` | the chip: registers on a bus, its parts, an interrupt line |
"""

from iodma.devices.lance.csr import CSR0, CSR3
from iodma.devices.lance.descriptors import RMD1, TMD1, TMD3
from iodma.devices.lance.device import Lance
from iodma.devices.lance.initblock import InitializationBlock, Mode

__all__ = ["CSR0", "CSR3", "RMD1", "TMD1", "TMD3", "InitializationBlock", "Lance", "Mode"]
