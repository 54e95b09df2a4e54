# SPDX-License-Identifier: Apache-2.0
"""What is known of the host's end of the cable without waiting for it.

Invariants
 - Nothing is taken from the network here, nor sent to it.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iodma.endpoints import Endpoint

__all__ = ["readable", "writable"]


def _ready(network: Endpoint | None, event: int) -> bool:
    if network is None or network.closed or network._fd < 0:
        return False
    poll = select.poll()
    poll.register(network._fd, event)
    return any(events & event for _, events in poll.poll(0))


def writable(network: Endpoint | None) -> bool:
    """Whether the host would take a frame now."""
    return _ready(network, select.POLLOUT)


def readable(network: Endpoint | None) -> bool:
    """Whether a frame waits in the host."""
    return _ready(network, select.POLLIN)
