# SPDX-License-Identifier: Apache-2.0
"""How a device is attached to a machine: in process, or to a VMM.

Invariant: a transport knows no device's meaning, and imports none.
"""

from iodma.transports.inprocess import Bus

__all__ = ["Bus"]
