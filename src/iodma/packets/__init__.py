# SPDX-License-Identifier: Apache-2.0
"""Packet stages: what stands between a device's packets and a host endpoint that has none.

| file | its one concept |
|---|---|
| `framed` | packets on a stream, each behind its length |

Invariant: payload stays where it is; headers are put in front and taken off.
"""

from iodma.packets.framed import Framed

__all__ = ["Framed"]
