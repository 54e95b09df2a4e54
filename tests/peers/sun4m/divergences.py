# SPDX-License-Identifier: Apache-2.0
"""What is not as QEMU has it, on purpose, each with the section that says who is right.

Invariants:

- A predicate accepts the values that the entry names and no others, so that nothing else hides
  behind it; how often each was needed is reported by every campaign.
- Only behaviour that a datasheet settles is here. Where QEMU and the datasheet agree, there is no
  entry: the device is wrong.
"""

from __future__ import annotations

from tests.peers.sun4m.compare import Divergence

DIVERGENCES: tuple[Divergence, ...] = ()
