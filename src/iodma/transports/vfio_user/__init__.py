# SPDX-License-Identifier: Apache-2.0
"""vfio-user: a PCI device of this process in a VMM, which shares guest memory and eventfds over a
unix socket.

Invariant: nothing here knows what kind of device it is.
"""

from iodma.transports.vfio_user.server import VfioUserServer

__all__ = ["VfioUserServer"]
