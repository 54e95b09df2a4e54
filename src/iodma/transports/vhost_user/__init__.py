# SPDX-License-Identifier: Apache-2.0
"""vhost-user: a virtio device of this process in a VMM, which shares guest memory, rings and
eventfds over a unix socket.

Invariant: nothing here knows what kind of device it is.
"""

from iodma.transports.vhost_user.server import VhostUserServer

__all__ = ["VhostUserServer"]
