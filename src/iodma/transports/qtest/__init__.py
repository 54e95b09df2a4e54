# SPDX-License-Identifier: Apache-2.0
"""QEMU's qtest protocol: a program drives a machine over a socket, a line for each access.

It is the protocol of ``qemu-system-... -qtest``: commands like ``writel 0x10000000 1`` or
``irq_intercept_out PATH``, each answered with a line. Programs that were written for it drive a
machine made here.

In which order to read: `words` (what stands in a line), `space` (what addresses lead to), `clock`,
`machine` (what is driven), `commands`, `interception` (interrupt lines), `settle` (when a command
is done), `lines` (the socket), `session`, `server`.
"""

from iodma.transports.qtest.clock import SteppedClock
from iodma.transports.qtest.machine import Machine, Pins
from iodma.transports.qtest.server import QtestServer
from iodma.transports.qtest.space import PhysicalSpace

__all__ = ["Machine", "PhysicalSpace", "Pins", "QtestServer", "SteppedClock"]
