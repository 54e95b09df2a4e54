# SPDX-License-Identifier: Apache-2.0
"""What a device model is made of: `Device`, `Register`, `Doorbell`, `Interrupt`.

Invariant: no device imports another, nor a transport; how a device is attached it cannot tell.
"""

from iodma.devices.base import Device
from iodma.devices.doorbell import Bell, Doorbell
from iodma.devices.interrupt import Interrupt
from iodma.devices.registers import Register
from iodma.devices.regmap import RegisterMap
from iodma.devices.state import Counts, DeviceState

__all__ = [
    "Device",
    "Register",
    "Doorbell",
    "Interrupt",
    "Bell",
    "Counts",
    "DeviceState",
    "RegisterMap",
]
